"""Speech from text: what shall be said, by which voice, and in which form it is wanted."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum

from domain.usage import Usage

MAX_SPEECH_CHARS = 4_096  # OpenAI's limit for one request
SLOWEST, FASTEST = 0.25, 4.0  # OpenAI's, too
PCM_RATE = 24_000  # samples a second of raw PCM (mono, 16 bit little endian), as OpenAI's clients play it


class SpeechFormat(StrEnum):
    """How speech is encoded."""

    MP3 = "mp3"
    OPUS = "opus"
    AAC = "aac"
    FLAC = "flac"
    WAV = "wav"
    PCM = "pcm"

    @property
    def media_type(self) -> str:
        """Its Content-Type."""
        return "audio/mpeg" if self is SpeechFormat.MP3 else f"audio/{self.value}"


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """What shall be said. `custom_voice`: the voice was made by the caller, and `voice` is its id.

    `events`: the answer is wanted as events, whose last one may tell the usage.
    """

    model: str
    text: str
    voice: str
    form: SpeechFormat = SpeechFormat.MP3
    speed: float = 1.0
    instructions: str | None = None
    custom_voice: bool = False
    events: bool = False


@dataclass(slots=True)
class Spoken:
    """Speech as it comes. `content_type` None: as was asked; `usage` is known, if ever, at the end of `chunks`."""

    chunks: AsyncIterator[bytes]
    content_type: str | None = None
    usage: Usage | None = None
