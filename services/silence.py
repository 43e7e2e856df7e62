"""A bell for streams that have nothing to say."""

import asyncio
from collections.abc import Callable


class SilenceBell:
    """Rings after `seconds` of silence. Putting it off costs one clock reading, not a new timer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._seconds = seconds
        self._ring = ring
        self._rang = False
        self._due = loop.time() + seconds
        self._timer = loop.call_at(self._due, self._check)

    def postpone(self) -> None:
        """Something was said."""
        self._due = self._loop.time() + self._seconds

    def rang(self) -> bool:
        """True once after each ring."""
        rang, self._rang = self._rang, False
        return rang

    def cancel(self) -> None:
        """No more rings."""
        self._timer.cancel()

    def _check(self) -> None:
        if self._loop.time() >= self._due:
            self._rang = True
            self.postpone()
            self._ring()
        self._timer = self._loop.call_at(self._due, self._check)
