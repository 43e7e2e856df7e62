"""The last net: an error nobody foresaw becomes a 500 that tells nothing, and a log line that tells all."""

from collections.abc import Awaitable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import on_unexpected
from api.streaming.response import ClientLeft


class UnexpectedErrorMiddleware:
    """Inside the request id, so that the answer and the log line carry it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 500 when nothing has been said yet; else let the server cut the connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        def send_noting(message: Message) -> Awaitable[None]:
            nonlocal started
            started = True
            return send(message)

        try:
            await self._app(scope, receive, send_noting)
        except ClientLeft:
            return
        except Exception as error:
            if started:
                raise
            response = await on_unexpected(Request(scope), error)
            await response(scope, receive, send)
