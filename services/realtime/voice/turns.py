"""Who speaks when: a turn begins with speech, and ends with a silence that is long enough, or when all is said."""

from collections import deque

from domain.audio import SAMPLE_RATE
from services.realtime.schemas import AudioFormat, TurnDetection
from services.realtime.seams import TurnDetector, Turned
from services.realtime.voice.activity import Activities, Activity
from services.realtime.voice.completeness import Completeness, Judge
from services.realtime.voice.forms import Incoming

PAUSE_MS = 200  # a silence in which it is worth to catch up with what was said, and to ask whether it is all
_WINDOW, _ENOUGH = 4, 3  # windows that are looked at, and those of them that must be speech for a turn to begin
_THRESHOLD = 0.5  # this and the next two are OpenAI's
_PREFIX_MS, _SILENCE_MS = 300, 500
#: The longest silence in a turn that may not be complete, by the eagerness of semantic_vad: OpenAI's.
_PATIENCE_MS = {"low": 8_000, "medium": 4_000, "auto": 4_000, "high": 2_000}
#: The silence that ends a turn of semantic_vad where nobody judges.
_EAGERNESS_MS = {"low": 1_200, "medium": 700, "auto": 700, "high": 400}


class VoiceTurns:
    """Turns of one session.

    Args:
        longest_ms: a turn that lasts longer ends there.
        judge: says whether a turn is complete; None: silence does.
    """

    def __init__(
        self, wanted: TurnDetection, form: AudioFormat, longest_ms: int, activity: Activity, judge: Judge | None = None
    ) -> None:
        self._activity = activity
        self._ms = activity.window_ms
        self._size = SAMPLE_RATE * 2 * self._ms // 1_000  # bytes
        self._incoming = Incoming(form)
        self._prefix = _PREFIX_MS if wanted.prefix_padding_ms is None else wanted.prefix_padding_ms
        self._silence = max(_silence_ms(wanted, judged=judge is not None), self._ms)
        self._completeness = None if judge is None else Completeness(judge, self._prefix + _WINDOW * self._ms)
        self._longest = longest_ms
        self._rest = bytearray()
        self._windows = 0
        self._recent: deque[bool] = deque(maxlen=_WINDOW)
        self._began: int | None = None  # the turn that is going on
        self._over = 0  # the end of the last one
        self._quiet = 0
        self._in_a_row = 0
        self._paused = False
        self._looks = 0  # how often it was asked in this pause whether all is said

    def feed(self, sound: bytes) -> list[Turned]:
        """What this piece tells."""
        self._rest += self._incoming.feed(sound)
        told: list[Turned] = []
        whole = len(self._rest) // self._size * self._size
        for start in range(0, whole, self._size):
            turned = self._next(bytes(self._rest[start : start + self._size]))
            if turned is not None:
                told.append(turned)
        del self._rest[:whole]
        return told

    def reset(self) -> None:
        """Whatever was being said is over."""
        self._began = None
        self._over = self._windows * self._ms
        self._recent.clear()
        if self._completeness is not None:
            self._completeness.end()

    def _next(self, window: bytes) -> Turned | None:
        speech = self._activity.is_speech(window)
        if self._completeness is not None:
            self._completeness.hear(window, speaking=self._began is not None)
        self._windows += 1
        now = self._windows * self._ms
        if self._began is None:
            return self._wait(now, speech=speech)
        self._in_a_row = self._in_a_row + 1 if speech else 0
        if self._in_a_row > 1:  # a single window is a click
            self._resume()
        else:
            self._quiet += self._ms
        if self._quiet >= self._silence or now - self._began >= self._longest or self._complete():
            self.reset()
            return Turned("stopped", now)
        if self._quiet >= PAUSE_MS and not self._paused:
            self._paused = True
            return Turned("paused", now)
        return None

    def _wait(self, now: int, *, speech: bool) -> Turned | None:
        self._recent.append(speech)
        if sum(self._recent) < _ENOUGH:
            return None
        began = now - len(self._recent) * self._ms - self._prefix
        self._began = max(began, self._over, 0)
        self._in_a_row = 2
        self._resume()
        return Turned("started", self._began)

    def _resume(self) -> None:
        """There is speech: whatever silence there was is over."""
        self._quiet, self._paused, self._looks = 0, False, 0
        if self._completeness is not None:
            self._completeness.forget()

    def _complete(self) -> bool:
        """Is all said? That is asked when a pause begins, and once more after half of the longest silence."""
        if self._completeness is None or self._in_a_row:  # somebody may be going on
            return False
        if self._looks < 2 and self._quiet >= (PAUSE_MS, self._silence // 2)[self._looks]:
            self._looks += 1
            self._completeness.ask()
        return self._completeness.told


def _silence_ms(wanted: TurnDetection, *, judged: bool) -> int:
    if wanted.type == "semantic_vad":
        return (_PATIENCE_MS if judged else _EAGERNESS_MS)[wanted.eagerness or "auto"]
    return _SILENCE_MS if wanted.silence_duration_ms is None else wanted.silence_duration_ms


class VoiceTurnDetectors:
    """`seams.TurnDetectors`.

    Args:
        judge: for semantic_vad; None: it is told by silence.
    """

    def __init__(self, longest_seconds: float, activities: Activities, judge: Judge | None = None) -> None:
        self._longest = int(longest_seconds * 1_000)
        self._activities = activities
        self._judge = judge

    def __call__(self, wanted: TurnDetection, form: AudioFormat) -> TurnDetector:
        """One for a session.

        Raises:
            RouteurError: what tells speech cannot be had.
        """
        threshold = _THRESHOLD if wanted.threshold is None else wanted.threshold
        judge = self._judge if wanted.type == "semantic_vad" else None
        return VoiceTurns(wanted, form, self._longest, self._activities(threshold), judge)
