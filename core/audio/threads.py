"""A few threads for work on sound, so that the event loop never waits for it.

PyAV and numpy let go of the interpreter while they work (a test measures the loop's lag). The work asks `stop_asked()`
now and then; whoever waits for it and is cancelled gets it stopped.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import ParamSpec, TypeVar

from domain.errors import Unavailable

P = ParamSpec("P")
T = TypeVar("T")

_STOP_WITHIN = 5.0  # seconds; a thread looks many times a second
_current = threading.local()


def stop_asked() -> bool:
    """Is the work of this thread no longer wanted? Always False outside `AudioThreads`."""
    flag: threading.Event | None = getattr(_current, "flag", None)
    return flag is not None and flag.is_set()


class AudioThreads:
    """At most `workers` pieces of work at once; the others wait in line."""

    def __init__(self, workers: int) -> None:
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="audio")
        self._flags: set[threading.Event] = set()

    async def run(self, func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `func` returns. Cancelled, it waits until the thread has let go of its files (5 s at the most).

        Raises:
            Unavailable: the house is closing.
        """
        flag = threading.Event()
        try:
            job = self._executor.submit(_flagged, flag, partial(func, *args, **kwargs))
        except RuntimeError:
            raise _stopping() from None
        self._flags.add(flag)
        work = asyncio.wrap_future(job)
        work.add_done_callback(lambda done: self._flags.discard(flag))
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            flag.set()
            work.add_done_callback(_forget)
            if not job.cancel():  # it is not in the line any more
                await asyncio.wait({work}, timeout=_STOP_WITHIN)
            raise
        if work.cancelled():
            raise _stopping()
        return work.result()

    async def close(self) -> None:
        """Stop what runs and take nothing more."""
        for flag in tuple(self._flags):
            flag.set()
        self._executor.shutdown(wait=False, cancel_futures=True)


def _flagged(flag: threading.Event, work: Callable[[], T]) -> T:
    _current.flag = flag
    try:
        return work()
    finally:
        _current.flag = None


def _forget(work: "asyncio.Future[T]") -> None:
    with suppress(asyncio.CancelledError):
        work.exception()


def _stopping() -> Unavailable:
    return Unavailable("The server is stopping.", retry_after=1)
