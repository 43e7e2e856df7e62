"""Callers by WebRTC: aiortc on the other side of the door, and voices for the seams that are real sound."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction
from typing import Any

import httpx
import orjson
from aiortc import (
    MediaStreamError,
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)
from av import AudioFrame, AudioResampler

from domain.auth import Principal
from services.realtime.schemas import AudioFormat, OutputAudio, Transcription, TurnDetection
from services.realtime.seams import Heard, Turned, VoiceSeams
from tests.fakes.house import House
from tests.fakes.realtime import PATIENCE, SERVER_EVENT
from tests.fakes.speech import RATE as SPOKEN_RATE
from tests.fakes.speech import spoken_pcm

RATE = 24_000
_LOUD = 500  # of a sample; silence after Opus is far below
_PAUSE = 15  # frames of silence that end a turn


def at_24k(pcm: bytes) -> bytes:
    """Spoken sound in the rate of the Realtime protocol."""
    frame = AudioFrame("s16", "mono", samples=len(pcm) // 2)
    frame.sample_rate = SPOKEN_RATE
    frame.planes[0].update(pcm)
    resampler = AudioResampler("s16", "mono", RATE)
    parts = (*resampler.resample(frame), *resampler.resample(None))
    return b"".join(bytes(part.planes[0])[: part.samples * 2] for part in parts)


def loudness(pcm: bytes) -> int:
    """The largest sample."""
    samples = memoryview(pcm).cast("h")
    return max(map(abs, samples), default=0)


class Ears:
    """A listener that keeps what it heard, and says what it was told to say."""

    def __init__(self, words: str) -> None:
        self.words = words
        self.heard: list[bytes] = []

    async def listen(self, sound: bytes, form: AudioFormat, wanted: Transcription | None, caller: Principal) -> Heard:
        self.heard.append(sound)
        return Heard(self.words, len(sound) / (RATE * 2))


class Mouth:
    """A speaker that says everything with flite."""

    async def _pieces(self, sentence: str) -> AsyncIterator[bytes]:
        sound = at_24k(spoken_pcm(sentence))
        for start in range(0, len(sound), 9_600):
            yield sound[start : start + 9_600]

    def speak(self, sentence: str, wanted: OutputAudio) -> AsyncIterator[bytes]:
        return self._pieces(sentence)


class Level:
    """A turn detector that goes by loudness."""

    def __init__(self) -> None:
        self._ms = self._quiet = 0
        self._speaking = False

    def feed(self, sound: bytes) -> list[Turned]:
        self._ms += len(sound) // (RATE * 2 // 1_000)
        self._quiet = 0 if loudness(sound) > _LOUD else self._quiet + 1
        if not self._speaking and not self._quiet:
            self._speaking = True
            return [Turned("started", self._ms)]
        if self._speaking and self._quiet >= _PAUSE:
            self._speaking = False
            return [Turned("stopped", self._ms)]
        return []

    def reset(self) -> None:
        self._speaking = False


def detectors(wanted: TurnDetection, form: AudioFormat) -> Level:
    """One for each session."""
    return Level()


def voices(words: str) -> VoiceSeams:
    """All three; what is said is understood as `words`."""
    return VoiceSeams(Ears(words), Mouth(), detectors)


class Microphone(MediaStreamTrack):
    """Says what it is given, and is silent before and after."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self._waiting = b""
        self._frames = 0
        self._begun = time.monotonic()

    def say(self, pcm: bytes) -> None:
        """24 kHz, after what is being said."""
        self._waiting += pcm

    async def recv(self) -> AudioFrame:
        if self.readyState != "live":
            raise MediaStreamError
        due = self._begun + self._frames * 0.02
        await asyncio.sleep(max(0, due - time.monotonic()))
        sound, self._waiting = self._waiting[:960].ljust(960, b"\0"), self._waiting[960:]
        frame = AudioFrame("s16", "mono", samples=480)
        frame.planes[0].update(sound)
        frame.sample_rate, frame.pts, frame.time_base = RATE, self._frames * 480, Fraction(1, RATE)
        self._frames += 1
        return frame


class _Nowhere:
    """A UDP transport whose cable is cut."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def sendto(self, data: bytes, addr: Any) -> None:
        """Nothing leaves."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Caller:
    """One peer: events of the data channel, and what its loudspeaker plays."""

    def __init__(self) -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.channel: RTCDataChannel = self.pc.createDataChannel("oai-events")
        self.microphone = Microphone()
        self.answer: dict[str, Any] = {}
        self.played = bytearray()
        self.loud = asyncio.Event()
        self.quiet = asyncio.Event()
        self.left = asyncio.Event()
        self._events: asyncio.Queue[str] = asyncio.Queue()
        self._hearing: asyncio.Task[None] | None = None
        self._silent = 0
        self.channel.on("message", self._events.put_nowait)
        self.channel.on("close", self.left.set)
        self.pc.on("track", self._on_track)

    async def offer(self, *, audio: bool = True) -> str:
        """What it offers."""
        if audio:
            self.pc.addTrack(self.microphone)
        await self.pc.setLocalDescription(await self.pc.createOffer())
        sdp: str = self.pc.localDescription.sdp
        return sdp

    async def accept(self, sdp: str) -> None:
        """The answer."""
        await self.pc.setRemoteDescription(RTCSessionDescription(sdp, "answer"))

    def send(self, kind: str, **more: Any) -> None:
        """One event."""
        self.channel.send(orjson.dumps({"type": kind, **more}).decode())

    async def receive(self) -> dict[str, Any]:
        """The next event; it is of the SDK's shape."""
        async with asyncio.timeout(PATIENCE):
            event: dict[str, Any] = orjson.loads(await self._events.get())
        SERVER_EVENT.validate_python(event)
        return event

    async def until(self, kind: str) -> list[dict[str, Any]]:
        """Every event up to the first of that type."""
        events = [await self.receive()]
        while events[-1]["type"] != kind:
            events.append(await self.receive())
        return events

    async def close(self) -> None:
        """Leave politely."""
        if self._hearing is not None:
            self._hearing.cancel()
        await self.pc.close()

    def vanish(self) -> None:
        """Leave without a word: nothing is sent any more, and nothing is read."""
        transports = [one.sender.transport.transport for one in self.pc.getTransceivers()]
        if self.pc.sctp is not None:
            transports.append(self.pc.sctp.transport.transport)
        for protocol in {each for one in transports for each in one._connection._protocols}:
            protocol.transport = _Nowhere(protocol.transport)
            protocol.datagram_received = lambda *_: None

    def _on_track(self, track: MediaStreamTrack) -> None:
        self._hearing = asyncio.create_task(self._hear(track))

    async def _hear(self, track: MediaStreamTrack) -> None:
        resampler = AudioResampler("s16", "mono", RATE)
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            assert isinstance(frame, AudioFrame)
            for part in resampler.resample(frame):
                sound = bytes(part.planes[0])[: part.samples * 2]
                self.played += sound
                if loudness(sound) > _LOUD:
                    self._silent = 0
                    self.loud.set()
                    self.quiet.clear()
                else:
                    self._silent += 1
                    if self._silent >= 3:
                        self.quiet.set()


@asynccontextmanager
async def calling(
    house: House, model: str = "", *, client: httpx.AsyncClient | None = None, audio: bool = True, **more: Any
) -> AsyncIterator[Caller]:
    """A native call of the admin's that was answered, connected and greeted."""
    caller = Caller()
    try:
        body = {"sdp": await caller.offer(audio=audio), "type": "offer", **({"model": model} if model else {}), **more}
        answer = await (client or house.client).post("/realtime/offer", json=body)
        assert answer.status_code == 200, answer.text
        caller.answer = answer.json()
        await caller.accept(caller.answer["sdp"])
        greeting = await caller.receive()
        assert greeting["type"] == "session.created"
        assert greeting["session"]["id"] == caller.answer["session_id"]
        yield caller
    finally:
        await caller.close()
