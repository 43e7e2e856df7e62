"""One line and one measurement for each answered request."""

import logging
import time
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.metrics import Metrics

logger = logging.getLogger("routeur.access")

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


class AccessLogMiddleware:
    """Logs method, path (never the query: it may hold what people should not send there), status and time."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Measure until the last byte."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 0

        def send_noting(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        self._metrics.requests_open += 1
        try:
            await self._app(scope, receive, send_noting)
        finally:
            self._metrics.requests_open -= 1
            self._note(scope, status or 499, time.perf_counter() - begun)  # 499: the client left before an answer

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.request_answered(method, route, status, seconds)
        if logger.isEnabledFor(logging.INFO):
            client = scope.get("client")
            logger.info(
                "%s %s %d",
                method,
                scope["path"],
                status,
                extra={"seconds": round(seconds, 4), "client": client[0] if client else None},
            )
