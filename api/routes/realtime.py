"""The realtime door: `WS /realtime` and `/v1/realtime` (OpenAI's Realtime protocol), WebRTC calls, and the secrets that
browsers open both with."""

import asyncio
import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from api.dependencies import AllServices, services_of
from api.errors import FACES, error_response, openai_body, openai_responses, problem_responses
from api.openai.door import json_of
from api.websocket_protocol import STOPPING
from core.dependencies import credential_of, socket_credential_of
from domain.agents import MODEL_ID_PATTERN, SESSION_ID_PATTERN
from domain.errors import Forbidden, InternalError, InvalidRequest, RouteurError, UnsupportedMedia
from services.realtime.conversation import Conversation, Ending
from services.realtime.pace import Pace
from services.realtime.schemas import SessionParameters, TranscriptionParameters, checked
from services.realtime_service import SHUTDOWN, RealtimeService, Ticket, Wanted

logger = logging.getLogger(__name__)
router = APIRouter(tags=["realtime"])

_SUBPROTOCOL = "realtime"
_SESSION_ID = re.compile(SESSION_ID_PATTERN)
_MODEL_ID = re.compile(MODEL_ID_PATTERN)
_SECRETS_IN_URLS = frozenset({"token", "access_token", "api_key", "key", "authorization"})
_MAX_SDP = 100_000
_MAX_SESSION = 1_000_000  # of the form field
_SLOW = Ending(1013, "The reader is too slow.")
_LEFT = (WebSocketDisconnect, RuntimeError, OSError)  # what sending to somebody who has left may raise


# -- the socket --


async def talk(websocket: WebSocket) -> None:
    """A realtime session. Whoever may not have one learns so by an HTTP status, before the socket is accepted."""
    services = services_of(websocket)
    realtime = services.realtime
    await websocket.receive()  # websocket.connect
    try:
        ticket = await realtime.admit(socket_credential_of(websocket))
        _check_origin(websocket, ticket, services.settings.server.cors_origins)
        async with realtime.session(_wanted(websocket), ticket, _describe) as conversation:
            subprotocol = _SUBPROTOCOL if _SUBPROTOCOL in websocket.scope["subprotocols"] else None
            await websocket.accept(subprotocol)
            await _Line(websocket, conversation, realtime).serve()
    except RouteurError as error:
        await _refuse(websocket, error)
    except Exception:
        logger.exception("a realtime session failed")
        await _refuse(websocket, InternalError())


async def _refuse(websocket: WebSocket, error: RouteurError) -> None:
    with suppress(*_LEFT):
        if websocket.application_state is WebSocketState.CONNECTING:
            await websocket.send_denial_response(error_response(error, openai=websocket.url.path.startswith("/v1/")))
        else:
            await websocket.close(FACES[error.kind].close_code)


router.add_websocket_route("/realtime", talk)
router.add_websocket_route("/v1/realtime", talk)


class _Line:
    """One accepted socket and its conversation."""

    def __init__(self, websocket: WebSocket, conversation: Conversation, realtime: RealtimeService) -> None:
        self._websocket = websocket
        self._conversation = conversation
        self._slow = realtime.settings.slow_seconds
        self._pace = Pace(realtime.settings.events_per_second)

    async def serve(self) -> None:
        """Until one of both ends it; there is always a close frame."""
        conversation = self._conversation
        conversation.begin()
        reading = asyncio.create_task(self._read(), name="realtime reading")
        ending = Ending(1011)
        try:
            await self._write()
            ending = conversation.ending or ending
        except TimeoutError:
            ending = _SLOW
        except WebSocketDisconnect:
            ending = Ending(1000)
        except asyncio.CancelledError:
            ending = SHUTDOWN  # the server's grace is over; nobody waits for this task but uvicorn
        finally:
            conversation.end(ending)
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
            await self._close(ending)

    async def _read(self) -> None:
        conversation = self._conversation
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                if message.get("code") == STOPPING:
                    conversation.end_after_answer(SHUTDOWN)
                    return
                conversation.end(Ending(1000))
                return
            await self._pace.keep()
            text = message.get("text")
            await conversation.hear(text if text is not None else message.get("bytes") or b"")

    async def _write(self) -> None:
        """Raises:
        TimeoutError: the reader takes nothing.
        """
        send = self._websocket.send
        while texts := await self._conversation.outbox.take():
            async with asyncio.timeout(self._slow) as patience:
                for text in texts:
                    await send({"type": "websocket.send", "text": text})
                    patience.reschedule(asyncio.get_running_loop().time() + self._slow)

    async def _close(self, ending: Ending) -> None:
        with suppress(*_LEFT):  # it is closed already
            await self._websocket.close(ending.code, ending.reason[:100])


def _check_origin(websocket: WebSocket, ticket: Ticket, allowed: tuple[str, ...]) -> None:
    """A page of somebody else may not talk with a credential that it got hold of; a client secret is made for pages."""
    origin = websocket.headers.get("origin")
    if origin is not None and ticket.secret is None and "*" not in allowed and origin not in allowed:
        raise Forbidden("Pages of that origin may not open sockets here; see CORS_ORIGINS.", code="origin_not_allowed")


def _wanted(connection: HTTPConnection) -> Wanted:
    """What the address asks for.

    Raises:
        InvalidRequest: something that is not done here, or that cannot be meant.
    """
    query = connection.query_params
    if _SECRETS_IN_URLS & {name.lower() for name in query}:
        raise InvalidRequest("Credentials do not belong into an address, which ends in logs.", code="key_in_url")
    if query.get("call_id"):
        raise InvalidRequest("'call_id' is not supported here.", code="unsupported_parameter", param="call_id")
    intent = query.get("intent") or None
    if intent is not None and connection.scope["type"] != "websocket":
        raise InvalidRequest("A call has no intent.", code="unsupported_parameter", param="intent")
    if intent not in (None, "transcription"):
        raise InvalidRequest("The only intent is 'transcription'.", code="invalid_value", param="intent")
    model = query.get("model") or None
    if model is not None and (len(model) > 200 or not _MODEL_ID.fullmatch(model)):
        raise InvalidRequest("That cannot be a model.", code="invalid_value", param="model")
    named = connection.headers.get("x-session-id")
    also = query.get("session_id")
    if named is not None and also is not None and named != also:
        raise InvalidRequest("X-Session-Id and session_id name different sessions.", param="session_id")
    session_id = named if named is not None else also
    if session_id is not None and not _SESSION_ID.fullmatch(session_id):
        raise InvalidRequest("That cannot be a session's id.", code="invalid_session_id", param="session_id")
    if intent is not None and (model is not None or session_id is not None):
        raise InvalidRequest(
            "A session that only transcribes has no model and is not stored: say who listens with session.update.",
            code="invalid_value",
            param="model" if model is not None else "session_id",
        )
    return Wanted(model, session_id, transcribes=intent is not None)


def _describe(error: RouteurError) -> dict[str, Any]:
    described: dict[str, Any] = openai_body(error)["error"]
    return described


# -- client secrets --


class ExpiresAfter(BaseModel):
    """How long a secret opens new sessions."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[int, Field(ge=10, le=7_200)] = 600


class ClientSecretRequest(BaseModel):
    """The session that a browser is to open, and for how long it may."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        json_schema_extra={"examples": [{"session": {"type": "realtime", "model": "agent/simple"}}]},
    )

    expires_after: ExpiresAfter | None = None
    session: Annotated[SessionParameters | TranscriptionParameters, Field(discriminator="type")] | None = None


class ClientSecretAnswer(BaseModel):
    """The secret; `expires_at` is in seconds since 1970, and `session` how its sessions begin."""

    value: str = Field(examples=["ek_..."])
    expires_at: int
    session: Mapping[str, Any]


@router.post(
    "/v1/realtime/client_secrets",
    responses=openai_responses(400, 401, 403, 404, 409, 413, 415, 429),
    openapi_extra={
        "requestBody": {
            "required": False,
            "content": {"application/json": {"schema": ClientSecretRequest.model_json_schema()}},
        }
    },
)
async def create_client_secret(request: Request, services: AllServices, response: Response) -> ClientSecretAnswer:
    """A short-lived secret for a browser: it opens realtime sessions like this one, as you, and nothing else.

    A session of type `transcription` is opened as well: it hears and does not answer.

    It can be used more than once until it expires (10 minutes when nothing is said, at most 2 hours); sessions that it
    has opened go on after that. Revoking what made it (the key, the log-in) ends it, and them.
    """
    credential = credential_of(request)
    ticket = await services.realtime.admit(credential)
    if ticket.secret is not None:
        raise Forbidden("A client secret makes no client secrets.", code="missing_scope")
    asked = checked(ClientSecretRequest, await json_of(request, optional=True))
    session = asked.session or SessionParameters(type="realtime")
    shown = await services.realtime.check(session, ticket.caller)
    carried = session.model_dump(exclude_unset=True)
    if isinstance(session, SessionParameters):
        carried |= {"type": "realtime", "model": shown["model"]}
    seconds = (asked.expires_after or ExpiresAfter()).seconds
    secret = await services.realtime.secrets.issue(carried, ticket.caller, credential, seconds)
    response.headers["cache-control"] = "no-store"
    return ClientSecretAnswer(value=secret.value, expires_at=secret.expires_at, session=shown)


# -- WebRTC --


class Offer(BaseModel):
    """A WebRTC offer: its data channel carries the events of the WebSocket, its audio track the microphone."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    sdp: Annotated[str, Field(min_length=1, max_length=_MAX_SDP)]
    type: Literal["offer"]
    model: Annotated[str, Field(max_length=200, pattern=MODEL_ID_PATTERN)] | None = None
    session: SessionParameters | None = None
    session_id: Annotated[str, Field(pattern=SESSION_ID_PATTERN)] | None = None


class OfferAnswer(BaseModel):
    """The answer, with every candidate in it. `call_id` is for hanging up."""

    sdp: str
    type: Literal["answer"] = "answer"
    session_id: str
    call_id: str


@router.post(
    "/realtime/offer",
    responses=problem_responses(400, 401, 403, 404, 413, 415, 422, 429, 503),
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": Offer.model_json_schema()}}}
    },
)
async def offer_call(request: Request, services: AllServices, response: Response) -> OfferAnswer:
    """Talk by WebRTC: an SDP offer in, an answer out.

    The offer has a data channel (`oai-events`) and may have an audio track. The session ends when the peer leaves, or
    does not come within `REALTIME_CONNECT_SECONDS`.
    """
    ticket = await services.realtime.admit(credential_of(request))
    asked = checked(Offer, await json_of(request))
    wanted = _wanted(request)
    if asked.model is not None:
        wanted = replace(wanted, model=asked.model)
    if asked.session_id is not None:
        wanted = replace(wanted, session_id=asked.session_id)
    call = await services.calls.open(asked.sdp, replace(wanted, session=asked.session), ticket, _describe)
    response.headers["cache-control"] = "no-store"
    return OfferAnswer(sdp=call.sdp, session_id=call.session_id, call_id=call.call_id)


@router.post(
    "/v1/realtime/calls",
    status_code=201,
    response_class=Response,
    responses={
        **openai_responses(400, 401, 403, 404, 413, 415, 429, 503),
        201: {"description": "The SDP answer.", "content": {"application/sdp": {"schema": {"type": "string"}}}},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/sdp": {"schema": {"type": "string"}},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["sdp"],
                        "properties": {"sdp": {"type": "string"}, "session": {"type": "string"}},
                    }
                },
            },
        }
    },
)
async def create_call(request: Request, services: AllServices) -> Response:
    """As OpenAI's: the offer as `application/sdp`, or as the form field `sdp` beside `session` (JSON)."""
    ticket = await services.realtime.admit(credential_of(request))
    sdp, session = await _offer_in(request)
    call = await services.calls.open(sdp, replace(_wanted(request), session=session), ticket, _describe)
    headers = {
        "location": f"/v1/realtime/calls/{call.call_id}",
        "x-session-id": call.session_id,
        "cache-control": "no-store",
    }
    return Response(call.sdp, 201, headers, media_type="application/sdp")


@router.post(
    "/v1/realtime/calls/{call_id}/hangup", response_class=Response, responses=openai_responses(400, 401, 403, 404)
)
async def hang_up(call_id: Annotated[str, Path(max_length=100)], request: Request, services: AllServices) -> Response:
    """End a call of yours. It must be asked of the process that answered it."""
    ticket = await services.realtime.admit(credential_of(request))
    services.calls.hang_up(call_id, ticket.caller)
    return Response(status_code=200)


async def _offer_in(request: Request) -> tuple[str, SessionParameters | None]:
    """Raises:
    InvalidRequest: it is no offer, or the session does not fit.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/sdp":
        return _text_of(await request.body()), None
    if kind != "multipart/form-data":
        raise UnsupportedMedia("Send the offer as application/sdp, or as a form.", code="not_sdp")
    try:
        async with request.form(max_files=2, max_fields=2, max_part_size=_MAX_SESSION) as form:
            sdp, session = await _field(form, "sdp"), await _field(form, "session")
    except HTTPException as error:
        raise InvalidRequest("The form cannot be read.", code="invalid_form") from error
    if sdp is None:
        raise InvalidRequest("Missing required parameter: 'sdp'.", code="missing_required_parameter", param="sdp")
    if session is None:
        return _text_of(sdp), None
    try:
        given = orjson.loads(session)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("session is not JSON.", code="invalid_json", param="session") from error
    return _text_of(sdp), checked(SessionParameters, given, "session")


async def _field(form: FormData, name: str) -> bytes | None:
    value = form.get(name)
    if isinstance(value, UploadFile):
        return await value.read(_MAX_SESSION)
    return None if value is None else value.encode()


def _text_of(sdp: bytes) -> str:
    if not sdp or len(sdp) > _MAX_SDP:
        raise InvalidRequest(f"An offer has 1 to {_MAX_SDP} bytes.", code="invalid_sdp", param="sdp")
    try:
        return sdp.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest("An offer is text.", code="invalid_sdp", param="sdp") from error
