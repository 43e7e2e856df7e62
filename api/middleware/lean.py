"""The short way to the routes that are asked most: past the search for a route, and what FastAPI wraps around one."""

from collections.abc import Iterable

from starlette.requests import Request
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import on_routeur_error
from api.openai.door import LeanRoute
from domain.errors import RouteurError


class LeanMiddleware:
    """Innermost: what it answers has passed all others. Everything else goes on to the router.

    Args:
        routes: of the application; those that are lean are taken from here.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        lean = [route for route in routes if isinstance(route, LeanRoute)]
        self._routes = {(route.path, method): route for route in lean for method in route.methods or ()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        route = None
        if scope["type"] == "http" and not scope.get("root_path"):
            route = self._routes.get((scope["path"], scope["method"]))
        if route is None or scope.get("fastapi.telemetry") is not None:  # whoever traces wants to see the whole way
            await self._app(scope, receive, send)
            return
        scope["route"], scope["endpoint"], scope["path_params"] = route, route.endpoint, {}
        request = Request(scope, receive)
        try:
            response = await route.lean(request)
        except RouteurError as error:
            response = await on_routeur_error(request, error)
        await response(scope, receive, send)
