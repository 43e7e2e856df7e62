"""Runs as their owners see them: one, many, in progress, counted."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import cast

from core.database.engine import Database
from domain.auth import Principal
from domain.errors import InvalidRequest
from domain.events import Envelope, LogWritten
from domain.ports import RecordStore
from domain.runs import ENDED, ApprovalInfo, LogLine, Run, RunDetail, RunFilter, RunInfo, RunList, WebhookInfo
from domain.stats import Stats, StatsBy, StatsRow
from domain.usage import Usage
from services.cursors import decode_cursor, encode_cursor
from services.run_events import with_an_end
from services.run_story import load_story
from services.session_service import run_not_found


class RunService:
    """The use cases of runs. The owner is always the caller, whatever a filter says."""

    def __init__(self, store: RecordStore, database: Database) -> None:
        self._store = store
        self._database = database

    async def get_run(self, run_id: str, caller: Principal, agent: str | None = None) -> RunDetail:
        """One run with its events.

        Raises:
            NotFound: the caller has no such run (of that agent).
        """
        async with self._store.reading() as work:
            run = await work.runs.owned(run_id, caller.user_id)
            if run is None or (agent is not None and run.agent != agent):
                raise run_not_found()
            stored = await work.runs.events(run_id)
        told = list(load_story(run_id, stored))
        if run.status in ENDED:
            told = with_an_end(run, told)
        events = [{"seq": one.seq, "at": one.at, **one.event.model_dump(mode="json")} for one in told]
        logs = [_line(one) for one in told if isinstance(one.event, LogWritten)]
        approvals, webhook = await self._beside(run)
        return RunDetail(
            **RunInfo.of(run).model_dump(),
            result=run.output,
            logs=logs,
            events=events,
            approvals=approvals,
            webhook=webhook,
        )

    async def _beside(self, run: Run) -> tuple[list[ApprovalInfo], WebhookInfo | None]:
        """What only background runs have."""
        if not run.background:
            return [], None
        async with self._database.reading() as work:
            asked = await work.approvals.of_run(run.id)
            delivery = await work.deliveries.of_run(run.id) if run.webhook else None
        shown = [
            ApprovalInfo(approval_id=one.id, **one.model_dump(exclude={"id", "run_id", "owner_id"})) for one in asked
        ]
        if run.webhook is None:
            return shown, None
        if delivery is None:
            return shown, WebhookInfo(url=run.webhook, status="waiting")
        return shown, WebhookInfo(**delivery.model_dump(exclude={"run_id", "owner_id", "created_at"}))

    async def list_runs(
        self, query: RunFilter, caller: Principal, *, limit: int = 50, cursor: str | None = None
    ) -> RunList:
        """The caller's runs, newest first.

        Raises:
            InvalidRequest: the cursor is none of ours.
        """
        after = decode_cursor(cursor)
        async with self._store.reading() as work:
            found = await work.runs.find_runs(_of(caller, query), limit=limit + 1, after=after)
        shown = found[:limit]
        more = encode_cursor(shown[-1].created_at, shown[-1].id) if len(found) > limit else None
        return RunList(runs=[RunInfo.of(run) for run in shown], next_cursor=more)

    async def in_progress(self, caller: Principal, agent: str | None = None, *, limit: int = 50) -> RunList:
        """The caller's runs that are going on, newest first: long ones are seen, those of a dead process are not."""
        async with self._store.reading() as work:
            found = await work.runs.in_progress(caller.user_id, datetime.now(UTC))
        shown = [RunInfo.of(run) for run in found if agent is None or run.agent == agent]
        return RunList(runs=shown[:limit], next_cursor=None)

    async def stats(self, query: RunFilter, caller: Principal, by: StatsBy = "agent", key: str | None = None) -> Stats:
        """Counts, durations, tokens and cost: in all, and by group.

        Raises:
            InvalidRequest: `key` is missing, or not wanted.
        """
        if (by == "metadata") != (key is not None):
            raise InvalidRequest("key is needed to group by metadata, and only then.", param="key")
        wanted = _of(caller, query)
        async with self._store.reading() as work:
            groups = await work.runs.statistics(wanted, by, key)
            everything = groups if by == "status" else await work.runs.statistics(wanted, "status")
        return Stats(since=wanted.since, until=wanted.until, by=by, key=key, total=_total(everything), groups=groups)


def _line(envelope: Envelope) -> LogLine:
    event = cast(LogWritten, envelope.event)
    return LogLine(at=envelope.at, level=event.level, logger=event.logger, message=event.message)


def _total(rows: list[StatsRow]) -> StatsRow:
    """The sum of groups that share no run."""
    successes, errors = sum(row.successes for row in rows), sum(row.errors for row in rows)
    ended = successes + errors
    spent = [(row.mean_duration, row.successes + row.errors) for row in rows if row.mean_duration is not None]
    timed = sum(count for _, count in spent)
    costs = [row.cost for row in rows if row.cost is not None]
    return StatsRow(
        group=None,
        executions=sum(row.executions for row in rows),
        successes=successes,
        errors=errors,
        running=sum(row.running for row in rows),
        error_rate=errors / ended if ended else None,
        mean_duration=sum(mean * count for mean, count in spent) / timed if timed else None,
        usage=sum((row.usage for row in rows), Usage()),
        cost=sum(costs[1:], costs[0]) if costs else None,
        unmeasured_runs=sum(row.unmeasured_runs for row in rows),
        unpriced_runs=sum(row.unpriced_runs for row in rows),
    )


def _of(caller: Principal, query: RunFilter) -> RunFilter:
    """The same question, about the caller's own runs."""
    since, until = _aware(query.since, "since"), _aware(query.until, "until")
    return replace(query, owner_id=caller.user_id, since=since, until=until)


def _aware(moment: datetime | None, name: str) -> datetime | None:
    """In UTC; a moment without a zone is UTC.

    Raises:
        InvalidRequest: it is before the first year, or after the last.
    """
    if moment is None:
        return None
    try:
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as error:
        raise InvalidRequest(f"{name} is not a moment that can be stored.", param=name) from error
