"""Only the names we are known by: a Host header from elsewhere is a DNS rebinding, or a mistake."""

from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import error_response
from domain.errors import InvalidRequest


class AllowedHostsMiddleware:
    """Refuses other Host headers. `*.example.com` allows every name under it."""

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in allowed if not name.startswith("*."))
        self._endings = tuple(name[1:].lower() for name in allowed if name.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on, or refuse."""
        if scope["type"] in ("http", "websocket") and not self._known(scope):
            error = InvalidRequest("This host name is not served here.", code="unknown_host")
            path: str = scope["path"]
            if scope["type"] == "http":
                await error_response(error, openai=path.startswith("/v1/"), status=421)(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        await self._app(scope, receive, send)

    def _known(self, scope: Scope) -> bool:
        header = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1").lower()
        name = header.rpartition("]")[0] + "]" if header.startswith("[") else header.partition(":")[0]
        return name in self._names or name.endswith(self._endings)
