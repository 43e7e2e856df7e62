"""What `TranscriptionService` asks of a provider. Each vendor file defines one class, `Transcriber`, that does this."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import ClassVar, Literal

from config.transcription_settings import TranscriptionSettings
from core.audio.encoding import encode, pcm
from core.audio.threads import AudioThreads
from core.http import ProviderClient
from domain.audio import SAMPLE_RATE, AudioSpan, DecodedAudio, SpanTranscript, TranscriptionOptions
from domain.errors import InvalidRequest
from services.llm_providers.base import ProviderConfig

PCM_BYTES = 2 * SAMPLE_RATE  # of a second; no form that we send is larger, but for its header
_HEADER_BYTES = 100_000
SoundForm = Literal["wav", "flac"]


@dataclass(frozen=True, slots=True)
class Sound:
    """A part of a decoded file, to be read when it is needed."""

    audio: DecodedAudio
    span: AudioSpan
    threads: AudioThreads

    async def encoded(self, form: SoundForm) -> bytes:
        """The part as a file of that form."""
        return await self.threads.run(encode, self.audio, self.span, form)

    async def pcm(self) -> bytes:
        """The part as it lies on disk."""
        return await self.threads.run(pcm, self.audio, self.span)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a transcriber is made from. `client` is the provider's own, shared with its chat models."""

    config: ProviderConfig
    client: ProviderClient
    settings: TranscriptionSettings
    threads: AudioThreads


class BaseTranscriber(ABC):
    """One provider's ears.

    Attributes:
        default_model: what it uses when nobody names a model; None: the first that is listed.
        tells_times: `check` says whether a model tells times; False: that is seen only when it is asked.
    """

    default_model: ClassVar[str | None] = None
    tells_times: ClassVar[bool] = True

    def __init__(self, given: Surroundings) -> None:
        self.config = given.config
        self.client = given.client
        self.settings = given.settings
        self.threads = given.threads

    @abstractmethod
    def check(self, name: str, asked: TranscriptionOptions) -> None:
        """Whether the model of that name can do this. No input or output.

        Raises:
            InvalidRequest: it cannot; `param` names what.
            ModelNotFound: there is certainly no such model.
        """

    @abstractmethod
    def longest(self, name: str) -> float | None:
        """The longest part it takes, in seconds; None: any."""

    @abstractmethod
    async def transcribe(self, name: str, sound: Sound, asked: TranscriptionOptions) -> SpanTranscript:
        """What is said in `sound`; times are from its start.

        Raises:
            RouteurError: of the upstream kinds, or InvalidRequest.
        """

    def stream(
        self, name: str, sound: Sound, asked: TranscriptionOptions
    ) -> AbstractAsyncContextManager[AsyncIterator[str | SpanTranscript]] | None:
        """The same in pieces as they are heard, the whole at the end; None: it does not tell before its end."""
        return None

    def refuse(self, what: str, param: str) -> InvalidRequest:
        """That this provider, or this model, does not do `what`."""
        return InvalidRequest(f"The provider '{self.config.name}' {what}.", code="not_supported", param=param)

    async def aclose(self) -> None:
        """Let go of what only it has."""
        return


def seconds_in(most_bytes: int) -> float:
    """The seconds of sound that surely fit into a file of that size."""
    return (most_bytes - _HEADER_BYTES) / PCM_BYTES
