"""Sound that comes in, until its turn is over: bounded, and handed to whatever is plugged in (`seams.py`)."""

import base64
import binascii
from collections.abc import Iterator

from domain.errors import InvalidRequest, TooLarge
from services.realtime.schemas import AudioFormat
from services.realtime.seams import TurnDetector, Turned

MOST_APPEND = 15 * 1024 * 1024  # bytes of base64 in one event: OpenAI's own limit
BYTES_PER_SECOND = {"audio/pcm": 48_000, "audio/pcmu": 8_000, "audio/pcma": 8_000}
_SHORTEST = 0.1  # seconds that somebody may understand
_DETECTION = 1.0  # seconds that a detector may be late by


class AudioBuffer:
    """The sound of the turn that is going on.

    Args:
        most_seconds: of one turn.
        before_seconds: of what came before a turn, kept for it where a detector tells turns.
        at_ms: how much sound the session has had already.
    """

    def __init__(
        self,
        form: AudioFormat,
        detector: TurnDetector | None,
        *,
        most_seconds: float = 300,
        before_seconds: float = 0.3,
        at_ms: int = 0,
    ) -> None:
        self.form = form
        self.detects = detector is not None
        self._rate = BYTES_PER_SECOND[form.type]
        self._detector = detector
        self._most = most_seconds
        self._before = self._bytes(round(1_000 * (before_seconds + _DETECTION)))
        self._began_ms = at_ms
        self._sound = bytearray()
        self._first = 0  # the place of its first byte among all that came
        self._followed = 0  # up to where `fresh` has told

    @property
    def seconds(self) -> float:
        """How much there is."""
        return len(self._sound) / self._rate

    @property
    def at_ms(self) -> int:
        """How much sound the session has had."""
        return self._began_ms + self._ms(self._first + len(self._sound))

    def read(self, encoded: str) -> Iterator[bytes]:
        """Sound that was sent, checked, in pieces of a second at most; to be given to `append` one by one.

        Raises:
            InvalidRequest: it is no base64, or half a sample.
            TooLarge: the turn is too long.
        """
        if len(encoded) > MOST_APPEND:
            raise TooLarge("One event may carry 15 MB of audio.", code="audio_too_large", param="audio")
        try:
            sound = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidRequest("The audio is not valid base64.", code="invalid_audio", param="audio") from error
        if self.form.type == "audio/pcm" and len(sound) % 2:
            raise InvalidRequest("PCM has two bytes for each sample.", code="invalid_audio", param="audio")
        if not self.detects and len(self._sound) + len(sound) > self._most * self._rate:
            raise TooLarge(
                f"The buffer holds {self._most:g} s; commit or clear it.", code="audio_buffer_full", param="audio"
            )
        return (sound[start : start + self._rate] for start in range(0, len(sound), self._rate))

    def append(self, sound: bytes) -> list[Turned]:
        """One piece more; gives what the detector tells, in times of the session."""
        self._sound += sound
        if self._detector is None:
            return []
        return [Turned(one.what, one.at_ms + self._began_ms) for one in self._detector.feed(sound)]

    def begin(self, at_ms: int) -> None:
        """A turn has begun there: drop what came before."""
        self._drop(self._place(at_ms))
        self._followed = self._first

    def forget(self) -> None:
        """Nobody speaks: drop what no turn will want, where a detector tells turns."""
        if self.detects:
            self._drop(max(0, len(self._sound) - self._before))

    def fresh(self, until_ms: int | None = None) -> bytes:
        """What has come since this was last asked for, or since the turn began."""
        end = len(self._sound) if until_ms is None else self._place(until_ms)
        start = max(0, self._followed - self._first)
        self._followed = max(self._followed, self._first + end)
        return bytes(self._sound[start:end])

    def take(self, until_ms: int | None = None) -> bytes:
        """The turn, which ended there (None: all that there is); it is not in the buffer any more.

        Raises:
            InvalidRequest: there is less than 100 ms, which nobody can understand.
        """
        if self.seconds < _SHORTEST:
            raise InvalidRequest(
                f"The buffer holds {self.seconds * 1000:.0f} ms of audio; at least 100 ms are needed.",
                code="input_audio_buffer_commit_empty",
            )
        end = len(self._sound) if until_ms is None else self._place(until_ms)
        sound = bytes(self._sound[:end])
        self._drop(end)
        self._followed = self._first
        if until_ms is None:
            self._reset()
        return sound

    def clear(self) -> None:
        """Drop it."""
        self._drop(len(self._sound))
        self._followed = self._first
        self._reset()

    def _reset(self) -> None:
        if self._detector is not None:
            self._detector.reset()

    def _drop(self, count: int) -> None:
        del self._sound[:count]
        self._first += count

    def _place(self, at_ms: int) -> int:
        """Where in the buffer a moment of the session is."""
        return min(max(0, self._bytes(at_ms - self._began_ms) - self._first), len(self._sound))

    def _bytes(self, ms: int) -> int:
        return ms * self._rate // 1_000 // 2 * 2

    def _ms(self, count: int) -> int:
        return count * 1_000 // self._rate
