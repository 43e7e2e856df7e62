"""`/v1/responses`: a model or an agent, in the words of OpenAI's Responses API; each response is a run of a session."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar, get_args

import orjson
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request
from pydantic import ValidationError
from starlette.responses import Response

from api.dependencies import AllServices, Services, services_of
from api.errors import invalid_request, openai_responses
from api.openai.chat import begun, finished, tool_view_of
from api.openai.door import (
    Target,
    add_lean_route,
    answer_headers,
    json_of,
    session_of,
    target_of,
    validated,
)
from api.openai.response_items import input_items, messages_of, output_items, tool_choice_of, tools_of
from api.openai.schemas import (
    ChatRequest,
    ConversationRef,
    DeletedResponse,
    ItemList,
    ResponseRequest,
)
from api.openai.translate import refuse_for_agents, to_command, to_message
from api.streaming.openai_chunks import ToolView
from api.streaming.openai_responses import ResponseStream
from api.streaming.response import EventStreamResponse, while_connected
from api.streaming.sse import HEARTBEAT
from core.dependencies import holder_of, require
from domain.auth import Principal, Scope
from domain.background import AgentRunRequest, RunAccepted
from domain.enums import RunStatus
from domain.errors import Forbidden, InvalidRequest, RouteurError, Unavailable
from domain.events import Envelope
from services.agent_stream import RunStream
from services.direct_answer import DirectAnswer
from services.direct_service import AGENT as DIRECT
from services.direct_service import DirectRequest, DirectRun
from services.llm_providers.wire.completions import unsupported
from services.llm_providers.wire.openai_wire import read_message
from services.response_service import VIEW, StoredResponse

router = APIRouter(prefix="/v1/responses", tags=["openai"])

T = TypeVar("T")
Caller = Annotated[Principal, Depends(require(Scope.COMPLETION))]
ResponseKey = Annotated[str, Path(max_length=100, examples=["resp_019a7f0e4b0c7d3e9f1a2b3c4d5e6f70"])]
_ONE = openai_responses(400, 401, 403, 404)
_CHANGED = openai_responses(400, 401, 403, 404, 409)
#: Parameters of chat completions that are called otherwise here.
_NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One call, understood."""

    asked: ResponseRequest
    chat: ChatRequest
    body: dict[str, Any]
    target: Target
    session_id: str | None
    metadata: dict[str, Any]
    tools: ToolView

    @property
    def streamed(self) -> bool:
        return bool(self.asked.stream)

    @property
    def forgotten(self) -> bool:
        """It is not to be kept."""
        return self.asked.store is False


def install_responses(app: FastAPI) -> None:
    """Add the route that asks; those that look are in `router`."""
    add_lean_route(
        app,
        "/v1/responses",
        create_response,
        body=ResponseRequest,
        answer={
            "description": "The response, or with `stream` the events that build it",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/ResponseObject"}},
                "text/event-stream": {"schema": {"type": "string"}},
            },
        },
    )


async def create_response(request: Request) -> Response:
    """Ask a model (`provider/name`) or an agent (`agent/<id>`).

    Parameters that the target does not take, and tools that run at OpenAI, are refused by name.
    """
    caller = await holder_of(Scope.COMPLETION, request)
    try:
        wanted = await _understood(request, caller)
        if wanted.asked.background:
            return await _in_background(request, wanted, caller)
        if wanted.target.agent is None:
            return await _ask_model(request, wanted, caller)
        return await _ask_agent(request, wanted, caller)
    except InvalidRequest as error:
        told = _in_their_words(error)
        raise told from (None if told is error else error)


async def _understood(request: Request, caller: Principal) -> _Wanted:
    asked = validated(ResponseRequest, await json_of(request))
    for name, value in (asked.model_extra or {}).items():
        if value is not None:
            raise unsupported(name, "this router")
    target = target_of(asked.model)
    metadata: dict[str, Any] = dict(asked.metadata or {})
    body = _chat_body(asked)
    if target.agent is not None and asked.instructions:
        body["messages"] = [{"role": "system", "content": asked.instructions}, *body["messages"]]
    chat, tools = validated(ChatRequest, body), tool_view_of(request)
    if target.agent is not None or asked.background:
        refuse_for_agents(chat.model_dump(exclude_unset=True, exclude={"messages"}))
    session_id = await _session(request, asked, metadata, target, caller)
    return _Wanted(asked, chat, body, target, session_id, metadata, tools)


def _in_their_words(error: InvalidRequest) -> InvalidRequest:
    """The refusal of a parameter of chat completions, by the name that it has here."""
    name, dot, rest = (error.param or "").partition(".")
    theirs = _NAMES.get(name)
    if theirs is None:
        return error
    named = theirs if theirs == "input" else f"{theirs}{dot}{rest}"  # items and messages are counted differently
    message = error.message.replace(error.param or name, named).replace(f"'{name}'", f"'{theirs}'")
    return InvalidRequest(message, code=error.code, param=named)


def _chat_body(asked: ResponseRequest) -> dict[str, Any]:
    """The same call as a body of chat completions."""
    text = asked.text
    body = {
        "model": asked.model,
        "messages": messages_of(asked.input),
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "max_completion_tokens": asked.max_output_tokens,
        "tools": tools_of(asked.tools) if asked.tools else None,
        "tool_choice": tool_choice_of(asked.tool_choice) if asked.tool_choice is not None else None,
        "parallel_tool_calls": asked.parallel_tool_calls if asked.tools else None,
        "response_format": _format_of(text.format.model_dump(by_alias=True)) if text and text.format else None,
        "verbosity": text.verbosity if text else None,
        "reasoning_effort": asked.reasoning.effort if asked.reasoning else None,
    }
    body = {name: value for name, value in body.items() if value is not None}
    if asked.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def _format_of(wanted: dict[str, Any]) -> dict[str, Any] | None:
    if wanted["type"] == "text":
        return None
    if wanted["type"] == "json_object":
        return {"type": "json_object"}
    if wanted.get("schema") is None:
        raise InvalidRequest("text.format.schema is missing.", param="text.format.schema")
    schema = {
        "name": wanted.get("name") or "answer",
        "schema": wanted["schema"],
        "strict": wanted.get("strict"),
        "description": wanted.get("description"),
    }
    return {"type": "json_schema", "json_schema": {name: one for name, one in schema.items() if one is not None}}


async def _session(
    request: Request, asked: ResponseRequest, metadata: dict[str, Any], target: Target, caller: Principal
) -> str | None:
    """The one session that is meant; that of `previous_response_id` is found when the call begins."""
    services = services_of(request)
    bound = await session_of(request, metadata, services.sessions, target.agent or DIRECT, caller)
    conversation = asked.conversation
    named = conversation.id if isinstance(conversation, ConversationRef) else conversation
    given = {one for one in (bound, named, asked.previous_response_id) if one is not None}
    if len(given) > 1:
        raise InvalidRequest(
            "Give one of previous_response_id, conversation and X-Session-Id.", param="previous_response_id"
        )
    if asked.store is False and (given or asked.background):
        raise InvalidRequest("store: false goes neither with a conversation nor with background.", param="store")
    return bound or named


async def _begun(
    services: Services, wanted: _Wanted, caller: Principal, begin: Callable[[_Wanted], Awaitable[T]]
) -> tuple[_Wanted, T]:
    """What `begin` makes of the call, in the session in which it is to go on.

    Several may go on after the same response at once: the first does so where it is, each other one in a branch.
    """
    before = wanted.asked.previous_response_id
    if before is None:
        return wanted, await begin(wanted)

    async def begin_in(session_id: str) -> tuple[_Wanted, T]:
        placed = replace(wanted, session_id=session_id)
        return placed, await begin(placed)

    return await services.responses.go_on_after(before, caller, begin_in)


def _echo(wanted: _Wanted, served: str) -> dict[str, Any]:
    """What a response repeats of its request."""
    asked = wanted.asked
    text = asked.text.model_dump(by_alias=True, exclude_none=True) if asked.text else {}
    reasoning = asked.reasoning.model_dump(exclude_none=True) if asked.reasoning else {}
    bound = wanted.session_id is not None and asked.previous_response_id is None
    return {
        "model": wanted.target.shown(served),
        "instructions": asked.instructions,
        "metadata": dict(asked.metadata or {}),
        "previous_response_id": asked.previous_response_id,
        "conversation": {"id": wanted.session_id} if bound else None,
        "background": bool(asked.background),
        "store": asked.store is not False,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "max_output_tokens": asked.max_output_tokens,
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "tool_choice": asked.tool_choice or "auto",
        "tools": asked.tools or [],
        "text": {"format": {"type": "text"}, **text},
        "reasoning": {"effort": None, "summary": None, **reasoning},
        "truncation": "disabled",
        "service_tier": "default",
        "user": asked.user,
    }


# -- a model --


async def _ask_model(request: Request, wanted: _Wanted, caller: Principal) -> Response:
    services = services_of(request)
    instructions = wanted.asked.instructions

    async def begin(placed: _Wanted) -> DirectRun:
        asked = DirectRequest(
            placed.body,
            placed.asked.model,
            placed.streamed,
            placed.session_id,
            placed.metadata,
            unheard=({"role": "system", "content": instructions},) if instructions else (),
            door=_door(placed, placed.asked.model),
        )
        return await services.direct.begin(asked, caller)

    wanted, run = await _begun(services, wanted, caller, begin)
    async with _forgotten(services, wanted, run, caller, unless_answered=wanted.streamed):
        if wanted.streamed:
            await while_connected(request.receive, run.open())
            built = ResponseStream(run.run_id, _echo(wanted, run.model), message_id=run.message_id)
            frames = _model_frames(run, built)
            return _streamed(services, wanted, run, frames, caller, services.settings.server.heartbeat)
        await while_connected(request.receive, run.whole())
    return _whole(run, _built(run, wanted))


def _built(run: DirectRun, wanted: _Wanted) -> ResponseStream:
    """The response that a whole answer is."""
    built = ResponseStream(run.run_id, _echo(wanted, run.model), message_id=run.message_id)
    answer = run.answer
    built.begin()
    if thought := "".join(answer.reasonings):
        built.reasoning(thought)
    if answer.text:
        built.text(answer.text)
    for place in sorted(answer.calls):
        call = answer.known_call(place)
        built.call(str(place), call.id or "", call.name or "", call.arguments)
    built.finish(answer.finish_reason or "stop", run.usage, run.ended_at)
    return built


async def _model_frames(run: DirectRun, built: ResponseStream) -> AsyncGenerator[bytes]:
    try:
        yield built.begin()
        async with aclosing(run.blocks()) as blocks:
            async for block in blocks:
                try:
                    yield b"".join([_piece(built, run.answer, event) for event in block.events])
                except asyncio.CancelledError as error:
                    await blocks.athrow(error)  # the run's own, when its limit was reached while the reader was slow
        yield built.finish(run.answer.finish_reason or "stop", run.usage, run.ended_at)
    except RouteurError as error:
        yield built.cancel(run.usage) if error.code == "run_cancelled" else built.fail(error, run.usage)
    except asyncio.CancelledError:
        yield built.fail(_stopping())
        raise
    finally:
        await run.aclose()


def _piece(built: ResponseStream, answer: DirectAnswer, event: dict[str, Any]) -> bytes:
    """What a chunk of a model says."""
    told = b""
    for choice in event["choices"]:
        delta = choice.get("delta")
        if not delta:
            continue
        read = read_message(delta)
        if read.reasoning:
            told += built.reasoning(read.reasoning)
        if read.text:
            told += built.text(read.text)
        for part in read.fragments:
            call = answer.known_call(part.index)
            told += built.call(str(part.index), call.id or "", call.name or "", part.arguments)
    return told


# -- an agent --


async def _ask_agent(request: Request, wanted: _Wanted, caller: Principal) -> Response:
    services = services_of(request)

    async def begin(placed: _Wanted) -> RunStream:
        command = await _command(services, placed, caller)
        door = _door(placed, placed.target.model or "")
        return await services.agents.stream(command, caller, streams=placed.streamed, door=door)

    wanted, run = await _begun(services, wanted, caller, begin)
    built = ResponseStream(run.run_id, _echo(wanted, run.model), tools=wanted.tools)
    async with _forgotten(services, wanted, run, caller, unless_answered=wanted.streamed):
        if wanted.streamed:
            batches = run.batches(services.settings.server.heartbeat)
            first = await while_connected(request.receive, begun(run, batches))
            return _streamed(services, wanted, run, _agent_frames(batches, first, built), caller, None)
        events = await while_connected(request.receive, finished(run))
    built.begin()
    built.envelopes(events)
    return _whole(run, built)


async def _command(services: Services, wanted: _Wanted, caller: Principal) -> Any:
    new = None
    if wanted.session_id is not None:
        new = await services.direct.unsaid(wanted.session_id, wanted.body["messages"], caller)
    return to_command(wanted.chat, wanted.target, wanted.session_id, wanted.metadata, new)


async def _agent_frames(
    batches: AsyncGenerator[list[Envelope]], first: list[Envelope], built: ResponseStream
) -> AsyncGenerator[bytes]:
    async with aclosing(batches):
        try:
            yield built.begin() + built.envelopes(first)
            async for envelopes in batches:
                if not envelopes:
                    yield HEARTBEAT
                elif told := built.envelopes(envelopes):
                    yield told
        except asyncio.CancelledError:
            yield built.fail(_stopping())
            raise


# -- its answer --


def _door(wanted: _Wanted, served: str) -> dict[str, Any] | None:
    """What makes the run a response that can be found again; None: it shall not be found."""
    return None if wanted.forgotten else {"response": {**_echo(wanted, served), VIEW: wanted.tools}}


def _headers(run: DirectRun | RunStream) -> dict[str, str]:
    replaced = run.replaced if isinstance(run, DirectRun) else ()
    return answer_headers(run.model, run.run_id, run.session_id, replaced)


def _whole(run: DirectRun | RunStream, built: ResponseStream) -> Response:
    return Response(orjson.dumps(built.response), headers=_headers(run), media_type="application/json")


def _streamed(
    services: Services,
    wanted: _Wanted,
    run: DirectRun | RunStream,
    frames: AsyncGenerator[bytes],
    caller: Principal,
    heartbeat: float | None,
) -> Response:
    if wanted.forgotten:
        frames = _then_forget(services, wanted, run, frames, caller)
    return EventStreamResponse(frames, _headers(run), heartbeat=heartbeat)


async def _then_forget(
    services: Services,
    wanted: _Wanted,
    run: DirectRun | RunStream,
    frames: AsyncGenerator[bytes],
    caller: Principal,
) -> AsyncGenerator[bytes]:
    async with _forgotten(services, wanted, run, caller), aclosing(frames):
        async for frame in frames:
            try:
                yield frame
            except asyncio.CancelledError as error:
                yield await frames.athrow(error)


@asynccontextmanager
async def _forgotten(
    services: Services,
    wanted: _Wanted,
    run: DirectRun | RunStream,
    caller: Principal,
    *,
    unless_answered: bool = False,
) -> AsyncIterator[None]:
    """At the end, whatever it is, the conversation of a response that is not to be kept is deleted.

    Args:
        unless_answered: only at a bad end: the stream that begins now sees to it.
    """
    answered = False
    try:
        yield
        answered = True
    finally:
        if wanted.forgotten and run.session_id is not None and not (answered and unless_answered):
            await services.responses.forget(run.session_id, caller)


def _stopping() -> Unavailable:
    return Unavailable("The server is stopping.", code="server_stopping", retry_after=1)


# -- in the background --


async def _in_background(request: Request, wanted: _Wanted, caller: Principal) -> Response:
    if not caller.may(Scope.RUNS):
        raise Forbidden(f"The scope '{Scope.RUNS.value}' is needed.", code="missing_scope")
    services, target = services_of(request), wanted.target
    if services.background is None:
        raise Unavailable("Background runs need SESSION_STORE_URL to be unset.", code="background_unavailable")
    background = services.background.runs

    async def begin(placed: _Wanted) -> RunAccepted:
        return await background.submit(
            target.agent or DIRECT,
            await _run_request(services, placed, caller),
            caller,
            run_id=request.scope.get("state", {}).get("made_id"),
            response={**_echo(placed, target.model or ""), VIEW: placed.tools},
            instructions=placed.asked.instructions if target.agent is None else None,
        )

    wanted, accepted = await _begun(services, wanted, caller, begin)
    echo = _echo(wanted, target.model or "")
    echo["model"] = target.shown(accepted.model)
    headers = answer_headers(accepted.model, accepted.run_id, accepted.session_id)
    if wanted.streamed:
        built = ResponseStream(accepted.run_id, echo, tools=wanted.tools)
        return EventStreamResponse(_followed(services, accepted.run_id, built), headers)
    built = ResponseStream(accepted.run_id, echo)
    built.begin(queued=True)
    return Response(orjson.dumps(built.response), headers=headers, media_type="application/json")


async def _run_request(services: Services, wanted: _Wanted, caller: Principal) -> AgentRunRequest:
    """The same call as a background run.

    Raises:
        InvalidRequest: a parameter that background runs do not take.
    """
    asked = wanted.asked
    if asked.top_p is not None:
        raise unsupported("top_p", "a response in the background")
    messages = wanted.chat.messages
    if wanted.session_id is not None:
        new = await services.direct.unsaid(wanted.session_id, wanted.body["messages"], caller)
        messages = [messages[place] for place in new]
    said = [to_message(message, place) for place, message in enumerate(messages)]
    try:
        return AgentRunRequest.model_validate(
            {
                "input": said,
                "session_id": wanted.session_id,
                "model": wanted.target.model,
                "temperature": asked.temperature,
                "max_tokens": asked.max_output_tokens,
                "response_format": wanted.chat.response_format,
                "metadata": wanted.metadata,
            }
        )
    except ValidationError as error:
        raise invalid_request(error.errors(include_url=False, include_input=False, include_context=False)) from None


async def _followed(services: Services, run_id: str, built: ResponseStream) -> AsyncGenerator[bytes]:
    """A background run as it goes on; leaving it does not stop it."""
    yield built.begin(queued=True)
    heartbeat = services.settings.server.heartbeat
    async with aclosing(services.events.follow(run_id, 0, heartbeat)) as followed:
        async for told in followed:
            if isinstance(told, tuple):
                continue  # trimmed away: the end is told all the same
            if not told:
                yield HEARTBEAT
            elif frames := built.started() + built.envelopes(told):
                yield frames


# -- what is stored --


@router.get("/{response_id}", responses=_ONE, response_model=None)
async def get_response(
    response_id: ResponseKey,
    caller: Caller,
    services: AllServices,
    stream: Annotated[bool, Query(description="of one in the background: the events that build it")] = False,
    starting_after: Annotated[int | None, Query(ge=0, le=2**31, description="leave out events up to this")] = None,
) -> Response:
    """One response."""
    found = await services.responses.get(response_id, caller)
    if not stream:
        return _json(_stored(found))
    if not found.run.background:
        raise InvalidRequest("Only responses in the background can be streamed again.", param="stream")
    skip = -1 if starting_after is None else starting_after
    built = ResponseStream(found.run.id, _echo_of(found), tools=_view_of(found), skip=skip)
    return EventStreamResponse(_followed(services, found.run.id, built))


@router.delete("/{response_id}", responses=_CHANGED)
async def delete_response(response_id: ResponseKey, caller: Caller, services: AllServices) -> DeletedResponse:
    """Forget a response; its conversation goes with it when there was nothing else in it."""
    await services.responses.delete(response_id, caller)
    return DeletedResponse(id=response_id)


@router.post("/{response_id}/cancel", responses=_CHANGED, response_model=None)
async def cancel_response(response_id: ResponseKey, caller: Caller, services: AllServices) -> Response:
    """Stop a response in the background."""
    found = await services.responses.get(response_id, caller)
    if not found.run.background or services.background is None:
        raise InvalidRequest("Only responses in the background can be cancelled.", code="not_in_background")
    await services.background.runs.cancel(found.run.id, caller)
    return _json(_stored(await services.responses.get(response_id, caller)))


@router.get("/{response_id}/input_items", responses=_ONE)
async def list_input_items(
    response_id: ResponseKey,
    caller: Caller,
    services: AllServices,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: Annotated[str | None, Query(max_length=200)] = None,
) -> ItemList:
    """What a response was asked."""
    found = await services.responses.get(response_id, caller)
    items = input_items(found.asked)
    if order == "desc":
        items.reverse()
    places = {item["id"]: place for place, item in enumerate(items)}
    if after is not None:
        if after not in places:
            raise InvalidRequest("There is no such item.", param="after")
        items = items[places[after] + 1 :]
    shown = items[:limit]
    return ItemList(
        data=shown,
        first_id=shown[0]["id"] if shown else None,
        last_id=shown[-1]["id"] if shown else None,
        has_more=len(items) > limit,
    )


def _json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")


def _echo_of(found: StoredResponse) -> dict[str, Any]:
    run = found.run
    shown = run.model or ""
    named = str(found.echo.get("model") or "")
    if named.startswith("agent/"):
        shown = f"{named.partition('@')[0]}@{shown}"
    return {**found.echo, "model": shown}


def _view_of(found: StoredResponse) -> ToolView:
    return next((view for view in get_args(ToolView) if view == found.view), "hidden")


def _stored(found: StoredResponse) -> dict[str, Any]:
    """A response as it stands in the record: what its events have built.

    Those of a model that somebody waited for do not tell its calls; its message does.
    """
    run = found.run
    built = ResponseStream(run.id, _echo_of(found), tools=_view_of(found))
    built.begin(queued=run.background)
    if run.status is not RunStatus.QUEUED or found.told:
        built.started()
    built.envelopes(found.told)
    body = built.response
    trimmed = bool(found.told) and found.told[0].seq != 1
    if trimmed or (run.agent == DIRECT and not run.background and run.status is RunStatus.COMPLETED):
        body["output"] = output_items(found.said, calls=run.agent == DIRECT)
    elif run.agent == DIRECT and body["status"] != "completed":
        cut = {"message", "function_call"}
        body["output"] = [{**item, "status": "incomplete"} if item["type"] in cut else item for item in body["output"]]
    return body
