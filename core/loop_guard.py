"""The dead man's handle: an agent's code that never lets go of the event loop is stopped, and only that.

The loop re-arms a timer of the operating system twice a second. When it cannot, SIGALRM interrupts whatever Python
code holds the process up (a busy loop, a `time.sleep`, a blocking socket), and the handler runs inside it, in its
context: if that is an agent's, an exception is raised there. Code of ours is only logged. The main thread alone can do
this, and a call into C that never looks for signals cannot be stopped so; tools and nodes that are plain functions run
in threads.
"""

import asyncio
import logging
import signal
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType

from core.metrics import Metrics

logger = logging.getLogger(__name__)

_EVERY = 0.5  # seconds between signs of life
_WORST_OF = 20  # signs of life over which the worst lag is told
_WARN_FROM = 0.25  # seconds of lag that are worth a line in the log
_FRAMES = 6  # of the stack of whoever held us up, in the log

#: Given the seconds, what is to be raised inside the code that holds up the loop; None: it is not an agent's.
Verdict = Callable[[float], BaseException | None]


class LoopGuard:
    """Measures how late the loop is, and stops what makes it late."""

    def __init__(self, limit: float, verdict: Verdict, metrics: Metrics) -> None:
        self._limit = limit
        self._verdict = verdict
        self._metrics = metrics
        self._lags: list[float] = []

    @property
    def lag(self) -> float:
        """Seconds that the loop was late, at the worst of the last ten."""
        return max(self._lags, default=0.0)

    async def watch(self) -> None:
        """Re-arm and measure for ever."""
        loop = asyncio.get_running_loop()
        armed = self._limit > 0 and threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGALRM, self._ring) if armed else None
        try:
            while True:
                if armed:
                    signal.setitimer(signal.ITIMER_REAL, self._limit, self._limit)
                due = loop.time() + _EVERY
                await asyncio.sleep(_EVERY)
                self._note(max(0.0, loop.time() - due))
        finally:
            if armed:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before)

    def _note(self, lag: float) -> None:
        self._lags = [*self._lags[1 - _WORST_OF :], lag]
        self._metrics.loop_lag.set(self.lag)
        if lag > _WARN_FROM:
            logger.warning("the event loop was held up", extra={"seconds": round(lag, 3)})

    def _ring(self, _number: int, frame: FrameType | None) -> None:
        error = self._verdict(self._limit)
        where = "".join(traceback.format_stack(frame, _FRAMES)) if frame else ""
        logger.error(
            "something holds up the event loop"
            if error is None
            else "an agent holds up the event loop, and is stopped",
            extra={"seconds": self._limit, "where": where},
        )
        if error is not None:
            self._metrics.loop_blocked.inc()
            raise error


@asynccontextmanager
async def loop_guard(limit: float, verdict: Verdict, metrics: Metrics) -> AsyncIterator[LoopGuard]:
    """A guard of the running loop until the context ends."""
    guard = LoopGuard(limit, verdict, metrics)
    watching = asyncio.create_task(guard.watch(), name="loop guard")
    try:
        yield guard
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
