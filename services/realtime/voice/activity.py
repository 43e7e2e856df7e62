"""What of a sound is speech, told window by window; who speaks when is made of that in `turns.py`."""

from typing import Protocol

from core.audio.extras import need
from domain.audio import SAMPLE_RATE


class Activity(Protocol):
    """Of one session: it hears every window in order, and is not shared."""

    @property
    def window_ms(self) -> int:
        """How long a window is."""
        ...

    def is_speech(self, window: bytes) -> bool:
        """Does somebody speak in it? A window is mono PCM of 16 kHz. Quick: it is called on the event loop."""
        ...


class Activities(Protocol):
    """Makes one for each session."""

    def __call__(self, threshold: float) -> Activity:
        """`threshold` is from 0 (nearly everything is speech) to 1.

        Raises:
            RouteurError: it cannot be had.
        """
        ...


class WebRtcActivity:
    """webrtcvad's: `threshold` chooses one of its four steps of aggressiveness."""

    window_ms = 30
    _DEAF = 8  # windows in which it learns how loud silence is

    def __init__(self, threshold: float) -> None:
        self._detector = need("webrtcvad").Vad(min(3, int(threshold * 4)))
        self._heard = 0

    def is_speech(self, window: bytes) -> bool:
        """As `Activity.is_speech`."""
        self._heard += 1
        return bool(self._detector.is_speech(window, SAMPLE_RATE)) and self._heard > self._DEAF
