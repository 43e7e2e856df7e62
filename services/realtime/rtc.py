"""One WebRTC peer: microphone in, loudspeaker out, events on a data channel. Needs the extra `realtime` (aiortc), and
is imported only when somebody calls (`services/realtime_calls.py`)."""

import asyncio
import base64
import logging
import time
from contextlib import suppress
from fractions import Fraction
from typing import Any

import orjson
from aiortc import (
    InvalidStateError,
    MediaStreamError,
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.sdp import SessionDescription
from av import AudioFrame, AudioResampler

from config.realtime_settings import RealtimeSettings
from core.logging import safe_line
from domain.errors import InvalidRequest, Unavailable
from services.realtime.conversation import Conversation, Ending
from services.realtime.pace import Pace
from services.realtime.playback import FRAME_SAMPLES, RATE, Playback

logger = logging.getLogger(__name__)

_FRAME_SECONDS = 0.02
_LATE = 1.0  # seconds behind its clock after which a track starts anew instead of hurrying
_GATHER_SECONDS = 10.0  # for STUN and TURN servers to answer
_CLOSE_SECONDS = 3.0
_LAST_WORDS = 1.0  # seconds for the last events to leave
_MOST_CANDIDATES = 64
_MOST_INBOX = 1_000  # events of a client that wait to be read
_MOST_INBOX_CHARS = 8_000_000
_MOST_BUFFERED = 256_000  # bytes on their way to the peer
_LOOK = 1.0  # seconds between looks whether a call that waits for its loudspeaker is over
_GONE = frozenset({"failed", "closed"})
_FLOOD = Ending(1008, "Events come faster than they are read.")
_SLOW = Ending(1013, "The reader is too slow.")
_LEFT = Ending(1000, "The peer has left.")


def checked_offer(sdp: str) -> str:
    """The offer without candidates that only mDNS could find; such peers are found by what they send.

    Raises:
        InvalidRequest: it is no offer, has no data channel, or wants more than one audio.
    """
    lines = [line for line in sdp.splitlines() if not (line.startswith("a=candidate:") and ".local " in line)]
    if sum(line.startswith("a=candidate:") for line in lines) > _MOST_CANDIDATES:
        raise _unusable(f"it has more than {_MOST_CANDIDATES} candidates")
    offer = "\r\n".join(lines) + "\r\n"
    try:
        kinds = [media.kind for media in SessionDescription.parse(offer).media]
    except Exception as error:  # aiortc's parser raises whatever comes of a line that it did not expect
        raise _unusable("it cannot be read") from error
    if kinds.count("application") != 1:
        raise _unusable("it has no data channel: create one ('oai-events') before the offer")
    if kinds.count("audio") > 1 or len(kinds) > 2:
        raise _unusable("one audio track and one data channel are what a call has")
    return offer


def _unusable(why: str) -> InvalidRequest:
    return InvalidRequest(f"The offer cannot be used: {why}.", code="invalid_sdp", param="sdp")


class Loudspeaker(MediaStreamTrack):
    """The outgoing track: what is to be played, or silence, at the pace of a clock."""

    kind = "audio"

    def __init__(self, playback: Playback) -> None:
        super().__init__()
        self._playback = playback
        self._begun = 0.0
        self._frames = 0
        self._pts = 0

    async def recv(self) -> AudioFrame:
        """The next 20 ms, when they are due."""
        if self.readyState != "live":
            raise MediaStreamError
        now = time.monotonic()
        due = self._begun + self._frames * _FRAME_SECONDS
        if now - due > _LATE:
            self._begun, self._frames, due = now, 0, now
        self._frames += 1
        if due > now:
            await asyncio.sleep(due - now)
        frame = AudioFrame(format="s16", layout="mono", samples=FRAME_SAMPLES)
        frame.planes[0].update(self._playback.take())
        frame.sample_rate = RATE
        frame.pts, frame.time_base = self._pts, Fraction(1, RATE)
        self._pts += FRAME_SAMPLES
        return frame


class Peer:
    """One call: `answer`, then `serve` to its end, and `close` whatever happens."""

    def __init__(self, conversation: Conversation, settings: RealtimeSettings) -> None:
        self._conversation = conversation
        self._settings = settings
        self._playback = Playback(conversation.outbox.put)
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=_ice_servers(settings)))
        self._channel: RTCDataChannel | None = None
        self._opened = asyncio.Event()
        self._drained = asyncio.Event()  # nothing is on its way to the peer
        self._drained.set()
        self._is_heard = False  # the peer has a loudspeaker
        self._inbox: asyncio.Queue[str | bytes] = asyncio.Queue(_MOST_INBOX)
        self._inbox_chars = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._pc.on("datachannel", self._on_channel)
        self._pc.on("track", self._on_track)
        self._pc.on("connectionstatechange", self._on_state)

    async def answer(self, offer: str) -> str:
        """The answer, with all candidates in it.

        Raises:
            InvalidRequest: the offer cannot be answered.
            Unavailable: our own side cannot be reached.
        """
        pc = self._pc
        try:
            await pc.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            if pc.getTransceivers():
                pc.addTrack(Loudspeaker(self._playback))
                self._is_heard = True
            answer = await pc.createAnswer()
        except Exception as error:  # as in `checked_offer`
            logger.info("offer refused", extra={"why": safe_line(f"{type(error).__name__}: {error}", 200)})
            raise _unusable("it cannot be answered") from error
        try:
            async with asyncio.timeout(_GATHER_SECONDS):
                await pc.setLocalDescription(answer)
        except Exception as error:
            logger.warning("no candidates", extra={"why": safe_line(f"{type(error).__name__}: {error}", 200)})
            raise Unavailable("The server cannot be reached by WebRTC now; see REALTIME_ICE_SERVERS.") from error
        return str(pc.localDescription.sdp)

    async def serve(self) -> None:
        """Until one of both ends it, or the peer never comes."""
        conversation = self._conversation
        conversation.begin()
        self._tasks.append(asyncio.create_task(self._read(), name="call reading"))
        try:
            async with asyncio.timeout(self._settings.connect_seconds):
                await self._opened.wait()
        except TimeoutError:
            conversation.end(Ending(1001, "The peer never came."))
            return
        try:
            await self._write()
        except TimeoutError:
            conversation.end(_SLOW)
        except (InvalidStateError, ConnectionError):
            conversation.end(_LEFT)

    def end(self, ending: Ending) -> None:
        """It is over."""
        self._conversation.end(ending)
        self._opened.set()

    async def close(self) -> None:
        """Leave nothing open."""
        self._conversation.end(_LEFT)
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                await self._drained.wait()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._pc.close()
        except Exception:
            logger.warning("a call could not be closed", exc_info=True)

    # -- what aiortc tells --

    def _on_channel(self, channel: RTCDataChannel) -> None:
        if self._channel is not None:
            return
        self._channel = channel
        channel.on("message", self._on_message)
        channel.on("bufferedamountlow", self._drained.set)
        channel.on("close", self._on_close)
        self._opened.set()

    def _on_close(self) -> None:
        self._drained.set()
        self.end(_LEFT)

    def _on_message(self, message: str | bytes) -> None:
        self._inbox_chars += len(message)
        if self._inbox_chars > _MOST_INBOX_CHARS or self._inbox.full():
            self.end(_FLOOD)
        else:
            self._inbox.put_nowait(message)

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio":
            self._tasks.append(asyncio.create_task(self._listen(track), name="call microphone"))

    def _on_state(self) -> None:
        if self._pc.connectionState in _GONE:
            self._on_close()

    # -- in --

    async def _read(self) -> None:
        pace = Pace(self._settings.events_per_second)
        while True:
            message = await self._inbox.get()
            self._inbox_chars -= len(message)
            await pace.keep()
            if isinstance(message, str) and self._is_ours(message):
                continue
            await self._conversation.hear(message)

    def _is_ours(self, message: str) -> bool:
        """True for events that are about the call and not the conversation: they are done here."""
        try:
            event = orjson.loads(message)
        except orjson.JSONDecodeError:
            return False
        if not isinstance(event, dict):
            return False
        if event.get("type") == "output_audio_buffer.clear":
            self._conversation.heard_at = time.monotonic()
            self._hush()
            return True
        place = _other_format(event)
        if place is not None:
            error = InvalidRequest(
                "The sound of a call is that of its tracks; leave the format out.", code="invalid_value", param=place
            )
            self._conversation.refuse(error, _text_or_none(event.get("event_id")))
        return place is not None

    async def _listen(self, track: MediaStreamTrack) -> None:
        """The microphone, for as long as it is there: 24 kHz, one voice."""
        resampler = AudioResampler(format="s16", layout="mono", rate=RATE)
        with suppress(MediaStreamError):
            while True:
                heard = await track.recv()
                for frame in resampler.resample(heard) if isinstance(heard, AudioFrame) else ():
                    sound = bytes(frame.planes[0])[: frame.samples * 2]
                    if self._conversation.listens and sound:
                        await self._conversation.hear(_append(sound), steady=True)

    # -- out --

    async def _write(self) -> None:
        """Raises:
        TimeoutError: the peer takes nothing.
        """
        conversation = self._conversation
        while texts := await conversation.outbox.take():
            for text in texts:
                event = orjson.loads(text)
                if self._to_be_told(event):
                    await self._send(text)
                if event["type"] == "input_audio_buffer.speech_started" and conversation.interrupts:
                    self._hush()
            while not self._playback.room.is_set() and conversation.ending is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        await self._playback.room.wait()

    def _to_be_told(self, event: dict[str, Any]) -> bool:
        """Sound goes out on the track, everything else on the channel."""
        match event["type"]:
            case "response.output_audio.delta":
                if self._is_heard:
                    self._playback.add(event)
                return False
            case "response.done":
                self._playback.finish(event["response"]["id"])
            case "input_audio_buffer.speech_started" | "input_audio_buffer.committed" | "output_audio_buffer.stopped":
                self._conversation.heard_at = time.monotonic()
        return True

    async def _send(self, text: str) -> None:
        channel = self._channel
        if channel is None:  # pragma: no cover - nothing is written before it is open
            raise ConnectionError
        if int(channel.bufferedAmount) > _MOST_BUFFERED:
            async with asyncio.timeout(self._settings.slow_seconds):
                await self._drained.wait()
        self._drained.clear()
        channel.send(text)

    def _hush(self) -> None:
        """Be silent at once. What was not heard was not said: the conversation is told so."""
        for cut in self._playback.clear():
            event = {
                "type": "conversation.item.truncate",
                "item_id": cut.item_id,
                "content_index": cut.content_index,
                "audio_end_ms": cut.audio_end_ms,
            }
            text = orjson.dumps(event).decode()
            with suppress(asyncio.QueueFull):
                self._inbox.put_nowait(text)
                self._inbox_chars += len(text)


def _append(sound: bytes) -> str:
    encoded = base64.b64encode(sound).decode()
    return f'{{"type":"input_audio_buffer.append","audio":"{encoded}"}}'


def _ice_servers(settings: RealtimeSettings) -> list[RTCIceServer]:
    return [
        RTCIceServer(
            urls=list(server.urls),
            username=server.username,
            credential=None if server.credential is None else server.credential.get_secret_value(),
        )
        for server in settings.ice_servers
    ]


def _other_format(event: dict[str, Any]) -> str | None:
    """Where the event asks for sound that is coded otherwise than the tracks'; None: it does not."""
    for name in ("session", "response"):
        inside = event.get(name)
        audio = inside.get("audio") if isinstance(inside, dict) else None
        for side in ("input", "output"):
            given = audio.get(side) if isinstance(audio, dict) else None
            form = given.get("format") if isinstance(given, dict) else None
            if isinstance(form, dict) and form.get("type") in ("audio/pcmu", "audio/pcma"):
                return f"{name}.audio.{side}.format"
    return None


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and len(value) <= 512 else None
