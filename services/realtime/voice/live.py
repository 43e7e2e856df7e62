"""`offline/pocketsphinx` while somebody speaks: its words are there when the turn ends, not half a second later."""

import asyncio
import logging
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress

import orjson

from core.logging import safe_line
from services.transcription_providers import pocketsphinx_process

logger = logging.getLogger(__name__)

_FORGET = b"\xff\xff\xff\xff"
_MOST_ANSWER = 4_000_000  # bytes of one line


class LiveEars:
    """At most so many processes, each with one turn at a time. More speakers at once are heard when they have ended."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._used = 0
        self._idle: list[Process] = []
        self._closed = False

    async def take(self) -> "LiveEar | None":
        """One of them; None: all are taken."""
        if self._used >= self._most or self._closed:
            return None
        self._used += 1
        try:
            while self._idle:
                process = self._idle.pop()
                if process.returncode is None:
                    return LiveEar(self, process)
            program = pocketsphinx_process.__file__
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", program, "live", stdin=PIPE, stdout=PIPE, stderr=DEVNULL, limit=_MOST_ANSWER
            )
        except BaseException:
            self._used -= 1
            raise
        return LiveEar(self, process)

    def give_back(self, process: Process, *, good: bool) -> None:
        """A turn is over; for `LiveEar`."""
        self._used -= 1
        if good and not self._closed and process.returncode is None:
            self._idle.append(process)
        else:
            _end(process)

    async def aclose(self) -> None:
        """End those that are idle; the others end with their turn."""
        self._closed = True
        while self._idle:
            process = self._idle.pop()
            _end(process)
            await process.wait()


class LiveEar:
    """One process for one turn. Give it back, once."""

    def __init__(self, ears: LiveEars, process: Process) -> None:
        self._ears = ears
        self._process = process
        self._asked = False
        self._given_back = False

    @property
    def behind(self) -> int:
        """Bytes that it has not taken yet."""
        return 0 if self._process.stdin is None else self._process.stdin.transport.get_write_buffer_size()

    def feed(self, pcm: bytes) -> None:
        """More of what is said; never waits."""
        if pcm and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(len(pcm).to_bytes(4, "big") + pcm)

    async def words(self) -> str | None:
        """The words since this was last asked for; None: the process has died."""
        process = self._process
        if process.stdin is None or process.stdout is None:  # pragma: no cover - it was started with both
            return None
        self._asked = True
        try:
            process.stdin.write(bytes(4))
            line = await process.stdout.readline()
            told = orjson.loads(line)
        except (OSError, ValueError) as error:
            why = safe_line(f"{type(error).__name__}: {error}", 500)
            logger.error("the live process of pocketsphinx failed", extra={"why": why, "status": process.returncode})
            return None
        self._asked = False
        return " ".join(word for word, _, _ in told)

    def give_back(self) -> None:
        """The turn is over. A process that owes an answer is of no more use."""
        if self._given_back:
            return
        self._given_back = True
        if not self._asked and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(_FORGET)
        self._ears.give_back(self._process, good=not self._asked)


def _end(process: Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    if process.stdin is not None:
        process.stdin.close()
