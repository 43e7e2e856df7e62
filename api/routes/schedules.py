"""Schedules: background runs that begin by the clock."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path

from api.dependencies import BackgroundDep
from api.errors import problem_responses
from core.dependencies import require
from domain.auth import Principal, Scope
from domain.schedules import NewSchedule, ScheduleChange, ScheduleInfo, ScheduleList

router = APIRouter(prefix="/api/schedules", tags=["schedules"])

Caller = Annotated[Principal, Depends(require(Scope.RUNS))]
ScheduleId = Annotated[str, Path(max_length=64, pattern=r"^[A-Za-z0-9-]+$")]
_ONE = problem_responses(401, 403, 404, 422, 503)
_WRITE = problem_responses(401, 403, 404, 409, 413, 422, 429, 503)


@router.post("", status_code=201, responses=_WRITE)
async def create_schedule(body: NewSchedule, caller: Caller, background: BackgroundDep) -> ScheduleInfo:
    """Start a run of an agent by the clock."""
    return await background.schedules.create(body, caller)


@router.get("", responses=problem_responses(401, 403, 503))
async def list_schedules(caller: Caller, background: BackgroundDep) -> ScheduleList:
    """The caller's schedules, the oldest first."""
    return await background.schedules.list(caller)


@router.get("/{schedule_id}", responses=_ONE)
async def get_schedule(schedule_id: ScheduleId, caller: Caller, background: BackgroundDep) -> ScheduleInfo:
    """One schedule: when it comes next, what came of the last time."""
    return await background.schedules.get(schedule_id, caller)


@router.patch("/{schedule_id}", responses=_WRITE)
async def change_schedule(
    schedule_id: ScheduleId, body: ScheduleChange, caller: Caller, background: BackgroundDep
) -> ScheduleInfo:
    """Change what is named; `{"enabled": false}` pauses it."""
    return await background.schedules.change(schedule_id, body, caller)


@router.delete("/{schedule_id}", status_code=204, responses=_ONE)
async def delete_schedule(schedule_id: ScheduleId, caller: Caller, background: BackgroundDep) -> None:
    """Delete it; runs that it has begun go on."""
    await background.schedules.delete(schedule_id, caller)
