"""An answer that is spoken: its sentences are heard one after the other while the rest is still being written."""

import asyncio
from collections import deque
from contextlib import aclosing

from domain.auth import Principal
from services.realtime.audio_buffer import BYTES_PER_SECOND
from services.realtime.outbox import Outbox
from services.realtime.response import AskPiece, Piece, ResponseEvents, TextPiece
from services.realtime.schemas import AudioFormat, OutputAudio
from services.realtime.seams import Speaker
from services.realtime.voice.sentences import Sentences

_MOST_CHARS = 20_000  # that may be written ahead of what is spoken
_PCM = AudioFormat(type="audio/pcm", rate=24000)


class SpokenAnswer:
    """Give it the pieces with `add`, waiting for `room` between them, and then `finish`; `hush` silences it at once."""

    def __init__(
        self, speaker: Speaker, wanted: OutputAudio, caller: Principal, events: ResponseEvents, outbox: Outbox
    ) -> None:
        self.written: dict[str, str] = {}
        self.said: dict[str, str] = {}
        self.hushed = False
        self._speaker = speaker
        self._wanted = wanted
        self._rate = BYTES_PER_SECOND[(wanted.format or _PCM).type]
        self._caller = caller
        self._events = events
        self._outbox = outbox
        self._sentences: dict[str, Sentences] = {}
        self._work: deque[Piece] = deque()
        self._size = 0
        self._changed = asyncio.Event()
        self._over = False
        self._task = asyncio.create_task(self._speak_all(), name=f"speaking {events.id}")

    def add(self, piece: Piece) -> None:
        """One more piece, as it is written."""
        if self.hushed:
            if isinstance(piece, AskPiece):  # not a sound, and it waits for an answer
                self._events.add(piece)
            return
        if not isinstance(piece, TextPiece):
            self._flush()
            self._put(piece)
            return
        sentences = self._sentences.get(piece.message_id) or Sentences(hurry=not self.written)
        self._sentences[piece.message_id] = sentences
        self.written[piece.message_id] = self.written.get(piece.message_id, "") + piece.text
        for sentence in sentences.feed(piece.text):
            self._put(TextPiece(piece.message_id, sentence))
        if piece.done:
            del self._sentences[piece.message_id]
            self._put(TextPiece(piece.message_id, sentences.end(), done=True))

    async def room(self) -> None:
        """Wait while too much is written that was not spoken yet.

        Raises:
            RouteurError: it cannot be spoken.
        """
        while self._size > _MOST_CHARS and not self._task.done():
            self._changed.clear()
            waiting = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
        if self._task.done() and not self._task.cancelled():
            self._task.result()

    async def finish(self) -> None:
        """All is written: wait until it is spoken, or hushed.

        Raises:
            RouteurError: it cannot be spoken.
        """
        self._flush()
        self._over = True
        self._changed.set()
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.result()

    def hush(self) -> None:
        """Not a sound more."""
        self.hushed = True
        self._task.cancel()
        for piece in self._work:
            if isinstance(piece, AskPiece):
                self._events.add(piece)
        self._work.clear()

    async def aclose(self) -> None:
        """Hush, and wait until nothing goes on any more."""
        self.hush()
        await asyncio.wait({self._task})
        if not self._task.cancelled():
            self._task.exception()

    @property
    def unsaid(self) -> dict[str, str]:
        """Of messages that were not spoken to their end: what was, by their ids."""
        return {one: self.said.get(one, "") for one, text in self.written.items() if self.said.get(one, "") != text}

    def _flush(self) -> None:
        for message_id, sentences in self._sentences.items():
            if rest := sentences.end():
                self._put(TextPiece(message_id, rest))

    def _put(self, piece: Piece) -> None:
        self._work.append(piece)
        self._size += len(piece.text) if isinstance(piece, TextPiece) else 0
        self._changed.set()

    async def _speak_all(self) -> None:
        while True:
            while self._work:
                piece = self._work.popleft()
                if not isinstance(piece, TextPiece):
                    self._events.add(piece)
                    continue
                self._size -= len(piece.text)
                self._changed.set()
                if piece.text:
                    await self._speak(piece.message_id, piece.text)
                if piece.done:
                    self._events.add(TextPiece(piece.message_id, "", done=True))
            if self._over:
                return
            self._changed.clear()
            await self._changed.wait()

    async def _speak(self, message_id: str, sentence: str) -> None:
        told = False
        async with aclosing(self._speaker.speak(sentence, self._wanted, self._caller)) as pieces:
            async for sound in pieces:
                if not told:
                    self._say(message_id, sentence)
                    told = True
                self._events.sound(message_id, sound, self._rate)
                await self._outbox.room()
        if not told:  # it has no sound, and belongs to the words all the same
            self._say(message_id, sentence)

    def _say(self, message_id: str, sentence: str) -> None:
        self._events.say(message_id, sentence)
        self.said[message_id] = self.said.get(message_id, "") + sentence
