"""Our server with a store that keeps nothing: what remains when recording is taken away."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from typing import Any

from config.settings import Settings
from core.database.engine import Database
from domain.background import Recovered
from domain.ports import RecordStore
from domain.runs import ModelCall, RunBegun, RunEnd, RunStart
from services import container


class Forgetful:
    """Says that everything is written."""

    def __init__(self, real: RecordStore) -> None:
        self._real = real

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator[Any]:
        async with self._real.unit_of_work() as work:
            yield work

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Any]:
        async with self._real.reading() as work:
            yield work

    async def begin_run(self, start: RunStart) -> RunBegun:
        return RunBegun(start.session_id, 0)

    def end_run(self, end: RunEnd) -> Awaitable[bool]:
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        done.set_result(True)
        return done

    async def note_call(self, call: ModelCall) -> None:
        return

    async def append(self, *_: Any, **__: Any) -> list[int]:
        return []

    async def renew(self, drafts: dict[str, str | None], lease_until: datetime) -> None:
        return

    async def recover_runs(
        self, now: datetime | None, dead: frozenset[str], alive: frozenset[str], max_crashes: int
    ) -> Recovered:
        return Recovered([], [], [])


async def _forgetful(stack: AsyncExitStack, settings: Settings, database: Database) -> RecordStore:
    return Forgetful(database.records)


if __name__ == "__main__":
    container._open_records = _forgetful
    from cli import cli

    cli(["serve"])
