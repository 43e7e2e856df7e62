"""Redis Streams: the same signals where Redis is at hand (REDIS_URL), for many readers on many machines.

Redis is never the truth. When it is taken away runs go on, and readers look into the record until it is back.
"""

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from uuid_utils import uuid4

from config.settings import SettingsError
from core.event_log.outbox import CarriedSignals

_STREAM = "routeur:runs"
_KEPT = 10_000  # entries of the stream; whoever has slept through more looks into the record
_MOST_AT_ONCE = 500
_BLOCK = 5_000  # ms


class RedisSignals(CarriedSignals):
    """One stream, an entry for each batch of signals."""

    poll = 1.0  # seconds

    def __init__(self, client: Any) -> None:
        super().__init__()
        self._client = client
        self._me = str(uuid4())

    async def _send(self) -> None:
        while True:
            told = await self._queued(_MOST_AT_ONCE)
            await self._client.xadd(_STREAM, {"by": self._me, "told": told}, maxlen=_KEPT, approximate=True)

    async def _listen(self) -> None:
        last: Any = "$"
        while True:
            for _, entries in await self._client.xread({_STREAM: last}, block=_BLOCK, count=100):
                for place, fields in entries:
                    last = place
                    if fields["by"] != self._me:
                        self._heard(fields["told"])


@asynccontextmanager
async def open_redis_signals(url: str) -> AsyncIterator[RedisSignals]:
    """Signals over that server until the context ends; it may be away, also at first.

    Raises:
        SettingsError: the extra is not installed, or the address is none.
    """
    try:
        redis = importlib.import_module("redis.asyncio")
    except ImportError as error:
        raise SettingsError("REDIS_URL needs the extra: uv sync --extra redis") from error
    try:
        client = redis.from_url(url, decode_responses=True, socket_connect_timeout=2, socket_timeout=10)
    except ValueError as error:
        raise SettingsError("REDIS_URL: not an address of a Redis server") from error
    signals = RedisSignals(client)
    try:
        async with signals.carried("Redis", (redis.RedisError, OSError, TimeoutError)):
            yield signals
    finally:
        await client.aclose()
