"""`Idempotency-Key`: a POST that is sent twice is done once, and answered twice with the same bytes."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import error_response
from core.dependencies import current_user
from domain.errors import RouteurError, Unauthenticated
from services.idempotency_service import MAX_ANSWER_BYTES, Claim, IdempotencyService, KeptAnswer

logger = logging.getLogger(__name__)

_RENEW_EVERY = 10.0  # seconds
#: Tokens are not kept anywhere, also not for a day.
_NEVER = (
    "/auth/token",
    "/auth/revoke",
    "/auth/logout",
    "/v1/realtime/client_secrets",
    "/v1/realtime/calls",
    "/realtime/offer",
)
_NOT_KEPT = (b"date", b"content-length", b"connection", b"transfer-encoding")


class IdempotencyMiddleware:
    """Answers a key that is known, and keeps the answer of one that is not. Stands inside the body limit."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what has no key; who has no login is refused by the route."""
        key = _key_of(scope)
        if key is None:
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        try:
            caller = await current_user(connection)
        except Unauthenticated:
            await self._app(scope, receive, send)
            return
        except RouteurError as error:
            await _refuse(error, scope, receive, send)
            return
        body = await _read(receive)
        if body is None:
            return  # the client left before it had said everything
        service: IdempotencyService = connection.app.state.services.idempotency
        try:
            claim = await service.claim(caller.user_id, key, _fingerprint(scope, body))
        except RouteurError as error:
            await _refuse(error, scope, receive, send)
            return
        if isinstance(claim, KeptAnswer):
            await _replay(claim, send)
            return
        scope.setdefault("state", {})["made_id"] = claim.made_id
        async with _renewed(service, claim):
            await _Recording(service, claim, send).run(self._app, scope, _again(body, receive))


class _Recording:
    """One answer on its way out: kept, or its key let go, before its last byte is sent."""

    def __init__(self, service: IdempotencyService, claim: Claim, send: Send) -> None:
        self._service = service
        self._claim = claim
        self._send = send
        self._status = 0
        self._headers: list[tuple[str, str]] = []
        self._body = bytearray()
        self._settled = False

    async def run(self, app: ASGIApp, scope: Scope, receive: Receive) -> None:
        """Let `app` answer; release the key when that came to nothing."""
        try:
            await app(scope, receive, self._pass_on)
        finally:
            if not self._settled:
                with suppress(RouteurError):
                    await asyncio.shield(self._service.release(self._claim))

    async def _pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in _NOT_KEPT]
            self._headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
        elif message["type"] == "http.response.body":
            if len(self._body) <= MAX_ANSWER_BYTES:
                self._body += message.get("body", b"")
            if not message.get("more_body"):
                await asyncio.shield(self._settle())  # before the last byte: who hears it may ask again at once
        await self._send(message)

    async def _settle(self) -> None:
        """Keep the answer, or let the key go when it was none."""
        if 200 <= self._status < 300 and len(self._body) <= MAX_ANSWER_BYTES:
            await self._service.keep(self._claim, KeptAnswer(self._status, self._headers, bytes(self._body)))
        else:
            await self._service.release(self._claim)
        self._settled = True


def _key_of(scope: Scope) -> str | None:
    if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] in _NEVER:
        return None
    found = [value for name, value in scope["headers"] if name == b"idempotency-key"]
    return found[0].decode("latin-1") if found else None


def _fingerprint(scope: Scope, body: bytes) -> str:
    digest = hashlib.sha256()
    for part in (scope["method"].encode(), scope["path"].encode(), scope["query_string"], body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None when the client left."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that tells the body once more, and then what still comes."""
    told = False

    async def tell() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return tell


async def _replay(answer: KeptAnswer, send: Send) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    headers += [(b"content-length", str(len(answer.body)).encode()), (b"idempotent-replayed", b"true")]
    headers = [(name, value) for name, value in headers if name != b"x-request-id"]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def _refuse(error: RouteurError, scope: Scope, receive: Receive, send: Send) -> None:
    path: str = scope["path"]
    await error_response(error, openai=path.startswith("/v1/"))(scope, receive, send)


@asynccontextmanager
async def _renewed(service: IdempotencyService, claim: Claim) -> AsyncIterator[None]:
    """Say from time to time that somebody is still at work."""

    async def renew() -> None:
        while True:
            await asyncio.sleep(_RENEW_EVERY)
            with suppress(RouteurError):
                await service.renew(claim)

    task = asyncio.create_task(renew(), name="idempotency lease")
    try:
        yield
    finally:
        task.cancel()
