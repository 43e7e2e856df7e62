"""One realtime conversation: client events in, server events out through a bounded outbox. It knows no transport."""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Protocol

import orjson

from domain.errors import Conflict, InternalError, InvalidRequest, RouteurError
from services.realtime.ears import Ears
from services.realtime.items import Item, item_of
from services.realtime.line import SOUND, Line, Terms
from services.realtime.outbox import Outbox
from services.realtime.response import Event
from services.realtime.responses import Responses
from services.realtime.schemas import (
    ApprovalReply,
    AudioAppend,
    Bare,
    ItemCreate,
    ItemNamed,
    ItemTruncate,
    ResponseCancel,
    ResponseCreate,
    ResponseParameters,
    SessionUpdate,
    TranscriptionUpdate,
    checked,
    read_item,
)
from services.realtime.session_config import SessionConfig
from services.realtime.waiting import WaitingRun

logger = logging.getLogger(__name__)

_APPROVAL = "mcp_approval_response"
_CLOCKS_MS = 1_000  # by which the clock of who plays sound may be ahead


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a conversation is over: a WebSocket close code and a word."""

    code: int
    reason: str = ""


class Conversation(Protocol):
    """What a transport and the house need of one, whoever answers in it; see `RealtimeConversation`."""

    outbox: Outbox
    ending: Ending | None
    heard_at: float

    @property
    def session_id(self) -> str: ...
    @property
    def answering(self) -> bool: ...
    @property
    def listens(self) -> bool: ...
    @property
    def interrupts(self) -> bool: ...
    def begin(self) -> None: ...
    async def hear(self, frame: str | bytes, *, steady: bool = False) -> None: ...
    def refuse(self, error: RouteurError, event_id: str | None = None) -> None: ...
    def end(self, ending: Ending, error: RouteurError | None = None) -> None: ...
    def end_after_answer(self, ending: Ending) -> None: ...
    async def aclose(self) -> None: ...


class RealtimeConversation:
    """Talk to it with `hear`, read `outbox`, end it with `end` and `aclose`.

    Args:
        calls: ids of the function calls of a stored session that goes on; None: it is a new one.
        waiting: a run of that session that waits for somebody's word.

    Attributes:
        heard_at: when its client last said something, by the monotonic clock.
        ending: set once it is to end; the transport tells its client.
    """

    def __init__(
        self,
        config: SessionConfig,
        terms: Terms,
        outbox: Outbox,
        calls: set[str] | None = None,
        waiting: WaitingRun | None = None,
    ) -> None:
        self.config = config
        self.outbox = outbox
        self.ending: Ending | None = None
        self.heard_at = time.monotonic()
        self._line = Line(terms, outbox)
        self._line.items.calls |= calls or set()
        self._responses = Responses(self._line, config, resumed=calls is not None, waiting=waiting)
        self._ears = Ears(self._line, config, self._responses.began, self._responses.understood)

    @property
    def session_id(self) -> str:
        """Of the stored session."""
        return self.config.session_id

    @property
    def answering(self) -> bool:
        """True while a response is being given."""
        return self._responses.task is not None

    @property
    def listens(self) -> bool:
        """True when sound can be understood."""
        return self._line.terms.voice.listener is not None

    @property
    def interrupts(self) -> bool:
        """True when somebody who begins to speak stops what is being said."""
        return self._ears.interrupts

    def begin(self) -> None:
        """Greet the client."""
        self._line.tell({"type": "session.created", "session": self.config.shown()})
        self._responses.begin()

    def refuse(self, error: RouteurError, event_id: str | None = None) -> None:
        """Tell the client what its transport could not do."""
        self._line.refuse(error, event_id)

    async def hear(self, frame: str | bytes, *, steady: bool = False) -> None:
        """One frame of the client. Whatever is wrong with it becomes an error event; waits while the outbox is full.

        Args:
            steady: it comes whether or not anybody says something (a microphone), and keeps no session open.
        """
        if not steady:
            self.heard_at = time.monotonic()
        event_id: str | None = None
        try:
            event = _parsed(frame)
            given = event.get("event_id")
            event_id = given if isinstance(given, str) and len(given) <= 512 else None
            if str(event.get("type")).startswith("input_audio_buffer."):
                await self._ears.prepare()
            if event.get("type") == "input_audio_buffer.append":
                await self._ears.append(checked(AudioAppend, event))
            else:
                self._handle(event, event_id)
        except RouteurError as error:
            self._line.refuse(error, event_id)
        except Exception as error:
            logger.exception("a client event could not be handled", extra={"session_id": self.session_id})
            failure = InternalError()
            failure.__cause__ = error
            self._line.refuse(failure, event_id)
        await self.outbox.room()

    def end(self, ending: Ending, error: RouteurError | None = None) -> None:
        """It is over (once): no more is told but what waits, and `error` when there is one. `aclose` does the rest."""
        if self.ending is None:
            self.ending = ending
            if error is not None:
                self._line.refuse(error, None)
            self.outbox.close()

    def end_after_answer(self, ending: Ending) -> None:
        """End it when the answer in progress is told."""
        task = self._responses.task
        if task is None:
            self.end(ending)
        else:
            task.add_done_callback(lambda _: self.end(ending))

    async def aclose(self) -> None:
        """Stop whatever goes on; what an answer has said is kept."""
        self.outbox.close()
        self._ears.drop()
        await self._line.aclose()
        await self._responses.aclose()

    # -- what clients say --

    def _handle(self, event: Event, event_id: str | None) -> None:
        kind = event.get("type")
        if not isinstance(kind, str):
            raise InvalidRequest("Missing required parameter: 'type'.", code="missing_required_parameter", param="type")
        match kind:
            case "session.update":
                self._update(event)
            case "conversation.item.create":
                self._create(checked(ItemCreate, event), event_id)
            case "conversation.item.retrieve":
                item = self._line.items.get(checked(ItemNamed, event).item_id)
                self._line.tell({"type": "conversation.item.retrieved", "item": item.shown})
            case "conversation.item.delete":
                self._delete(checked(ItemNamed, event))
            case "conversation.item.truncate":
                self._truncate(checked(ItemTruncate, event))
            case "response.create":
                self._responses.respond(checked(ResponseCreate, event).response or ResponseParameters(), event_id)
            case "response.cancel":
                self._responses.cancel(checked(ResponseCancel, event))
            case "input_audio_buffer.commit":
                checked(Bare, event)
                self._ears.commit()
            case "input_audio_buffer.clear":
                checked(Bare, event)
                self._ears.clear()
            case _:
                raise InvalidRequest("Unknown event type; see docs/realtime.md.", code="invalid_value", param="type")

    def _update(self, event: Event) -> None:
        if self.config.transcribes:
            self.config.update_transcription(checked(TranscriptionUpdate, event).session)
        else:
            session = event.get("session")
            if isinstance(session, dict) and session.get("type") == "transcription":
                raise InvalidRequest(
                    "A session that talks cannot become one that only transcribes: open one with intent=transcription.",
                    code="invalid_value",
                    param="session.type",
                )
            self.config.update(checked(SessionUpdate, event).session)
        self._ears.adapt()
        self._line.tell({"type": "session.updated", "session": self.config.shown()})

    def _create(self, sent: ItemCreate, event_id: str | None) -> None:
        if sent.item.get("type") == _APPROVAL:
            reply = checked(ApprovalReply, sent.item, "item")
            self._responses.click(reply, sent.previous_item_id, event_id)
            return
        item = item_of(read_item(sent.item, "item"))
        self._line.announce(item, self._line.items.create(item, sent.previous_item_id))
        self._responses.began(item.id)

    def _delete(self, sent: ItemNamed) -> None:
        item = self._line.items.get(sent.item_id)
        if item.heard:
            self._check_deletable(item)
            self._responses.deleted.add(item.record_id)
        self._line.items.remove(item)
        self._line.tell({"type": "conversation.item.deleted", "item_id": item.id})

    def _check_deletable(self, item: Item) -> None:
        """What was answered is in the record: a model can be kept from hearing it again, an agent remembers."""
        if item.shown.get("status") == "in_progress":
            raise Conflict("The item is being said; cancel its response first.", code="item_in_progress")
        if self.config.is_agent:
            raise Conflict("An agent has heard that item and remembers it.", code="item_remembered", param="item_id")
        if item.shown["type"] != "message":
            raise Conflict(
                "A call that was answered cannot be taken apart from its answer.",
                code="item_remembered",
                param="item_id",
            )

    def _truncate(self, sent: ItemTruncate) -> None:
        item = self._line.items.get(sent.item_id)
        parts = item.shown.get("content") or []
        speaking = self._responses.task if self._responses.telling(item) else None
        if speaking is None and not (sent.content_index < len(parts) and parts[sent.content_index]["type"] == SOUND):
            raise InvalidRequest(
                "Only audio that the assistant has said can be truncated.", code="invalid_value", param="content_index"
            )
        if sent.content_index or not item.marks:
            raise InvalidRequest("There is no audio at that place.", code="invalid_value", param="content_index")
        if sent.audio_end_ms > item.spoken_ms + _CLOCKS_MS:
            raise InvalidRequest(
                f"Of that item there are {item.spoken_ms} ms of audio.", code="invalid_value", param="audio_end_ms"
            )
        self._line.later(self._cut(item, sent.audio_end_ms, speaking), f"truncating {item.id}")

    async def _cut(self, item: Item, at_ms: int, speaking: "asyncio.Task[None] | None") -> None:
        """Leave of something said what was heard; what is still being said is waited for."""
        if speaking is not None:
            await asyncio.wait({speaking})
        if item.shown["content"][0]["type"] != SOUND:  # pragma: no cover - it was spoken when it was truncated
            return
        before = item.shown["content"][0]["transcript"]
        text = item.cut(at_ms)
        if text != before:
            self._responses.cut_short(item)
            await self._line.cut_record(item.record_id, text)
        told = {"item_id": item.id, "content_index": 0, "audio_end_ms": at_ms}
        self._line.tell({"type": "conversation.item.truncated", **told})


def _parsed(frame: str | bytes) -> Event:
    if isinstance(frame, bytes):
        raise InvalidRequest("Events are text frames that hold JSON.", code="invalid_json")
    try:
        event = orjson.loads(frame)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("The event is not valid JSON.", code="invalid_json") from error
    if not isinstance(event, dict):
        raise InvalidRequest("An event is a JSON object.", code="invalid_json")
    return event
