"""Runs: found by owner, agent, state, time and metadata; counted."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Float,
    FromClause,
    RowMapping,
    Select,
    case,
    cast,
    delete,
    extract,
    func,
    insert,
    literal,
    null,
    select,
    tuple_,
)

from core.database import tables
from core.database.repositories.base import Repository
from domain.enums import RunStatus
from domain.runs import ACTIVE, BAD, HOLDING, Cursor, Progress, Run, RunFilter, metadata_text
from domain.stats import StatsBy, StatsRow
from domain.usage import Usage, from_pico

_COUNTS = ("input_tokens", "output_tokens", "total_tokens", "cached_tokens", "reasoning_tokens", "audio_tokens")
_MAX_GROUPS = 1_000


class RunRepository(Repository[Run]):
    """Runs."""

    table = tables.runs
    record = Run

    def _record(self, row: RowMapping) -> Run:
        """Without what only the queue needs."""
        values = dict(row)
        del values["queue_rank"], values["pending"]
        return Run.model_validate(values)

    async def create(self, record: Run) -> Run:
        """Insert it, with its metadata index."""
        await super().create(record)
        rows = [
            {
                "run_id": record.id,
                "key": key,
                "value": metadata_text(value),
                "owner_id": record.owner_id,
                "created_at": record.created_at,
            }
            for key, value in record.metadata.items()
        ]
        if rows:
            await self._connection.execute(insert(tables.run_metadata), rows)
        return record

    async def owned(self, run_id: str, owner_id: str) -> Run | None:
        """The run, when it is that owner's."""
        return await self.find_one(id=run_id, owner_id=owner_id)

    async def find_runs(self, wanted: RunFilter, *, limit: int = 50, after: Cursor | None = None) -> list[Run]:
        """Those that fit, newest first."""
        table = self.table
        at, run_id = table.c.created_at, table.c.id
        query = select(table)
        pairs = list(wanted.metadata.items())
        for first in pairs[:1]:
            # The index of metadata is in this order already: the list is read from it, not sorted.
            index = tables.run_metadata
            at, run_id = index.c.created_at, index.c.run_id
            query = query.join(index, run_id == table.c.id).where(*_has(index, first, wanted.owner_id))
        query = query.where(*self._conditions(wanted, at))
        for other in pairs[1:]:
            more = tables.run_metadata.alias()
            query = query.where(table.c.id.in_(select(more.c.run_id).where(*_has(more, other, wanted.owner_id))))
        if after is not None:
            place = tuple_(literal(after.at, table.c.created_at.type), literal(after.id, table.c.id.type))
            query = query.where(tuple_(at, run_id) < place)
        query = query.order_by(at.desc(), run_id.desc()).limit(limit)
        return [self._record(row) for row in (await self._connection.execute(query)).mappings()]

    async def in_progress(self, owner_id: str | None, now: datetime) -> list[Run]:
        """Runs that are queued, waiting, or active with a lease that holds, newest first."""
        table = self.table
        # Each in the words of its own partial index; and not by the owner's, which holds all of their runs.
        owner = [] if owner_id is None else [func.coalesce(table.c.owner_id, "") == owner_id]
        alive = (table.c.lease_until >= now) | (table.c.status == RunStatus.WAITING.value)
        queued = table.c.status == literal(RunStatus.QUEUED.value, literal_execute=True)
        order = [table.c.created_at.desc(), table.c.id.desc()]
        found = await self.find_many(_one_of(HOLDING), alive, *owner, order_by=order, limit=1_000)
        found += await self.find_many(queued, *owner, order_by=order, limit=1_000)
        return sorted(found, key=lambda run: (run.created_at, run.id), reverse=True)

    async def holders(self) -> set[str]:
        """The workers that hold runs."""
        query = select(self.table.c.worker).where(_one_of(HOLDING)).distinct()
        return {worker for worker in (await self._connection.execute(query)).scalars() if worker}

    async def progress(self, run_ids: Sequence[str]) -> dict[str, Progress]:
        """How far runs have come."""
        table = self.table
        query = select(table.c.id, table.c.status, table.c.last_seq).where(table.c.id.in_(run_ids))
        return {row[0]: (RunStatus(row[1]), row[2]) for row in await self._connection.execute(query)}

    async def statistics(self, wanted: RunFilter, by: StatsBy, key: str | None = None) -> list[StatsRow]:
        """Counts and sums by group, the largest group first."""
        group, query = self._grouped(by, key)
        query = query.add_columns(*self._figures()).where(*self._conditions(wanted, self.table.c.created_at))
        for pair in wanted.metadata.items():
            index = tables.run_metadata.alias()
            query = query.where(self.table.c.id.in_(select(index.c.run_id).where(*_has(index, pair, wanted.owner_id))))
        query = query.group_by(group).order_by(func.count().desc(), group).limit(_MAX_GROUPS)
        return [_stats_row(dict(row)) for row in (await self._connection.execute(query)).mappings()]

    async def events(self, run_id: str, after: int = 0) -> list[str]:
        """The stored events of a run: JSON arrays, in order, from the one that holds `after + 1` on."""
        table = tables.run_events
        query = select(table.c.events).where(table.c.run_id == run_id, table.c.last_seq > after)
        return list((await self._connection.execute(query.order_by(table.c.first_seq))).scalars())

    async def cancelling(self, worker: str) -> list[str]:
        """Runs of that worker whose end was asked for."""
        table = self.table
        query = select(table.c.id).where(
            _one_of(HOLDING), table.c.status == RunStatus.CANCELLING.value, table.c.worker == worker
        )
        return list((await self._connection.execute(query)).scalars())

    async def waiting_for_a_worker(self, since: datetime, limit: int) -> list[tuple[str, str | None, int]]:
        """Queued runs that could have begun before `since`: id, session, priority."""
        table = self.table
        queued = table.c.status == literal(RunStatus.QUEUED.value, literal_execute=True)
        query = select(table.c.id, table.c.session_id, table.c.priority).where(queued, table.c.available_at < since)
        query = query.order_by(table.c.queue_rank, table.c.available_at, table.c.id).limit(limit)
        return [(row[0], row[1], row[2]) for row in await self._connection.execute(query)]

    async def queue_depth(self, limit: int) -> int:
        """How many runs are in the queue; counted up to `limit`."""
        queued = self.table.c.status == literal(RunStatus.QUEUED.value, literal_execute=True)
        some = select(self.table.c.id).where(queued).limit(limit).subquery()
        return int((await self._connection.execute(select(func.count()).select_from(some))).scalar_one())

    async def mark_resent(self, run_id: str, owner_id: str) -> bool:
        """The dead letter is sent again: True for the one who does it."""
        table = self.table
        return await self.update(table.c.id == run_id, table.c.owner_id == owner_id, table.c.dead, dead=False) == 1

    async def threads_to_forget(self, limit: int) -> list[str]:
        """Ended runs whose checkpoints are still there."""
        table = self.table
        query = select(table.c.id).where(table.c.has_thread, table.c.completed_at.is_not(None)).limit(limit)
        return list((await self._connection.execute(query)).scalars())

    async def trim_events(self, before: datetime, limit: int) -> int:
        """Delete events of runs that ended before; of how many runs."""
        table, events = self.table, tables.run_events
        ended = table.c.completed_at < literal(before, table.c.completed_at.type)
        query = select(events.c.run_id).join(table, table.c.id == events.c.run_id).where(events.c.at < before, ended)
        ids = list((await self._connection.execute(query.distinct().limit(limit))).scalars())
        if ids:
            await self._connection.execute(delete(events).where(events.c.run_id.in_(ids)))
        return len(ids)

    def _grouped(self, by: StatsBy, key: str | None) -> tuple[ColumnElement[Any], Select[Any]]:
        table = self.table
        if by == "metadata":
            index = tables.run_metadata.alias("by_key")
            group: ColumnElement[Any] = index.c.value
            return group, select(group.label("grp")).join_from(
                table, index, (index.c.run_id == table.c.id) & (index.c.key == key)
            )
        if by == "day":
            day = func.strftime("%Y-%m-%d", table.c.created_at)
            if self._connection.dialect.name == "postgresql":
                day = func.to_char(func.timezone("UTC", table.c.created_at), "YYYY-MM-DD")
            return day, select(day.label("grp"))
        # An expression, so that SQLite looks for the time first: the index by agent would spare it the sorting of a few
        # groups and cost it all the runs there have ever been.
        group = func.coalesce(table.c[by], null())
        return group, select(group.label("grp"))

    def _figures(self) -> list[ColumnElement[Any]]:
        table = self.table
        active = table.c.status.in_(sorted(ACTIVE))
        success = table.c.status == RunStatus.COMPLETED.value
        figures: list[ColumnElement[Any]] = [
            func.count().label("executions"),
            func.count().filter(success).label("successes"),
            func.count().filter(~success, ~active).label("errors"),
            func.count().filter(active).label("running"),
            func.avg(cast(self._seconds(), Float)).label("mean_duration"),
            func.sum(table.c.cost_pico).label("cost_pico"),
            func.count().filter(table.c.unmeasured_calls > 0).label("unmeasured_runs"),
            func.count().filter(table.c.unpriced_calls > 0).label("unpriced_runs"),
            func.max(case((table.c.estimated, 1), else_=0)).label("estimated"),
        ]
        return [*figures, *(func.sum(table.c[name]).label(name) for name in _COUNTS)]

    def _seconds(self) -> ColumnElement[Any]:
        ended, started = self.table.c.completed_at, self.table.c.started_at
        if self._connection.dialect.name == "postgresql":
            return extract("epoch", ended - started)
        return (func.julianday(ended) - func.julianday(started)) * 86_400.0

    def _conditions(self, wanted: RunFilter, at: ColumnElement[Any]) -> list[ColumnElement[bool]]:
        table = self.table
        found: list[ColumnElement[bool]] = []
        for name in ("owner_id", "agent", "kind", "session_id"):
            value = getattr(wanted, name)
            if value is not None:
                found.append(table.c[name] == value)
        if wanted.statuses and wanted.statuses <= BAD:
            found.append(_one_of(BAD))  # in the words of the partial index, or it is not used
        if len(wanted.statuses) == 1:
            found.append(table.c.status == next(iter(wanted.statuses)).value)
        elif wanted.statuses:
            found.append(table.c.status.in_(sorted(status.value for status in wanted.statuses)))
        if wanted.dead:
            found.append(table.c.dead)
        if wanted.since is not None:
            found.append(at >= literal(wanted.since, table.c.created_at.type))
        if wanted.until is not None:
            found.append(at < literal(wanted.until, table.c.created_at.type))
        return found


def _one_of(statuses: frozenset[RunStatus]) -> ColumnElement[bool]:
    """As the partial indexes say it, values and all."""
    return tables.runs.c.status.in_([literal(status.value, literal_execute=True) for status in sorted(statuses)])


def _has(index: FromClause, pair: tuple[str, str], owner_id: str | None) -> list[ColumnElement[bool]]:
    """That a row of a metadata index says `pair`."""
    found = [index.c.key == pair[0], index.c.value == pair[1]]
    return found if owner_id is None else [index.c.owner_id == owner_id, *found]


def _stats_row(row: dict[str, Any]) -> StatsRow:
    counts = {name: int(row[name] or 0) for name in _COUNTS[:3]}
    details = {name: None if row[name] is None else int(row[name]) for name in _COUNTS[3:]}
    ended = row["successes"] + row["errors"]
    return StatsRow(
        group=row["grp"],
        executions=row["executions"],
        successes=row["successes"],
        errors=row["errors"],
        running=row["running"],
        error_rate=row["errors"] / ended if ended else None,
        mean_duration=None if row["mean_duration"] is None else float(row["mean_duration"]),
        usage=Usage.model_validate({**counts, **details, "estimated": bool(row["estimated"])}),
        cost=from_pico(None if row["cost_pico"] is None else int(row["cost_pico"])),
        unmeasured_runs=row["unmeasured_runs"],
        unpriced_runs=row["unpriced_runs"],
    )
