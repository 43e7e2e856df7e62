"""`POST /mcp`: our agents as tools of the Model Context Protocol (streamable HTTP, without sessions).

Who calls, from where and with how much is settled here, before the code of the protocol (`api/mcp_server.py`) is asked,
or even imported.
"""

import asyncio
import importlib
from typing import Annotated, Any, Protocol

import orjson
from fastapi import APIRouter, Depends, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from api.dependencies import AllServices
from api.errors import error_response
from core.dependencies import require
from domain.auth import Principal, Scope
from domain.errors import Forbidden, Unavailable, UnsupportedMedia
from services.agent_tools import AgentTools

router = APIRouter()

Caller = Annotated[Principal, Depends(require(Scope.COMPLETION))]

_PARSE_ERROR, _INVALID_REQUEST = -32_700, -32_600  # JSON-RPC
_MAX_DEPTH = 64  # of a message; what an agent takes is flat
_MAX_INT = 2**53  # what every JSON reader can hold


class _Server(Protocol):
    async def answer(self, message: dict[str, Any], request: Request, caller: Principal) -> Response: ...


@router.post("/mcp", include_in_schema=False)
async def mcp(request: Request, caller: Caller, services: AllServices) -> Response:
    """One message of MCP. GET and DELETE answer 405: there are no sessions to listen to or to end."""
    _check_origin(request, services)
    server = await _server_of(request, services)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return error_response(UnsupportedMedia("The body must be application/json."))
    try:
        message = orjson.loads(await request.body())
    except ClientDisconnect:
        return Response(status_code=400)  # nobody is there to read it
    except orjson.JSONDecodeError:
        return _refuse(_PARSE_ERROR, "The body is not JSON.")
    if not isinstance(message, dict):
        return _refuse(_INVALID_REQUEST, "The body must be one JSON-RPC message; batches are not taken.")
    if not _is_plain(message):
        return _refuse(
            _INVALID_REQUEST, f"The body is nested more than {_MAX_DEPTH} deep, or its numbers are too large."
        )
    return await server.answer(message, request, caller)


def _check_origin(request: Request, services: AllServices) -> None:
    """A page of somebody else's, in a browser that reaches us, must not speak for its user (DNS rebinding).

    Raises:
        Forbidden: the page's origin is not in CORS_ORIGINS.
    """
    origin = request.headers.get("origin")
    allowed = services.settings.server.cors_origins
    if origin is not None and origin not in allowed and "*" not in allowed:
        raise Forbidden("Pages of this origin may not call; CORS_ORIGINS names those that may.", code="unknown_origin")


async def _server_of(request: Request, services: AllServices) -> _Server:
    """The one server of this application, made when it is first asked for.

    Raises:
        Unavailable: the extra is not installed.
    """
    state = request.app.state
    server: _Server | None = getattr(state, "mcp", None)
    if server is None:
        try:
            # Half a second of imports, in a thread, and only for those who speak MCP.
            module = await asyncio.to_thread(importlib.import_module, "api.mcp_server")
        except ImportError as error:
            raise Unavailable(
                "MCP needs a package that is not installed: uv sync --extra mcp.", code="mcp_not_installed"
            ) from error
        tools = AgentTools(services.registry, services.agents)
        server = state.mcp = module.AgentServer(tools, request.app.version, services.settings.server.heartbeat)
    return server


def _is_plain(message: Any) -> bool:
    """Nothing in it that our or anybody's reader stumbles over."""
    level: list[Any] = [message]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if any(isinstance(child, int) and abs(child) > _MAX_INT for child in level):
            return False
        if not level:
            return True
    return False


def _refuse(code: int, message: str) -> Response:
    body = {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}
    return Response(orjson.dumps(body), 400, {"cache-control": "no-store"}, "application/json")
