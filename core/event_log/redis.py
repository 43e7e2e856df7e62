"""Redis Streams: the same signals where Redis is at hand (REDIS_URL), for many readers on many machines.

Redis is never the truth. When it is taken away runs go on, and readers look into the record until it is back.
"""

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from uuid_utils import uuid4

from config.settings import SettingsError
from core.event_log.outbox import Outbox, for_ever, stop
from domain.ports import SignalKind

_STREAM = "routeur:runs"
_KEPT = 10_000  # entries of the stream; whoever has slept through more looks into the record
_MOST_AT_ONCE = 500
_BLOCK = 5_000  # ms


class RedisSignals:
    """One stream, an entry for each batch of signals."""

    poll = 1.0  # seconds; what a reader waits for at most while Redis is away

    def __init__(self, client: Any) -> None:
        self._client = client
        self._outbox = Outbox()
        self._listeners: list[Callable[[SignalKind, str], None]] = []
        self._me = str(uuid4())

    def tell(self, kind: SignalKind, run_ids: Sequence[str] = ()) -> None:
        """Queue an entry."""
        self._outbox.put(kind, run_ids)

    def hear(self, listener: Callable[[SignalKind, str], None]) -> None:
        """Call `listener` for what others tell."""
        self._listeners.append(listener)

    async def _send(self) -> None:
        while True:
            signals = await self._outbox.take(_MOST_AT_ONCE)
            told = ",".join(f"{kind}:{run_id}" for kind, run_id in signals)
            await self._client.xadd(_STREAM, {"by": self._me, "told": told}, maxlen=_KEPT, approximate=True)

    async def _listen(self) -> None:
        last: Any = "$"
        while True:
            for _, entries in await self._client.xread({_STREAM: last}, block=_BLOCK, count=100):
                for place, fields in entries:
                    last = place
                    if fields["by"] != self._me:
                        self._hear(fields["told"])

    def _hear(self, told: str) -> None:
        for signal in told.split(","):
            kind, _, run_id = signal.partition(":")
            for listener in self._listeners:
                listener(cast(SignalKind, kind), run_id)


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
    failures = (redis.RedisError, OSError, TimeoutError)
    tasks = [
        asyncio.create_task(for_ever("Redis", signals._send, failures), name="signals out"),
        asyncio.create_task(for_ever("Redis", signals._listen, failures), name="signals in"),
    ]
    try:
        yield signals
    finally:
        await stop(tasks)
        await client.aclose()
