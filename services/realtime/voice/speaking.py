"""Sentences spoken by the models of /v1/audio/speech, in the coding that a realtime client wants to hear."""

import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from domain.auth import Principal
from domain.errors import RouteurError, Unavailable
from domain.speech import SpeechFormat, SpeechRequest
from services.realtime.audio_buffer import BYTES_PER_SECOND
from services.realtime.schemas import AudioFormat, OutputAudio, Voice
from services.realtime.voice.forms import Outgoing
from services.speech_service import SpeechService

_PIECE_MS = 200
_DEFAULTS = {"openai": "gpt-4o-mini-tts"}
_PCM = AudioFormat(type="audio/pcm", rate=24000)
_MARKS = re.compile(r"[*_`#~|]+|^\s*[-+>]\s", re.MULTILINE)  # of Markdown: nobody wants to hear them


class ServiceSpeaker:
    """`seams.Speaker`.

    Args:
        model: who speaks; None: the first model of kind speech.
    """

    def __init__(self, speech: SpeechService, model: str | None) -> None:
        self._speech = speech
        self._model = model

    async def speak(self, sentence: str, wanted: OutputAudio, caller: Principal) -> AsyncGenerator[bytes]:
        """As `seams.Speaker.speak`, in pieces of a fifth of a second."""
        text = _MARKS.sub(" ", sentence).strip()
        if not any(letter.isalnum() for letter in text):
            return
        voice = wanted.voice or "alloy"
        request = SpeechRequest(
            model=await self._resolve(),
            text=text,
            voice=voice.id if isinstance(voice, Voice) else voice,
            form=SpeechFormat.PCM,
            speed=wanted.speed or 1.0,
            custom_voice=isinstance(voice, Voice),
        )
        try:
            stream = await self._speech.speak(request, caller)
        except RouteurError as error:
            if error.code == "nothing_to_say":
                return
            raise
        form = wanted.format or _PCM
        outgoing = Outgoing(form)
        size = BYTES_PER_SECOND[form.type] * _PIECE_MS // 1_000
        waiting = bytearray()
        async with aclosing(stream.chunks()) as chunks:
            async for chunk in chunks:
                waiting += outgoing.feed(chunk)
                while len(waiting) >= size:
                    yield bytes(waiting[:size])
                    del waiting[:size]
        waiting += outgoing.end()
        if waiting:
            yield bytes(waiting)

    async def _resolve(self) -> str:
        if self._model is not None:
            return self._model
        found = await self._speech.llm.first_of_kind("speech", _DEFAULTS)
        if found is None:
            raise Unavailable(
                "No model that speaks is configured: see docs/realtime.md, or set output_modalities to ['text'].",
                code="no_model",
            )
        return found.id
