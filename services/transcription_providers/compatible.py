"""Any server that speaks OpenAI's audio wire: speaches, LocalAI, vLLM. What its models can do is its own knowledge."""

from core.http import Form, FormFile
from domain.audio import SpanTranscript, TranscriptionOptions
from services.transcription_providers.base import BaseTranscriber, Sound, seconds_in
from services.transcription_providers.wire.answers import read_answer
from services.transcription_providers.wire.forms import TRANSCRIPTIONS, TRANSLATIONS, common_fields

_MOST_BYTES = 25_000_000  # vLLM's own limit, and OpenAI's


class Transcriber(BaseTranscriber):
    """A server by name."""

    tells_times = False

    def check(self, name: str, asked: TranscriptionOptions) -> None:
        """Speakers have no common form."""
        if asked.diarize:
            raise self.refuse("does not tell speakers apart", "response_format")

    def longest(self, name: str) -> float | None:
        """As OpenAI."""
        return seconds_in(_MOST_BYTES)

    async def transcribe(self, name: str, sound: Sound, asked: TranscriptionOptions) -> SpanTranscript:
        """As wav, which all of them read; with times only where they are wanted, for not all of them tell."""
        times = asked.times or asked.words
        fields = [("model", name), *common_fields(asked), ("response_format", "verbose_json" if times else "json")]
        if times and not asked.translate:
            fields.append(("timestamp_granularities[]", "segment"))
            fields += [("timestamp_granularities[]", "word")] if asked.words else []
        form = Form(fields, FormFile("audio.wav", "audio/wav", await sound.encoded("wav")))
        path = TRANSLATIONS if asked.translate else TRANSCRIPTIONS
        body = await self.client.post_form(path, form, model=f"{self.config.name}/{name}")
        heard = read_answer(self.client, body, words=asked.words)
        if times and heard.text and not heard.segments:
            raise self.refuse(f"gives no times with '{name}'", "response_format")
        return heard
