"""Background runs in SQLite and PostgreSQL (`domain.ports.RunBacklog`)."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from core.database import background_scripts as scripts
from core.database.record_scripts import Codec, Script, Values
from core.database.record_writer import RecordWriter
from core.database.unit_of_work import UnitOfWork
from domain.background import Approval, Beat, EventBatch, HandOver, Limits, Pause, Submission
from domain.enums import RunStatus
from domain.ports import Also
from domain.runs import Run


class Units(Protocol):
    """Whoever opens transactions: the database."""

    def unit_of_work(self) -> AbstractAsyncContextManager[UnitOfWork]:
        """One that may write."""
        ...

    def reading(self) -> AbstractAsyncContextManager[UnitOfWork]:
        """One that only reads."""
        ...


class SqlBacklog:
    """The queue and the states of background runs. What is frequent goes through the batching writer."""

    def __init__(self, database: Units, writer: RecordWriter) -> None:
        self._database = database
        self._writer = writer

    async def submit(self, new: Submission, also: Also | None = None) -> bool:
        """Write down a queued run; durable when it returns. `also` is done in the same transaction, and may say no."""
        if also is None:
            await self._writer.submit(lambda codec: scripts.submit(codec, new))
            return True
        async with self._database.unit_of_work() as work:
            if not await also(work):
                return False
            await self.submit_in(work, new)
        return True

    async def submit_in(self, work: UnitOfWork, new: Submission) -> None:
        """`submit` as a part of an open unit of work."""
        await work.run_script(lambda codec: scripts.submit(codec, new))

    async def depth(self, limit: int) -> int:
        """How many runs are in the queue; counted up to `limit`."""
        async with self._database.reading() as work:
            return await work.runs.queue_depth(limit)

    async def standing(self, run_id: str) -> tuple[RunStatus, str | None, int, datetime] | None:
        """A run's status, session, priority, and when it may begin."""
        async with self._database.reading() as work:
            run = await work.runs.find_one(id=run_id)
        return None if run is None else (run.status, run.session_id, run.priority, run.available_at or run.created_at)

    async def claim(self, worker: str, limits: Limits, lease: timedelta, run_id: str | None = None) -> list[Run]:
        """Take queued runs that may begin now, the most urgent first; with `run_id`, only that one."""
        rows = await self._writer.submit(lambda codec: scripts.claim(codec, worker, limits, lease, run_id), flush=False)
        return [_run(row, worker) for row in rows]

    async def keep_events(self, batches: Sequence[EventBatch], lease: timedelta) -> set[str]:
        """Append what runs have told: it survives this process, and is flushed with what comes next."""
        return await self._writer.submit(lambda codec: scripts.keep_events(codec, batches, lease), flush=False)

    async def beat(self, beats: Sequence[Beat], worker: str, lease: timedelta) -> dict[str, RunStatus]:
        """Prolong leases, keep drafts; how each run stands."""
        return await self._writer.submit(lambda codec: scripts.beat(codec, beats, worker, lease), flush=False)

    async def pause(self, pause: Pause, batch: EventBatch | None) -> bool:
        """Let go of a run that waits, or goes back to the queue."""
        return await self._writer.submit(lambda codec: scripts.pause(codec, pause, batch))

    async def hand_over(self, one: HandOver, batch: EventBatch) -> bool:
        """Make an attached run one that waits in the background."""
        return await self._writer.submit(lambda codec: scripts.hand_over(codec, one, batch))

    async def cancel(self, run_id: str, owner_id: str) -> RunStatus:
        """Ask for a run's end."""
        now = datetime.now(UTC)
        return await self._writer.submit(lambda codec: scripts.cancel(codec, run_id, owner_id, now))

    async def answer(
        self, run_id: str, owner_id: str, approval_id: str, *, approved: bool, answer: Any, by: str
    ) -> RunStatus:
        """Answer an approval, once."""
        status, now = "approved" if approved else "rejected", datetime.now(UTC)

        def script(codec: Codec) -> Script[RunStatus]:
            return scripts.answer(codec, run_id, owner_id, approval_id, status=status, value=answer, by=by, now=now)

        return await self._writer.submit(script)

    async def approvals(self, run_id: str) -> list[Approval]:
        """What the run has asked, in order."""
        async with self._database.reading() as work:
            return await work.approvals.of_run(run_id)

    async def cancelling(self, worker: str) -> list[str]:
        """Runs of that worker whose end was asked for."""
        async with self._database.reading() as work:
            return await work.runs.cancelling(worker)

    async def waiting_for_a_worker(self, since: datetime, limit: int) -> list[tuple[str, str | None, int]]:
        """Queued runs that could have begun before `since`: id, session, priority."""
        async with self._database.reading() as work:
            return await work.runs.waiting_for_a_worker(since, limit)

    async def set_mark(self, run_id: str, attempt: int, mark: str) -> None:
        """The checkpoint from which a run goes on; when it has moved, earlier crashes are forgiven."""
        await self._writer.submit(lambda _: scripts.set_mark(run_id, attempt, mark), flush=False)

    async def threads_to_forget(self, limit: int) -> list[str]:
        """Ended runs whose checkpoints are still there."""
        async with self._database.reading() as work:
            return await work.runs.threads_to_forget(limit)

    async def thread_forgotten(self, run_id: str) -> None:
        """They are gone."""
        await self._writer.submit(lambda _: scripts.thread_forgotten(run_id), flush=False)

    async def trim_events(self, before: datetime, limit: int) -> int:
        """Delete events of runs that ended before; of how many runs."""
        async with self._database.unit_of_work() as work:
            return await work.runs.trim_events(before, limit)


def _run(row: Values, worker: str) -> Run:
    """A run that was claimed just now."""
    return Run(
        **{**row, "may_resume": bool(row["may_resume"])},
        status=RunStatus.RUNNING,
        background=True,
        worker=worker,
        updated_at=datetime.now(UTC),
        has_thread=True,
    )
