"""The workbench: a fake provider, the relay and our server, running side by side, and one light client."""

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import aiohttp
import psutil

from benchmarks.dialects import OPENAI, OPENAI_STREAM, Dialect
from benchmarks.processes import Server, ServerFailed, raise_file_limit, spare_cores, started
from benchmarks.speech import FIRST_WORD

Subject = Literal["ours", "relay", "unrecorded", "door"]

UNRECORDED = (sys.executable, "-m", "benchmarks.unrecorded")
SERVE = (str(Path(sys.executable).with_name("routeur")), "serve")
_REQUEST_LIMIT = 60.0  # seconds for one answer, however long the stream
_IDLE_WATCH, _IDLE_SHARE, _IDLE_LIMIT = 0.3, 0.02, 20.0  # seconds, share of a processor, seconds
_ENVIRONMENT = {
    "HOST": "127.0.0.1",
    "PORT": "{port}",
    "DATA_DIR": "{folder}",
    "LOG_LEVEL": "WARNING",
    "DISCOVER_LOCAL": "false",
    "OPENAI_API_KEY": "bench",
    "ADMIN_USERNAME": "bench",
    "ACCESS_TOKEN_TTL": "3600",
    "RUN_MAX_PER_USER": "1000",
    "MAX_CONCURRENT_RUNS": "5000",
    "PROVIDER_MAX_CONNECTIONS": "5000",
    "RUN_MAX_QUEUED_PER_USER": "1000000",
    "RUN_MAX_QUEUED": "1000000",
}


@dataclass(frozen=True, slots=True)
class Target:
    """A server that is measured, and the credential it wants. `is_relay`: it speaks OpenAI's dialect only."""

    server: Server
    is_relay: bool
    headers: Mapping[str, str] = field(default_factory=dict)

    def dialect(self, ours: Dialect) -> Dialect:
        """The route to ask: ours, or the relay's of the same kind."""
        if not self.is_relay:
            return ours
        return OPENAI_STREAM if ours.streamed else OPENAI


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, unread."""

    status: int
    body: bytes


class Bench:
    """Everything that a measure needs. The reference is the relay, the subject is what is compared to it."""

    def __init__(
        self,
        client: aiohttp.ClientSession,
        provider: Target,
        subject: Subject,
        core: Sequence[int],
        stack: AsyncExitStack,
    ) -> None:
        self.provider = provider
        self._stack = stack
        self._kept: dict[Subject, Target] = {}
        self._client = client
        self._subject: Subject = subject
        self._core = core

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[tuple[Target, Target]]:
        """A fresh relay and a fresh subject."""
        async with self.fresh("relay") as reference, self.fresh(self._subject) as subject:
            yield reference, subject

    async def kept(self, subject: Subject) -> Target:
        """One more server, the same at every call; it ends with the bench."""
        if subject not in self._kept:
            self._kept[subject] = await self._stack.enter_async_context(self.fresh(subject))
        return self._kept[subject]

    @asynccontextmanager
    async def fresh(self, subject: Subject) -> AsyncIterator[Target]:
        """One server that has answered nothing yet, but the login."""
        upstream = f"{self.provider.server.url}/v1"
        if subject == "relay":
            async with started("relay", _relay, {"RELAY_UPSTREAM": upstream}, self._core) as server:
                await _idle(server)
                yield Target(server, is_relay=True)
            return
        password = secrets.token_urlsafe(24)
        environment = {**_ENVIRONMENT, "OPENAI_BASE_URL": upstream, "ADMIN_PASSWORD": password}
        if subject == "door":
            environment["RUN_CONCURRENCY"] = "0"
        command = UNRECORDED if subject == "unrecorded" else SERVE
        async with started(subject, lambda _port: command, environment, self._core) as server:
            headers = await self._log_in(server, password)
            await _idle(server)
            yield Target(server, is_relay=False, headers=headers)

    async def ask(self, target: Target, dialect: Dialect, model: str) -> Reply:
        """One question, and the whole answer."""
        async with self._post(target, dialect, model) as response:
            return Reply(response.status, await response.read())

    async def get(self, target: Target, path: str) -> Reply:
        """What is there."""
        async with self._client.get(target.server.url + path, headers=target.headers) as response:
            return Reply(response.status, await response.read())

    async def ask_until_first_word(self, target: Target, dialect: Dialect, model: str) -> Reply:
        """One question, and the answer so far when its first token arrives. The rest is not read."""
        async with self._post(target, dialect, model) as response:
            return await _first_word(response)

    @asynccontextmanager
    async def held_open(self, target: Target, dialect: Dialect, model: str, count: int) -> AsyncIterator[None]:
        """`count` streams that have said their first word, open until the context ends."""
        async with AsyncExitStack() as stack:
            for _ in range(count):
                response = await stack.enter_async_context(self._post(target, dialect, model))
                await _first_word(response)
            yield

    async def ask_many(
        self, target: Target, dialect: Dialect, model: str, requests: int, at_once: int, stagger: float = 0.0
    ) -> list[Reply]:
        """`requests` questions by `at_once` askers, who begin evenly spread over `stagger` seconds."""
        left = iter(range(requests))
        replies: list[Reply] = []

        async def asker(number: int) -> None:
            await asyncio.sleep(stagger * number / at_once)
            for _ in left:
                replies.append(await self.ask(target, dialect, model))

        async with asyncio.TaskGroup() as group:
            for number in range(at_once):
                group.create_task(asker(number))
        return replies

    def _post(
        self, target: Target, dialect: Dialect, model: str
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        return self._client.post(target.server.url + dialect.path, json=dialect.body(model), headers=target.headers)

    async def _log_in(self, server: Server, password: str) -> dict[str, str]:
        form = {"grant_type": "password", "username": _ENVIRONMENT["ADMIN_USERNAME"], "password": password}
        async with self._client.post(f"{server.url}/auth/token", data=form) as response:
            if response.status != 200:
                raise ServerFailed(f"the login was answered with {response.status}: {await response.text()}")
            token = (await response.json())["access_token"]
        return {"authorization": f"Bearer {token}"}


@asynccontextmanager
async def open_bench(subject: Subject) -> AsyncIterator[Bench]:
    """A provider and a client, kept off the processor of the servers that are measured where there is a second one.

    Raises:
        ServerFailed: a server did not start.
    """
    raise_file_limit()
    core, others = spare_cores()
    if others:
        psutil.Process().cpu_affinity(others)
    async with (
        started("provider", _provider, {}, others) as provider,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=_REQUEST_LIMIT),
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as client,
        AsyncExitStack() as stack,
    ):
        yield Bench(client, Target(provider, is_relay=True), subject, core, stack)


async def _idle(server: Server) -> None:
    """Wait until a server has done what it does after starting: that belongs to no request."""
    deadline = time.monotonic() + _IDLE_LIMIT
    used = server.cpu_seconds()
    while time.monotonic() < deadline:
        await asyncio.sleep(_IDLE_WATCH)
        before, used = used, server.cpu_seconds()
        if used - before < _IDLE_WATCH * _IDLE_SHARE:
            return
    raise ServerFailed(f"{server.name} is still busy {_IDLE_LIMIT:g} s after its start")


async def _first_word(response: aiohttp.ClientResponse) -> Reply:
    begun = b""
    async for piece in response.content.iter_any():
        begun += piece
        if FIRST_WORD in begun:
            return Reply(response.status, begun)
    raise ServerFailed(f"a stream ended without a word (status {response.status}): {begun[:500]!r}")


def _provider(port: int) -> Sequence[str]:
    return (sys.executable, "-m", "benchmarks.fake_provider", str(port))


def _relay(port: int) -> Sequence[str]:
    return (
        *(sys.executable, "-m", "uvicorn", "benchmarks.relay:create_app", "--factory"),
        *("--host", "127.0.0.1", "--port", str(port), "--log-level", "warning", "--no-access-log"),
    )
