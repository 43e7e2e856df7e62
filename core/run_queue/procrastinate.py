"""The queue on Procrastinate: jobs in the same PostgreSQL, for as many workers as wanted, with no server more.

A job carries a run's id and nothing else, and is written in the transaction that writes the run. Its worker is watched
by heartbeats, and a dead worker's jobs are handed on; whether the run may then be taken is decided by its row. A job
too many finds nothing to do, and a lost one is found: the record is the truth.
"""

import asyncio
import importlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from domain.background import Submission
from domain.enums import RunStatus
from domain.errors import RouteurError
from domain.ports import Also, RunBacklog, Worker

logger = logging.getLogger(__name__)

QUEUE = "routeur_runs"
_HEARTBEAT = 2.0  # seconds
_STALLED_AFTER = 8.0  # seconds without a heartbeat
_LOOK_EVERY = 2.0  # seconds between looks for stalled jobs, and runs that no job carries
_ORPHANED_AFTER = timedelta(seconds=5)
_LATER = 5.0  # seconds after which a run that may not begin yet is offered again, unless room is found for it before
_PAUSE = 0.02  # seconds between looks for such runs
_AT_ONCE = 500
_SCHEMA_LOCK = 7_203_518_866  # pg_advisory_xact_lock


class Transactions(Protocol):
    """Whoever opens transactions: the database."""

    def unit_of_work(self) -> Any:
        """One that may write."""
        ...


class ProcrastinateQueue:
    """`domain.ports.RunQueue` over Procrastinate."""

    def __init__(self, procrastinate: Any, app: Any, database: Transactions, backlog: RunBacklog, room: int) -> None:
        self._app = app
        self._already: type[Exception] = procrastinate.exceptions.AlreadyEnqueued
        self._failed = procrastinate.jobs.Status.FAILED
        self._database = database
        self._backlog = backlog
        self._room = room
        self._worker: Worker | None = None
        self._some = asyncio.Event()
        self._task = app.task(name="routeur.run", queue=QUEUE)(self._deliver)

    async def submit(self, new: Submission, also: Also | None = None) -> bool:
        """Write the run and its job in one transaction."""
        async with self._database.unit_of_work() as work:
            if also is not None and not await also(work):
                return False
            await self._backlog.submit_in(work, new)
            options = {"lock": new.session_id, "queueing_lock": new.id, "priority": new.priority}
            job = self._task.configure(connection=await work.driver_connection(), **options)
            await job.defer_async(run_id=new.id)
        return True

    async def wake(self, run_id: str, session_id: str | None, priority: int, at: datetime) -> None:
        """A job for a run that is in the queue already, unless there is one."""
        options: dict[str, Any] = {"lock": session_id, "queueing_lock": run_id, "priority": priority}
        if at > datetime.now(UTC):
            options["schedule_at"] = at
        with suppress(self._already):
            await self._task.configure(**options).defer_async(run_id=run_id)

    def nudge(self) -> None:
        """There is room again: perhaps for a run whose job came when there was none."""
        self._some.set()

    async def work(self, worker: Worker) -> None:
        """Take jobs for `worker` until cancelled."""
        self._worker = worker
        beside = [
            asyncio.create_task(self._look(), name="stalled jobs"),
            asyncio.create_task(self._fill(worker), name="runs that had no room"),
        ]
        try:
            while True:
                try:
                    await self._app.run_worker_async(
                        queues=[QUEUE],
                        concurrency=self._room,
                        install_signal_handlers=False,
                        listen_notify=True,
                        fetch_job_polling_interval=2.0,
                        update_heartbeat_interval=_HEARTBEAT,
                        stalled_worker_timeout=_STALLED_AFTER,
                        shutdown_graceful_timeout=1.0,
                        delete_jobs="always",
                    )
                except Exception:  # whatever a restarting server makes of it
                    logger.warning("the job queue is away; tried again", exc_info=True)
                    await asyncio.sleep(1)
        finally:
            for task in beside:
                task.cancel()

    async def _deliver(self, run_id: str) -> None:
        """One job: run what it names, if it is there to be run."""
        if self._worker is None:
            return
        if await self._worker.take(run_id):
            await self._worker.finished(run_id)
            return
        standing = await self._backlog.standing(run_id)
        if standing is not None and standing[0] is RunStatus.QUEUED:
            # A limit, its session, its time, or we are being drained. (One that somebody else runs is their business:
            # when they die, it is queued and comes back.)
            _, session_id, priority, at = standing
            await self.wake(run_id, session_id, priority, max(at, datetime.now(UTC) + timedelta(seconds=_LATER)))

    async def _fill(self, worker: Worker) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            try:
                await worker.take()
            except RouteurError:
                logger.warning("the queue could not be read", exc_info=True)
            await asyncio.sleep(_PAUSE)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            try:
                for job in await self._app.job_manager.get_stalled_jobs(
                    queue=QUEUE, seconds_since_heartbeat=_STALLED_AFTER
                ):
                    # Done with: its run, when it is to go on, gets a job of its own, and may have one already.
                    await self._app.job_manager.finish_job(job, self._failed, delete_job=True)
                for run_id, session_id, priority in await self._backlog.waiting_for_a_worker(
                    datetime.now(UTC) - _ORPHANED_AFTER, _AT_ONCE
                ):
                    await self.wake(run_id, session_id, priority, datetime.now(UTC))
            except RouteurError:
                logger.warning("the queue could not be looked at", exc_info=True)
            except Exception:  # Procrastinate's and psycopg's own
                logger.warning("stalled jobs could not be looked for", exc_info=True)


@asynccontextmanager
async def open_procrastinate(
    url: str, database: Transactions, backlog: RunBacklog, room: int
) -> AsyncIterator[ProcrastinateQueue]:
    """The queue on that server until the context ends; its tables are made when they are missing."""
    procrastinate = importlib.import_module("procrastinate")
    connector = procrastinate.PsycopgConnector(conninfo=url, min_size=1, max_size=6)
    app = procrastinate.App(connector=connector)
    await _make_tables(url, procrastinate)
    async with app.open_async():
        yield ProcrastinateQueue(procrastinate, app, database, backlog, max(1, room))


async def _make_tables(url: str, procrastinate: Any) -> None:
    psycopg = importlib.import_module("psycopg")
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_SCHEMA_LOCK,))
        found = await connection.execute("SELECT to_regclass('procrastinate_jobs')")
        if (await found.fetchone())[0] is None:
            await connection.execute(procrastinate.schema.SchemaManager.get_schema())
