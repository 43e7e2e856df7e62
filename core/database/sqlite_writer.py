"""The batching writer over SQLite.

Statements run on the event loop itself: one takes microseconds, and a thread would pay as much again for passing the
interpreter's lock to and fro at each of them. Only what waits for the disk is in a thread: the connection commits
without flushing (`synchronous=NORMAL`), then the thread flushes the write-ahead log, once for the whole batch, before
anybody is told. That is what `synchronous=FULL` does, at our own pace. Checkpoints are done in that thread, too.
"""

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

from core.database.record_scripts import Codec, Row, Script, Values, to_qmark
from core.database.record_writer import UNFIT, Job, T, cannot_write, run_batch, stopping, tell

MAX_BATCH = 50  # scripts in one transaction: about 5 ms of the loop
LINGER = 0.002  # seconds that a batch waits for company, when the one before it had some
FLUSH_WITHIN = 0.05  # seconds after which what nobody waits for is flushed, when nothing else has done it
_BUSY_PAUSE = 0.003  # seconds until the write lock is asked for again, while another connection has it
_BUSY_LIMIT = 10.0  # seconds after which it is given up
_CHECKPOINT_EVERY = (
    2_000  # scripts: about 16 MB of log; rarer is cheaper, as the same pages are written again and again
)


class SqliteWriter:
    """Runs scripts on the loop, flushes in a thread. `submit` may be called from the loop only."""

    def __init__(self, path: Path) -> None:
        self._driver = SqliteDriver(path)
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Job] = deque()
        self._timer: asyncio.Handle | None = None
        self._flushing = False
        self._company = False
        self._busy_since: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._unflushed: asyncio.TimerHandle | None = None
        self._closed = False
        self._since_checkpoint = 0
        self._disk = _Disk(path, self._loop, self._flushed, self._checkpointed)
        self.batches = 0
        self.written = 0

    def submit(self, script: Callable[[Codec], Script[T]], *, flush: bool = True) -> "asyncio.Future[T]":
        """Queue a script; see `RecordWriter`."""
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closed:
            future.set_exception(stopping())
            future.exception()  # said to be seen, as in `tell`
            return future
        self._queue.append(Job(script, future, flush))
        self._idle.clear()
        self._schedule()
        return future

    async def aclose(self) -> None:
        """Write what is queued, then stop."""
        self._closed = True
        await self._idle.wait()
        if self._unflushed is not None:
            self._idle.clear()
            self._flush([])
            await self._idle.wait()
        await asyncio.to_thread(self._disk.close)
        self._driver.close()

    def _schedule(self) -> None:
        if self._timer is not None or self._flushing:
            return
        if self._company and not self._closed:
            self._timer = self._loop.call_later(LINGER, self._write)
        else:
            self._timer = self._loop.call_soon(self._write)

    def _write(self) -> None:
        """One batch, up to its commit."""
        self._timer = None
        jobs = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_BATCH))]
        try:
            run_batch(self._driver, jobs)
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._driver.rollback()
            if _is_busy(error) and self._may_wait():
                self._queue.extendleft(reversed(jobs))
                self._timer = self._loop.call_later(_BUSY_PAUSE, self._write)
            else:
                self._busy_since = None
                self._done(jobs, cannot_write(error, len(jobs)))
            return
        self._busy_since = None
        self._company = len(jobs) > 1
        self._since_checkpoint += len(jobs)
        self.batches += 1
        self.written += len(jobs)
        waiting = [job for job in jobs if job.flush]
        if waiting or self._since_checkpoint >= _CHECKPOINT_EVERY:
            self._flush(waiting)
        elif self._unflushed is None:
            self._unflushed = self._loop.call_later(FLUSH_WITHIN, self._flush_late)
        self._done([job for job in jobs if not job.flush], None)

    def _flush(self, jobs: list[Job]) -> None:
        """Have everything that is committed flushed, and then tell `jobs`."""
        if self._unflushed is not None:
            self._unflushed.cancel()
            self._unflushed = None
        checkpoint = self._since_checkpoint >= _CHECKPOINT_EVERY
        if checkpoint:
            self._since_checkpoint = 0
        self._flushing = True
        self._disk.flush(jobs, checkpoint=checkpoint)

    def _flush_late(self) -> None:
        self._unflushed = None
        if not self._flushing:  # else one is under way that began after the commit, or the next batch brings one
            self._flush([])

    def _flushed(self, jobs: list[Job], error: OSError | None, more: bool) -> None:
        """The batch is on the disk, or never will be. `more`: a checkpoint follows, which the next batch waits for."""
        self._flushing = more
        self._done(jobs, None if error is None else cannot_write(error, len(jobs)))

    def _done(self, jobs: list[Job], failure: Exception | None) -> None:
        tell(jobs, failure)
        if self._queue:
            self._schedule()
        elif not self._flushing:
            self._idle.set()

    def _checkpointed(self) -> None:
        self._flushing = False
        self._done([], None)

    def _may_wait(self) -> bool:
        """Another connection has the write lock: for how long do we wait?"""
        now = time.monotonic()
        if self._busy_since is None:
            self._busy_since = now
        return now - self._busy_since < _BUSY_LIMIT


def _is_busy(error: sqlite3.Error) -> bool:
    """Somebody else has the lock."""
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class SqliteDriver:
    """The standard library's sqlite3; statements are cached, values bound by place (by name costs as much again)."""

    rejects = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError, *UNFIT)

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=0, isolation_level=None, cached_statements=256)
        # Without `temp_store` each statement that might have to be undone writes a file of its own.
        for pragma in ("synchronous=NORMAL", "foreign_keys=ON", "wal_autocheckpoint=0", "temp_store=MEMORY"):
            self._connection.execute(f"PRAGMA {pragma}")
        self.codec = Codec("sqlite")
        self._cursor = self._connection.cursor()
        self._known: dict[str, tuple[str, Callable[[Values], Any]]] = {}

    def execute(self, sql: str, values: Values) -> list[Row]:
        """Run it; the rows it gives."""
        statement, in_order = self._known.get(sql) or self._learn(sql)
        cursor = self._cursor.execute(statement, in_order(values))
        return cursor.fetchall() if cursor.description else [(cursor.rowcount,)]

    def execute_many(self, sql: str, values: list[Values]) -> None:
        """Run it once for each."""
        statement, in_order = self._known.get(sql) or self._learn(sql)
        if len(values) == 1:
            self._cursor.execute(statement, in_order(values[0]))
        else:
            self._cursor.executemany(statement, map(in_order, values))

    def _learn(self, sql: str) -> tuple[str, Callable[[Values], Any]]:
        statement, names = to_qmark(sql)
        if len(names) > 1:
            self._known[sql] = statement, itemgetter(*names)
        else:
            self._known[sql] = statement, lambda values: tuple(values[name] for name in names)
        return self._known[sql]

    def begin(self) -> None:
        """Take the write lock at once: a reader that turns writer later cannot wait, it fails."""
        self._connection.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Into the log; the flush follows."""
        self._connection.execute("COMMIT")

    def rollback(self) -> None:
        """Forget it."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class _Disk:
    """The thread that waits for the disk."""

    def __init__(
        self,
        path: Path,
        loop: asyncio.AbstractEventLoop,
        flushed: Callable[[list[Job], OSError | None, bool], None],
        checkpointed: Callable[[], None],
    ) -> None:
        self._path = path
        self._loop = loop
        self._flushed = flushed
        self._checkpointed = checkpointed
        self._work: queue.SimpleQueue[tuple[list[Job], bool] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def flush(self, jobs: list[Job], *, checkpoint: bool) -> None:
        """Flush the log, then tell the loop; and then, if asked, empty the log while nobody writes."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="record-flush", daemon=True)
            self._thread.start()
        self._work.put((jobs, checkpoint))

    def close(self) -> None:
        """Stop, when everything is flushed."""
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()

    def _run(self) -> None:
        log: int | None = None
        while (work := self._work.get()) is not None:
            jobs, checkpoint = work
            error: OSError | None = None
            try:
                log = self._open() if log is None else log
                os.fdatasync(log)
            except OSError as failed:
                error = failed
            with contextlib.suppress(RuntimeError):  # the loop is gone: so is everybody who waited
                self._loop.call_soon_threadsafe(self._flushed, jobs, error, checkpoint)
                if checkpoint:
                    self._checkpoint()
                    self._loop.call_soon_threadsafe(self._checkpointed)
        if log is not None:
            os.close(log)

    def _open(self) -> int:
        """The log. It is ours for as long as the writer's connection is open: SQLite removes it with the last one."""
        log = os.open(f"{self._path}-wal", os.O_RDWR)
        folder = os.open(self._path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        return log

    def _checkpoint(self) -> None:
        """Move the log into the database, as far as readers let us; with writers at work it would never be empty."""
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(self._path, timeout=0)) as connection,
        ):
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
