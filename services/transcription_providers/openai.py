"""OpenAI: whisper-1, and the models that transcribe by themselves."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from core.http import Form, FormFile
from domain.audio import SpanTranscript, TranscriptionOptions
from services.transcription_providers.base import BaseTranscriber, Sound, seconds_in
from services.transcription_providers.wire.answers import read_answer
from services.transcription_providers.wire.forms import TRANSCRIPTIONS, TRANSLATIONS, common_fields
from services.transcription_providers.wire.streams import stream_pieces

_MOST_BYTES = 25_000_000  # of one file


@dataclass(frozen=True, slots=True)
class Ability:
    """What a family of models takes and tells."""

    seconds: float | None = None
    times: bool = False  # verbose_json, with segments and words
    diarizes: bool = False
    prompt: bool = True
    translates: bool = False
    streams: bool = False


#: By how their names begin; the first that fits.
_ABILITIES = (
    ("whisper", Ability(times=True, translates=True)),
    ("gpt-4o-transcribe-diarize", Ability(seconds=1_400, diarizes=True, prompt=False, streams=True)),
    ("gpt-4o", Ability(seconds=1_500, streams=True)),
    ("", Ability(seconds=1_500, streams=True)),
)


class Transcriber(BaseTranscriber):
    """OpenAI, or whatever stands at OPENAI_BASE_URL."""

    default_model = "whisper-1"  # the one that tells times

    def check(self, name: str, asked: TranscriptionOptions) -> None:
        """By the family of the model."""
        able = _ability(name)
        if (asked.times or asked.words) and not able.times:
            raise self.refuse(f"gives no times with '{name}': ask for json, or use whisper-1", "response_format")
        if asked.diarize and not able.diarizes:
            raise self.refuse(f"does not tell speakers apart with '{name}'", "response_format")
        if asked.translate and not able.translates:
            raise self.refuse(f"does not translate with '{name}': use whisper-1", "model")
        if asked.prompt is not None and not able.prompt:
            raise self.refuse(f"takes no prompt with '{name}'", "prompt")

    def longest(self, name: str) -> float | None:
        """25 MB, and what the model itself takes."""
        return min(seconds_in(_MOST_BYTES), _ability(name).seconds or float("inf"))

    async def transcribe(self, name: str, sound: Sound, asked: TranscriptionOptions) -> SpanTranscript:
        """In the form that tells most."""
        form = await self._form(name, sound, asked)
        path = TRANSLATIONS if asked.translate else TRANSCRIPTIONS
        body = await self.client.post_form(path, form, model=f"{self.config.name}/{name}")
        return read_answer(self.client, body, words=asked.words)

    def stream(
        self, name: str, sound: Sound, asked: TranscriptionOptions
    ) -> AbstractAsyncContextManager[AsyncIterator[str | SpanTranscript]] | None:
        """Word by word; not with speakers, whose segments come at the end all the same."""
        return None if asked.diarize or not _ability(name).streams else self._stream(name, sound, asked)

    @asynccontextmanager
    async def _stream(
        self, name: str, sound: Sound, asked: TranscriptionOptions
    ) -> AsyncIterator[AsyncIterator[str | SpanTranscript]]:
        form = await self._form(name, sound, asked, ("stream", "true"))
        async with stream_pieces(
            self.client,
            form,
            path=TRANSCRIPTIONS,
            model=f"{self.config.name}/{name}",
            delta=("transcript.text.delta", "delta"),
            done="transcript.text.done",
        ) as pieces:
            yield pieces

    async def _form(self, name: str, sound: Sound, asked: TranscriptionOptions, *more: tuple[str, str]) -> Form:
        able = _ability(name)
        fields = [("model", name), *common_fields(asked), *more]
        if able.times:
            fields.append(("response_format", "verbose_json"))
            if not asked.translate:
                fields.append(("timestamp_granularities[]", "segment"))
                fields += [("timestamp_granularities[]", "word")] if asked.words else []
        elif asked.diarize:
            fields.append(("response_format", "diarized_json"))
        else:
            fields.append(("response_format", "json"))
        if able.diarizes:
            fields.append(("chunking_strategy", "auto"))  # required of it beyond 30 seconds
        return Form(fields, FormFile("audio.flac", "audio/flac", await sound.encoded("flac")))


def _ability(name: str) -> Ability:
    return next(able for beginning, able in _ABILITIES if name.startswith(beginning))
