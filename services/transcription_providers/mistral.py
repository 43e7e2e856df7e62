"""Mistral AI: the Voxtral models."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from core.http import Form, FormFile
from domain.audio import SpanTranscript, TranscriptionOptions
from services.transcription_providers.base import BaseTranscriber, Sound
from services.transcription_providers.wire.answers import read_answer
from services.transcription_providers.wire.forms import TRANSCRIPTIONS, common_fields
from services.transcription_providers.wire.grouping import segments_of
from services.transcription_providers.wire.streams import stream_pieces

_SECONDS = 1_800  # what every Voxtral takes; newer ones take more


class Transcriber(BaseTranscriber):
    """Mistral AI, or whatever stands at MISTRAL_BASE_URL."""

    default_model = "voxtral-mini-latest"

    def check(self, name: str, asked: TranscriptionOptions) -> None:
        """Voxtral transcribes, in the language it hears."""
        if asked.translate:
            raise self.refuse("does not translate", "model")
        if asked.prompt is not None:
            raise self.refuse("takes no prompt for transcription", "prompt")
        if asked.words and asked.diarize:
            raise self.refuse("tells either words or speakers", "timestamp_granularities")

    def longest(self, name: str) -> float | None:
        """Half an hour."""
        return _SECONDS

    async def transcribe(self, name: str, sound: Sound, asked: TranscriptionOptions) -> SpanTranscript:
        """With the times of words, or of segments, where they are wanted: Mistral takes one of the two."""
        form = await self._form(name, sound, asked)
        body = await self.client.post_form(TRANSCRIPTIONS, form, model=f"{self.config.name}/{name}")
        if not asked.words:
            return read_answer(self.client, body, words=False)
        # the times of words come as segments of one word each
        heard = read_answer(self.client, {**body, "words": body.get("segments") or [], "segments": None}, words=True)
        return heard.model_copy(update={"segments": segments_of(heard.words or ())})

    def stream(
        self, name: str, sound: Sound, asked: TranscriptionOptions
    ) -> AbstractAsyncContextManager[AsyncIterator[str | SpanTranscript]] | None:
        """Word by word, where only the text is wanted."""
        return None if asked.times or asked.words or asked.diarize else self._stream(name, sound, asked)

    @asynccontextmanager
    async def _stream(
        self, name: str, sound: Sound, asked: TranscriptionOptions
    ) -> AsyncIterator[AsyncIterator[str | SpanTranscript]]:
        async with stream_pieces(
            self.client,
            await self._form(name, sound, asked, ("stream", "true")),
            path=TRANSCRIPTIONS,
            model=f"{self.config.name}/{name}",
            delta=("transcription.text.delta", "text"),
            done="transcription.done",
        ) as pieces:
            yield pieces

    async def _form(self, name: str, sound: Sound, asked: TranscriptionOptions, *more: tuple[str, str]) -> Form:
        fields = [("model", name), *common_fields(asked), *more]
        if asked.words:
            fields.append(("timestamp_granularities", "word"))
        elif asked.times or asked.diarize:
            fields.append(("timestamp_granularities", "segment"))
        if asked.diarize:
            fields.append(("diarize", "true"))
        return Form(fields, FormFile("audio.flac", "audio/flac", await sound.encoded("flac")))
