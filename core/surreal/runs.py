"""Runs, and what their model calls cost."""

from collections.abc import Sequence
from datetime import UTC, datetime

from core.surreal.connection import CALLS, EVENTS, RUNS, Row
from core.surreal.repository import SurrealRepository, tagged
from core.surreal.transaction import Transaction
from domain.enums import RunStatus
from domain.runs import ACTIVE, Cursor, ModelCall, Progress, Run, RunFilter, metadata_text, seed_status
from domain.sessions import SessionUsage
from domain.stats import StatsBy, StatsRow
from domain.usage import Usage, from_pico

_ALL = 1_000_000


class RunRepository(SurrealRepository[Run]):
    """Runs, in the table of workflow runs."""

    record = Run

    def _tables(self) -> Sequence[str]:
        return [RUNS]

    def _row(self, record: Run) -> tuple[str, str, Row]:
        row = {
            "run_id": record.id,
            "workflow_name": record.agent,
            "kind": record.kind.value,
            "owner_id": record.owner_id,
            "session_id": record.session_id,
            "status": seed_status(record.status),
            "run_status": record.status.value,
            "input": record.input,
            "output": record.output,
            "metadata": record.metadata,
            "tags": {key: metadata_text(value) for key, value in record.metadata.items()},
            "created_at": record.created_at,
            "updated_at": record.updated_at,
            "completed_at": record.completed_at,
            "lease_until": record.lease_until,
            "error_message": record.error_message,
            "data": record.model_dump_json(),
        }
        return RUNS, record.id, row

    async def owned(self, run_id: str, owner_id: str) -> Run | None:
        """The run, when it is that owner's."""
        return await self.find_one(id=run_id, owner_id=owner_id)

    async def find_runs(self, wanted: RunFilter, *, limit: int = 50, after: Cursor | None = None) -> list[Run]:
        """Those that fit, newest first."""
        conditions, values = _run_conditions(wanted)
        if after is not None:
            conditions.append("(created_at < $at OR (created_at = $at AND run_id < $id))")
            values |= {"at": after.at, "id": after.id}
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        query = (
            f"SELECT data, created_at, run_id FROM {RUNS} {where} ORDER BY created_at DESC, run_id DESC LIMIT $limit"
        )
        return self._read(await self._work.engine.rows(query, {**values, "limit": limit}))

    async def active(self, session_id: str | None = None) -> list[Run]:
        """Runs that have not ended."""
        return await self.find_runs(RunFilter(session_id=session_id, statuses=ACTIVE), limit=_ALL)

    async def in_progress(self, owner_id: str | None, now: datetime) -> list[Run]:
        """Runs that are active and whose lease holds, newest first."""
        found = await self.find_runs(RunFilter(owner_id=owner_id, statuses=ACTIVE), limit=_ALL)
        return [run for run in found if run.lease_until is not None and run.lease_until >= now]

    async def holders(self) -> set[str]:
        """The workers that hold runs."""
        return {run.worker for run in await self.active() if run.worker}

    async def progress(self, run_ids: Sequence[str]) -> dict[str, Progress]:
        """How far runs have come."""
        rows = await self._work.rows(f"SELECT run_id, run_status FROM {RUNS} WHERE run_id IN $ids", ids=list(run_ids))
        return {row["run_id"]: (RunStatus(row["run_status"]), 0) for row in rows}

    async def statistics(self, wanted: RunFilter, by: StatsBy, key: str | None = None) -> list[StatsRow]:
        """Counts and sums by group, the largest group first."""
        groups: dict[str | None, list[Run]] = {}
        for run in await self.find_runs(wanted, limit=_ALL):
            if by == "metadata" and key not in run.metadata:
                continue
            groups.setdefault(_group(run, by, key), []).append(run)
        rows = [_stats_row(group, runs) for group, runs in groups.items()]
        return sorted(rows, key=lambda row: (-row.executions, row.group or ""))

    async def events(self, run_id: str, after: int = 0) -> list[str]:
        """The stored events of a run; here they are one batch, written with its end."""
        rows = await self._work.rows(
            f"SELECT events, first_seq FROM {EVENTS} WHERE run_id = $r ORDER BY first_seq", r=run_id
        )
        return [row["events"] for row in rows]


class ModelCallRepository:
    """What model calls cost."""

    def __init__(self, work: Transaction) -> None:
        self._work = work

    def add(self, call_id: str, call: ModelCall) -> None:
        """Keep one."""
        self._work.create(CALLS, call_id, call_row(call))

    async def usage_of_session(self, session_id: str) -> SessionUsage:
        """Sums over the calls of one session."""
        rows = await self._work.rows(f"SELECT data FROM {CALLS} WHERE session_id = $s", s=session_id)
        calls = [ModelCall.model_validate_json(row["data"]) for row in rows]
        usages = [call.usage for call in calls if call.usage is not None]
        costs = [call.cost_pico for call in calls if call.cost_pico is not None]
        return SessionUsage(
            usage=sum(usages[1:], usages[0]) if usages else None,
            cost=from_pico(sum(costs)) if costs else None,
            calls=len(calls),
            unmeasured_calls=len(calls) - len(usages),
            unpriced_calls=sum(call.usage is not None and call.cost_pico is None for call in calls),
        )

    async def of_run(self, run_id: str) -> list[ModelCall]:
        """The calls of one run, in order."""
        rows = await self._work.rows(f"SELECT data, place FROM {CALLS} WHERE run_id = $r ORDER BY place", r=run_id)
        return [ModelCall.model_validate_json(row["data"]) for row in rows]

    async def outside_runs(self, owner_id: str, *, limit: int = 100) -> list[ModelCall]:
        """An owner's calls that were no part of a run, newest first: their ids grow with time."""
        query = f"SELECT data, id FROM {CALLS} WHERE owner_id = $o AND outside = true ORDER BY id DESC LIMIT $limit"
        rows = await self._work.rows(query, o=owner_id, limit=limit)
        return [ModelCall.model_validate_json(row["data"]) for row in rows]


def call_row(call: ModelCall) -> Row:
    return {
        "session_id": call.session_id,
        "run_id": call.run_id,
        "owner_id": call.owner_id,
        "place": call.id or 0,
        "outside": call.agent == "",
        "data": call.model_dump_json(),
    }


def _run_conditions(wanted: RunFilter) -> tuple[list[str], Row]:
    fields = {"owner_id": wanted.owner_id, "workflow_name": wanted.agent, "session_id": wanted.session_id}
    values: Row = {name: value for name, value in fields.items() if value is not None}
    if wanted.kind is not None:
        values["kind"] = wanted.kind.value
    conditions = [f"{name} = ${name}" for name in values]
    if wanted.statuses:
        conditions.append("run_status IN $statuses")
        values["statuses"] = sorted(status.value for status in wanted.statuses)
    if wanted.dead:
        conditions.append("false")  # it keeps no background runs
    if wanted.since is not None:
        conditions.append("created_at >= $since")
        values["since"] = wanted.since
    if wanted.until is not None:
        conditions.append("created_at < $until")
        values["until"] = wanted.until
    tagged(conditions, values, wanted.metadata)
    return conditions, values


def _group(run: Run, by: StatsBy, key: str | None) -> str | None:
    if by == "metadata":
        return metadata_text(run.metadata[key or ""])
    if by == "day":
        return f"{run.created_at.astimezone(UTC):%Y-%m-%d}"
    return {"agent": run.agent, "status": run.status.value, "model": run.model}[by]


def _stats_row(group: str | None, runs: list[Run]) -> StatsRow:
    successes = sum(run.status is RunStatus.COMPLETED for run in runs)
    running = sum(run.status in ACTIVE for run in runs)
    errors = len(runs) - successes - running
    spans = [(run.completed_at - run.started_at).total_seconds() for run in runs if run.completed_at and run.started_at]
    costs = [run.cost_pico for run in runs if run.cost_pico is not None]
    return StatsRow(
        group=group,
        executions=len(runs),
        successes=successes,
        errors=errors,
        running=running,
        error_rate=errors / (successes + errors) if successes + errors else None,
        mean_duration=sum(spans) / len(spans) if spans else None,
        usage=sum((run.usage for run in runs if run.usage is not None), Usage()),
        cost=from_pico(sum(costs)) if costs else None,
        unmeasured_runs=sum(run.unmeasured_calls > 0 for run in runs),
        unpriced_runs=sum(run.unpriced_calls > 0 for run in runs),
    )
