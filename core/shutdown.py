"""What happens at SIGTERM before the server itself reacts: the running work is told, and the end is certain."""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_LAST_MOMENT = 3.0  # seconds after the grace period; what still runs then is code in a thread that nobody can stop


@contextmanager
def before_the_end(begin: Callable[[], None], grace: float) -> Iterator[None]:
    """Call `begin` on the loop at SIGTERM or SIGINT, then whoever handled the signal before us.

    The process ends at the latest when the grace period is over: a tool that hangs in a thread does not hold it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before: dict[int, Any] = {}

    def told(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(begin)
        last = threading.Timer(grace + _LAST_MOMENT, os._exit, (128 + number,))
        last.daemon = True
        last.start()
        if callable(before[number]):
            before[number](number, frame)

    for number in (int(signal.SIGTERM), int(signal.SIGINT)):
        before[number] = signal.signal(number, told)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
