"""Tells owners that their background runs have ended: from an outbox that is filled in the transaction of the end."""

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import orjson

from config.run_settings import RunSettings
from core.database.engine import Database
from core.metrics import Metrics
from core.webhooks import WebhookClient, WebhookFailed, WebhookRefused
from domain.auth import Principal
from domain.background import Delivery
from domain.errors import RouteurError
from domain.runs import Run, RunInfo

logger = logging.getLogger(__name__)

_EVERY = 2.0  # seconds between looks into the outbox
_AT_ONCE = 20
_FIRST_DELAY = 10.0  # seconds before the second try; then twice as long each time, at most
_LONGEST_DELAY = 6 * 3_600.0
_TAKEN_FOR = timedelta(seconds=60)  # for which nobody else tries: the sender may die


class WebhookService:
    """The outbox of this house; any process may empty it."""

    def __init__(self, database: Database, client: WebhookClient, metrics: Metrics, settings: RunSettings) -> None:
        self._database = database
        self._client = client
        self._metrics = metrics
        self._settings = settings

    def secret(self, caller: Principal) -> str:
        """With which the caller's notes are signed (Standard Webhooks)."""
        return self._client.secret_of(caller.user_id)

    async def deliver(self) -> int:
        """Send what is due; how many were tried."""
        now = datetime.now(UTC)
        async with self._database.reading() as work:
            if not await work.deliveries.any_due(now):
                return 0
        async with self._database.unit_of_work() as work:
            due = await work.deliveries.claim(now, now + _TAKEN_FOR, _AT_ONCE)
        await asyncio.gather(*(self._send(one) for one in due))
        return len(due)

    async def watch(self) -> None:
        """Send for ever."""
        while True:
            try:
                sent = await self.deliver()
            except RouteurError:
                logger.warning("webhooks could not be looked for", exc_info=True)
                sent = 0
            if sent < _AT_ONCE:
                await asyncio.sleep(_EVERY)

    async def _send(self, delivery: Delivery) -> None:
        async with self._database.reading() as work:
            run = await work.runs.find_one(id=delivery.run_id)
        if run is None:
            return
        try:
            await self._client.send(delivery.url, delivery.owner_id, delivery.run_id, note_of(run))
        except WebhookRefused as error:
            await self._settle(delivery, str(error), final=True)
        except WebhookFailed as error:
            await self._settle(delivery, str(error), final=error.final)
        else:
            await self._settle(delivery, None, final=False)

    async def _settle(self, delivery: Delivery, error: str | None, *, final: bool) -> None:
        now = datetime.now(UTC)
        if error is None:
            outcome, values = "delivered", {"status": "delivered", "delivered_at": now, "next_at": None}
        elif final or delivery.attempts >= self._settings.webhook_attempts:
            outcome, values = "failed", {"status": "failed", "next_at": None}
        else:
            delay = min(_FIRST_DELAY * 2 ** (delivery.attempts - 1), _LONGEST_DELAY)
            outcome, values = "again", {"next_at": now + timedelta(seconds=delay)}
        self._metrics.webhook_tried(outcome)
        with suppress(RouteurError):  # it is tried again when its time is over
            async with self._database.unit_of_work() as work:
                await work.deliveries.settle(delivery.run_id, last_error=error, **values)


def note_of(run: Run) -> bytes:
    """What is told of a run's end."""
    told = RunInfo.of(run).model_dump(mode="json")
    moment = (run.completed_at or run.updated_at).isoformat()
    return orjson.dumps({"type": f"run.{run.status.value}", "timestamp": moment, "data": told})
