"""`/v1/responses`: a model or an agent, in the words of OpenAI's Responses API; each response is a run of a session."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import orjson
from fastapi import FastAPI, Request
from pydantic import ValidationError
from starlette.responses import Response

from api.dependencies import Services, services_of
from api.errors import invalid_request
from api.openai.chat import begun, finished
from api.openai.door import (
    add_lean_route,
    answer_headers,
)
from api.openai.response_request import Wanted, echo_of, in_their_words, understood
from api.openai.schemas import (
    ResponseRequest,
)
from api.openai.stored_responses import followed
from api.openai.translate import to_command, to_message
from api.streaming.openai_responses import ResponseStream
from api.streaming.response import EventStreamResponse, while_connected
from api.streaming.sse import HEARTBEAT
from core.dependencies import holder_of
from domain.auth import Principal, Scope
from domain.background import AgentRunRequest, RunAccepted
from domain.errors import Forbidden, InvalidRequest, RouteurError, Unavailable
from domain.events import Envelope
from services.agent_stream import RunStream
from services.direct_answer import DirectAnswer
from services.direct_service import AGENT as DIRECT
from services.direct_service import DirectRequest, DirectRun
from services.llm_providers.wire.completions import unsupported
from services.llm_providers.wire.openai_wire import read_message
from services.response_service import VIEW

T = TypeVar("T")


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
        wanted = await understood(request, caller)
        if wanted.asked.background:
            return await _in_background(request, wanted, caller)
        if wanted.target.agent is None:
            return await _ask_model(request, wanted, caller)
        return await _ask_agent(request, wanted, caller)
    except InvalidRequest as error:
        told = in_their_words(error)
        raise told from (None if told is error else error)


async def _begun(
    services: Services, wanted: Wanted, caller: Principal, begin: Callable[[Wanted], Awaitable[T]]
) -> tuple[Wanted, T]:
    """What `begin` makes of the call, in the session in which it is to go on.

    Several may go on after the same response at once: the first does so where it is, each other one in a branch.
    """
    before = wanted.asked.previous_response_id
    if before is None:
        return wanted, await begin(wanted)

    async def begin_in(session_id: str) -> tuple[Wanted, T]:
        placed = replace(wanted, session_id=session_id)
        return placed, await begin(placed)

    return await services.responses.go_on_after(before, caller, begin_in)


# -- a model --


async def _ask_model(request: Request, wanted: Wanted, caller: Principal) -> Response:
    services = services_of(request)
    instructions = wanted.asked.instructions

    async def begin(placed: Wanted) -> DirectRun:
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
            built = ResponseStream(run.run_id, echo_of(wanted, run.model), message_id=run.message_id)
            frames = _model_frames(run, built)
            return _streamed(services, wanted, run, frames, caller, services.settings.server.heartbeat)
        await while_connected(request.receive, run.whole())
    return _whole(run, _built(run, wanted))


def _built(run: DirectRun, wanted: Wanted) -> ResponseStream:
    """The response that a whole answer is."""
    built = ResponseStream(run.run_id, echo_of(wanted, run.model), message_id=run.message_id)
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


async def _ask_agent(request: Request, wanted: Wanted, caller: Principal) -> Response:
    services = services_of(request)

    async def begin(placed: Wanted) -> RunStream:
        command = await _command(services, placed, caller)
        door = _door(placed, placed.target.model or "")
        return await services.agents.stream(command, caller, streams=placed.streamed, door=door)

    wanted, run = await _begun(services, wanted, caller, begin)
    built = ResponseStream(run.run_id, echo_of(wanted, run.model), tools=wanted.tools)
    async with _forgotten(services, wanted, run, caller, unless_answered=wanted.streamed):
        if wanted.streamed:
            batches = run.batches(services.settings.server.heartbeat)
            first = await while_connected(request.receive, begun(run, batches))
            return _streamed(services, wanted, run, _agent_frames(batches, first, built), caller, None)
        events = await while_connected(request.receive, finished(run))
    built.begin()
    built.envelopes(events)
    return _whole(run, built)


async def _command(services: Services, wanted: Wanted, caller: Principal) -> Any:
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


def _door(wanted: Wanted, served: str) -> dict[str, Any] | None:
    """What makes the run a response that can be found again; None: it shall not be found."""
    return None if wanted.forgotten else {"response": {**echo_of(wanted, served), VIEW: wanted.tools}}


def _headers(run: DirectRun | RunStream) -> dict[str, str]:
    replaced = run.replaced if isinstance(run, DirectRun) else ()
    return answer_headers(run.model, run.run_id, run.session_id, replaced)


def _whole(run: DirectRun | RunStream, built: ResponseStream) -> Response:
    return Response(orjson.dumps(built.response), headers=_headers(run), media_type="application/json")


def _streamed(
    services: Services,
    wanted: Wanted,
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
    wanted: Wanted,
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
    wanted: Wanted,
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


async def _in_background(request: Request, wanted: Wanted, caller: Principal) -> Response:
    if not caller.may(Scope.RUNS):
        raise Forbidden(f"The scope '{Scope.RUNS.value}' is needed.", code="missing_scope")
    services, target = services_of(request), wanted.target
    if services.background is None:
        raise Unavailable("Background runs need SESSION_STORE_URL to be unset.", code="background_unavailable")
    background = services.background.runs

    async def begin(placed: Wanted) -> RunAccepted:
        return await background.submit(
            target.agent or DIRECT,
            await _run_request(services, placed, caller),
            caller,
            run_id=request.scope.get("state", {}).get("made_id"),
            response={**echo_of(placed, target.model or ""), VIEW: placed.tools},
            instructions=placed.asked.instructions if target.agent is None else None,
        )

    wanted, accepted = await _begun(services, wanted, caller, begin)
    echo = echo_of(wanted, target.model or "")
    echo["model"] = target.shown(accepted.model)
    headers = answer_headers(accepted.model, accepted.run_id, accepted.session_id)
    if wanted.streamed:
        built = ResponseStream(accepted.run_id, echo, tools=wanted.tools)
        return EventStreamResponse(followed(services, accepted.run_id, built), headers)
    built = ResponseStream(accepted.run_id, echo)
    built.begin(queued=True)
    return Response(orjson.dumps(built.response), headers=headers, media_type="application/json")


async def _run_request(services: Services, wanted: Wanted, caller: Principal) -> AgentRunRequest:
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
