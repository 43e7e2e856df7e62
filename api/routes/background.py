"""Background runs: started, followed, cancelled, approved, sent again; what agents are doing."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query
from starlette.responses import Response

from api.dependencies import AllServices, BackgroundDep, MadeId, RunEventsDep
from api.errors import problem_responses
from api.streaming.response import EventStreamResponse
from api.streaming.sse import HEARTBEAT, RETRY, SseRenderer, gap_frame
from core.dependencies import require
from domain.agents import AGENT_ID_PATTERN
from domain.auth import Principal, Scope
from domain.background import AgentRunRequest, AgentStatus, ApprovalAnswer, RunAccepted, RunState
from domain.errors import FieldError, Malformed
from services.run_events import RunEvents

router = APIRouter(prefix="/api", tags=["background runs"])

Caller = Annotated[Principal, Depends(require(Scope.RUNS))]
RunId = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9-]+$")]
AgentId = Annotated[str, Path(pattern=AGENT_ID_PATTERN)]
_START = problem_responses(401, 403, 404, 409, 413, 422, 429, 503)
_CHANGE = problem_responses(401, 403, 404, 409, 422, 503)
_TEXT = {"type": "string"}
_EVENT_SCHEMA = {"type": "object", "properties": {"id": _TEXT, "event": _TEXT, "data": _TEXT}, "required": ["data"]}
_LARGEST_CURSOR = 2**31 - 1


@router.post(
    "/agents/{agent_id}/run",
    status_code=202,
    responses={**_START, 202: {"headers": {"Location": {"description": "the run", "schema": _TEXT}}}},
)
async def run_agent(
    agent_id: AgentId,
    body: AgentRunRequest,
    caller: Caller,
    background: BackgroundDep,
    made_id: MadeId,
    response: Response,
) -> RunAccepted:
    """Start a background run and get its id at once. `Idempotency-Key` makes sure that it is started once."""
    accepted = await background.runs.submit(agent_id, body, caller, run_id=made_id)
    _name_the_run(response, accepted)
    return accepted


@router.get("/agents/{agent_id}/status", responses=problem_responses(401, 403, 404, 422, 503))
async def get_agent_status(
    agent_id: AgentId,
    caller: Caller,
    background: BackgroundDep,
    run_id: Annotated[str | None, Query(max_length=64, pattern=r"^[A-Za-z0-9-]+$")] = None,
) -> AgentStatus:
    """What an agent is doing for the caller; with `run_id`, where that run stands."""
    return await background.runs.status(agent_id, caller, run_id)


@router.post("/runs/{run_id}/cancel", responses=_CHANGE)
async def cancel_run(run_id: RunId, caller: Caller, background: BackgroundDep) -> RunState:
    """Stop a run, wherever it is going on. One that has ended stays as it is."""
    return await background.runs.cancel(run_id, caller)


@router.post("/runs/{run_id}/approve", responses=_CHANGE)
async def approve(run_id: RunId, body: ApprovalAnswer, caller: Caller, background: BackgroundDep) -> RunState:
    """Answer what a waiting run has asked, by the id of the approval, once."""
    return await background.runs.approve(run_id, body, caller)


@router.post("/runs/{run_id}/requeue", status_code=202, responses={**_START})
async def requeue(
    run_id: RunId, caller: Caller, background: BackgroundDep, made_id: MadeId, response: Response
) -> RunAccepted:
    """Send a dead letter again, as a new run: one that failed, timed out or was lost."""
    accepted = await background.runs.requeue(run_id, caller, new_id=made_id)
    _name_the_run(response, accepted)
    return accepted


@router.get("/webhooks/secret", responses=problem_responses(401, 403, 503))
async def get_webhook_secret(caller: Caller, background: BackgroundDep) -> dict[str, str]:
    """With which the caller's webhooks are signed (Standard Webhooks)."""
    return {"secret": background.webhooks.secret(caller)}


@router.get(
    "/runs/{run_id}/events",
    status_code=200,
    response_class=EventStreamResponse,
    responses={
        **problem_responses(400, 401, 403, 404, 422),
        200: {
            "description": "Server-sent events: those after the cursor, then those that come; the terminal one ends it",
            "content": {"text/event-stream": {"schema": _EVENT_SCHEMA}},
        },
        204: {"description": "The cursor is at the end of a run that has ended: do not come back"},
    },
)
async def follow_run(
    run_id: RunId,
    caller: Caller,
    events: RunEventsDep,
    services: AllServices,
    after: Annotated[str | None, Query(description="`seq` of the last event that is known")] = None,
    last_event_id: Annotated[
        str | None, Header(description="as `after`, and wins: a browser reconnects with it")
    ] = None,
) -> Response:
    """Follow a run: replayed from the cursor, then live. Come and go as often as you like; the run does not notice."""
    cursor = _cursor(last_event_id if last_event_id is not None else after)
    if await events.is_over(run_id, caller, cursor):
        return Response(status_code=204)
    frames = _frames(events, run_id, cursor, services.settings.server.heartbeat)
    return EventStreamResponse(frames, {"x-run-id": run_id})


async def _frames(events: RunEvents, run_id: str, after: int, heartbeat: float) -> AsyncGenerator[bytes]:
    renderer = SseRenderer()
    yield RETRY
    async with aclosing(events.follow(run_id, after, heartbeat)) as told:
        async for one in told:
            if isinstance(one, tuple):
                yield gap_frame(run_id, *one)
            else:
                yield renderer.render(one) if one else HEARTBEAT


def _cursor(given: str | None) -> int:
    """The `seq` that a reader knows last; 0: nothing yet.

    Raises:
        Malformed: it is no such number.
    """
    if given is None or given == "":
        return 0
    if not (given.isascii() and given.isdigit()) or int(given[:20]) > _LARGEST_CURSOR:
        raise Malformed(
            "after and Last-Event-ID are the seq of an event, a whole number from 0 on.",
            code="malformed_cursor",
            param="after",
            errors=[FieldError("after", "not the seq of an event")],
        )
    return int(given)


def _name_the_run(response: Response, accepted: RunAccepted) -> None:
    response.headers["location"] = f"/api/runs/{accepted.run_id}"
    response.headers["x-run-id"] = accepted.run_id
