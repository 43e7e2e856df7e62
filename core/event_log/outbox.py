"""What the engines that reach other processes share: signals wait here while a connection is away, bounded."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Self, cast

from domain.ports import SignalKind

logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds between tries to reach a server that is away
_MOST_WAITING = 10_000  # signals; more are dropped, and those who wait look for themselves


class Outbox:
    """Signals to be sent, each once: the newest event of a run says what ten would."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[SignalKind, str], None] = {}
        self._some = asyncio.Event()

    def put(self, kind: SignalKind, run_ids: Sequence[str]) -> None:
        """Queue them."""
        for run_id in run_ids or ("",):
            if len(self._waiting) < _MOST_WAITING:
                self._waiting[kind, run_id] = None
        self._some.set()

    async def take(self, most: int) -> list[tuple[SignalKind, str]]:
        """Those that wait, at most so many; when there is none, the next."""
        await self._some.wait()
        taken = list(self._waiting)[:most]
        for signal in taken:
            del self._waiting[signal]
        if not self._waiting:
            self._some.clear()
        return taken


async def for_ever(what: str, work: Callable[[], Awaitable[None]], failures: tuple[type[Exception], ...]) -> None:
    """Do `work` again whenever it ends with one of `failures`, with pauses that grow."""
    pause = _FIRST_PAUSE
    loop = asyncio.get_running_loop()
    while True:
        begun = loop.time()
        try:
            await work()
        except failures as error:
            logger.warning("%s is away; tried again", what, extra={"why": f"{type(error).__name__}: {error}"[:300]})
        if loop.time() - begun > _LONGEST_PAUSE:
            pause = _FIRST_PAUSE
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


class CarriedSignals(ABC):
    """Signals that a server carries (`domain.ports.RunSignals`): what is the same whichever it is."""

    def __init__(self) -> None:
        self._outbox = Outbox()
        self._listeners: list[Callable[[SignalKind, str], None]] = []

    @property
    @abstractmethod
    def poll(self) -> float:
        """Seconds after which who waits had better look for themselves: signals are lost with a connection."""

    def tell(self, kind: SignalKind, run_ids: Sequence[str] = ()) -> None:
        """Queue it."""
        self._outbox.put(kind, run_ids)

    def hear(self, listener: Callable[[SignalKind, str], None]) -> None:
        """Call `listener` for what others tell."""
        self._listeners.append(listener)

    @abstractmethod
    async def _send(self) -> None:
        """Carry what is queued to the server, until it is away."""

    @abstractmethod
    async def _listen(self) -> None:
        """Hand on what the server brings, until it is away."""

    async def _queued(self, most: int) -> str:
        """What is to be told next, at most so many signals, as one text."""
        return ",".join(f"{kind}:{run_id}" for kind, run_id in await self._outbox.take(most))

    def _heard(self, told: str) -> None:
        """Such a text has come."""
        for signal in told.split(","):
            kind, _, run_id = signal.partition(":")
            for listener in self._listeners:
                listener(cast(SignalKind, kind), run_id)

    @asynccontextmanager
    async def carried(self, server: str, failures: tuple[type[Exception], ...]) -> AsyncIterator[Self]:
        """At work until the context ends, however often the server goes away."""
        tasks = [
            asyncio.create_task(for_ever(server, self._send, failures), name="signals out"),
            asyncio.create_task(for_ever(server, self._listen, failures), name="signals in"),
        ]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
