"""What all routes of /v1 share: how a body is read, who is meant by `model`, which session a call belongs to."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.dependencies import Services
from api.errors import invalid_request, openai_responses
from api.streaming.response import ClientLeft
from domain.agents import SESSION_ID_PATTERN
from domain.auth import Principal
from domain.errors import InvalidRequest, UnsupportedMedia
from domain.targets import Target as Target
from domain.targets import target_of as target_of
from services.direct_service import AGENT as DIRECT
from services.wire_messages import WireMessage, wire_question, wire_text

Asked = TypeVar("Asked", bound=BaseModel)

_SESSION_ID = re.compile(SESSION_ID_PATTERN)
_MAX_CHAT_ID = 200
_DEEPEST = 250  # levels; orjson reads more than it writes
#: Headers in which clients name a chat of theirs: Open WebUI's own, and what LibreChat and others can be told to send.
OPEN_WEBUI_CHAT = "x-openwebui-chat-id"
CHAT_ID_HEADERS = (OPEN_WEBUI_CHAT, "x-conversation-id")
_CHAT_ID_NAMES = frozenset(name.encode() for name in CHAT_ID_HEADERS)


class LeanRoute(APIRoute):
    """A route that FastAPI documents and leaves alone: its endpoint takes the request and gives the response.

    Solving dependencies and validating through FastAPI costs more than all the rest of a direct call. Nothing needs to
    be searched for it either: `LeanMiddleware` calls it by its path.
    """

    def __init__(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], **more: Any) -> None:
        super().__init__(path, endpoint, **more)
        self.lean = endpoint

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive))
            await response(scope, receive, send)

        self.app = answer


def add_lean_route(
    app: FastAPI,
    path: str,
    endpoint: Callable[[Request], Awaitable[Response]],
    *,
    body: type[BaseModel],
    answer: dict[str, Any],
) -> None:
    """Add a POST route to the application itself (an included router costs as much again).

    Args:
        body: what it takes; `api/openapi.py` adds the schema.
        answer: what it gives, for OpenAPI.
    """
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}
    app.router.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        tags=["openai"],
        response_model=None,
        responses={**CALL_ERRORS, 200: answer},
        openapi_extra={"requestBody": {"required": True, "content": content}},
        route_class_override=LeanRoute,
    )


async def json_of(request: Request, *, optional: bool = False) -> dict[str, Any]:
    """The body: a JSON object. It is read from the wire: nobody may have done so before.

    Args:
        optional: no body is an empty one.

    Raises:
        UnsupportedMedia: it is not said to be JSON.
        ClientLeft: it does not come.
        InvalidRequest: it is none, or is nested too deep to be written again.
    """
    typed = "json" in request.headers.get("content-type", "").lower()
    if not typed and not optional:
        raise UnsupportedMedia("Send the body as application/json.", code="not_json")
    raw = await _body_of(request.receive)
    if optional and not raw:
        return {}
    if not typed:
        raise UnsupportedMedia("Send the body as application/json.", code="not_json")
    try:
        body = orjson.loads(raw)
        if raw.count(b"[") + raw.count(b"{") > _DEEPEST:
            orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise InvalidRequest(f"The body is deeper than {_DEEPEST} levels.", code="invalid_json") from error
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("The body is not valid JSON.", code="invalid_json") from error
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_json")
    return body


async def _body_of(receive: Receive) -> bytes:
    """All of it; most come in one piece, and Starlette's way is made for many.

    Raises:
        ClientLeft: before it had said everything.
    """
    pieces: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft("The client left before it had said everything.")
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def validated(schema: type[Asked], body: Mapping[str, Any]) -> Asked:
    """The body, checked.

    Raises:
        InvalidRequest: it does not fit; each field is named.
    """
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_input=False, include_context=False)) from None


def bound_session(request: Request, metadata: dict[str, Any]) -> str | None:
    """The session that the caller names, in `X-Session-Id` or in `metadata.session_id` (which is taken out of it).

    Raises:
        InvalidRequest: two different ones, or something that can be none.
    """
    named = request.headers.get("x-session-id")
    also = metadata.pop("session_id", None)
    if named is not None and also is not None and named != also:
        raise InvalidRequest("X-Session-Id and metadata.session_id name different sessions.", param="metadata")
    session_id = named if named is not None else also
    if session_id is not None and not _SESSION_ID.fullmatch(session_id):
        raise InvalidRequest("That cannot be a session's id.", code="invalid_session_id", param="session_id")
    return session_id


async def session_of(
    request: Request,
    metadata: dict[str, Any],
    services: Services,
    target: Target,
    caller: Principal,
    messages: Sequence[WireMessage] = (),
) -> str | None:
    """The session of this call: one of ours by its id, or that of a chat that the client counts itself.

    Args:
        messages: what it asks; they name a new chat, and tell what is asked beside one.

    Raises:
        InvalidRequest: as `bound_session`.
        RouteurError: the target cannot be asked, and so no session is made for it.
    """
    bound = bound_session(request, metadata)
    if bound is not None:
        return bound
    if _CHAT_ID_NAMES.isdisjoint(name for name, _ in request.scope["headers"]):
        return None
    for header in CHAT_ID_HEADERS:
        chat = request.headers.get(header, "").strip()
        if chat:
            if len(chat) > _MAX_CHAT_ID:
                raise InvalidRequest(f"The chat id in {header} is too long.", param=header)
            if header == OPEN_WEBUI_CHAT and _is_aside(messages):
                return None
            agent = target.agent or DIRECT
            may_be_asked = partial(services.agents.resolve, agent, target.model, None, caller)
            title = wire_question(messages) if messages else ""
            return await services.sessions.of_chat(chat, agent, caller, title, first=may_be_asked)
    return None


def _is_aside(messages: Sequence[WireMessage]) -> bool:
    """Open WebUI wants a title, tags or the like for a chat: the call names the chat, and is no part of it.

    Its prompts for that begin alike. A human's question that does is not lost to the chat: the next call repeats it.
    """
    return len(messages) == 1 and wire_text(messages[0]).startswith("### Task:")


def answer_headers(model: str, run_id: str, session_id: str | None, replaced: tuple[str, ...] = ()) -> dict[str, str]:
    """What every answer says of itself: what served it, its run, its session, and who could not."""
    headers = {"x-model": model, "x-run-id": run_id}
    if session_id is not None:
        headers["x-session-id"] = session_id
    if replaced:
        headers["x-model-replaced"] = ", ".join(replaced)
    return headers


#: What a call of a model or an agent may answer.
CALL_ERRORS = openai_responses(400, 401, 403, 404, 409, 413, 415, 429, 502, 503, 504)
