"""Where voices are plugged in: hearing, speaking, and telling when somebody speaks. Nothing here knows a vendor."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, Protocol

from domain.auth import Principal
from domain.usage import Usage
from services.realtime.schemas import AudioFormat, OutputAudio, Transcription, TurnDetection


@dataclass(frozen=True, slots=True)
class Heard:
    """What was said in one turn. `usage` None: nobody told what it cost; `seconds` is how long it lasted."""

    text: str
    seconds: float
    usage: Usage | None = None


class Listener(Protocol):
    """Speech to text of a finished turn."""

    async def listen(self, sound: bytes, form: AudioFormat, wanted: Transcription | None, caller: Principal) -> Heard:
        """The words of `sound`, which is coded as `form` says. No words: an empty text, which is never answered.

        Raises:
            RouteurError: it cannot be had; the client is told with `...input_audio_transcription.failed`.
        """
        ...


class Speaker(Protocol):
    """Text to speech of one sentence at a time, so that the first can be heard while the second is written."""

    def speak(self, sentence: str, wanted: OutputAudio) -> AsyncIterator[bytes]:
        """Pieces of sound in `wanted.format`, as soon as they are there. Closing the iterator stops it at once.

        Raises:
            RouteurError: it cannot be had; the response fails with it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Turned:
    """Speech has begun or ended, so many milliseconds after the session's first sound."""

    what: Literal["started", "stopped"]
    at_ms: int


class TurnDetector(Protocol):
    """Voice activity of one session; it sees every piece of sound in order and is not shared."""

    def feed(self, sound: bytes) -> list[Turned]:
        """What this piece tells; quick, for it is called on the event loop for each 20 ms or so."""
        ...

    def reset(self) -> None:
        """The buffer was committed or cleared: whatever was being said is over."""
        ...


class TurnDetectors(Protocol):
    """Makes one for each session that wants the server to tell turns."""

    def __call__(self, wanted: TurnDetection, form: AudioFormat) -> TurnDetector: ...


@dataclass(frozen=True, slots=True)
class VoiceSeams:
    """What is plugged in; None: audio of that kind is refused with `audio_not_available`."""

    listener: Listener | None = None
    speaker: Speaker | None = None
    detectors: TurnDetectors | None = None
