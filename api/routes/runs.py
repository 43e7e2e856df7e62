"""Runs: what was asked of agents, what came of it, what it cost."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request

from api.dependencies import RunServiceDep
from api.errors import problem_responses
from api.paging import METADATA_FILTER, Cursor, Limit, metadata_filter
from core.dependencies import require
from domain.agents import AGENT_ID_PATTERN, SESSION_ID_PATTERN
from domain.auth import Principal, Scope
from domain.enums import RunStatus, SessionKind
from domain.errors import InvalidRequest
from domain.runs import RunDetail, RunFilter, RunList
from domain.stats import Stats, StatsBy

router = APIRouter(prefix="/api", tags=["runs"])

Caller = Annotated[Principal, Depends(require(Scope.RUNS))]
RunId = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9-]+$")]
AgentId = Annotated[str, Path(pattern=AGENT_ID_PATTERN)]
Statuses = Annotated[list[RunStatus] | None, Query(max_length=9, description="may be repeated")]
Since = Annotated[datetime | None, Query(description="begun at or after; without a zone it is UTC")]
Until = Annotated[datetime | None, Query(description="begun before")]
_LIST = problem_responses(401, 403, 422)
_ONE = problem_responses(401, 403, 404, 422)


@router.get("/runs", responses=_LIST, openapi_extra=METADATA_FILTER)
async def list_runs(
    request: Request,
    caller: Caller,
    runs: RunServiceDep,
    agent: Annotated[str | None, Query(pattern=AGENT_ID_PATTERN)] = None,
    kind: SessionKind | None = None,
    session_id: Annotated[str | None, Query(pattern=SESSION_ID_PATTERN)] = None,
    status: Statuses = None,
    since: Since = None,
    until: Until = None,
    in_progress: Annotated[
        bool, Query(description="only those going on; of the other filters, only agent and limit go with it")
    ] = False,
    dead_letter: Annotated[
        bool, Query(description="only background runs that ended badly and were not sent again")
    ] = False,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> RunList:
    """The caller's runs, newest first."""
    if in_progress:
        if dead_letter or kind or session_id or status or since or until or cursor or metadata_filter(request):
            raise InvalidRequest("Of the other filters, only agent and limit go with in_progress.", param="in_progress")
        return await runs.in_progress(caller, agent, limit=limit)
    query = RunFilter(
        agent=agent,
        kind=kind,
        session_id=session_id,
        statuses=frozenset(status or ()),
        since=since,
        until=until,
        metadata=metadata_filter(request),
        dead=dead_letter,
    )
    return await runs.list_runs(query, caller, limit=limit, cursor=cursor)


@router.get("/runs/{run_id}", responses=_ONE)
async def get_run(run_id: RunId, caller: Caller, runs: RunServiceDep) -> RunDetail:
    """One run: result, error, usage, cost, and its events."""
    return await runs.get_run(run_id, caller)


@router.get("/agents/{agent_id}/runs", responses=_LIST, openapi_extra=METADATA_FILTER)
async def list_runs_of_agent(
    agent_id: AgentId,
    request: Request,
    caller: Caller,
    runs: RunServiceDep,
    status: Statuses = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> RunList:
    """The caller's runs of one agent, newest first."""
    query = RunFilter(
        agent=agent_id,
        statuses=frozenset(status or ()),
        since=since,
        until=until,
        metadata=metadata_filter(request),
    )
    return await runs.list_runs(query, caller, limit=limit, cursor=cursor)


@router.get("/agents/{agent_id}/runs/{run_id}", responses=_ONE)
async def get_run_of_agent(agent_id: AgentId, run_id: RunId, caller: Caller, runs: RunServiceDep) -> RunDetail:
    """One run of one agent."""
    return await runs.get_run(run_id, caller, agent_id)


@router.get("/stats", responses=_LIST, openapi_extra=METADATA_FILTER)
async def get_stats(
    request: Request,
    caller: Caller,
    runs: RunServiceDep,
    by: Annotated[StatsBy, Query(description="group by this")] = "agent",
    key: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_.-]{1,64}$", description="of metadata, to group by")] = None,
    agent: Annotated[str | None, Query(pattern=AGENT_ID_PATTERN)] = None,
    kind: SessionKind | None = None,
    since: Since = None,
    until: Until = None,
) -> Stats:
    """The caller's runs counted: executions, successes, errors, durations, tokens, cost; in all and by group."""
    query = RunFilter(agent=agent, kind=kind, since=since, until=until, metadata=metadata_filter(request))
    return await runs.stats(query, caller, by, key)
