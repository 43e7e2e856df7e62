"""Programs of this machine that speak: flite and espeak-ng. Demonstrations that need no key and no weights.

A program is started for each sentence or so: the first sound comes early, and a client that leaves ends what little is
going on. The text lies in a file of a private folder, so nothing in it is ever an option, a name or a command.
"""

import asyncio
import os
import re
import resource
import shutil
import unicodedata
import wave
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from domain.errors import InvalidRequest, UpstreamFailure, UpstreamTimeout
from domain.speech import SpeechRequest

_PIECE = 200  # characters that one process speaks, about 12 seconds
_MOST_BYTES = 32_000_000  # of sound from one piece; the worst that we found is 10
_MOST_FILE = 128 << 20  # that a program may write; espeak-ng begins with 64 MB of shared memory
_WITHIN = 60.0  # seconds for one piece; the worst that we found is 11, at a quarter of the speed
_ENDS = re.compile(r"(?<=[.!?;:…])\s+|(?<=[。！？])|\n+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]+")
_ALSO = re.compile(r"\((\S+) \d+\)")  # the other languages that a voice of espeak-ng stands for
_PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": ", ", "—": ", ", "œ": "oe", "æ": "ae", "ß": "ss"})

Sound = tuple[int, bytes]  # samples a second, and mono PCM of 16 bit little endian


class SpeechEngine:
    """One program. What differs is in the two classes below."""

    program: ClassVar[str]
    package: ClassVar[str]
    says: ClassVar[str]
    #: OpenAI's names for voices, and ours for each.
    alike: ClassVar[Mapping[str, str]]

    def __init__(self, path: str, at_once: asyncio.Semaphore) -> None:
        self._path = path
        self._at_once = at_once
        self._voices: tuple[str, ...] | None = None

    # -- what differs --

    def _list_arguments(self) -> list[str]:
        raise NotImplementedError

    def _parse_voices(self, told: str) -> tuple[str, ...]:
        raise NotImplementedError

    def _arguments(self, voice: str, speed: float) -> list[str]:
        raise NotImplementedError

    def _plain(self, text: str) -> str:
        raise NotImplementedError

    def _check_speed(self, speed: float) -> None:
        """Raises InvalidRequest where it cannot speak so slowly."""

    # -- what is the same --

    async def voices(self) -> tuple[str, ...]:
        """The voices by their own names, as the program lists them; asked for once."""
        if self._voices is None:
            told = await _run([self._path, *self._list_arguments()], None, _WITHIN)
            self._voices = self._parse_voices(told.decode("utf-8", "replace"))
        return self._voices

    async def voice_of(self, asked: str) -> str:
        """The voice by its own name, or by OpenAI's.

        Raises:
            InvalidRequest: there is none; the message lists those that there are.
        """
        voices = await self.voices()
        if asked in voices:
            return asked
        meant = self.alike.get(asked)
        if meant is not None and meant.partition("+")[0] in voices:
            return meant
        known = ", ".join([*voices, *(name for name, one in self.alike.items() if one.partition("+")[0] in voices)])
        raise InvalidRequest(
            f"{self.program} has no such voice. Its voices: {known}.", code="voice_not_found", param="voice"
        )

    async def prepare(self, asked: SpeechRequest) -> tuple[str, list[str]]:
        """The voice's own name, and the text in pieces that can be spoken one after the other.

        Raises:
            InvalidRequest: the voice, the speed, or a text in which this program finds nothing to say.
        """
        if asked.instructions is not None:
            raise InvalidRequest(f"{self.program} takes no instructions: leave them out.", param="instructions")
        self._check_speed(asked.speed)
        voice = await self.voice_of(asked.voice)
        text = self._plain(asked.text)
        if not any(letter.isalnum() for letter in text):
            raise InvalidRequest(
                f"{self.program} finds nothing to say in that text. {self.says}", code="nothing_to_say", param="input"
            )
        return voice, list(in_pieces(text))

    async def speak(self, pieces: list[str], voice: str, speed: float) -> AsyncGenerator[Sound]:
        """The sound of each piece.

        Raises:
            UpstreamFailure: the program failed.
            UpstreamTimeout: it took too long.
        """
        for piece in pieces:
            async with self._at_once:
                sound = await self._one(piece, voice, speed)
            if sound[1]:
                yield sound

    async def _one(self, piece: str, voice: str, speed: float) -> Sound:
        with TemporaryDirectory(prefix="speech-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            await asyncio.to_thread((folder / "text").write_text, piece + "\n", "utf-8")
            await _run([self._path, *self._arguments(voice, speed)], folder, _WITHIN)
            try:
                return await asyncio.to_thread(_read, folder / "speech.wav")
            except (OSError, EOFError, wave.Error) as error:
                raise UpstreamFailure(f"{self.program} made no sound that can be read.") from error


class Flite(SpeechEngine):
    """Carnegie Mellon's flite: English."""

    program = "flite"
    package = "flite"
    says = "It speaks English."
    alike: ClassVar[Mapping[str, str]] = {
        "alloy": "slt", "ash": "rms", "ballad": "awb", "cedar": "rms", "coral": "slt", "echo": "rms", "fable": "awb",
        "marin": "slt", "nova": "slt", "onyx": "kal16", "sage": "slt", "shimmer": "slt", "verse": "awb",
    }  # fmt: skip

    def _list_arguments(self) -> list[str]:
        return ["-lv"]

    def _parse_voices(self, told: str) -> tuple[str, ...]:
        names = told.partition("Voices available:")[2].split()
        return tuple(name for name in names if name != "awb_time")  # it can only tell the time

    def _arguments(self, voice: str, speed: float) -> list[str]:
        return ["-voice", voice, "--setf", f"duration_stretch={1 / speed:.4f}", "-f", "text", "-o", "speech.wav"]

    def _plain(self, text: str) -> str:
        """In ASCII, the only letters that it knows; accents are left off."""
        plain = unicodedata.normalize("NFKD", text.translate(_PLAIN))
        return _CONTROL.sub(" ", plain.encode("ascii", "ignore").decode("ascii"))


class Espeak(SpeechEngine):
    """espeak-ng: over a hundred languages, each a voice."""

    program = "espeak-ng"
    package = "espeak-ng"
    says = "It speaks many languages: the voice is a language, such as fr."
    alike: ClassVar[Mapping[str, str]] = {
        "alloy": "en-us+f2", "ash": "en-us+m3", "ballad": "en-gb+m1", "cedar": "en-us+m7", "coral": "en-us+f3",
        "echo": "en-us+m1", "fable": "en-gb+m2", "marin": "en-us+f4", "nova": "en-us+f1", "onyx": "en-us+m4",
        "sage": "en-gb+f2", "shimmer": "en-us+f5", "verse": "en-gb+m5",
    }  # fmt: skip
    _WORDS = 175  # a minute, at its usual speed
    _FEWEST = 80  # it counts no slower

    def _list_arguments(self) -> list[str]:
        return ["--voices"]

    def _parse_voices(self, told: str) -> tuple[str, ...]:
        lines = [line for line in told.splitlines()[1:] if len(line.split()) > 1]
        names = [name for line in lines for name in (line.split()[1], *_ALSO.findall(line))]
        return tuple(dict.fromkeys(names))

    def _arguments(self, voice: str, speed: float) -> list[str]:
        return ["-v", voice, "-s", str(round(self._WORDS * speed)), "-b", "1", "-f", "text", "-w", "speech.wav"]

    def _plain(self, text: str) -> str:
        return _CONTROL.sub(" ", text).replace("[[", "[ [")  # which would begin phonemes

    def _check_speed(self, speed: float) -> None:
        least = -(-100 * self._FEWEST // self._WORDS) / 100
        if speed < least:
            raise InvalidRequest(f"espeak-ng speaks at {least:g} to 4 times its usual speed.", param="speed")


#: The programs by the names of their models.
ENGINES: Mapping[str, type[SpeechEngine]] = {"flite": Flite, "espeak": Espeak}


def found_engines() -> dict[str, SpeechEngine]:
    """Those whose program is on this machine. At once they speak as many pieces as there are cores."""
    at_once = asyncio.Semaphore(os.cpu_count() or 1)
    found = ((name, engine, shutil.which(engine.program)) for name, engine in ENGINES.items())
    return {name: engine(path, at_once) for name, engine, path in found if path is not None}


def in_pieces(text: str) -> Iterator[str]:
    """The text at the ends of its sentences: the first alone, then as many together as make one piece."""
    gathered = ""
    first = True
    for sentence in _ENDS.split(text):
        for part in _short(" ".join(sentence.split())):
            if gathered and (first or len(gathered) + len(part) >= _PIECE):
                yield gathered
                gathered, first = "", False
            gathered = f"{gathered} {part}".strip()
    if gathered:
        yield gathered


def _short(sentence: str) -> Iterator[str]:
    """A sentence that is too long, cut between words, or where need be inside of one."""
    while len(sentence) > _PIECE:
        cut = sentence.rfind(" ", 1, _PIECE)
        cut = _PIECE if cut < 0 else cut
        yield sentence[:cut]
        sentence = sentence[cut:].lstrip()
    if sentence:
        yield sentence


def _read(path: Path) -> Sound:
    if path.stat().st_size > _MOST_BYTES:
        raise OSError("too large")
    with wave.open(str(path), "rb") as file:
        if file.getnchannels() != 1 or file.getsampwidth() != 2:
            raise wave.Error("not mono 16 bit")
        return file.getframerate(), file.readframes(file.getnframes())


async def _run(command: list[str], folder: Path | None, within: float) -> bytes:
    """What the program prints. It is dead and buried when this returns or raises."""
    program = Path(command[0]).name
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        _bound(process.pid, within)
        async with asyncio.timeout(within):
            told, _ = await process.communicate()
    except TimeoutError as error:
        raise UpstreamTimeout(f"{program} took longer than {within:g} s.") from error
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        raise UpstreamFailure(f"{program} failed.")
    return told


def _bound(pid: int, within: float) -> None:
    """The kernel's own limits, for when ours should not be enough."""
    if hasattr(resource, "prlimit"):
        with suppress(ProcessLookupError, PermissionError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (_MOST_FILE, _MOST_FILE))
            resource.prlimit(pid, resource.RLIMIT_CPU, (int(within), int(within)))
