"""Where voices are plugged in: hearing, speaking, and telling when somebody speaks. Nothing here knows a vendor."""

from collections.abc import AsyncGenerator, Awaitable, Callable
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


class Hearing(Protocol):
    """One turn that is listened to while it is spoken. `finish` or `drop` ends it."""

    def feed(self, sound: bytes) -> None:
        """More of it; never waits."""
        ...

    def pause(self) -> None:
        """The speaker is silent for a moment: time to catch up."""
        ...

    async def finish(self, sound: bytes, tell: Callable[[str], None]) -> Heard:
        """The words of the whole turn, which is `sound`. Raises as `Listener.listen`.

        Args:
            tell: takes pieces of the text as they are heard; together they are the text.
        """
        ...

    def drop(self) -> None:
        """Nobody wants to know it."""
        ...


class Follower(Protocol):
    """Listens to turns while they are spoken, so that their words are there when they end."""

    def follow(self, form: AudioFormat, wanted: Transcription | None, caller: Principal) -> Hearing:
        """A turn that begins."""
        ...


class Speaker(Protocol):
    """Text to speech of one sentence at a time, so that the first can be heard while the second is written."""

    def speak(self, sentence: str, wanted: OutputAudio, caller: Principal) -> AsyncGenerator[bytes]:
        """Pieces of sound in `wanted.format`, as soon as they are there; none for what has no sound.

        Closing the iterator stops it at once.

        Raises:
            RouteurError: it cannot be had; the response fails with it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Turned:
    """Speech has begun, has paused or ended, so many milliseconds after the session's first sound."""

    what: Literal["started", "paused", "stopped"]
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
    """Makes one for each session that wants the server to tell turns; raises RouteurError."""

    def __call__(self, wanted: TurnDetection, form: AudioFormat) -> TurnDetector: ...


@dataclass(frozen=True, slots=True)
class VoiceSeams:
    """What is plugged in; None: audio of that kind is refused with `audio_not_available`.

    Attributes:
        prepare: awaited before a detector is made of that; raises RouteurError. None: there is nothing to prepare.
        follower: None: turns are listened to when they are over.
        speaks_first: answers are spoken unless a session says otherwise.
        turn_seconds: the longest turn.
    """

    listener: Listener | None = None
    speaker: Speaker | None = None
    detectors: TurnDetectors | None = None
    prepare: Callable[[TurnDetection], Awaitable[None]] | None = None
    follower: Follower | None = None
    speaks_first: bool = True
    turn_seconds: float = 300
