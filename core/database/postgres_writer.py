"""The batching writer over PostgreSQL: a thread with a connection of its own."""

import asyncio
import contextlib
import importlib
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from core.database.record_scripts import Codec, Row, Script, Values, to_pyformat
from core.database.record_writer import UNFIT, Job, T, cannot_write, run_batch, stopping, tell

MAX_BATCH = 200  # scripts in one transaction
_TRIES = 5  # a restarting server is tried again, for about six seconds in all; so is a deadlock
_MAX_IDLE = 5_000  # ms in the middle of a transaction
_FIRST_PAUSE = 0.2  # seconds, doubled


class PostgresWriter:
    """Runs scripts on a thread; `submit` may be called from the loop only."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._driver: PostgresDriver | None = None
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.batches = 0
        self.written = 0

    def submit(self, script: Callable[[Codec], Script[T]], *, flush: bool = True) -> "asyncio.Future[T]":
        """Queue a script; see `RecordWriter`. The server flushes at every commit."""
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closed:
            future.set_exception(stopping())
            future.exception()  # said to be seen, as in `tell`
            return future
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="record-writer", daemon=True)
            self._thread.start()
        self._jobs.put(Job(script, future, flush))
        return future

    async def aclose(self) -> None:
        """Write what is queued, then stop."""
        self._closed = True
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(self._thread.join)

    # -- in the thread --

    def _work(self) -> None:
        going = True
        while going:
            jobs: list[Job] = []
            job = self._jobs.get()
            while True:
                if job is None:
                    going = False
                    break
                jobs.append(job)
                if len(jobs) >= MAX_BATCH or self._jobs.empty():
                    break
                job = self._jobs.get()
            if jobs:
                failure = self._write(jobs)
                with contextlib.suppress(RuntimeError):  # the loop is gone: so is everybody who waited
                    self._loop.call_soon_threadsafe(tell, jobs, failure)
        if self._driver is not None:
            self._driver.close()

    def _write(self, jobs: list[Job]) -> Exception | None:
        """One batch; when the server fails, again, with pauses that grow."""
        pause = _FIRST_PAUSE
        for attempt in range(_TRIES):
            try:
                driver = self._driver = self._driver or PostgresDriver(self._url)
                run_batch(driver, jobs)
            except Exception as error:  # psycopg's own, which is not imported before it is needed
                self._drop_connection()
                if attempt + 1 == _TRIES:
                    return cannot_write(error, len(jobs))
                time.sleep(pause)
                pause *= 2
            else:
                break
        self.batches += 1
        self.written += len(jobs)
        return None

    def _drop_connection(self) -> None:
        """It may be broken, or in the middle of something."""
        if self._driver is not None:
            with contextlib.suppress(Exception):
                self._driver.close()
        self._driver = None


class PostgresDriver:
    """psycopg, with the same scripts: `:name` becomes `%(name)s`."""

    def __init__(self, url: str) -> None:
        self.codec = Codec("postgresql")
        psycopg = importlib.import_module("psycopg")
        self.rejects: tuple[type[Exception], ...] = (
            psycopg.IntegrityError,
            psycopg.DataError,
            psycopg.ProgrammingError,
            *UNFIT,
        )
        self._connection = psycopg.connect(url, autocommit=True)
        # A process that stops in the middle (a paused machine) must not hold everybody else's claims.
        self._connection.execute(f"SET idle_in_transaction_session_timeout = {_MAX_IDLE}")
        self._translated: dict[str, str] = {}

    def execute(self, sql: str, values: Values) -> list[Row]:
        """Run it; the rows it gives."""
        cursor: Any = self._connection.execute(self._sql(sql), values)
        return list(cursor.fetchall()) if cursor.description else [(cursor.rowcount,)]

    def execute_many(self, sql: str, values: list[Values]) -> None:
        """Run it once for each."""
        with self._connection.cursor() as cursor:
            cursor.executemany(self._sql(sql), values)

    def begin(self) -> None:
        """Begin."""
        self._connection.execute("BEGIN")

    def commit(self) -> None:
        """Make it durable."""
        self._connection.execute("COMMIT")

    def rollback(self) -> None:
        """Forget it."""
        self._connection.execute("ROLLBACK")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _sql(self, sql: str) -> str:
        known = self._translated.get(sql)
        if known is None:
            known = self._translated[sql] = to_pyformat(sql)
        return known
