"""Nothing is kept for longer than asked: sessions by kind, idempotency keys for a day. Bounded, and visible.

A sweep deletes a few at a time, so that nobody waits for it, and stops after MAX_PER_SWEEP; the next one goes on.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from config.settings import RetentionSettings
from core.metrics import Metrics
from domain.enums import SessionKind
from domain.errors import RouteurError
from domain.ports import RecordStore, RunBacklog
from services.idempotency_service import IdempotencyService
from services.session_service import SessionMemory

logger = logging.getLogger(__name__)

BATCH = 50  # sessions in one transaction
MAX_PER_SWEEP = 10_000


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep removed. `more`: it stopped at its limit."""

    sessions: int
    keys: int
    more: bool


class RetentionService:
    """Deletes what has outlived its period."""

    def __init__(
        self,
        store: RecordStore,
        memory: SessionMemory,
        idempotency: IdempotencyService,
        metrics: Metrics,
        settings: RetentionSettings,
        backlog: RunBacklog | None = None,
    ) -> None:
        self._backlog = backlog
        self._store = store
        self._memory = memory
        self._idempotency = idempotency
        self._metrics = metrics
        self._settings = settings

    async def sweep(self) -> Swept:
        """Delete what is too old now."""
        left, sessions = MAX_PER_SWEEP, 0
        for kind, days in self._settings.periods().items():
            if days is not None:
                deleted = await self._sweep_sessions(kind, datetime.now(UTC) - timedelta(days=days), left)
                sessions, left = sessions + deleted, left - deleted
        if self._settings.events_days is not None:
            await self._trim_events(datetime.now(UTC) - timedelta(days=self._settings.events_days))
        await self._forget_threads()
        keys = await self._idempotency.sweep(MAX_PER_SWEEP)
        swept = Swept(sessions, keys, left <= 0 or keys >= MAX_PER_SWEEP)
        self._metrics.swept("sessions", sessions)
        self._metrics.swept("idempotency_keys", keys)
        if sessions or keys:
            logger.info("swept", extra={"sessions": sessions, "keys": keys, "more": swept.more})
        return swept

    async def watch(self) -> None:
        """Sweep from time to time, for ever; at once again when something was left."""
        while True:
            try:
                swept = await self.sweep()
            except RouteurError:
                logger.warning("could not sweep", exc_info=True)
                swept = Swept(0, 0, False)
            await asyncio.sleep(1 if swept.more else self._settings.sweep_every)

    async def _trim_events(self, before: datetime) -> None:
        """Events of runs that ended before; who follows such a run is told of the gap."""
        if self._backlog is None:
            return
        trimmed, left = BATCH, MAX_PER_SWEEP
        while trimmed == BATCH and left > 0:
            trimmed = await self._backlog.trim_events(before, BATCH)
            self._metrics.swept("run_events", trimmed)
            left -= trimmed
            await asyncio.sleep(0)

    async def _forget_threads(self) -> None:
        """Checkpoints that a crash left behind between a run's end and their deletion."""
        for run_id in [] if self._backlog is None else await self._backlog.threads_to_forget(MAX_PER_SWEEP):
            await self._memory.forget(run_id)
            if self._backlog is not None:
                await self._backlog.thread_forgotten(run_id)

    async def _sweep_sessions(self, kind: SessionKind, before: datetime, limit: int) -> int:
        deleted = 0
        while deleted < limit:
            async with self._store.unit_of_work() as work:
                idle = await work.sessions.idle_since(before, min(BATCH, limit - deleted), kind=kind.value)
                for session in idle:
                    await work.sessions.delete_session(session.id, session.owner_id)
            for session in idle:
                await self._memory.forget(session.id)
            deleted += len(idle)
            if len(idle) < BATCH:
                break
            await asyncio.sleep(0)  # others have their turn
        return deleted
