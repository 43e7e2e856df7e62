"""Every answer names its request: `x-request-id`, the caller's own if it is harmless, else a new one."""

import re
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uuid_utils import uuid7

from core.logging import request_id

_HARMLESS = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")


class RequestIdMiddleware:
    """Outermost: what it sets is in every log line and on every answer, errors too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name the request, then hand it on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        name = given if _HARMLESS.fullmatch(given) else f"req_{uuid7().hex}".encode()
        token = request_id.set(name.decode())

        def send_named(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name)]
            return send(message)

        try:
            await self._app(scope, receive, send_named)
        finally:
            request_id.reset(token)
