"""Sound that comes in, until its turn is over: bounded, and handed to whatever is plugged in (`seams.py`)."""

import base64
import binascii

from domain.errors import InvalidRequest, TooLarge
from services.realtime.schemas import AudioFormat
from services.realtime.seams import TurnDetector, Turned

MOST_APPEND = 15 * 1024 * 1024  # bytes of base64 in one event: OpenAI's own limit
MOST_SECONDS = 300  # of one turn; a longer one must be committed before
_BYTES_PER_SECOND = {"audio/pcm": 48_000, "audio/pcmu": 8_000, "audio/pcma": 8_000}


class AudioBuffer:
    """The sound of the turn that is going on."""

    def __init__(self, form: AudioFormat, detector: TurnDetector | None) -> None:
        self.form = form
        self._rate = _BYTES_PER_SECOND[form.type]
        self._detector = detector
        self._sound = bytearray()

    @property
    def seconds(self) -> float:
        """How much there is."""
        return len(self._sound) / self._rate

    def append(self, encoded: str) -> list[Turned]:
        """More of it; gives what the detector tells.

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
        if len(self._sound) + len(sound) > MOST_SECONDS * self._rate:
            raise TooLarge(
                f"The buffer holds {MOST_SECONDS} s; commit or clear it.", code="audio_buffer_full", param="audio"
            )
        self._sound += sound
        return self._detector.feed(sound) if self._detector is not None else []

    def take(self) -> bytes:
        """All of it; the buffer is empty then.

        Raises:
            InvalidRequest: there is less than 100 ms, which nobody can understand.
        """
        if self.seconds < 0.1:
            raise InvalidRequest(
                f"The buffer holds {self.seconds * 1000:.0f} ms of audio; at least 100 ms are needed.",
                code="input_audio_buffer_commit_empty",
            )
        sound = bytes(self._sound)
        self.clear()
        return sound

    def clear(self) -> None:
        """Drop it."""
        self._sound.clear()
        if self._detector is not None:
            self._detector.reset()
