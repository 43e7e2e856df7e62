"""Whisper on this machine, by faster-whisper: `whisper/<folder>`, its weights in WHISPER_MODELS_DIR.

Each model is loaded once, when first asked for, and stays. Nothing is ever downloaded.
"""

import asyncio
import importlib
import logging
from pathlib import Path
from typing import Any

from core.audio.threads import AudioThreads, stop_asked
from core.logging import safe_line
from domain.audio import Segment, SpanTranscript, TranscriptionOptions, Word
from domain.errors import InvalidRequest, ModelNotFound, Unavailable
from domain.text import clean_text
from services.llm_providers.whisper import model_folders
from services.transcription_providers.base import BaseTranscriber, Sound, Surroundings

logger = logging.getLogger(__name__)

_LONGEST = 600.0  # seconds: parts run side by side, and one that is given up ends soon
_FULL = 32_768.0  # of a sample of 16 bits


class Transcriber(BaseTranscriber):
    """The models of one folder."""

    def __init__(self, given: Surroundings) -> None:
        super().__init__(given)
        self._own_threads = AudioThreads(given.settings.whisper_at_once)
        self._loaded: dict[str, Any] = {}
        self._loading = asyncio.Lock()

    def check(self, name: str, asked: TranscriptionOptions) -> None:
        """Everything but speakers."""
        if self._folder(name) is None:
            raise ModelNotFound(f"whisper/{name}", [f"whisper/{one}" for one in self._folders()])
        if asked.diarize:
            raise self.refuse("does not tell speakers apart", "response_format")

    def longest(self, name: str) -> float | None:
        """Ten minutes; it takes any."""
        return _LONGEST

    async def transcribe(self, name: str, sound: Sound, asked: TranscriptionOptions) -> SpanTranscript:
        """What it hears; segments of silence are dropped by the model itself."""
        model = await self._model(name)
        return await self._own_threads.run(_listen, model, await sound.pcm(), asked)

    async def aclose(self) -> None:
        """Stop what runs."""
        await self._own_threads.close()
        self._loaded.clear()

    async def _model(self, name: str) -> Any:
        async with self._loading:
            if name not in self._loaded:
                folder = self._folder(name)
                if folder is None:
                    raise ModelNotFound(f"whisper/{name}", [f"whisper/{one}" for one in self._folders()])
                self._loaded[name] = await self._own_threads.run(self._load, name, folder)
            return self._loaded[name]

    def _load(self, name: str, folder: Path) -> Any:
        """Seconds, and as much memory as the weights have."""
        try:
            library = importlib.import_module("faster_whisper")
        except ImportError:
            raise Unavailable(
                "The models of WHISPER_MODELS_DIR need a package that is not installed: uv sync --extra whisper.",
                code="provider_not_installed",
            ) from None
        try:
            return library.WhisperModel(
                str(folder),
                compute_type=self.settings.whisper_compute_type,
                cpu_threads=self.settings.whisper_threads,
                num_workers=self.settings.whisper_at_once,
                local_files_only=True,
            )
        except Exception as error:  # whatever is wrong with the weights
            logger.exception("a Whisper model cannot be loaded", extra={"model": name})
            raise Unavailable(f"The model 'whisper/{name}' cannot be loaded.", code="model_not_loaded") from error

    def _folders(self) -> dict[str, Path]:
        return model_folders(self.settings.whisper_models_dir)

    def _folder(self, name: str) -> Path | None:
        return self._folders().get(name)


def _listen(model: Any, pcm: bytes, asked: TranscriptionOptions) -> SpanTranscript:
    """In a thread; its work lets go of the interpreter."""
    if not model.model.is_multilingual:
        _check_english(asked)
    numpy: Any = importlib.import_module("numpy")
    sound = numpy.frombuffer(pcm, numpy.int16).astype(numpy.float32) / _FULL
    more: dict[str, Any] = {} if asked.temperature is None else {"temperature": asked.temperature}
    try:
        told, info = model.transcribe(
            sound,
            language=asked.language,
            task="translate" if asked.translate else "transcribe",
            initial_prompt=asked.prompt,
            word_timestamps=asked.words,
            **more,
        )
    except ValueError as error:
        logger.info("whisper refused", extra={"why": safe_line(str(error), 200)})
        raise InvalidRequest(
            "Whisper does not take this: is the language a code such as 'en' or 'fr'?",
            code="language_not_supported",
            param="language",
        ) from error
    segments: list[Segment] = []
    words: list[Word] = []
    for one in told:
        if stop_asked():
            raise InterruptedError
        segments.append(_segment(len(segments), one))
        words += [Word(word=clean_text(word.word).strip(), start=word.start, end=word.end) for word in one.words or ()]
    text = "".join(segment.text for segment in segments).strip()
    return SpanTranscript(
        text=text,
        language="en" if asked.translate else info.language,
        segments=segments,
        words=words if asked.words else None,
    )


def _check_english(asked: TranscriptionOptions) -> None:
    """The library would quietly take English instead.

    Raises:
        InvalidRequest: it is not English that is wanted of weights that know nothing else.
    """
    if asked.language not in (None, "en"):
        raise InvalidRequest("This model knows English only.", code="language_not_supported", param="language")
    if asked.translate:
        raise InvalidRequest(
            "This model knows English only: it does not translate.", code="not_supported", param="model"
        )


def _segment(place: int, one: Any) -> Segment:
    return Segment(
        id=place,
        start=one.start,
        end=one.end,
        text=clean_text(one.text),
        seek=one.seek,
        tokens=list(one.tokens),
        temperature=one.temperature or 0.0,
        avg_logprob=one.avg_logprob,
        compression_ratio=one.compression_ratio,
        no_speech_prob=one.no_speech_prob,
    )
