"""No body larger than we are ready to hold."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import error_response
from domain.errors import TooLarge

_LINGER = 2.0  # seconds that a client who is still sending has to hear our answer
_DRAINED = 32_000_000  # bytes of a refused body that are read and dropped; more, and the connection is just closed


class BodyLimitMiddleware:
    """Refuses by Content-Length before a byte is read, and counts what comes without one.

    Args:
        limit_for: the largest body, in bytes, for a path.
    """

    def __init__(self, app: ASGIApp, limit_for: Callable[[str], int]) -> None:
        self._app = app
        self._limit_for = limit_for

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on a `receive` that stops at the limit."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        limit = self._limit_for(scope["path"])
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), None)
        if declared is not None and (not declared.isdigit() or int(declared[:20]) > limit):
            await self._refuse(scope, receive, send, limit)
            return
        received, answered, over = 0, False, False

        async def receive_counting() -> Message:
            nonlocal received, over
            if over:
                return {"type": "http.disconnect"}
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                # Raising here would surface as a 500: end the body as if the client had left, and answer ourselves.
                over = True
                return {"type": "http.disconnect"}
            return message

        def send_unless_over(message: Message) -> Awaitable[None]:
            nonlocal answered
            if over:
                return _nothing()
            answered = True
            return send(message)

        try:
            await self._app(scope, receive_counting, send_unless_over)
        except Exception:
            if not over:
                raise
        if over and not answered:
            await self._refuse(scope, receive, send, limit)

    @staticmethod
    async def _refuse(scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        """Answer 413. A client that is still sending hears no answer, so a bounded rest of the body is read first."""
        if not any(name == b"expect" for name, _ in scope["headers"]):  # that one waits for our word before it sends
            drained, more = 0, True
            while more and drained < _DRAINED:
                message = await receive()
                drained += len(message.get("body", b""))
                more = message.get("more_body", False)
        error = TooLarge(f"The body is larger than {limit / 1_000_000:g} MB.", code="body_too_large")
        path: str = scope["path"]
        response = error_response(error, openai=path.startswith("/v1/"))
        response.headers["connection"] = "close"  # the rest of the body is not worth reading

        async def send_and_linger(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            await send({**message, "more_body": True})
            await _linger(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await response(scope, receive, send_and_linger)


async def _linger(receive: Receive) -> None:
    """Drop what still comes, for a moment: closing a connection with unread bytes resets it, and takes back our answer.

    It is read slowly: who has to wait before it can send more looks at what it was told.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_LINGER):
            while (await receive()).get("more_body", False):  # noqa: ASYNC110 - nobody sets an event, a client is waited for
                await asyncio.sleep(_LINGER / 200)


async def _nothing() -> None:
    pass
