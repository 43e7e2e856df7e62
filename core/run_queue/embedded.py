"""The queue with nothing installed: the `runs` table itself, and a supervisor that looks into it.

It works on SQLite and on PostgreSQL, in one process or in several: a claim is one transaction, and the news of a new
run reaches the others by signals where there are any. Priorities, limits and the order in a session are the claim's.
"""

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime

from domain.background import Submission
from domain.errors import RouteurError
from domain.ports import Also, RunBacklog, RunSignals, SignalKind, Worker

logger = logging.getLogger(__name__)

_PAUSE = 0.5  # seconds until the database is asked again, when it did not answer


class EmbeddedQueue:
    """`domain.ports.RunQueue` over the record alone."""

    def __init__(self, backlog: RunBacklog, signals: RunSignals) -> None:
        self._backlog = backlog
        self._signals = signals
        self._some = asyncio.Event()
        signals.hear(self._heard)

    async def submit(self, new: Submission, also: Also | None = None) -> bool:
        """Write the run down; the nearest worker looks at once."""
        submitted = await self._backlog.submit(new, also)
        if submitted:
            self._tell()
        return submitted

    async def wake(self, run_id: str, session_id: str | None, priority: int, at: datetime) -> None:
        """Look when the moment has come."""
        delay = (at - datetime.now(UTC)).total_seconds()
        if delay <= 0:
            self._tell()
        else:
            asyncio.get_running_loop().call_later(delay, self._tell)

    def nudge(self) -> None:
        """There is room again."""
        self._some.set()

    async def work(self, worker: Worker) -> None:
        """Give `worker` what it has room for, for ever."""
        while True:
            self._some.clear()
            try:
                while worker.room and await worker.take():
                    pass
            except RouteurError:
                logger.warning("the queue could not be read; tried again", exc_info=True)
                await asyncio.sleep(_PAUSE)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._signals.poll):
                    await self._some.wait()

    def _tell(self) -> None:
        self._some.set()
        self._signals.tell("queue")

    def _heard(self, kind: SignalKind, _run_id: str) -> None:
        if kind == "queue":
            self._some.set()
