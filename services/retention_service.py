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
from domain.ports import RecordStore
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
    ) -> None:
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
