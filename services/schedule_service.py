"""Runs that begin by the clock. Several processes may look: one of them fires."""

import asyncio
import logging
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import CroniterError, croniter
from uuid_utils import uuid7

from core.database.engine import Database
from core.database.unit_of_work import UnitOfWork
from domain.auth import CredentialKind, Principal, Scope, UserId
from domain.background import AgentRunRequest
from domain.errors import Conflict, InvalidRequest, NotFound, RouteurError, Unavailable
from domain.schedules import NewSchedule, Schedule, ScheduleChange, ScheduleInfo, ScheduleList
from services.background_service import BackgroundService

logger = logging.getLogger(__name__)

MAX_SCHEDULES = 200  # of one user
_AT_LEAST, _AT_MOST = 0.1, 5.0  # seconds between looks
_AT_ONCE = 100
_FIELDS = 5


class ScheduleService:
    """The caller's schedules, and the clock that fires everybody's."""

    def __init__(self, database: Database, background: BackgroundService) -> None:
        self._database = database
        self._background = background

    async def create(self, new: NewSchedule, caller: Principal) -> ScheduleInfo:
        """A schedule; what it will run is checked now.

        Raises:
            InvalidRequest: no such cron, zone or webhook.
            NotFound, Forbidden: as a run of it would be refused.
            Conflict: the caller has too many.
        """
        now = datetime.now(UTC)
        next_at = next_moment(new.cron, new.timezone, now)
        await self._background.prepare(new.agent, new.run, caller)
        schedule = Schedule(
            id=str(uuid7()),
            owner_id=caller.user_id,
            agent=new.agent,
            name=new.name,
            cron=new.cron,
            timezone=new.timezone,
            request=new.run.model_dump(mode="json", exclude_defaults=True),
            allowed_models=sorted(caller.allowed_models),
            enabled=new.enabled,
            next_at=next_at,
            created_at=now,
            updated_at=now,
        )
        async with self._database.unit_of_work() as work:
            if await work.schedules.count(caller.user_id) >= MAX_SCHEDULES:
                raise Conflict(f"You have {MAX_SCHEDULES} schedules; delete one first.", code="too_many_schedules")
            await work.schedules.create(schedule)
        return ScheduleInfo.of(schedule)

    async def list(self, caller: Principal) -> ScheduleList:
        """The caller's, the oldest first."""
        async with self._database.reading() as work:
            found = await work.schedules.of_owner(caller.user_id, MAX_SCHEDULES)
        return ScheduleList(schedules=[ScheduleInfo.of(one) for one in found])

    async def get(self, schedule_id: str, caller: Principal) -> ScheduleInfo:
        """One. Raises NotFound."""
        return ScheduleInfo.of(await self._owned(schedule_id, caller))

    async def change(self, schedule_id: str, change: ScheduleChange, caller: Principal) -> ScheduleInfo:
        """Change what is named; its next moment follows. Raises as `create`."""
        schedule = await self._owned(schedule_id, caller)
        now = datetime.now(UTC)
        asked = change.model_dump(exclude_none=True, exclude={"run"})
        if change.run is not None:
            await self._background.prepare(schedule.agent, change.run, caller)
            asked["request"] = change.run.model_dump(mode="json", exclude_defaults=True)
            asked["allowed_models"] = sorted(caller.allowed_models)
        cron, zone = asked.get("cron", schedule.cron), asked.get("timezone", schedule.timezone)
        asked |= {"next_at": next_moment(cron, zone, now), "updated_at": now, "last_error": None}
        async with self._database.unit_of_work() as work:
            if not await work.schedules.change(schedule_id, caller.user_id, **asked):
                raise schedule_not_found()
        return await self.get(schedule_id, caller)

    async def delete(self, schedule_id: str, caller: Principal) -> None:
        """Remove it; runs that it has begun go on. Raises NotFound."""
        async with self._database.unit_of_work() as work:
            if not await work.schedules.remove(schedule_id, caller.user_id):
                raise schedule_not_found()

    async def fire(self, now: datetime) -> int:
        """Begin the runs whose moment has come; how many moments were taken."""
        async with self._database.reading() as work:
            due = await work.schedules.due(now, _AT_ONCE)
        taken = 0
        for schedule in due:
            next_at = next_moment(schedule.cron, schedule.timezone, now)
            taken += await self._begin(schedule, next_at, now)
        return taken

    async def watch(self) -> None:
        """Fire for ever."""
        while True:
            try:
                await self.fire(datetime.now(UTC))
                pause = await self._until_next()
            except RouteurError:
                logger.warning("schedules could not be looked at", exc_info=True)
                pause = _AT_MOST
            await asyncio.sleep(pause)

    async def _until_next(self) -> float:
        """Seconds to the next moment of any schedule; other processes may make new ones, so never many."""
        async with self._database.reading() as work:
            next_at = await work.schedules.next_moment()
        if next_at is None:
            return _AT_MOST
        return min(_AT_MOST, max(_AT_LEAST, (next_at - datetime.now(UTC)).total_seconds()))

    async def _begin(self, schedule: Schedule, next_at: datetime, now: datetime) -> bool:
        """Take this moment and begin its run, both or neither; False: somebody else was quicker."""
        try:
            caller = await self._owner_of(schedule)
            request = AgentRunRequest.model_validate(schedule.request)
            new = await self._background.prepare(schedule.agent, request, caller)

            async def take(work: UnitOfWork) -> bool:
                return await work.schedules.fire(schedule, next_at, now, last_run_id=new.id, last_error=None)

            return await self._background.submit_prepared(new, take)
        except RouteurError as error:
            logger.warning("schedule came to nothing", extra={"schedule": schedule.id, "why": error.message})
            async with self._database.unit_of_work() as work:
                return await work.schedules.fire(schedule, next_at, now, last_error=error.message[:500])

    async def _owner_of(self, schedule: Schedule) -> Principal:
        async with self._database.reading() as work:
            owner = await work.users.get(schedule.owner_id)
        if owner is None or owner.disabled or not {Scope.RUNS, Scope.ADMIN} & owner.scopes:
            raise Unavailable("The owner of the schedule may not start runs any more.")
        models = frozenset(schedule.allowed_models)
        user_id = UserId(owner.id)
        return Principal(user_id, owner.username, owner.scopes, CredentialKind.ACCESS_TOKEN, "schedule", models)

    async def _owned(self, schedule_id: str, caller: Principal) -> Schedule:
        async with self._database.reading() as work:
            schedule = await work.schedules.find_one(id=schedule_id, owner_id=caller.user_id)
        if schedule is None:
            raise schedule_not_found()
        return schedule


def next_moment(cron: str, timezone: str, after: datetime) -> datetime:
    """The next moment of a cron expression (five fields), in UTC.

    Raises:
        InvalidRequest: there is no such expression, zone, or moment.
    """
    try:
        zone = ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidRequest("There is no such time zone; an example: Europe/Paris.", param="timezone") from error
    if len(cron.split()) != _FIELDS:
        raise InvalidRequest("cron has five fields: minute hour day month weekday.", param="cron")
    try:
        found: datetime = croniter(cron, after.astimezone(zone)).get_next(datetime)
    except (CroniterError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise InvalidRequest("cron cannot be read, or never comes.", param="cron") from error
    return found.astimezone(UTC)


def schedule_not_found() -> NotFound:
    """The same for a schedule that does not exist and for somebody else's."""
    return NotFound("There is no such schedule.", code="schedule_not_found")
