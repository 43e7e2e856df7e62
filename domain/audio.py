"""Speech: what is uploaded, how it is cut up, and what was said. Times are seconds from the start of the whole file."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from domain.usage import Usage

SAMPLE_RATE = 16_000  # of everything that is transcribed: mono, 16 bit; what every recogniser wants


class TranscriptFormat(StrEnum):
    """How a transcript is written."""

    JSON = "json"
    TEXT = "text"
    SRT = "srt"
    VTT = "vtt"
    VERBOSE_JSON = "verbose_json"
    DIARIZED_JSON = "diarized_json"


@dataclass(frozen=True, slots=True)
class AudioUpload:
    """A file that somebody sent, spooled to disk. `name` is what they called it, made harmless; no path of ours."""

    path: Path
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a file holds, as its bytes say. `seconds` None: it does not tell beforehand (a live recording)."""

    container: str
    codec: str
    sample_rate: int
    channels: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """A whole file as raw PCM on disk: mono, 16 bit little endian, `SAMPLE_RATE`."""

    path: Path
    info: AudioInfo
    samples: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.samples / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class AudioSpan:
    """A part of a decoded file, in samples; `end` is not in it."""

    start: int
    end: int

    @property
    def offset(self) -> float:
        """Where it begins, in seconds."""
        return self.start / SAMPLE_RATE

    @property
    def seconds(self) -> float:
        """How long it is."""
        return (self.end - self.start) / SAMPLE_RATE


class Word(BaseModel):
    """One word and when it was said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    word: str
    start: float
    end: float


class Segment(BaseModel):
    """A stretch of speech. What a recogniser does not tell of itself (`avg_logprob`, ...) is zero: OpenAI's types want
    numbers there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int
    start: float
    end: float
    text: str
    seek: int = 0
    tokens: list[int] = Field(default_factory=list)
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 0.0
    no_speech_prob: float = 0.0
    speaker: str | None = None


class Transcript(BaseModel):
    """What was said. `words` None: nobody asked for them, or the recogniser does not tell."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    language: str | None = None
    duration: float
    segments: list[Segment] = Field(default_factory=list)
    words: list[Word] | None = None
    usage: Usage | None = None
    model: str


@dataclass(frozen=True, slots=True)
class TranscriptionOptions:
    """How a file is to be transcribed. `translate`: into English."""

    model: str | None = None
    language: str | None = None
    prompt: str | None = None
    temperature: float | None = None
    words: bool = False
    diarize: bool = False
    translate: bool = False
    metadata: dict[str, str] = field(default_factory=dict)
