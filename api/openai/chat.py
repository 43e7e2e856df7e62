"""`POST /v1/chat/completions`: a model directly, or an agent through `AgentService`; one meter for both."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, get_args

import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import services_of
from api.errors import openai_body
from api.openai.door import (
    Target,
    add_lean_route,
    answer_headers,
    json_of,
    session_of,
    target_of,
    validated,
)
from api.openai.schemas import ChatRequest
from api.openai.translate import to_command
from api.streaming.openai_chunks import ChatChunks, ToolView, error_frame, whole_answer
from api.streaming.response import EventStreamResponse, while_connected
from api.streaming.sse import HEARTBEAT
from core.dependencies import holder_of
from domain.auth import Principal, Scope
from domain.errors import Conflict, InvalidRequest, RouteurError, Unavailable
from domain.events import Envelope, ReasoningDelta, RunCancelled, TextDelta, ToolStarted
from services.agent_stream import RunStream
from services.direct_service import DirectRequest, DirectRun

_STREAM_EXAMPLE = (
    'data: {"id":"chatcmpl-0198...","object":"chat.completion.chunk","created":1764000000,'
    '"model":"agent/simple@offline/rules","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
)


async def create_chat_completion(request: Request) -> Response:
    """Ask a model (`provider/name`) or an agent (`agent/<id>`), as OpenAI's clients do.

    `X-Session-Id` binds the call to a stored session; `X-Agent-Tools` (hidden, reasoning, calls) says how an agent's
    own tool calls are shown. The answer's headers name what served it, its run and its session.
    """
    caller = await holder_of(Scope.COMPLETION, request)
    body = await json_of(request)
    asked = validated(ChatRequest, body)
    target = target_of(asked.model)
    metadata: dict[str, Any] = dict(asked.metadata or {})
    services = services_of(request)
    session_id = await session_of(request, metadata, services, target, caller, body["messages"])
    if target.agent is None:
        return await _ask_model(request, body, asked, session_id, metadata, caller)
    return await _ask_agent(request, body, asked, target, session_id, metadata, caller)


def install_chat(app: FastAPI) -> None:
    """Add the route; before all others, because it is asked most."""
    add_lean_route(
        app,
        "/v1/chat/completions",
        create_chat_completion,
        body=ChatRequest,
        answer={
            "description": "The answer, or with `stream` its chunks as server-sent events",
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/ChatCompletion"}},
                "text/event-stream": {"schema": {"type": "string"}, "example": _STREAM_EXAMPLE},
            },
        },
    )


# -- a model --


async def _ask_model(
    request: Request,
    body: dict[str, Any],
    asked: ChatRequest,
    session_id: str | None,
    metadata: dict[str, Any],
    caller: Principal,
) -> Response:
    services = services_of(request)
    streamed = bool(asked.stream)
    wanted = DirectRequest(body, asked.model, streamed, session_id, metadata)
    run = await services.direct.begin(wanted, caller)
    if streamed:
        await while_connected(request.receive, run.open())
        return EventStreamResponse(_model_frames(run), _headers(run), heartbeat=services.settings.server.heartbeat)
    answer = await while_connected(request.receive, run.whole())
    return Response(answer, headers=_headers(run), media_type="application/json")


def _headers(run: DirectRun) -> dict[str, str]:
    return answer_headers(run.model, run.run_id, run.session_id, run.replaced)


async def _model_frames(run: DirectRun) -> AsyncGenerator[bytes]:
    try:
        async with aclosing(run.blocks()) as blocks:
            async for block in blocks:
                try:
                    yield block.sse()
                except asyncio.CancelledError as error:
                    await blocks.athrow(error)  # the run's own, when its limit was reached while the reader was slow
    except RouteurError as error:
        yield error_frame(openai_body(error))
    except asyncio.CancelledError:
        yield stopping_frame()
        raise


# -- an agent --


async def _ask_agent(
    request: Request,
    body: dict[str, Any],
    asked: ChatRequest,
    target: Target,
    session_id: str | None,
    metadata: dict[str, Any],
    caller: Principal,
) -> Response:
    services = services_of(request)
    tools = tool_view_of(request)
    new = None if session_id is None else await services.direct.unsaid(session_id, body["messages"], caller)
    command = to_command(asked, target, session_id, metadata, new)
    streamed = bool(asked.stream)
    run = await services.agents.stream(command, caller, streams=streamed)
    headers = answer_headers(run.model, run.run_id, run.session_id)
    if not streamed:
        events = await while_connected(request.receive, finished(run))
        shown = whole_answer(run.run_id, target.shown(run.model), events, tools)
        headers["x-model"] = run.model
        return Response(orjson.dumps(shown), headers=headers, media_type="application/json")
    wants_usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
    chunks = ChatChunks(run.run_id, target.shown(run.model), usage=wants_usage, tools=tools)
    batches = run.batches(services.settings.server.heartbeat)
    first = await while_connected(request.receive, begun(run, batches))
    return EventStreamResponse(_agent_frames(run, batches, first, chunks), headers)


def tool_view_of(request: Request) -> ToolView:
    """How the caller wants to see an agent's tool calls.

    Raises:
        InvalidRequest: in a way that we do not know.
    """
    view = request.headers.get("x-agent-tools", "hidden")
    for known in get_args(ToolView):
        if view == known:
            found: ToolView = known
            return found
    raise InvalidRequest("X-Agent-Tools is hidden, reasoning or calls.", param="X-Agent-Tools")


async def finished(run: RunStream) -> list[Envelope]:
    """Every event of a run that came to a good end.

    Raises:
        RouteurError: whatever made it fail.
    """
    events = await run.collect()
    if run.error is not None:
        raise run.error
    if isinstance(events[-1].event, RunCancelled):
        raise cancelled()
    return events


async def begun(run: RunStream, batches: AsyncGenerator[list[Envelope]]) -> list[Envelope]:
    """Its events up to the first that tells something, or to the first silence: until then a failure has a status.

    Raises:
        RouteurError: it has failed before it said anything.
    """
    told: list[Envelope] = []
    try:
        async for envelopes in batches:
            told += envelopes
            if not envelopes or any(_tells(one) for one in told):
                return told
    except BaseException:
        await batches.aclose()
        raise
    if run.error is not None:
        raise run.error
    return told


def _tells(envelope: Envelope) -> bool:
    return isinstance(envelope.event, TextDelta | ReasoningDelta | ToolStarted)


async def _agent_frames(
    run: RunStream, batches: AsyncGenerator[list[Envelope]], first: list[Envelope], chunks: ChatChunks
) -> AsyncGenerator[bytes]:
    last = first[-1:]
    async with aclosing(batches):
        try:
            yield chunks.opening() + chunks.render(first)
            async for envelopes in batches:
                last = envelopes[-1:] or last
                yield chunks.render(envelopes) if envelopes else HEARTBEAT
        except asyncio.CancelledError:
            yield stopping_frame()
            raise
    if run.error is not None:
        yield error_frame(openai_body(run.error))
    elif last and isinstance(last[0].event, RunCancelled):
        yield error_frame(openai_body(cancelled()))


def cancelled() -> Conflict:
    """Its owner has stopped it."""
    return Conflict("The run was cancelled.", code="run_cancelled")


def stopping_frame() -> bytes:
    """For those who still read when the server stops."""
    return error_frame(openai_body(Unavailable("The server is stopping.", code="server_stopping", retry_after=1)))
