"""Speech: what is uploaded, how it is cut up, and what was said. Times are seconds from the start of the whole file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

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
    """How a file is to be transcribed. `translate`: into English. `times`: segments are wanted; `words`: those too."""

    model: str | None = None
    language: str | None = None
    prompt: str | None = None
    temperature: float | None = None
    times: bool = False
    words: bool = False
    diarize: bool = False
    translate: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TranscriptionPlan:
    """What is to be transcribed by which model, and in which parts; the same file and options give the same plan."""

    model: str
    audio: DecodedAudio
    spans: tuple[AudioSpan, ...]
    options: TranscriptionOptions


class SpanTranscript(BaseModel):
    """What was said in one part of a file. Its times are from the start of the whole file.

    `usage` None: nobody counted tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    language: str | None = None
    segments: list[Segment] = Field(default_factory=list)
    words: list[Word] | None = None
    usage: Usage | None = None

    def moved(self, span: AudioSpan) -> "SpanTranscript":
        """The same, from times of the part to those of the file; nothing is said outside the part."""

        def at(seconds: float) -> float:
            return round(span.offset + min(max(seconds, 0.0), span.seconds), 3)

        return self.model_copy(
            update={
                "segments": [one.model_copy(update=_between(at, one)) for one in self.segments],
                "words": self.words and [one.model_copy(update=_between(at, one)) for one in self.words],
            }
        )


def _between(at: Callable[[float], float], one: Segment | Word) -> dict[str, float]:
    start = at(one.start)
    return {"start": start, "end": max(start, at(one.end))}


def joined(plan: TranscriptionPlan, parts: Sequence[SpanTranscript]) -> Transcript:
    """The parts of a whole file as one: in their order, segments numbered anew.

    Speakers were told apart within each part only: those of later parts get its number, for nobody knows whether they
    are the same people.
    """
    segments: list[Segment] = []
    for number, part in enumerate(parts, 1):
        for segment in part.segments:
            speaker = segment.speaker
            if speaker is not None and number > 1:
                speaker = f"{speaker}-{number}"
            seek = segment.seek + round(plan.spans[number - 1].offset * 100)
            segments.append(segment.model_copy(update={"id": len(segments), "speaker": speaker, "seek": seek}))
    usage: Usage | None = None
    if all(part.usage for part in parts):
        for part in parts:
            usage = part.usage if usage is None or part.usage is None else usage + part.usage
    words = [word for part in parts for word in part.words or ()]
    return Transcript(
        text=" ".join(part.text for part in parts if part.text),
        language=next((part.language for part in parts if part.language), plan.options.language),
        duration=round(plan.audio.seconds, 3),
        segments=segments,
        words=words if plan.options.words else None,
        usage=usage,
        model=plan.model,
    )
