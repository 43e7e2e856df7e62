"""`offline/pocketsphinx`: English, embedded, a demonstration. It listens in processes of its own, a few at once."""

import asyncio
import importlib.util
import logging
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from pathlib import Path

import orjson

from core.logging import safe_line
from domain.audio import AudioSpan, DecodedAudio, SpanTranscript, TranscriptionOptions, Word
from domain.errors import InternalError, InvalidRequest, ModelNotFound, Unavailable
from services.transcription_providers.base import BaseTranscriber, Sound, Surroundings
from services.transcription_providers.wire.grouping import segments_of

logger = logging.getLogger(__name__)

NAME = "pocketsphinx"
_PROGRAM = Path(__file__).with_name("pocketsphinx_process.py")
_LONGEST = 20.0  # seconds: short parts are heard better, and leave the processes to others
_MOST_ANSWER = 4_000_000  # bytes of one line
_ENGLISH = ("en", "english")


class Transcriber(BaseTranscriber):
    """The ears inside the house."""

    default_model = NAME

    def __init__(self, given: Surroundings) -> None:
        super().__init__(given)
        self._processes = _Processes(given.settings.offline_processes)

    def check(self, name: str, asked: TranscriptionOptions) -> None:
        """English, and nothing but words and their times."""
        if name in ("rules", "hash", "flite", "espeak"):
            raise InvalidRequest(
                f"The model 'offline/{name}' does not transcribe; 'offline/{NAME}' does.",
                code="transcription_not_supported",
                param="model",
            )
        if name != NAME:
            raise ModelNotFound(f"offline/{name}", [f"offline/{NAME}"])
        if asked.language is not None and asked.language.lower().replace("_", "-").partition("-")[0] not in _ENGLISH:
            raise InvalidRequest(
                f"The model 'offline/{NAME}' understands English only.", code="language_not_supported", param="language"
            )
        for given, what, param in (
            (asked.translate, "translate", "model"),
            (asked.diarize, "tell speakers apart", "response_format"),
            (asked.prompt is not None, "take a prompt", "prompt"),
            (bool(asked.temperature), "take a temperature", "temperature"),
        ):
            if given:
                raise InvalidRequest(f"The model 'offline/{NAME}' does not {what}.", code="not_supported", param=param)

    def longest(self, name: str) -> float | None:
        """Twenty seconds."""
        return _LONGEST

    async def transcribe(self, name: str, sound: Sound, asked: TranscriptionOptions) -> SpanTranscript:
        """What it thinks was said."""
        words = await self._processes.listen(sound.audio, sound.span)
        segments = segments_of(words)
        text = " ".join(segment.text for segment in segments)
        return SpanTranscript(text=text, language="english", segments=segments, words=words)

    async def aclose(self) -> None:
        """End the processes."""
        await self._processes.aclose()


class _Processes:
    """At most so many processes; one that is given up in the middle of its work is killed and replaced."""

    def __init__(self, most: int) -> None:
        self._free = asyncio.Semaphore(most)
        self._idle: list[Process] = []
        self._closed = False

    async def listen(self, audio: DecodedAudio, span: AudioSpan) -> list[Word]:
        """The words of a part.

        Raises:
            Unavailable: pocketsphinx is not installed.
            InternalError: its process died.
        """
        async with self._free:
            process = self._idle.pop() if self._idle else await _start()
            try:
                words = await _ask(process, audio, span)
            except BaseException:
                await _kill(process)
                raise
            if self._closed:
                await _kill(process)
            else:
                self._idle.append(process)
            return words

    async def aclose(self) -> None:
        """End those that are idle; the others end with their work."""
        self._closed = True
        while self._idle:
            await _kill(self._idle.pop())


async def _start() -> Process:
    if importlib.util.find_spec("pocketsphinx") is None:
        raise Unavailable(
            "Audio is not installed here. Install it with: uv sync --extra audio", code="audio_not_installed"
        )
    return await asyncio.create_subprocess_exec(
        sys.executable, "-I", str(_PROGRAM), stdin=PIPE, stdout=PIPE, stderr=DEVNULL, limit=_MOST_ANSWER
    )


async def _ask(process: Process, audio: DecodedAudio, span: AudioSpan) -> list[Word]:
    if process.stdin is None or process.stdout is None:  # pragma: no cover - it was started with both
        raise InternalError
    job = {"path": str(audio.path.absolute()), "start": span.start, "end": span.end}
    try:
        process.stdin.write(orjson.dumps(job) + b"\n")
        await process.stdin.drain()
        line = await process.stdout.readline()
        told = orjson.loads(line)
    except (OSError, ValueError) as error:
        why = safe_line(f"{type(error).__name__}: {error}", 500)
        logger.error("the process of pocketsphinx failed", extra={"why": why, "status": process.returncode})
        raise InternalError from error
    return [Word(word=word, start=start, end=end) for word, start, end in told]


async def _kill(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    if process.stdin is not None:
        process.stdin.close()
    await process.wait()
