"""The ears of a conversation: sound comes in, turns are told, and each turn becomes an item with its words."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from domain.errors import InternalError, InvalidRequest, RouteurError
from services.realtime.audio_buffer import AudioBuffer
from services.realtime.items import Item, item_id
from services.realtime.line import Line
from services.realtime.response import Event
from services.realtime.schemas import AudioAppend
from services.realtime.seams import Heard, Hearing, Turned
from services.realtime.session_config import SessionConfig

logger = logging.getLogger(__name__)


class Ears:
    """Hears for one conversation.

    Args:
        began: told the id that the item will have of what somebody begins to say; `into` is True when they speak into
            whatever is being said, and that is to stop.
        understood: told that a turn has words and is to be answered.
    """

    def __init__(
        self, line: Line, config: SessionConfig, began: Callable[[str, bool], None], understood: Callable[[], None]
    ) -> None:
        self._line = line
        self._config = config
        self._voice = line.terms.voice
        self._began = began
        self._understood = understood
        self._buffer: AudioBuffer | None = None
        self._speaking: str | None = None  # the id that the item of the present turn will have
        self._hearing: Hearing | None = None  # who listens to it
        self._at_ms = 0  # how much sound came before the present buffer
        self._form = self._heard_as()

    @property
    def interrupts(self) -> bool:
        """True when somebody who begins to speak stops what is being said."""
        wanted = self._config.audio.input
        detection = wanted.turn_detection if wanted is not None else None
        return detection is None or detection.interrupt_response is not False

    def adapt(self) -> None:
        """The session may be set up otherwise now."""
        before, self._form = self._form, self._heard_as()
        if self._buffer is not None and self._form != before:
            self._at_ms = self._buffer.at_ms
            self._buffer = None  # made anew, with the format and the turn detection that were chosen
            self.drop()
            self._speaking = None

    async def prepare(self) -> None:
        """Load what tells turns, before there is a buffer.

        Raises:
            RouteurError: it cannot be loaded.
        """
        prepare, audio = self._voice.prepare, self._config.audio.input
        wanted = audio.turn_detection if audio is not None else None
        if self._buffer is None and prepare is not None and wanted is not None:
            await prepare(wanted)

    def clear(self) -> None:
        """Nothing of what is in the buffer was said."""
        self._ears().clear()
        self.drop()
        self._speaking = None
        self._line.tell({"type": "input_audio_buffer.cleared"})

    async def append(self, sent: AudioAppend) -> None:
        """More sound."""
        buffer = self._ears()
        for number, piece in enumerate(buffer.read(sent.audio)):
            if number:
                await asyncio.sleep(0)  # others have their turn
            for turned in buffer.append(piece):
                self._turn(buffer, turned)
            if buffer.detects and self._speaking is None:
                buffer.forget()
                continue
            if self._hearing is None and not buffer.detects:
                self._follow()
            if self._speaking is None:  # nobody tells turns: it begins with its first sound
                self._speaking = item_id()
                self._began(self._speaking, False)
            if self._hearing is not None:
                self._hearing.feed(buffer.fresh())

    def commit(self, *, answer: bool = False, until_ms: int | None = None) -> None:
        """The turn is over: it becomes an item, and its words follow; `answer`: and then the response."""
        sound = self._ears().take(until_ms)
        new_id, self._speaking = self._speaking or item_id(), None
        hearing, self._hearing = self._hearing, None
        part: Event = {"type": "input_audio", "transcript": None}
        head = {"id": new_id, "object": "realtime.item", "type": "message", "status": "completed"}
        item = Item(new_id, {**head, "role": "user", "content": [part]})
        try:
            before = self._line.items.create(item, None)
        except RouteurError:
            if hearing is not None:
                hearing.drop()
            raise
        self._line.tell({"type": "input_audio_buffer.committed", "previous_item_id": before, "item_id": new_id})
        self._line.announce(item, before)
        self._line.later(self._listen(item, sound, hearing, answer=answer), f"listening {new_id}")

    def drop(self) -> None:
        """Nobody wants to know what is being said."""
        if self._hearing is not None:
            self._hearing.drop()
            self._hearing = None

    def _turn(self, buffer: AudioBuffer, turned: Turned) -> None:
        wanted = self._config.audio.input
        detection = wanted.turn_detection if wanted is not None else None
        if turned.what == "started":
            buffer.begin(turned.at_ms)
            self._speaking = item_id()
            told = {"item_id": self._speaking, "audio_start_ms": turned.at_ms}
            self._line.tell({"type": "input_audio_buffer.speech_started", **told})
            self._follow()
            self._began(self._speaking, self.interrupts)
            return
        if self._hearing is not None:
            self._hearing.feed(buffer.fresh(turned.at_ms))
        if turned.what == "paused":
            if self._hearing is not None:
                self._hearing.pause()
            return
        told = {"item_id": self._speaking or item_id(), "audio_end_ms": turned.at_ms}
        self._line.tell({"type": "input_audio_buffer.speech_stopped", **told})
        self.commit(answer=detection is None or detection.create_response is not False, until_ms=turned.at_ms)

    def _follow(self) -> None:
        """Somebody listens from now on, when there is somebody who can while it is said."""
        follower, audio = self._voice.follower, self._config.audio.input
        self.drop()
        if follower is not None:
            wanted = audio.transcription if audio is not None else None
            self._hearing = follower.follow(self._config.input_format, wanted, self._line.terms.caller)

    def _ears(self) -> AudioBuffer:
        """The buffer.

        Raises:
            InvalidRequest: nothing that hears is plugged in.
        """
        voice = self._voice
        if voice.listener is None:
            raise InvalidRequest(
                "This server does not listen: talk in text, with conversation.item.create.", code="audio_not_available"
            )
        if self._buffer is None:
            form, audio = self._config.input_format, self._config.audio
            wanted = audio.input.turn_detection if audio.input is not None else None
            if wanted is not None and voice.detectors is None:
                raise InvalidRequest(
                    "This server does not tell turns: set turn_detection to null, and commit.",
                    code="audio_not_available",
                    param="session.audio.input.turn_detection",
                )
            detector = voice.detectors(wanted, form) if wanted is not None and voice.detectors is not None else None
            before = (wanted.prefix_padding_ms or 0) / 1_000 if wanted is not None else 0.0
            self._buffer = AudioBuffer(
                form, detector, most_seconds=voice.turn_seconds, before_seconds=before, at_ms=self._at_ms
            )
        return self._buffer

    def _heard_as(self) -> tuple[Any, Any]:
        shown = self._config.shown()["audio"]["input"]
        return shown["format"], shown["turn_detection"]

    async def _listen(self, item: Item, sound: bytes, hearing: Hearing | None, *, answer: bool) -> None:
        listener = self._voice.listener
        if listener is None:  # pragma: no cover - nobody commits without one
            return
        audio, form = self._config.audio.input, self._config.input_format
        place = {"item_id": item.id, "content_index": 0}
        kind = "conversation.item.input_audio_transcription"
        told = False

        def tell(piece: str) -> None:
            nonlocal told
            told = True
            self._line.tell({"type": f"{kind}.delta", **place, "delta": piece})

        try:
            if hearing is not None:
                heard = await hearing.finish(sound, tell)
            else:
                wanted = audio.transcription if audio is not None else None
                heard = await listener.listen(sound, form, wanted, self._line.terms.caller)
        except RouteurError as error:
            self._line.tell({"type": f"{kind}.failed", **place, "error": self._line.terms.describe(error)})
            return
        except Exception as error:
            logger.exception("a turn could not be listened to", extra={"session_id": self._config.session_id})
            failure = InternalError()
            failure.__cause__ = error
            self._line.tell({"type": f"{kind}.failed", **place, "error": self._line.terms.describe(failure)})
            return
        item.shown["content"][0]["transcript"] = heard.text
        if heard.text and not told and hearing is not None:
            tell(heard.text)
        self._line.tell({"type": f"{kind}.completed", **place, "transcript": heard.text, "usage": _usage_of(heard)})
        if answer and heard.text.strip() and not self._config.transcribes:  # silence is never answered
            self._understood()


def _usage_of(heard: Heard) -> Event:
    """What listening took: tokens where they were counted, else the time."""
    usage = heard.usage
    if usage is None:
        return {"type": "duration", "seconds": heard.seconds}
    audio = min(usage.audio_tokens or 0, usage.input_tokens)
    details = {"audio_tokens": audio, "text_tokens": usage.input_tokens - audio}
    counted = {name: getattr(usage, name) for name in ("input_tokens", "output_tokens", "total_tokens")}
    return {"type": "tokens", **counted, "input_token_details": details}
