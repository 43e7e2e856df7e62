"""Ask an agent and wait, or ask and read along."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from api.dependencies import AgentServiceDep, AllServices
from api.errors import problem_responses
from api.streaming.response import EventStreamResponse, while_connected
from api.streaming.sse import HEARTBEAT, SseRenderer
from core.dependencies import require
from domain.auth import Principal, Scope
from domain.models import CompletionRequest, CompletionResult
from services.agent_stream import RunStream

router = APIRouter(tags=["completion"])

Caller = Annotated[Principal, Depends(require(Scope.COMPLETION))]

_ERRORS = problem_responses(401, 403, 404, 409, 413, 422, 429, 502, 503, 504)
_TEXT = {"type": "string"}
#: Of each event, as OpenAPI tools read streams; `data` is one JSON object of the kind that `event` names.
_EVENT_SCHEMA = {"type": "object", "properties": {"id": _TEXT, "event": _TEXT, "data": _TEXT}, "required": ["data"]}
_STREAM_EXAMPLE = (
    "id: 1\nevent: run.started\n"
    'data: {"kind":"run.started","run_id":"0198...","seq":1,"at":"2026-11-20T12:00:00Z","agent":"simple",'
    '"model":"offline/rules","session_id":null}\n\n'
)


@router.post("/completion", response_model=CompletionResult, responses=_ERRORS)
async def complete(body: CompletionRequest, request: Request, caller: Caller, agents: AgentServiceDep) -> Response:
    """Ask an agent and get the whole answer. The header `x-model` names the model that served it."""
    result = await while_connected(request.receive, agents.invoke(body, caller))
    return Response(
        result.model_dump_json(),
        headers={"x-model": result.model, "x-run-id": result.run_id},
        media_type="application/json",
    )


@router.post(
    "/completion/stream",
    status_code=200,
    response_class=EventStreamResponse,
    responses={
        **_ERRORS,
        200: {
            "description": "Server-sent events; one terminal event ends the stream",
            "content": {"text/event-stream": {"schema": _EVENT_SCHEMA, "example": _STREAM_EXAMPLE}},
        },
    },
)
async def stream(body: CompletionRequest, caller: Caller, agents: AgentServiceDep, services: AllServices) -> Response:
    """Ask an agent and read along. Leaving the stream stops the run."""
    run = await agents.stream(body, caller)
    heartbeat = services.settings.server.heartbeat
    return EventStreamResponse(_frames(run, heartbeat), {"x-model": run.model, "x-run-id": run.run_id})


async def _frames(run: RunStream, heartbeat: float) -> AsyncGenerator[bytes]:
    renderer = SseRenderer()
    async with aclosing(run.batches(heartbeat)) as batches:
        try:
            async for envelopes in batches:
                yield renderer.render(envelopes) if envelopes else HEARTBEAT
        except asyncio.CancelledError:
            # The server stops while somebody still reads: they are told how the story ends.
            yield renderer.render(run.leftover())
            raise
