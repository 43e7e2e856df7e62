"""Who speaks when, told by webrtcvad: a turn begins with speech, and ends with a silence that is long enough."""

from collections import deque
from typing import Any

from core.audio.extras import need
from domain.audio import SAMPLE_RATE
from services.realtime.schemas import AudioFormat, TurnDetection
from services.realtime.seams import TurnDetector, Turned
from services.realtime.voice.forms import Incoming

FRAME_MS = 30
PAUSE_MS = 210  # a silence in which it is worth to catch up with what was said
_FRAME = SAMPLE_RATE * 2 * FRAME_MS // 1_000  # bytes
_DEAF = 8  # frames in which the detector learns how loud silence is
_WINDOW, _ENOUGH = 4, 3  # frames that are looked at, and those of them that must be speech for a turn to begin
_PREFIX_MS, _SILENCE_MS = 300, 500  # OpenAI's
#: How long one waits for more, by the eagerness of semantic_vad, which is told by silence here.
_EAGERNESS_MS = {"low": 1_200, "medium": 700, "auto": 700, "high": 400}


class VoiceTurns:
    """Turns of one session.

    Args:
        longest_ms: a turn that lasts longer ends there.
    """

    def __init__(self, wanted: TurnDetection, form: AudioFormat, longest_ms: int, detector: Any = None) -> None:
        threshold = 0.5 if wanted.threshold is None else wanted.threshold
        self._detector = detector or need("webrtcvad").Vad(min(3, int(threshold * 4)))
        self._incoming = Incoming(form)
        self._prefix = _PREFIX_MS if wanted.prefix_padding_ms is None else wanted.prefix_padding_ms
        if wanted.type == "semantic_vad":
            self._silence = _EAGERNESS_MS[wanted.eagerness or "auto"]
        else:
            self._silence = _SILENCE_MS if wanted.silence_duration_ms is None else wanted.silence_duration_ms
        self._longest = longest_ms
        self._rest = bytearray()
        self._frames = 0
        self._recent: deque[bool] = deque(maxlen=_WINDOW)
        self._began: int | None = None  # the turn that is going on
        self._over = 0  # the end of the last one
        self._quiet = 0
        self._in_a_row = 0
        self._paused = False

    def feed(self, sound: bytes) -> list[Turned]:
        """What this piece tells."""
        self._rest += self._incoming.feed(sound)
        told: list[Turned] = []
        whole = len(self._rest) // _FRAME * _FRAME
        for start in range(0, whole, _FRAME):
            turned = self._next(bytes(self._rest[start : start + _FRAME]))
            if turned is not None:
                told.append(turned)
        del self._rest[:whole]
        return told

    def reset(self) -> None:
        """Whatever was being said is over."""
        self._began = None
        self._over = self._frames * FRAME_MS
        self._recent.clear()

    def _next(self, frame: bytes) -> Turned | None:
        voiced = bool(self._detector.is_speech(frame, SAMPLE_RATE)) and self._frames >= _DEAF
        self._frames += 1
        now = self._frames * FRAME_MS
        if self._began is None:
            return self._wait(voiced, now)
        self._in_a_row = self._in_a_row + 1 if voiced else 0
        if self._in_a_row > 1:  # a single frame is a click
            self._quiet, self._paused = 0, False
        else:
            self._quiet += FRAME_MS
        if self._quiet >= max(self._silence, FRAME_MS) or now - self._began >= self._longest:
            self.reset()
            return Turned("stopped", now)
        if self._quiet >= PAUSE_MS and not self._paused:
            self._paused = True
            return Turned("paused", now)
        return None

    def _wait(self, voiced: bool, now: int) -> Turned | None:
        self._recent.append(voiced)
        if sum(self._recent) < _ENOUGH:
            return None
        began = now - len(self._recent) * FRAME_MS - self._prefix
        self._began = max(began, self._over, 0)
        self._quiet, self._in_a_row, self._paused = 0, 2, False
        return Turned("started", self._began)


class VoiceTurnDetectors:
    """`seams.TurnDetectors`."""

    def __init__(self, longest_seconds: float) -> None:
        self._longest = int(longest_seconds * 1_000)

    def __call__(self, wanted: TurnDetection, form: AudioFormat) -> TurnDetector:
        """One for a session."""
        return VoiceTurns(wanted, form, self._longest)
