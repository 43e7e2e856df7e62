"""`/v1/responses`: a model or an agent, in the words of OpenAI's Responses API; each response is a run of a session."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

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
from api.streaming.openai_responses import ResponseStream, response_error, response_id, response_usage
from api.streaming.response import EventStreamResponse, while_connected
from api.streaming.sse import HEARTBEAT
from core.dependencies import holder_of, require
from domain.auth import Principal, Scope
from domain.background import AgentRunRequest
from domain.enums import RunStatus
from domain.errors import ErrorKind, Forbidden, InvalidRequest, RouteurError, Unavailable
from domain.events import Envelope
from services.agent_stream import RunStream
from services.direct_service import AGENT as DIRECT
from services.direct_service import DirectRequest, DirectRun
from services.llm_providers.wire.completions import unsupported
from services.llm_providers.wire.openai_wire import read_message
from services.response_service import StoredResponse

router = APIRouter(prefix="/v1/responses", tags=["openai"])

Caller = Annotated[Principal, Depends(require(Scope.COMPLETION))]
ResponseKey = Annotated[str, Path(max_length=100, examples=["resp_019a7f0e4b0c7d3e9f1a2b3c4d5e6f70"])]
_ONE = openai_responses(400, 401, 403, 404)
_CHANGED = openai_responses(400, 401, 403, 404, 409)
_STATUS = {
    RunStatus.QUEUED: "queued",
    RunStatus.COMPLETED: "completed",
    RunStatus.CANCELLED: "cancelled",
    RunStatus.FAILED: "failed",
    RunStatus.TIMEOUT: "failed",
    RunStatus.LOST: "failed",
}
_CUT = {"length": "max_output_tokens", "content_filter": "content_filter"}


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
    wanted = await _understood(request, caller)
    if wanted.asked.background:
        return await _in_background(request, wanted, caller)
    if wanted.target.agent is None:
        return await _ask_model(request, wanted, caller)
    return await _ask_agent(request, wanted, caller)


async def _understood(request: Request, caller: Principal) -> _Wanted:
    asked = validated(ResponseRequest, await json_of(request))
    for name in asked.model_extra or {}:
        raise unsupported(name, "this router")
    target = target_of(asked.model)
    metadata: dict[str, Any] = dict(asked.metadata or {})
    body = _chat_body(asked)
    if target.agent is not None and asked.instructions:
        body["messages"] = [{"role": "system", "content": asked.instructions}, *body["messages"]]
    session_id = await _session(request, asked, metadata, target, caller)
    if asked.store is False and (session_id is not None or asked.background):
        raise InvalidRequest("store: false goes neither with a conversation nor with background.", param="store")
    return _Wanted(asked, validated(ChatRequest, body), body, target, session_id, metadata, tool_view_of(request))


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
    schema = {"name": wanted.get("name") or "answer", "schema": wanted["schema"], "strict": wanted.get("strict")}
    return {"type": "json_schema", "json_schema": {name: one for name, one in schema.items() if one is not None}}


async def _session(
    request: Request, asked: ResponseRequest, metadata: dict[str, Any], target: Target, caller: Principal
) -> str | None:
    """The one session that is meant."""
    services = services_of(request)
    bound = await session_of(request, metadata, services.sessions, target.agent or DIRECT, caller)
    conversation = asked.conversation
    named = conversation.id if isinstance(conversation, ConversationRef) else conversation
    given = [one for one in (bound, named, asked.previous_response_id) if one is not None]
    if len(set(given)) > 1:
        raise InvalidRequest(
            "Give one of previous_response_id, conversation and X-Session-Id.", param="previous_response_id"
        )
    if asked.previous_response_id is not None:
        return await services.responses.session_after(asked.previous_response_id, caller)
    return bound or named


def _echo(wanted: _Wanted, served: str) -> dict[str, Any]:
    """What a response repeats of its request."""
    asked = wanted.asked
    text = asked.text.model_dump(by_alias=True, exclude_none=True) if asked.text else {}
    reasoning = asked.reasoning.model_dump(exclude_none=True) if asked.reasoning else {}
    conversation = None if asked.conversation is None else {"id": wanted.session_id}
    return {
        "model": wanted.target.shown(served),
        "instructions": asked.instructions,
        "metadata": dict(asked.metadata or {}),
        "previous_response_id": asked.previous_response_id,
        "conversation": conversation,
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
    run = await services.direct.begin(
        DirectRequest(
            wanted.body,
            wanted.asked.model,
            wanted.streamed,
            wanted.session_id,
            wanted.metadata,
            unheard=({"role": "system", "content": instructions},) if instructions else (),
            door={"response": _echo(wanted, wanted.asked.model)},
        ),
        caller,
    )
    if wanted.streamed:
        await while_connected(request.receive, run.open())
        built = ResponseStream(run.run_id, _echo(wanted, run.model), message_id=run.message_id)
        frames = _model_frames(run, built)
        return _streamed(request, wanted, run, frames, caller, services.settings.server.heartbeat)
    await while_connected(request.receive, run.whole())
    built = ResponseStream(run.run_id, _echo(wanted, run.model), message_id=run.message_id)
    answer = run.answer
    built.begin()
    if thought := "".join(answer.reasonings):
        built.reasoning(thought)
    if answer.text:
        built.text(answer.text)
    for place, call in sorted(answer.calls.items()):
        built.call(str(place), call.id or "", call.name or "", call.arguments)
    built.finish(answer.finish_reason or "stop", run.usage)
    return await _whole(request, wanted, run, built, caller)


async def _model_frames(run: DirectRun, built: ResponseStream) -> AsyncGenerator[bytes]:
    yield built.begin()
    try:
        async with aclosing(run.blocks()) as blocks:
            async for block in blocks:
                try:
                    yield b"".join([_piece(built, event) for event in block.events])
                except asyncio.CancelledError as error:
                    await blocks.athrow(error)  # the run's own, when its limit was reached while the reader was slow
        yield built.finish(run.answer.finish_reason or "stop", run.usage)
    except RouteurError as error:
        yield built.cancel(run.usage) if error.code == "run_cancelled" else built.fail(error, run.usage)
    except asyncio.CancelledError:
        yield built.fail(_stopping())
        raise


def _piece(built: ResponseStream, event: dict[str, Any]) -> bytes:
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
            told += built.call(str(part.index), part.id or "", part.name or "", part.arguments)
    return told


# -- an agent --


async def _ask_agent(request: Request, wanted: _Wanted, caller: Principal) -> Response:
    services = services_of(request)
    run = await services.agents.stream(
        await _command(services, wanted, caller),
        caller,
        streams=wanted.streamed,
        door={"response": _echo(wanted, wanted.target.model or "")},
    )
    built = ResponseStream(run.run_id, _echo(wanted, run.model), tools=wanted.tools)
    if wanted.streamed:
        heartbeat = services.settings.server.heartbeat
        batches = run.batches(heartbeat)
        first = await while_connected(request.receive, begun(run, batches))
        return _streamed(request, wanted, run, _agent_frames(batches, first, built), caller, None)
    events = await while_connected(request.receive, finished(run))
    built.begin()
    built.envelopes(events)
    built.response["model"] = wanted.target.shown(run.model)
    return await _whole(request, wanted, run, built, caller)


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


def _headers(run: DirectRun | RunStream) -> dict[str, str]:
    replaced = run.replaced if isinstance(run, DirectRun) else ()
    return answer_headers(run.model, run.run_id, run.session_id, replaced)


async def _whole(
    request: Request, wanted: _Wanted, run: DirectRun | RunStream, built: ResponseStream, caller: Principal
) -> Response:
    if wanted.forgotten and run.session_id is not None:
        await services_of(request).responses.forget(run.session_id, caller)
    return Response(orjson.dumps(built.response), headers=_headers(run), media_type="application/json")


def _streamed(
    request: Request,
    wanted: _Wanted,
    run: DirectRun | RunStream,
    frames: AsyncGenerator[bytes],
    caller: Principal,
    heartbeat: float | None,
) -> Response:
    if wanted.forgotten:
        frames = _then_forget(services_of(request), run, frames, caller)
    return EventStreamResponse(frames, _headers(run), heartbeat=heartbeat)


async def _then_forget(
    services: Services, run: DirectRun | RunStream, frames: AsyncGenerator[bytes], caller: Principal
) -> AsyncGenerator[bytes]:
    """The same frames; when they are over, whatever way, the conversation is deleted."""
    try:
        async with aclosing(frames):
            async for frame in frames:
                yield frame
    finally:
        if run.session_id is not None:
            await asyncio.shield(services.responses.forget(run.session_id, caller))


def _stopping() -> Unavailable:
    return Unavailable("The server is stopping.", code="server_stopping", retry_after=1)


# -- in the background --


async def _in_background(request: Request, wanted: _Wanted, caller: Principal) -> Response:
    if not caller.may(Scope.RUNS):
        raise Forbidden(f"The scope '{Scope.RUNS.value}' is needed.", code="missing_scope")
    services = services_of(request)
    if services.background is None:
        raise Unavailable("Background runs need SESSION_STORE_URL to be unset.", code="background_unavailable")
    target = wanted.target
    echo = _echo(wanted, target.model or "")
    accepted = await services.background.runs.submit(
        target.agent or DIRECT,
        await _run_request(services, wanted, caller),
        caller,
        run_id=request.scope.get("state", {}).get("made_id"),
        response=echo,
    )
    echo["model"] = target.shown(accepted.model)
    created = accepted.created_at.timestamp()
    headers = answer_headers(accepted.model, accepted.run_id, accepted.session_id)
    if wanted.streamed:
        built = ResponseStream(accepted.run_id, echo, created_at=created, tools=wanted.tools)
        return EventStreamResponse(_followed(services, accepted.run_id, built), headers)
    built = ResponseStream(accepted.run_id, echo, created_at=created)
    built.begin(queued=True)
    return Response(orjson.dumps(built.response), headers=headers, media_type="application/json")


async def _run_request(services: Services, wanted: _Wanted, caller: Principal) -> AgentRunRequest:
    """The same call as a background run.

    Raises:
        InvalidRequest: a parameter that background runs do not take.
    """
    asked = wanted.asked
    refuse_for_agents(wanted.chat.model_dump(exclude_unset=True, exclude={"messages"}))
    if asked.top_p is not None:
        raise unsupported("top_p", "a response in the background")
    messages = wanted.chat.messages
    if wanted.session_id is not None:
        new = await services.direct.unsaid(wanted.session_id, wanted.body["messages"], caller)
        messages = [messages[place] for place in new]
    instructions = asked.instructions if wanted.target.agent is None else None
    said: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    said += [to_message(message, place) for place, message in enumerate(messages)]
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
    created = found.run.created_at.timestamp()
    built = ResponseStream(found.run.id, _echo_of(found), created_at=created, skip=skip)
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


def _stored(found: StoredResponse) -> dict[str, Any]:
    """A response as it stands in the record."""
    run = found.run
    status = _STATUS.get(run.status, "in_progress")
    cut = _CUT.get(run.finish_reason or "") if status == "completed" else None
    failed = status == "failed"
    error = response_error(ErrorKind.INTERNAL, run.error_code or "run_failed", run.error_message or "")
    return {
        "id": response_id(run.id),
        "object": "response",
        "created_at": int(run.created_at.timestamp()),
        "completed_at": int(run.completed_at.timestamp()) if run.completed_at and status == "completed" else None,
        "status": "incomplete" if cut else status,
        "error": error if failed else None,
        "incomplete_details": {"reason": cut} if cut else None,
        **_echo_of(found),
        "output": output_items(found.said, calls=run.agent == DIRECT),
        "usage": response_usage(run.usage),
    }
