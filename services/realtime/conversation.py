"""One realtime conversation: client events in, server events out through a bounded outbox. It knows no transport."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import orjson

from domain.auth import Principal
from domain.enums import FinishReason
from domain.errors import Conflict, InternalError, InvalidRequest, RouteurError, UpstreamTimeout
from services.realtime.answers import Answer, Question
from services.realtime.audio_buffer import AudioBuffer
from services.realtime.items import Item, Items, item_id, item_of, wire_messages
from services.realtime.outbox import Outbox
from services.realtime.response import Event, Outcome, ResponseEvents
from services.realtime.schemas import (
    AudioAppend,
    Bare,
    ItemCreate,
    ItemNamed,
    ItemReference,
    ItemTruncate,
    OutputAudio,
    ResponseCancel,
    ResponseCreate,
    ResponseParameters,
    SessionUpdate,
    TranscriptionUpdate,
    checked,
    read_item,
)
from services.realtime.seams import Heard, Hearing, Turned, VoiceSeams
from services.realtime.session_config import SessionConfig, parameters_of
from services.realtime.voice.spoken import SpokenAnswer
from services.wire_messages import WireMessage

logger = logging.getLogger(__name__)

_MAX_TOKENS = "max_output_tokens"
_SOUND = "output_audio"
_CLOCKS_MS = 1_000  # by which the clock of who plays sound may be ahead


class AsksAnswers(Protocol):
    """Begins answers (`answers.Answers`)."""

    async def begin(self, question: Question) -> Answer: ...


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


@dataclass(frozen=True, slots=True)
class Terms:
    """What a conversation needs of the house.

    Attributes:
        history: what the stored session holds already, as messages of chat completions.
        describe: a failure as OpenAI's clients are told of it: message, type, param, code.
        cut: leaves of a recorded message, named by its id, only that text.
    """

    caller: Principal
    answers: AsksAnswers
    history: Callable[[], Awaitable[Sequence[WireMessage]]]
    describe: Callable[[RouteurError], dict[str, Any]]
    voice: VoiceSeams = field(default_factory=VoiceSeams)
    cut: Callable[[str, str], Awaitable[None]] | None = None


@dataclass(slots=True)
class _Active:
    """The response that is being given."""

    events: ResponseEvents
    question: Callable[[], Question]
    asked: list[Item]
    event_id: str | None
    output: OutputAudio | None = None  # how it is spoken; None: it is written
    alone: bool = False
    answer: Answer | None = None
    spoken: SpokenAnswer | None = None
    cancelled: str | None = None
    task: "asyncio.Task[None] | None" = None


class RealtimeConversation:
    """Talk to it with `hear`, read `outbox`, end it with `end` and `aclose`.

    Args:
        calls: ids of the function calls of a stored session that goes on; None: it is a new one.

    Attributes:
        heard_at: when its client last said something, by the monotonic clock.
        ending: set once it is to end; the transport tells its client.
    """

    def __init__(self, config: SessionConfig, terms: Terms, outbox: Outbox, calls: set[str] | None = None) -> None:
        self.config = config
        self.outbox = outbox
        self.ending: Ending | None = None
        self.heard_at = time.monotonic()
        self._terms = terms
        self._items = Items()
        self._items.calls |= calls or set()
        self._resumed = calls is not None
        self._deleted: set[str] = set()
        self._active: _Active | None = None
        self._buffer: AudioBuffer | None = None
        self._speaking: str | None = None  # the id that the item of the present turn will have
        self._hearing: Hearing | None = None  # who listens to it
        self._at_ms = 0  # how much sound came before the present buffer
        self._owed = False  # a turn waits for the answer that is being given
        self._rules = ""  # what an agent was told to obey
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def session_id(self) -> str:
        """Of the stored session."""
        found: str = self.config.shown()["id"]
        return found

    @property
    def answering(self) -> bool:
        """True while a response is being given."""
        return self._active is not None

    def begin(self) -> None:
        """Greet the client."""
        self._tell({"type": "session.created", "session": self.config.shown()})

    @property
    def listens(self) -> bool:
        """True when sound can be understood."""
        return self._terms.voice.listener is not None

    @property
    def interrupts(self) -> bool:
        """True when somebody who begins to speak stops what is being said."""
        wanted = self.config.audio.input
        detection = wanted.turn_detection if wanted is not None else None
        return detection is None or detection.interrupt_response is not False

    def refuse(self, error: RouteurError, event_id: str | None = None) -> None:
        """Tell the client what its transport could not do."""
        self._refuse(error, event_id)

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
                await self._prepare()
            if event.get("type") == "input_audio_buffer.append":
                await self._append(checked(AudioAppend, event))
            else:
                self._handle(event, event_id)
        except RouteurError as error:
            self._refuse(error, event_id)
        except Exception as error:
            logger.exception("a client event could not be handled", extra={"session_id": self.session_id})
            failure = InternalError()
            failure.__cause__ = error
            self._refuse(failure, event_id)
        await self.outbox.room()

    def end(self, ending: Ending, error: RouteurError | None = None) -> None:
        """It is over (once): no more is told but what waits, and `error` when there is one. `aclose` does the rest."""
        if self.ending is None:
            self.ending = ending
            if error is not None:
                self._refuse(error, None)
            self.outbox.close()

    def end_after_answer(self, ending: Ending) -> None:
        """End it when the answer in progress is told."""
        task = self._active.task if self._active is not None else None
        if task is None:
            self.end(ending)
        else:
            task.add_done_callback(lambda _: self.end(ending))

    async def aclose(self) -> None:
        """Stop whatever goes on; what an answer has said is kept."""
        self.outbox.close()
        self._drop_hearing()
        active = self._active
        tasks = [*self._tasks, *([active.task] if active is not None and active.task is not None else [])]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    # -- what clients say --

    def _handle(self, event: Event, event_id: str | None) -> None:
        kind = event.get("type")
        if not isinstance(kind, str):
            raise InvalidRequest("Missing required parameter: 'type'.", code="missing_required_parameter", param="type")
        match kind:
            case "session.update":
                self._update(event)
            case "conversation.item.create":
                self._create(checked(ItemCreate, event))
            case "conversation.item.retrieve":
                item = self._items.get(checked(ItemNamed, event).item_id)
                self._tell({"type": "conversation.item.retrieved", "item": item.shown})
            case "conversation.item.delete":
                self._delete(checked(ItemNamed, event))
            case "conversation.item.truncate":
                self._truncate(checked(ItemTruncate, event))
            case "response.create":
                self._respond(checked(ResponseCreate, event).response or ResponseParameters(), event_id)
            case "response.cancel":
                self._cancel(checked(ResponseCancel, event))
            case "input_audio_buffer.commit":
                checked(Bare, event)
                self._commit()
            case "input_audio_buffer.clear":
                checked(Bare, event)
                self._ears().clear()
                self._drop_hearing()
                self._speaking = None
                self._tell({"type": "input_audio_buffer.cleared"})
            case _:
                raise InvalidRequest("Unknown event type; see docs/realtime.md.", code="invalid_value", param="type")

    def _update(self, event: Event) -> None:
        before = self._heard_as()
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
        if self._buffer is not None and self._heard_as() != before:
            self._at_ms = self._buffer.at_ms
            self._buffer = None  # made anew, with the format and the turn detection that were chosen
            self._drop_hearing()
            self._speaking = None
        self._tell({"type": "session.updated", "session": self.config.shown()})

    def _heard_as(self) -> tuple[Any, Any]:
        shown = self.config.shown()["audio"]["input"]
        return shown["format"], shown["turn_detection"]

    def _create(self, sent: ItemCreate) -> None:
        item = item_of(read_item(sent.item, "item"))
        self._announce(item, self._items.create(item, sent.previous_item_id))

    def _announce(self, item: Item, before: str | None) -> None:
        for what in ("added", "done"):
            self._tell({"type": f"conversation.item.{what}", "previous_item_id": before, "item": item.shown})

    def _delete(self, sent: ItemNamed) -> None:
        item = self._items.get(sent.item_id)
        if item.heard:
            self._check_deletable(item)
            self._deleted.add(item.record_id)
        self._items.remove(item)
        self._tell({"type": "conversation.item.deleted", "item_id": item.id})

    def _check_deletable(self, item: Item) -> None:
        """What was answered is in the record: a model can be kept from hearing it again, an agent remembers."""
        if item.shown["status"] == "in_progress":
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
        item = self._items.get(sent.item_id)
        parts = item.shown.get("content") or []
        active = self._active
        speaking = active if active is not None and item in active.events.output else None
        if speaking is None and not (sent.content_index < len(parts) and parts[sent.content_index]["type"] == _SOUND):
            raise InvalidRequest(
                "Only audio that the assistant has said can be truncated.", code="invalid_value", param="content_index"
            )
        if sent.content_index or not item.marks:
            raise InvalidRequest("There is no audio at that place.", code="invalid_value", param="content_index")
        if sent.audio_end_ms > item.spoken_ms + _CLOCKS_MS:
            raise InvalidRequest(
                f"Of that item there are {item.spoken_ms} ms of audio.", code="invalid_value", param="audio_end_ms"
            )
        self._later(self._cut(item, sent.audio_end_ms, speaking), f"truncating {item.id}")

    async def _cut(self, item: Item, at_ms: int, speaking: "_Active | None") -> None:
        """Leave of something said what was heard; what is still being said is waited for."""
        if speaking is not None and speaking.task is not None:
            await asyncio.wait({speaking.task})
        if item.shown["content"][0]["type"] != _SOUND:  # pragma: no cover - it was spoken when it was truncated
            return
        before = item.shown["content"][0]["transcript"]
        text = item.cut(at_ms)
        if text != before:
            await self._cut_record(item.record_id, text)
        told = {"item_id": item.id, "content_index": 0, "audio_end_ms": at_ms}
        self._tell({"type": "conversation.item.truncated", **told})

    async def _cut_record(self, record_id: str, text: str) -> None:
        if self._terms.cut is None:
            return
        try:
            await self._terms.cut(record_id, text)
        except RouteurError as error:
            self._refuse(error, None)

    def _later(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Do it beside what is heard; the next response waits for it."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- responses --

    def _respond(self, asked: ResponseParameters, event_id: str | None) -> None:
        if self.config.transcribes:
            raise InvalidRequest("This session only transcribes: nobody answers in it.", code="unsupported_event")
        if self._active is not None:
            raise Conflict(
                f"The conversation already has an active response: {self._active.events.id}.",
                code="conversation_already_has_active_response",
            )
        taken = self.config.of_response(asked)
        alone = asked.conversation == "none"
        if asked.input is not None and not alone:
            raise InvalidRequest(
                "input goes with conversation 'none'; what the conversation holds is its context.",
                code="unsupported_parameter",
                param="response.input",
            )
        items = [] if alone else self._items.unheard()
        given = [item.shown for item in items] if asked.input is None else self._inputs(asked.input)
        if alone and asked.input is None:
            given = [item.shown for item in self._items.unheard()]
        ids = [item.record_id for item in items]

        def question() -> Question:
            return self._question(taken, given, ids, asked, alone=alone)

        echo = {
            "conversation_id": None if alone else f"conv_{self.session_id}",
            "output_modalities": taken["output_modalities"],
            "max_output_tokens": taken[_MAX_TOKENS],
            "metadata": asked.metadata,
            "audio": {"output": {name: taken["audio"][name] for name in ("format", "voice")}},
        }
        events = ResponseEvents(self._tell, None if alone else self._items.add, echo, self._tell_sound)
        active = self._active = _Active(events, question, items, event_id, alone=alone)
        if taken["output_modalities"] == ["audio"]:
            active.output = checked(OutputAudio, taken["audio"])
        self._owed = False
        for item in items:
            item.heard = True
        whole = alone and asked.input is None
        active.task = asyncio.create_task(self._run(active, whole=whole), name=f"response {events.id}")

    def _question(
        self, taken: dict[str, Any], given: list[Event], ids: list[str], asked: ResponseParameters, *, alone: bool
    ) -> Question:
        told = [(place, message) for place, message in wire_messages(given) if not _says_nothing(message)]
        rules: str = taken["instructions"]
        if self.config.is_agent and not alone and rules == self._rules:
            rules = ""  # its session knows them
        limit = taken[_MAX_TOKENS]
        metadata: dict[str, Any] = dict(asked.metadata or {})
        if alone:
            metadata["realtime_session"] = self.session_id
        return Question(
            messages=[message for _, message in told],
            ids=[ids[place] for place, _ in told] if ids else [],
            session_id=None if alone else self.session_id,
            instructions=rules,
            without=frozenset(self._deleted),
            max_tokens=limit if isinstance(limit, int) else None,
            metadata=metadata,
            more=parameters_of(taken),
        )

    def _inputs(self, given: list[Event]) -> list[Event]:
        """What an out of band response is asked, references looked up."""
        found = []
        for place, one in enumerate(given):
            where = f"response.input.{place}"
            if one.get("type") == "item_reference" or (one.get("type") is None and set(one) == {"id"}):
                reference = checked(ItemReference, {"type": "item_reference", **one}, where)
                found.append(self._items.get(reference.id, f"{where}.id").shown)
            else:
                found.append(item_of(read_item(one, where)).shown)
        return found

    async def _run(self, active: _Active, *, whole: bool) -> None:
        """Give one response, to its end."""
        outcome: Outcome | None = None
        try:
            await self._all_heard()
            question = active.question()
            if whole:
                question = _with_history(question, await self._terms.history(), self._deleted)
            self._check_question(question, active.asked)
            active.answer = await self._terms.answers.begin(question)
            self._rules = question.instructions or self._rules
            active.events.created()
            if active.cancelled is not None:
                active.answer.cancel()
            outcome = await self._told(active, active.answer)
        except RouteurError as error:
            self._give_back(active)
            self._active = None
            self._refuse(error, active.event_id)
            self._answer_owed()
            return
        except asyncio.CancelledError:
            self._active = None
            raise
        except Exception as error:
            logger.exception("a response failed", extra={"session_id": self.session_id})
            failure = InternalError()
            failure.__cause__ = error
            outcome = Outcome("failed", error=self._failure(failure))
        self._active = None
        active.events.finished(outcome)
        self._tell({"type": "rate_limits.updated", "rate_limits": []})
        if active.spoken is not None and outcome.status == "cancelled" and not active.alone:
            for record_id, said in active.spoken.unsaid.items():
                await self._cut_record(record_id, said.rstrip())
        self._answer_owed()

    def _answer_owed(self) -> None:
        """A turn ended while another was answered: it has its answer now."""
        if self._owed and self._active is None and self.ending is None:
            self._owed = False
            try:
                self._respond(ResponseParameters(), None)
            except RouteurError as error:
                self._refuse(error, None)

    async def _told(self, active: _Active, answer: Answer) -> Outcome:
        """Tell the pieces of an answer as they come; gives how it ended."""
        try:
            if active.output is not None:
                await self._speak(active, answer, active.output)
            else:
                await self._write(active, answer)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.ending is not None or self.outbox.closed or task is None:
                raise
            task.uncancel()  # the run itself was stopped while we waited for a slow reader
            if active.cancelled is None:
                late = UpstreamTimeout("The run took longer than its limit.", code="run_timed_out")
                return Outcome("failed", error=self._failure(late), usage=answer.ended.usage)
        except RouteurError as error:  # it was written, and cannot be spoken
            return Outcome("failed", error=self._failure(error), usage=answer.ended.usage)
        ended = answer.ended
        if ended.cancelled or active.cancelled is not None:
            return Outcome("cancelled", reason=active.cancelled or "client_cancelled", usage=ended.usage)
        if ended.error is not None:
            return Outcome("failed", error=self._failure(ended.error), usage=ended.usage)
        if ended.finish is FinishReason.LENGTH:
            return Outcome("incomplete", reason="max_output_tokens", usage=ended.usage)
        if ended.finish is FinishReason.CONTENT_FILTER:
            return Outcome("incomplete", reason="content_filter", usage=ended.usage)
        return Outcome("completed", usage=ended.usage)

    async def _write(self, active: _Active, answer: Answer) -> None:
        async with aclosing(answer.pieces()) as batches:
            async for pieces in batches:
                for piece in pieces:
                    active.events.add(piece)
                await self.outbox.room()

    async def _speak(self, active: _Active, answer: Answer, wanted: OutputAudio) -> None:
        speaker = self._terms.voice.speaker
        if speaker is None:  # pragma: no cover - no session can ask for it without one
            raise InternalError
        spoken = SpokenAnswer(speaker, wanted, self._terms.caller, active.events, self.outbox)
        async with aclosing(spoken):
            active.spoken = spoken
            if active.cancelled is not None:
                spoken.hush()
            async with aclosing(answer.pieces()) as batches:
                async for pieces in batches:
                    for piece in pieces:
                        spoken.add(piece)
                    await spoken.room()
            await spoken.finish()

    def _check_question(self, question: Question, asked: list[Item]) -> None:
        """Somebody must have said something: an agent answers what is new, a model also what it is told to do."""
        if question.messages or question.instructions:
            return
        before = self._resumed or any(item.heard and item not in asked for item in self._items)
        if self.config.is_agent or not before:
            raise InvalidRequest("There is nothing to answer: create an item first.", code="conversation_empty")

    @staticmethod
    def _give_back(active: _Active) -> None:
        """It was not begun: what was to be asked is unheard still."""
        for item in active.asked:
            item.heard = False

    def _cancel(self, sent: ResponseCancel) -> None:
        active = self._active
        if active is None or sent.response_id not in (None, active.events.id):
            raise Conflict(
                "Cancellation failed: no active response found.", code="response_cancel_not_active", param="response_id"
            )
        self._stop(active, "client_cancelled")

    def _stop(self, active: _Active, reason: str) -> None:
        if active.cancelled is None:
            active.cancelled = reason
            if active.spoken is not None:
                active.spoken.hush()
            self.outbox.drop(_SOUND)
            if active.answer is not None:
                active.answer.cancel()

    # -- sound --

    def _ears(self) -> AudioBuffer:
        """The buffer.

        Raises:
            InvalidRequest: nothing that hears is plugged in.
        """
        voice = self._terms.voice
        if voice.listener is None:
            raise InvalidRequest(
                "This server does not listen: talk in text, with conversation.item.create.", code="audio_not_available"
            )
        if self._buffer is None:
            form, audio = self.config.input_format, self.config.audio
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

    async def _prepare(self) -> None:
        """Load what tells turns, before there is a buffer."""
        prepare, audio = self._terms.voice.prepare, self.config.audio.input
        wanted = audio.turn_detection if audio is not None else None
        if self._buffer is None and prepare is not None and wanted is not None:
            await prepare(wanted)

    async def _append(self, sent: AudioAppend) -> None:
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
            if self._hearing is not None:
                self._hearing.feed(buffer.fresh())

    def _turn(self, buffer: AudioBuffer, turned: Turned) -> None:
        wanted = self.config.audio.input
        detection = wanted.turn_detection if wanted is not None else None
        if turned.what == "started":
            buffer.begin(turned.at_ms)
            self._speaking = item_id()
            told = {"item_id": self._speaking, "audio_start_ms": turned.at_ms}
            self._tell({"type": "input_audio_buffer.speech_started", **told})
            self._follow()
            if self._active is not None and (detection is None or detection.interrupt_response is not False):
                self._stop(self._active, "turn_detected")
            return
        if self._hearing is not None:
            self._hearing.feed(buffer.fresh(turned.at_ms))
        if turned.what == "paused":
            if self._hearing is not None:
                self._hearing.pause()
            return
        told = {"item_id": self._speaking or item_id(), "audio_end_ms": turned.at_ms}
        self._tell({"type": "input_audio_buffer.speech_stopped", **told})
        self._commit(answer=detection is None or detection.create_response is not False, until_ms=turned.at_ms)

    def _follow(self) -> None:
        """Somebody listens from now on, when there is somebody who can while it is said."""
        follower, audio = self._terms.voice.follower, self.config.audio.input
        self._drop_hearing()
        if follower is not None:
            wanted = audio.transcription if audio is not None else None
            self._hearing = follower.follow(self.config.input_format, wanted, self._terms.caller)

    def _drop_hearing(self) -> None:
        if self._hearing is not None:
            self._hearing.drop()
            self._hearing = None

    def _commit(self, *, answer: bool = False, until_ms: int | None = None) -> None:
        """The turn is over: it becomes an item, and its words follow; `answer`: and then the response."""
        sound = self._ears().take(until_ms)
        new_id, self._speaking = self._speaking or item_id(), None
        hearing, self._hearing = self._hearing, None
        part: Event = {"type": "input_audio", "transcript": None}
        head = {"id": new_id, "object": "realtime.item", "type": "message", "status": "completed"}
        item = Item(new_id, {**head, "role": "user", "content": [part]})
        try:
            before = self._items.create(item, None)
        except RouteurError:
            if hearing is not None:
                hearing.drop()
            raise
        self._tell({"type": "input_audio_buffer.committed", "previous_item_id": before, "item_id": new_id})
        self._announce(item, before)
        self._later(self._listen(item, sound, hearing, answer=answer), f"listening {new_id}")

    async def _all_heard(self) -> None:
        """Wait for the words of turns that are over: clients commit and ask in one breath."""
        while self._tasks:
            await asyncio.wait(list(self._tasks))

    async def _listen(self, item: Item, sound: bytes, hearing: Hearing | None, *, answer: bool) -> None:
        listener = self._terms.voice.listener
        if listener is None:  # pragma: no cover - nobody commits without one
            return
        audio, form = self.config.audio.input, self.config.input_format
        place = {"item_id": item.id, "content_index": 0}
        kind = "conversation.item.input_audio_transcription"
        told = False

        def tell(piece: str) -> None:
            nonlocal told
            told = True
            self._tell({"type": f"{kind}.delta", **place, "delta": piece})

        try:
            if hearing is not None:
                heard = await hearing.finish(sound, tell)
            else:
                wanted = audio.transcription if audio is not None else None
                heard = await listener.listen(sound, form, wanted, self._terms.caller)
        except RouteurError as error:
            self._tell({"type": f"{kind}.failed", **place, "error": self._terms.describe(error)})
            return
        except Exception as error:
            logger.exception("a turn could not be listened to", extra={"session_id": self.session_id})
            failure = InternalError()
            failure.__cause__ = error
            self._tell({"type": f"{kind}.failed", **place, "error": self._terms.describe(failure)})
            return
        item.shown["content"][0]["transcript"] = heard.text
        if heard.text and not told and hearing is not None:
            tell(heard.text)
        self._tell({"type": f"{kind}.completed", **place, "transcript": heard.text, "usage": _usage_of(heard)})
        if answer and heard.text.strip() and not self.config.transcribes:  # silence is never answered
            self._owed = True
            self._answer_owed()

    # -- telling --

    def _tell(self, event: Event) -> None:
        self.outbox.put(event)

    def _tell_sound(self, event: Event) -> None:
        self.outbox.put(event, _SOUND)

    def _failure(self, error: RouteurError) -> Event:
        told = self._terms.describe(error)
        return {name: told[name] for name in ("type", "code", "message")}

    def _refuse(self, error: RouteurError, event_id: str | None) -> None:
        self._tell({"type": "error", "error": {**self._terms.describe(error), "event_id": event_id}})


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


def _usage_of(heard: Heard) -> Event:
    """What listening took: tokens where they were counted, else the time."""
    usage = heard.usage
    if usage is None:
        return {"type": "duration", "seconds": heard.seconds}
    audio = min(usage.audio_tokens or 0, usage.input_tokens)
    details = {"audio_tokens": audio, "text_tokens": usage.input_tokens - audio}
    counted = {name: getattr(usage, name) for name in ("input_tokens", "output_tokens", "total_tokens")}
    return {"type": "tokens", **counted, "input_token_details": details}


def _says_nothing(message: WireMessage) -> bool:
    return message["role"] == "user" and not message["content"]


def _with_history(question: Question, history: Sequence[WireMessage], deleted: set[str]) -> Question:
    """The same, asked of the whole conversation where no session is remembered."""
    earlier = [message for message in history if message.get("id") not in deleted]
    told = [{name: value for name, value in message.items() if name != "id"} for message in earlier]
    return replace(question, messages=[*told, *question.messages])
