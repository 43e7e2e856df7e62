"""LISTEN and NOTIFY: every process on the same PostgreSQL hears of every run within a millisecond.

Notifications carry ids, never contents: they stop at 8,000 bytes, and what is told must be owned and read.
"""

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from core.event_log.outbox import CarriedSignals

_CHANNEL = "routeur_runs"
_MOST_AT_ONCE = 150  # signals in one notification: under 8,000 bytes


class PostgresSignals(CarriedSignals):
    """Two connections of their own, one that tells and one that listens; both come back when the server does."""

    poll = 2.0  # seconds

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._psycopg = importlib.import_module("psycopg")
        self._me = ""

    async def _send(self) -> None:
        async with await self._connect() as connection:
            self._me = str(connection.info.backend_pid)
            while True:
                told = await self._queued(_MOST_AT_ONCE)
                await connection.execute("SELECT pg_notify(%s, %s)", (_CHANNEL, told))

    async def _listen(self) -> None:
        async with await self._connect() as connection:
            await connection.execute(f"LISTEN {_CHANNEL}")
            async for notice in connection.notifies():
                if str(notice.pid) != self._me:  # not our own words
                    self._heard(notice.payload)

    async def _connect(self) -> Any:
        return await self._psycopg.AsyncConnection.connect(self._url, autocommit=True, connect_timeout=5)


@asynccontextmanager
async def open_postgres_signals(url: str) -> AsyncIterator[PostgresSignals]:
    """Signals over that server until the context ends."""
    signals = PostgresSignals(url)
    async with signals.carried("PostgreSQL (signals)", (signals._psycopg.Error, OSError)):
        yield signals
