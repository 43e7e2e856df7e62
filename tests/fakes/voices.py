"""People who talk to a realtime session: flite speaks for them, a little at a time, as a microphone does."""

import asyncio
import base64
import time
from dataclasses import dataclass, field
from typing import Any

from core.audio import telephony
from core.audio.resampling import AvResampler
from tests.fakes.realtime import Socket
from tests.fakes.speech import RATE, spoken_pcm

PIECE_MS = 40
PCM = {"type": "audio/pcm", "rate": 24000}
PER_SECOND = {"audio/pcm": 48_000, "audio/pcmu": 8_000, "audio/pcma": 8_000}


def coded(pcm: bytes, form: str = "audio/pcm") -> bytes:
    """PCM of 16 kHz in the coding that a session takes."""
    if form == "audio/pcm":
        return _resampled(pcm, 24_000)
    return telephony.encode(_resampled(pcm, telephony.RATE), "mu" if form == "audio/pcmu" else "a")


def plain(sound: bytes, form: str) -> bytes:
    """What a session has said, as PCM of 24 kHz or of 8 kHz."""
    return sound if form == "audio/pcm" else telephony.decode(sound, "mu" if form == "audio/pcmu" else "a")


def quiet(seconds: float) -> bytes:
    """PCM of 16 kHz in which nothing is said."""
    return b"\0\0" * int(seconds * RATE)


def said(text: str, voice: str = "rms", before: float = 0.3, after: float = 0.0) -> bytes:
    """PCM of 16 kHz in which somebody says that."""
    return quiet(before) + spoken_pcm(text, voice) + quiet(after)


def _resampled(pcm: bytes, rate: int) -> bytes:
    made = AvResampler(RATE, rate)
    return made.feed(pcm) + made.end()


@dataclass
class Microphone:
    """It sends what it hears at the pace of the sound, `pace` times as fast, and silence until it is switched off."""

    socket: Socket
    form: str = "audio/pcm"
    pace: float = 1.0
    ended_at: float = 0.0  # when the last of what was said was sent
    _task: "asyncio.Task[None] | None" = field(default=None)

    async def say(self, pcm: bytes) -> None:
        """Send that; PCM of 16 kHz."""
        sound = coded(pcm, self.form)
        size = PER_SECOND[self.form] * PIECE_MS // 1_000
        begun = time.monotonic()
        for number, start in enumerate(range(0, len(sound), size)):
            await asyncio.sleep(max(0.0, begun + number * PIECE_MS / 1_000 / self.pace - time.monotonic()))
            piece = base64.b64encode(sound[start : start + size]).decode()
            await self.socket.send("input_audio_buffer.append", audio=piece)
        self.ended_at = time.monotonic()

    async def __aenter__(self) -> "Microphone":
        return self

    async def listen(self) -> None:
        """Hear nothing, until it is switched off."""
        while True:
            await self.silence(1.0)

    async def silence(self, seconds: float) -> None:
        """Hear nothing for a while."""
        at = self.ended_at
        await self.say(quiet(seconds))
        self.ended_at = at

    def stay_on(self) -> None:
        """Go on hearing nothing, in a task of its own."""
        self._task = asyncio.create_task(self.listen())

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})


def sound_of(events: list[dict[str, Any]]) -> bytes:
    """The sound of all deltas."""
    return b"".join(
        base64.b64decode(event["delta"]) for event in events if event["type"] == "response.output_audio.delta"
    )


def transcript_of(events: list[dict[str, Any]]) -> str:
    """The words of all deltas of what is spoken."""
    return "".join(event["delta"] for event in events if event["type"] == "response.output_audio_transcript.delta")


def heard_in(events: list[dict[str, Any]]) -> list[str]:
    """What was understood."""
    kind = "conversation.item.input_audio_transcription.completed"
    return [event["transcript"] for event in events if event["type"] == kind]
