"""LISTEN and NOTIFY: every process on the same PostgreSQL hears of every run within a millisecond.

Notifications carry ids, never contents: they stop at 8,000 bytes, and what is told must be owned and read.
"""

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from core.event_log.outbox import Outbox, for_ever, stop
from domain.ports import SignalKind

_CHANNEL = "routeur_runs"
_MOST_AT_ONCE = 150  # signals in one notification: under 8,000 bytes


class PostgresSignals:
    """Two connections of their own, one that tells and one that listens; both come back when the server does."""

    poll = 2.0  # seconds; only for signals that were lost with a connection

    def __init__(self, url: str) -> None:
        self._url = url
        self._psycopg = importlib.import_module("psycopg")
        self._outbox = Outbox()
        self._listeners: list[Callable[[SignalKind, str], None]] = []
        self._me = ""

    def tell(self, kind: SignalKind, run_ids: Sequence[str] = ()) -> None:
        """Queue a notification."""
        self._outbox.put(kind, run_ids)

    def hear(self, listener: Callable[[SignalKind, str], None]) -> None:
        """Call `listener` for what others tell."""
        self._listeners.append(listener)

    async def _send(self) -> None:
        async with await self._connect() as connection:
            self._me = str(connection.info.backend_pid)
            while True:
                signals = await self._outbox.take(_MOST_AT_ONCE)
                payload = ",".join(f"{kind}:{run_id}" for kind, run_id in signals)
                await connection.execute("SELECT pg_notify(%s, %s)", (_CHANNEL, payload))

    async def _listen(self) -> None:
        async with await self._connect() as connection:
            await connection.execute(f"LISTEN {_CHANNEL}")
            async for notice in connection.notifies():
                if str(notice.pid) == self._me:
                    continue  # our own words
                for signal in notice.payload.split(","):
                    kind, _, run_id = signal.partition(":")
                    for listener in self._listeners:
                        listener(cast(SignalKind, kind), run_id)

    async def _connect(self) -> Any:
        return await self._psycopg.AsyncConnection.connect(self._url, autocommit=True, connect_timeout=5)


@asynccontextmanager
async def open_postgres_signals(url: str) -> AsyncIterator[PostgresSignals]:
    """Signals over that server until the context ends."""
    signals = PostgresSignals(url)
    failures = (signals._psycopg.Error, OSError)
    tasks = [
        asyncio.create_task(for_ever("the PostgreSQL notifier", signals._send, failures), name="signals out"),
        asyncio.create_task(for_ever("the PostgreSQL listener", signals._listen, failures), name="signals in"),
    ]
    try:
        yield signals
    finally:
        await stop(tasks)
