"""How fast the events of one client are read, whatever they come by."""

import asyncio
import time

_BURST = 2.0  # seconds' worth of events that may come at once
_SECOND = 1.0


class Pace:
    """How fast a client is read: whoever sends more than that waits in its own socket, and nobody else does."""

    __slots__ = ("_at", "_left", "_most", "_rate")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = max(1.0, rate * _BURST)
        self._left = self._most
        self._at = time.monotonic()

    async def keep(self) -> None:
        """One more event; waits when it came too soon."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        self._left -= 1
        # To sleep for each event alone would cost more than it saves.
        await asyncio.sleep(min(_SECOND, (1 - self._left) / self._rate) if self._left < 0 else 0)
