"""Telling an address of the caller's choosing, without being led to where only we can go.

Every address that a name stands for is looked at before the connection, which then goes to that very address; no
redirect is followed, and what the other side answers is not passed on. Signed as Standard Webhooks
(https://www.standardwebhooks.com): `webhook-id`, `webhook-timestamp`, `webhook-signature`.
"""

import asyncio
import base64
import hashlib
import hmac
import socket
import time
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from domain.errors import InvalidRequest

MAX_ANSWER = 10_000  # bytes of an answer that are read, and thrown away
_SECRET_CONTEXT = b"routeur webhook secret:"


class WebhookRefused(Exception):
    """The address is not one we call; the message says why."""


class WebhookFailed(Exception):
    """It was not taken; the message is for the owner of the run. `final`: trying again makes no sense."""

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class WebhookGuard:
    """Which addresses may be called: public ones, and the networks that the settings allow."""

    def __init__(self, allowed: tuple[str, ...] = ()) -> None:
        self._allowed: list[IPv4Network | IPv6Network] = [ip_network(one) for one in allowed]

    def check(self, url: str) -> None:
        """Look at an address as it is written; the name behind it is looked at when it is called.

        Raises:
            InvalidRequest: it is none we call.
        """
        try:
            self.check_host(url)
        except WebhookRefused as error:
            raise InvalidRequest(f"webhook: {error}", param="webhook", code="webhook_refused") from error

    def check_host(self, url: str) -> str:
        """The host of an address. Raises WebhookRefused."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise WebhookRefused("the address cannot be read") from error
        if parts.scheme not in ("http", "https") or not host or port == 0:
            raise WebhookRefused("the address must be http:// or https:// with a host")
        if parts.username or parts.password:
            raise WebhookRefused("the address must not hold a password")
        try:
            ip_address(host)
        except ValueError:
            last = host.rstrip(".").rpartition(".")[2]
            if last.isdigit() or last.startswith("0x"):  # 127.1, 0x7f.1: addresses by the old rules
                raise WebhookRefused("the address must be written in full") from None
            if host == "localhost" or host.endswith((".localhost", ".internal", ".local")):
                self.check_address("127.0.0.1")
            return host
        self.check_address(host)
        return host

    def check_address(self, address: str) -> None:
        """Look at one IP address. Raises WebhookRefused."""
        ip = ip_address(address.partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip  # the same address, written longer
        behind = getattr(ip, "sixtofour", None)
        for one in (ip, behind) if behind is not None else (ip,):
            if any(one.version == network.version and one in network for network in self._allowed):
                continue
            if not one.is_global or one.is_multicast or one.is_reserved:
                raise WebhookRefused("the address is not public; see WEBHOOK_ALLOWED_NETWORKS")


class WebhookClient:
    """Sends signed notes."""

    def __init__(self, guard: WebhookGuard, server_secret: str, within: float) -> None:
        self._guard = guard
        self._key = server_secret.encode()
        self._within = within
        self._session: aiohttp.ClientSession | None = None

    def secret_of(self, owner_id: str) -> str:
        """With which that owner's notes are signed: derived, so it need not be kept anywhere."""
        return "whsec_" + base64.b64encode(self._secret(owner_id)).decode()

    async def send(self, url: str, owner_id: str, note_id: str, body: bytes) -> None:
        """Tell `url`, once.

        Raises:
            WebhookRefused: it may not be called.
            WebhookFailed: it was not taken.
        """
        self._guard.check_host(url)
        stamp = str(int(time.time()))
        signed = hmac.digest(self._secret(owner_id), b".".join((note_id.encode(), stamp.encode(), body)), "sha256")
        headers = {
            "content-type": "application/json",
            "user-agent": "routeur-ia-api",
            "webhook-id": note_id,
            "webhook-timestamp": stamp,
            "webhook-signature": "v1," + base64.b64encode(signed).decode(),
        }
        try:
            async with asyncio.timeout(self._within):
                async with self._open().post(url, data=body, headers=headers, allow_redirects=False) as answer:
                    await answer.content.read(MAX_ANSWER)
                    status = answer.status
        except TimeoutError as error:
            raise WebhookFailed(f"no answer within {self._within:g} s") from error
        except (aiohttp.ClientError, ConnectionError) as error:
            refused = _refusal_in(error)
            if refused is not None:
                raise refused from error
            raise WebhookFailed("the address cannot be reached") from error
        if not 200 <= status < 300:
            raise WebhookFailed(f"answered {status}", final=status == 410)

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    def _secret(self, owner_id: str) -> bytes:
        return hmac.digest(self._key, _SECRET_CONTEXT + owner_id.encode(), hashlib.sha256)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(resolver=_GuardedResolver(self._guard), limit=50, use_dns_cache=False)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._session


class _GuardedResolver(AbstractResolver):
    """What a name stands for, if all of it may be called: the connection goes to what was looked at."""

    def __init__(self, guard: WebhookGuard) -> None:
        self._guard = guard
        self._plain = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._plain.resolve(host, port, family)
        for one in found:
            try:
                self._guard.check_address(one["host"])
            except WebhookRefused as error:
                raise OSError(str(error)) from error
        return found

    async def close(self) -> None:
        await self._plain.close()


def _refusal_in(error: BaseException | None) -> WebhookRefused | None:
    """The guard's word, wherever aiohttp has put it."""
    seen: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, WebhookRefused):
            return one
        pending += [one.__cause__, one.__context__, getattr(one, "os_error", None)]
    return None
