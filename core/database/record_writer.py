"""What the batching writers of both engines share.

Writes come from the path of every request, so they are paid for once a batch and not once a request: whatever waits is
run in one transaction and flushed to disk once, and only then are those told who wait. While a batch is being flushed
the next one gathers. Nothing is acknowledged before it is durable, and a script that fails takes nobody else along.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from core.database.record_scripts import Codec, Row, Script, Values, session_busy
from domain.errors import Conflict, InternalError, RouteurError, Unavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

UNFIT = (OverflowError, TypeError, ValueError)  # what Python itself raises for a value that no column can hold


class Driver(Protocol):
    """One connection of one engine."""

    @property
    def codec(self) -> Codec: ...
    @property
    def rejects(self) -> tuple[type[Exception], ...]:
        """What it raises for a statement that is wrong by itself; everything else is a fault of the connection."""
        ...

    def execute(self, sql: str, values: Values) -> list[Row]: ...
    def execute_many(self, sql: str, values: list[Values]) -> None: ...
    def begin(self) -> None: ...
    def commit(self) -> None: ...
    def rollback(self) -> None: ...


class Job:
    """A script, and who waits for it."""

    __slots__ = ("flush", "future", "result", "script")

    def __init__(self, script: Callable[[Codec], Script[Any]], future: "asyncio.Future[Any]", flush: bool) -> None:
        self.flush = flush
        self.script = script
        self.future = future
        self.result: Any = None


class RecordWriter(Protocol):
    """Writes scripts in batches."""

    def submit(self, script: Callable[[Codec], Script[T]], *, flush: bool = True) -> "asyncio.Future[T]":
        """Queue a script. It will be done even if nobody waits; awaited, it gives what the script gives, once durable.

        Args:
            flush: False for what nobody is told of yet: it is committed, and survives the death of the process; the
                next flush makes it survive the death of the machine.

        Raises (when awaited):
            RouteurError: as the script raises.
            Conflict: a unique value is taken.
            Unavailable: the database cannot be written.
        """
        ...

    async def aclose(self) -> None:
        """Write what is queued, then stop."""
        ...


def run_batch(driver: Driver, jobs: list[Job]) -> None:
    """Run the jobs in one transaction, note what came of each, and commit.

    Raises:
        the driver's errors: the transaction could not be done; nothing of it is kept.
    """
    driver.begin()
    own_faults: tuple[type[Exception], ...] = (*driver.rejects, RouteurError)
    try:
        for job in jobs:
            job.result = run_script(driver, job.script(driver.codec))
    except own_faults as error:
        driver.rollback()
        if len(jobs) == 1:
            jobs[0].result = _failure(error)
            return
        # One of them fails by itself. Savepoints would have kept it apart, and cost each batch a tenth of its time.
        driver.begin()
        for job in jobs:
            _run_apart(driver, job)
    driver.commit()


def _run_apart(driver: Driver, job: Job) -> None:
    """One job in a savepoint of its own: it may fail without the others."""
    own_faults: tuple[type[Exception], ...] = (*driver.rejects, RouteurError)
    driver.execute("SAVEPOINT job", {})
    try:
        job.result = run_script(driver, job.script(driver.codec))
    except own_faults as error:
        job.result = _failure(error)
        driver.execute("ROLLBACK TO SAVEPOINT job", {})
    driver.execute("RELEASE SAVEPOINT job", {})


def _failure(error: Exception) -> RouteurError:
    return error if isinstance(error, RouteurError) else as_conflict(error)


def run_script(driver: Driver, script: Script[T]) -> T:
    """Drive one script to its end."""
    try:
        sql, values = next(script)
        while True:
            if isinstance(values, list):
                driver.execute_many(sql, values)
                sql, values = script.send([])
            else:
                sql, values = script.send(driver.execute(sql, values))
    except StopIteration as end:
        result: T = end.value
        return result


def tell(jobs: list[Job], failure: Exception | None) -> None:
    """Give everybody what they wait for; called on the loop."""
    for job in jobs:
        result = failure or job.result
        if job.future.done():  # nobody waits any more
            if failure is not None:
                logger.error("a record was lost", exc_info=failure)
        elif isinstance(result, Exception):
            job.future.set_exception(result)
            job.future.exception()  # said to be seen: whoever waits gets it all the same
        else:
            job.future.set_result(result)


def cannot_write(error: Exception, count: int) -> Unavailable:
    """The database does not take it; our log says why."""
    logger.error("records could not be written", extra={"count": count}, exc_info=error)
    return Unavailable("The database cannot be written; try again.", retry_after=1)


def stopping() -> Unavailable:
    """For those who come too late."""
    return Unavailable("The server is stopping.", retry_after=1)


def as_conflict(error: Exception) -> RouteurError:
    """A broken law of the tables as a failure of the caller's; anything else that is wrong with a value is ours."""
    if "IntegrityError" not in {kind.__name__ for kind in type(error).__mro__}:
        logger.error("a record was rejected", exc_info=error)
        return InternalError("This could not be recorded.")
    if "uq_runs_one_active" in str(error) or "runs.session_id" in str(error):
        return session_busy()
    return Conflict("That already exists, or what it belongs to does not.")
