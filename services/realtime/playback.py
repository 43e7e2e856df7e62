"""What a call is being told aloud: 20 ms at a time, and known to have been played. It knows no transport."""

import asyncio
import base64
import binascii
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Event = dict[str, Any]

RATE = 24_000
FRAME_SAMPLES = RATE // 50
_FRAME = FRAME_SAMPLES * 2  # bytes of 20 ms
_BYTES_PER_MS = RATE * 2 // 1_000
MOST_SECONDS = 300.0  # that wait to be played, before their source is paused
_REMEMBERED = 16  # responses whose late sound is not played any more


@dataclass(slots=True)
class _Piece:
    response_id: str
    item_id: str
    content_index: int
    sound: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """Sound of an item that nobody will hear: from so many milliseconds on."""

    item_id: str
    content_index: int
    audio_end_ms: int


class Playback:
    """Filled by `add` and `finish`, emptied by `take` at the pace of speech.

    Args:
        tell: takes output_audio_buffer.started, .stopped and .cleared.

    Attributes:
        room: set while more can be taken.
    """

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self.room = asyncio.Event()
        self.room.set()
        self._tell = tell
        self._pieces: deque[_Piece] = deque()
        self._size = 0
        self._offset = 0  # of the first piece
        self._played: dict[tuple[str, int], int] = {}
        self._playing: str | None = None
        self._finished: set[str] = set()
        self._dropped: deque[str] = deque(maxlen=_REMEMBERED)

    @property
    def seconds(self) -> float:
        """How much waits to be played."""
        return self._size / (RATE * 2)

    @property
    def playing(self) -> bool:
        """True between started and stopped or cleared."""
        return self._playing is not None

    def add(self, event: Event) -> None:
        """A response.output_audio.delta; sound of a response that was cut is dropped."""
        response_id = event["response_id"]
        if response_id in self._dropped:
            return
        try:
            sound = base64.b64decode(event["delta"], validate=True)
        except (binascii.Error, ValueError):
            return
        if sound:
            self._pieces.append(_Piece(response_id, event["item_id"], event["content_index"], sound))
            self._size += len(sound)
            if self.seconds > MOST_SECONDS:
                self.room.clear()

    def finish(self, response_id: str) -> None:
        """No more sound of that response will come."""
        if response_id == self._playing or any(piece.response_id == response_id for piece in self._pieces):
            self._finished.add(response_id)

    def take(self) -> bytes:
        """The next 20 ms: PCM of 24 kHz, filled up with silence."""
        taken = bytearray()
        while self._pieces and len(taken) < _FRAME:
            piece = self._pieces[0]
            if piece.response_id != self._playing:
                if taken:
                    break
                self._stop()
                self._playing = piece.response_id
                self._tell({"type": "output_audio_buffer.started", "response_id": piece.response_id})
            part = piece.sound[self._offset : self._offset + _FRAME - len(taken)]
            taken += part
            self._offset += len(part)
            self._size -= len(part)
            key = (piece.item_id, piece.content_index)
            self._played[key] = self._played.get(key, 0) + len(part)
            if self._offset == len(piece.sound):
                self._pieces.popleft()
                self._offset = 0
        if not self.room.is_set() and self.seconds <= MOST_SECONDS:
            self.room.set()
        if not taken and self._playing in self._finished:
            self._stop()
        return bytes(taken.ljust(_FRAME, b"\0"))

    def clear(self) -> list[Cut]:
        """Nothing of what waits will be played; gives what of each item was not."""
        playing = self._playing
        cuts: dict[tuple[str, int], Cut] = {}
        for piece in self._pieces:
            key = (piece.item_id, piece.content_index)
            cuts[key] = Cut(*key, self._played.get(key, 0) // _BYTES_PER_MS)
            if piece.response_id not in self._dropped:
                self._dropped.append(piece.response_id)
        if playing is not None and playing not in self._finished and playing not in self._dropped:
            self._dropped.append(playing)
        self._pieces.clear()
        self._size = self._offset = 0
        self.room.set()
        self._forget()
        if playing is not None:
            self._tell({"type": "output_audio_buffer.cleared", "response_id": playing})
        return list(cuts.values())

    def _stop(self) -> None:
        if self._playing is not None:
            self._tell({"type": "output_audio_buffer.stopped", "response_id": self._playing})
            self._forget()

    def _forget(self) -> None:
        if self._playing is not None:
            self._finished.discard(self._playing)
        self._playing = None
        self._played.clear()
