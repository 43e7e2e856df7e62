"""Has who paused said all? A judge is asked at the pauses of a turn, and answers when it is ready."""

import logging
from collections.abc import Callable
from concurrent.futures import Future

from core.logging import safe_line
from domain.audio import SAMPLE_RATE

logger = logging.getLogger(__name__)

#: Mono PCM of 16 kHz: is that all that somebody wants to say? It is judged elsewhere: asking never waits.
Judge = Callable[[bytes], Future[bool]]
_BYTES_PER_MS = SAMPLE_RATE * 2 // 1_000
_HEARD_MS = 8_000  # of the end of a turn: the model looks at no more


class Completeness:
    """Of the turns of one session. Give it all sound; `ask` at a pause, and look whether it is `told` complete."""

    def __init__(self, judge: Judge, before_ms: int) -> None:
        self._judge = judge
        self._before = before_ms * _BYTES_PER_MS
        self._sound = bytearray()
        self._asked: Future[bool] | None = None
        self._failed = False

    def hear(self, window: bytes, *, speaking: bool) -> None:
        """More of the sound; of what comes before a turn, only so much is kept as belongs to it."""
        self._sound += window
        most = _HEARD_MS * _BYTES_PER_MS if speaking else self._before
        del self._sound[: max(0, len(self._sound) - most)]

    def ask(self) -> None:
        """Somebody pauses."""
        self.forget()
        self._asked = self._judge(bytes(self._sound))

    def forget(self) -> None:
        """They go on: what is still being judged counts for nothing."""
        if self._asked is not None:
            self._asked.cancel()
            self._asked = None

    def end(self) -> None:
        """The turn is over: the next one holds nothing of it."""
        self.forget()
        self._sound.clear()

    @property
    def told(self) -> bool:
        """True once it is judged to be complete. A judge that fails is logged, and has not said so."""
        if self._asked is None or not self._asked.done():
            return False
        asked, self._asked = self._asked, None
        if asked.cancelled():  # the house is closing
            return False
        error = asked.exception()
        if error is None:
            return asked.result()
        if not self._failed:
            why = safe_line(f"{type(error).__name__}: {error}", 500)
            logger.error("whether a turn is complete could not be judged", extra={"why": why})
        self._failed = True
        return False
