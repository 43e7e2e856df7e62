"""What is answered to each message of MCP: our agents are its tools. Imported at the first request (an extra).

The words are those of the official SDK (`mcp.types`); its server and its transport are not used: that transport ends
its streams at SIGTERM and not after SHUTDOWN_GRACE, answers 500 to some bodies that are no JSON, and its server tells
callers the text of any exception. Without sessions an answer needs its request and its caller, and nothing else: one
object serves everybody. The session id that clients get is a name for them, not a thing of ours: it only says whose
call a `notifications/cancelled` means, and any is taken.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, TypeVar
from uuid import uuid4

import orjson
from mcp import types
from mcp.shared.version import SUPPORTED_PROTOCOL_VERSIONS
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from api.errors import invalid_request
from api.streaming.response import EventStreamResponse, while_connected
from api.streaming.sse import HEARTBEAT
from domain.auth import Principal
from domain.errors import AgentNotFound, ErrorKind, InternalError, RouteurError
from domain.text import clean_text
from services.agent_tools import AgentAnswer, AgentCall, AgentTools, Listener

logger = logging.getLogger(__name__)

Params = TypeVar("Params", bound=BaseModel)
_Call = tuple[str, str, types.RequestId]  # user, session id, id of the request

_MAX_ID_CHARS = 200  # it is sent back
_VERSION_HEADER = "mcp-protocol-version"
_SESSION_HEADER = "mcp-session-id"
_INSTRUCTIONS = (
    "Each tool is an agent: send it a message, get its answer. Send the session_id of an answer with the next call to "
    "go on with that conversation."
)
_ANNOTATIONS = types.ToolAnnotations(openWorldHint=True)


class _Refused(Exception):
    """A JSON-RPC error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class AgentServer:
    """An MCP server without sessions."""

    def __init__(self, tools: AgentTools, version: str, heartbeat: float) -> None:
        self._tools = tools
        self._us = types.Implementation(name="routeur-ia-api", version=version)
        self._heartbeat = heartbeat
        self._input = _schema_of(AgentCall)
        self._output = _schema_of(AgentAnswer)
        self._going: dict[_Call, asyncio.Task[None]] = {}

    async def answer(self, message: dict[str, Any], request: Request, caller: Principal) -> Response:
        """The answer to one JSON object that a caller sent; its body has been read."""
        try:
            return await self._answer(_valid(message), request, caller)
        except _Refused as refused:
            return _json(_error(None, refused), 400)

    async def _answer(self, message: types.JSONRPCMessage, request: Request, caller: Principal) -> Response:
        asked = message.root
        session = request.headers.get(_SESSION_HEADER)
        if isinstance(asked, types.JSONRPCNotification) and asked.method == "notifications/cancelled":
            self._cancel(asked.params or {}, session, caller)
        if not isinstance(asked, types.JSONRPCRequest):
            return Response(status_code=202)  # a notification or an answer: nothing that we would wait for
        version = request.headers.get(_VERSION_HEADER)
        if version is not None and version not in SUPPORTED_PROTOCOL_VERSIONS and asked.method != "initialize":
            known = ", ".join(SUPPORTED_PROTOCOL_VERSIONS)
            raise _Refused(types.INVALID_REQUEST, f"This protocol version is not spoken here. Known: {known}.")
        params = asked.params or {}
        if asked.method == "tools/call" and "text/event-stream" in request.headers.get("accept", ""):
            call = None if session is None else (caller.user_id, session, asked.id)
            return EventStreamResponse(self._told(asked.id, params, caller, call))
        try:
            result = await while_connected(request.receive, self._result(asked.method, params, caller))
        except _Refused as refused:
            return _json(_error(asked.id, refused))
        response = _json(_success(asked.id, result))
        if asked.method == "initialize":
            response.headers[_SESSION_HEADER] = uuid4().hex
        return response

    def _cancel(self, params: dict[str, Any], session: str | None, caller: Principal) -> None:
        """End that call, if it is going on here and is the same caller's; as the protocol has it, it gets no answer."""
        named = params.get("requestId")
        if session is not None and isinstance(named, str | int):
            task = self._going.get((caller.user_id, session, named))
            if task is not None:
                task.cancel()

    async def _result(self, method: str, params: dict[str, Any], caller: Principal) -> types.Result:
        match method:
            case "initialize":
                return self._initialized(_checked(types.InitializeRequestParams, params))
            case "ping":
                return types.EmptyResult()
            case "tools/list":
                return types.ListToolsResult(tools=self._listed(caller))
            case "tools/call":
                return await self._called(_checked(types.CallToolRequestParams, params), caller)
        raise _Refused(types.METHOD_NOT_FOUND, "This method is not known here.")

    def _initialized(self, params: types.InitializeRequestParams) -> types.InitializeResult:
        spoken = params.protocolVersion in SUPPORTED_PROTOCOL_VERSIONS
        return types.InitializeResult(
            protocolVersion=params.protocolVersion if spoken else types.LATEST_PROTOCOL_VERSION,
            capabilities=types.ServerCapabilities(tools=types.ToolsCapability(listChanged=False)),
            serverInfo=self._us,
            instructions=_INSTRUCTIONS,
        )

    def _listed(self, caller: Principal) -> list[types.Tool]:
        return [
            types.Tool(
                name=agent.id,
                title=agent.name,
                description=agent.description or f"The agent {agent.name}.",
                inputSchema=self._input,
                outputSchema=self._output,
                annotations=_ANNOTATIONS,
            )
            for agent in self._tools.offered(caller)
        ]

    async def _called(
        self, params: types.CallToolRequestParams, caller: Principal, listener: Listener | None = None
    ) -> types.CallToolResult:
        """What the agent answered; a failure of ours is an answer, too, that the calling model can read."""
        try:
            call = AgentCall.model_validate(params.arguments or {})
            answer = await self._tools.call(params.name, call, caller, listener)
        except ValidationError as error:
            return _failure(invalid_request(error.errors()))
        except AgentNotFound as error:
            raise _Refused(types.INVALID_PARAMS, f"Unknown tool: {error.message}") from error
        except RouteurError as error:
            if error.kind is ErrorKind.INTERNAL:
                logger.error("request failed", exc_info=error)
            return _failure(error)
        except Exception:
            logger.exception("unexpected error", extra={"path": "/mcp"})
            return _failure(InternalError())
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=answer.response)],
            structuredContent=answer.model_dump(mode="json"),
        )

    async def _told(
        self, id: types.RequestId, params: dict[str, Any], caller: Principal, call: _Call | None
    ) -> AsyncGenerator[bytes]:
        """A call's events: its progress for those who asked for it, its answer. Closing it cancels the run."""
        told: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

        async def work() -> None:
            try:
                checked = _checked(types.CallToolRequestParams, params)
                token = checked.meta.progressToken if checked.meta else None

                def tell(progress: int, message: str) -> None:
                    told.put_nowait(_progress(token, progress, message))

                result = await self._called(checked, caller, None if token is None else tell)
                told.put_nowait(_success(id, result))
            except _Refused as refused:
                told.put_nowait(_error(id, refused))
            finally:
                told.put_nowait(None)

        task = asyncio.create_task(work(), name="mcp call")
        if call is not None:
            self._going[call] = task
        try:
            while True:
                try:
                    async with asyncio.timeout(self._heartbeat):
                        message = await told.get()
                except TimeoutError:
                    yield HEARTBEAT
                    continue
                if message is None:
                    return
                yield b"event: message\ndata: " + orjson.dumps(message) + b"\n\n"
        finally:
            if call is not None and self._going.get(call) is task:
                del self._going[call]
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def _valid(message: dict[str, Any]) -> types.JSONRPCMessage:
    try:
        valid = types.JSONRPCMessage.model_validate(message)
    except ValidationError:
        raise _Refused(types.INVALID_REQUEST, "This is not a JSON-RPC 2.0 message.") from None
    if len(str(message.get("id"))) > _MAX_ID_CHARS:
        raise _Refused(types.INVALID_REQUEST, f"The id is longer than {_MAX_ID_CHARS} characters.")
    return valid


def _checked(kind: type[Params], params: dict[str, Any]) -> Params:
    """`params` as the protocol has them."""
    try:
        return kind.model_validate(params)
    except ValidationError as error:
        raise _Refused(types.INVALID_PARAMS, invalid_request(error.errors()).message) from None


def _schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """Its JSON schema, without what only repeats names: every caller's model reads it with every tool."""
    schema = model.model_json_schema(mode="serialization")
    for part in (schema, *schema.get("$defs", {}).values()):
        part.pop("title", None)
        part.pop("description", None)
        for field in part.get("properties", {}).values():
            field.pop("title", None)
    return schema


def _failure(error: RouteurError) -> types.CallToolResult:
    return types.CallToolResult(
        content=[types.TextContent(type="text", text=clean_text(error.message))],
        isError=True,
    )


def _success(id: types.RequestId, result: types.Result) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "result": result.model_dump(mode="json", by_alias=True, exclude_none=True)}


def _error(id: types.RequestId | None, refused: _Refused) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "error": {"code": refused.code, "message": clean_text(str(refused))}}


def _progress(token: str | int | None, progress: int, message: str) -> dict[str, Any]:
    params = {"progressToken": token, "progress": progress, "message": message}
    return {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}


def _json(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, {"cache-control": "no-store"}, "application/json")
