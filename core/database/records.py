"""The record store over SQLite and PostgreSQL: units of work for what is rare, a batching writer for every request."""

from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Protocol

from core.database import record_scripts as scripts
from core.database.record_writer import RecordWriter
from core.database.unit_of_work import UnitOfWork
from domain.background import Recovered
from domain.runs import ModelCall, NewMessage, RunBegun, RunEnd, RunStart


class Units(Protocol):
    """Whoever opens transactions: the database."""

    def unit_of_work(self) -> AbstractAsyncContextManager[UnitOfWork]:
        """One that may write."""
        ...

    def reading(self) -> AbstractAsyncContextManager[UnitOfWork]:
        """One that only reads."""
        ...


class SqlRecords:
    """`domain.ports.RecordStore` over the database."""

    def __init__(self, database: Units, writer: RecordWriter) -> None:
        self._database = database
        self.writer = writer

    def unit_of_work(self) -> AbstractAsyncContextManager[UnitOfWork]:
        """A transaction that may write."""
        return self._database.unit_of_work()

    def reading(self) -> AbstractAsyncContextManager[UnitOfWork]:
        """A transaction that only reads."""
        return self._database.reading()

    async def begin_run(self, start: RunStart) -> RunBegun:
        """Store the run with what it was asked: it survives this process from now on, and is flushed with its end.

        Until then nobody has been told of it, and a model call waits for one flush of the disk less.
        """
        return await self.writer.submit(lambda codec: scripts.begin_run(codec, start), flush=False)

    def end_run(self, end: RunEnd) -> Awaitable[bool]:
        """Store how it ended; done even if nobody waits."""
        return self.writer.submit(lambda codec: scripts.end_run(codec, end))

    def note_call(self, call: ModelCall) -> Awaitable[None]:
        """Store what a call outside of any run cost; done even if nobody waits."""
        return self.writer.submit(lambda codec: scripts.note_call(codec, call))

    async def append(
        self, session_id: str, owner_id: str, messages: Sequence[NewMessage], run_id: str | None = None
    ) -> list[int]:
        """Append to a session; the indexes given."""
        now = datetime.now(UTC)
        return await self.writer.submit(
            lambda codec: scripts.append_messages(codec, session_id, owner_id, messages, run_id, now)
        )

    async def renew(self, drafts: dict[str, str | None], lease_until: datetime) -> None:
        """Prolong leases, keep drafts."""
        await self.writer.submit(lambda codec: scripts.renew(codec, drafts, lease_until), flush=False)

    async def recover_runs(
        self, now: datetime | None, dead: frozenset[str], alive: frozenset[str], max_crashes: int
    ) -> Recovered:
        """What becomes of the runs of processes that are gone."""
        return await self.writer.submit(lambda codec: scripts.recover_runs(codec, now, dead, alive, max_crashes))
