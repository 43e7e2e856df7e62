"""What the engines that reach other processes share: signals wait here while a connection is away, bounded."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

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


async def stop(tasks: Sequence["asyncio.Task[None]"]) -> None:
    """Cancel them and wait."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task
