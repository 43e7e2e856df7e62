"""The responses of one conversation: one at a time, each a run, told as it is written or spoken; and what a run that
waits for somebody's word has asked."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from domain.enums import FinishReason
from domain.errors import Conflict, InternalError, InvalidRequest, NotFound, RouteurError, UpstreamTimeout
from services.realtime.answers import Question
from services.realtime.items import Item, item_id, item_of, wire_messages
from services.realtime.line import Line, stopped
from services.realtime.response import Event, Outcome, ResponseEvents, approval_item
from services.realtime.schemas import (
    ApprovalReply,
    ItemReference,
    OutputAudio,
    ResponseCancel,
    ResponseParameters,
    checked,
    read_item,
)
from services.realtime.session_config import SessionConfig, parameters_of
from services.realtime.voice.spoken import SpokenAnswer
from services.realtime.waiting import Answer, WaitingRun
from services.wire_messages import WireMessage

logger = logging.getLogger(__name__)

_MAX_TOKENS = "max_output_tokens"
_SPOKEN_OVER = "turn_detected"


@dataclass(slots=True)
class _Active:
    """The response that is being given."""

    events: ResponseEvents
    begin: Callable[[], Awaitable[Answer]]
    asked: list[Item]
    event_id: str | None
    output: OutputAudio | None = None  # how it is spoken; None: it is written
    alone: bool = False
    unasked: bool = False  # the house began it, because a run that waited goes on
    answer: Answer | None = None
    spoken: SpokenAnswer | None = None
    cancelled: str | None = None
    task: "asyncio.Task[None] | None" = None


class Responses:
    """Answers for one conversation.

    Args:
        resumed: it is a stored session that goes on.
        waiting: a run of that session that waits for somebody's word.

    Attributes:
        deleted: ids of recorded messages that the client has deleted.
    """

    def __init__(self, line: Line, config: SessionConfig, *, resumed: bool, waiting: WaitingRun | None) -> None:
        self.deleted: set[str] = set()
        self._line = line
        self._config = config
        self._resumed = resumed
        self._active: _Active | None = None
        self._owed = False  # a turn waits for the answer that is being given
        self._rules = ""  # what an agent was told to obey
        self._waiting = waiting
        self._settled: set[str] = set()  # ids of approvals that were answered
        self._watch: asyncio.Task[None] | None = None  # over the run that waits

    @property
    def task(self) -> "asyncio.Task[None] | None":
        """The response that is being given; None: none is."""
        return None if self._active is None else self._active.task

    def begin(self) -> None:
        """Tell what is waited for already."""
        if self._waiting is not None:
            for piece in self._waiting.asks():
                item = approval_item(piece)
                self._line.announce(item, self._line.items.add(item))
            self.wait(self._waiting)

    def began(self, item_id: str, into: bool = False) -> None:
        """Somebody begins to say that; `into` what is being said, which is to stop."""
        if self._waiting is not None:
            self._waiting.note(item_id)
        if into and self._active is not None:
            self._stop(self._active, _SPOKEN_OVER)

    def understood(self) -> None:
        """A turn is over, and is to be answered."""
        self._owed = True
        self.answer_owed()

    def telling(self, item: Item) -> bool:
        """True when that item is a part of the response that is being given."""
        return self._active is not None and item in self._active.events.output

    def cut_short(self, item: Item) -> None:
        """Not all of that item was heard."""
        if self._waiting is not None:
            self._waiting.cut_short(item.record_id)

    def click(self, reply: ApprovalReply, after: str | None, event_id: str | None) -> None:
        """Somebody has seen a question and answers it by its id."""
        self._line.later(self._click(reply, after, event_id), f"answering {reply.approval_request_id}")

    def cancel(self, sent: ResponseCancel) -> None:
        """End the response that is being given.

        Raises:
            Conflict: none is, or it is another one.
        """
        active = self._active
        if active is None or sent.response_id not in (None, active.events.id):
            raise Conflict(
                "Cancellation failed: no active response found.", code="response_cancel_not_active", param="response_id"
            )
        self._stop(active, "client_cancelled")

    async def aclose(self) -> None:
        """Stop what goes on; what was said is kept."""
        await stopped([task for task in (self._watch, self.task) if task is not None])

    def respond(self, asked: ResponseParameters, event_id: str | None, *, unasked: bool = False) -> None:
        """Begin a response.

        Raises:
            InvalidRequest: it cannot be given like that.
            Conflict: another one is being given.
        """
        if self._config.transcribes:
            raise InvalidRequest("This session only transcribes: nobody answers in it.", code="unsupported_event")
        wanted = asked == ResponseParameters() and not self._line.items.unheard()
        if self._active is not None and self._active.unasked and wanted:
            self._active.unasked = False  # it is the one that is wanted
            return
        if self._active is not None:
            raise Conflict(
                f"The conversation already has an active response: {self._active.events.id}.",
                code="conversation_already_has_active_response",
            )
        taken = self._config.of_response(asked)
        alone = asked.conversation == "none"
        if asked.input is not None and not alone:
            raise InvalidRequest(
                "input goes with conversation 'none'; what the conversation holds is its context.",
                code="unsupported_parameter",
                param="response.input",
            )
        if self._waiting is not None and not alone:
            items, begin = self._replying(self._waiting, asked)
        else:
            items, begin = self._asking(asked, taken, alone=alone)
        active = _Active(self._events_of(asked, taken), begin, items, event_id, alone=alone, unasked=unasked)
        if taken["output_modalities"] == ["audio"]:
            active.output = checked(OutputAudio, taken["audio"])
        self._active, self._owed = active, False
        for item in items:
            item.heard = True
        active.task = asyncio.create_task(self._run(active), name=f"response {active.events.id}")

    def _asking(
        self, asked: ResponseParameters, taken: dict[str, Any], *, alone: bool
    ) -> tuple[list[Item], Callable[[], Awaitable[Answer]]]:
        """A new question: the items that are asked, and how its answer begins."""
        items = [] if alone else self._line.items.unheard()
        given = [item.shown for item in items] if asked.input is None else self._inputs(asked.input)
        whole = alone and asked.input is None
        if whole:
            given = [item.shown for item in self._line.items.unheard()]
        ids = [item.record_id for item in items]

        async def begin() -> Answer:
            question = self._question(taken, given, ids, asked, alone=alone)
            if whole:
                question = _with_history(question, await self._line.terms.history(), self.deleted)
            self._check_question(question, items)
            answer = await self._line.terms.answers.begin(question)
            self._rules = question.instructions or self._rules
            return answer

        return items, begin

    def _replying(
        self, waiting: WaitingRun, asked: ResponseParameters
    ) -> tuple[list[Item], Callable[[], Awaitable[Answer]]]:
        """What was said since a run asked for somebody's word, and how the answer to that begins."""
        for name in ("instructions", "max_output_tokens", "tools", "metadata"):
            if getattr(asked, name):
                raise InvalidRequest(
                    f"The agent waits for an approval, and goes on as it began: leave {name} out.",
                    code="unsupported_parameter",
                    param=f"response.{name}",
                )
        items = [item for item in self._line.items.unheard() if item.shown.get("role") == "user"]

        async def begin() -> Answer:
            if not waiting.open:  # it goes on already: what was said meanwhile is for the next question
                self._give_back(items)
                items.clear()
            answer = await waiting.reply([(item.id, _words_of(item)) for item in items])
            if not waiting.open and self._waiting is waiting:
                self.wait(None)
            return answer

        return items, begin

    def _events_of(self, asked: ResponseParameters, taken: dict[str, Any]) -> ResponseEvents:
        alone = asked.conversation == "none"
        echo = {
            "conversation_id": None if alone else f"conv_{self._config.session_id}",
            "output_modalities": taken["output_modalities"],
            "max_output_tokens": taken[_MAX_TOKENS],
            "metadata": asked.metadata,
            "audio": {"output": {name: taken["audio"][name] for name in ("format", "voice")}},
        }
        return ResponseEvents(self._line.tell, None if alone else self._line.items.add, echo, self._line.tell_sound)

    def _question(
        self, taken: dict[str, Any], given: list[Event], ids: list[str], asked: ResponseParameters, *, alone: bool
    ) -> Question:
        told = [(place, message) for place, message in wire_messages(given) if not _says_nothing(message)]
        rules: str = taken["instructions"]
        if self._config.is_agent and not alone and rules == self._rules:
            rules = ""  # its session knows them
        limit = taken[_MAX_TOKENS]
        metadata: dict[str, Any] = {**self._config.filed_under, **(asked.metadata or {})}
        if alone:
            metadata["realtime_session"] = self._config.session_id
        return Question(
            messages=[message for _, message in told],
            ids=[ids[place] for place, _ in told] if ids else [],
            session_id=None if alone else self._config.session_id,
            instructions=rules,
            without=frozenset(self.deleted),
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
                item = self._line.items.get(reference.id, f"{where}.id")
                if item.shown["type"].startswith("mcp_"):
                    raise InvalidRequest("An approval is no input.", code="unsupported_parameter", param=f"{where}.id")
                found.append(item.shown)
            else:
                found.append(item_of(read_item(one, where)).shown)
        return found

    async def _run(self, active: _Active) -> None:
        """Give one response, to its end."""
        outcome: Outcome | None = None
        try:
            await self._line.settled()
            active.answer = await active.begin()
            active.events.created()
            if active.cancelled is not None:
                active.answer.cancel(spoken_over=active.cancelled == _SPOKEN_OVER)
            outcome = await self._told(active, active.answer)
        except RouteurError as error:
            self._give_back(active.asked)
            self._active = None
            self._line.refuse(error, active.event_id)
            self.answer_owed()
            return
        except asyncio.CancelledError:
            self._active = None
            raise
        except Exception as error:
            logger.exception("a response failed", extra={"session_id": self._config.session_id})
            failure = InternalError()
            failure.__cause__ = error
            outcome = Outcome("failed", error=self._line.failure(failure))
        self._active = None
        if active.answer is not None and (waiting := active.answer.ended.waiting) is not None:
            waiting.was_told(whole=outcome.status == "completed")
            if waiting is not self._waiting:
                self.wait(waiting)
        active.events.finished(outcome)
        self._line.tell({"type": "rate_limits.updated", "rate_limits": []})
        if active.spoken is not None and outcome.status == "cancelled" and not active.alone:
            for record_id, said in active.spoken.unsaid.items():
                await self._line.cut_record(record_id, said.rstrip())
        self.answer_owed()

    def answer_owed(self) -> None:
        """A turn ended while another was answered, or a run that waited goes on: it has its answer now."""
        resumed = self._waiting is not None and not self._waiting.open
        if (self._owed or resumed) and self._active is None and not self._line.outbox.closed:
            unasked, self._owed = not self._owed, False
            try:
                self.respond(ResponseParameters(), None, unasked=unasked)
            except RouteurError as error:
                self._line.refuse(error, None)

    def wait(self, waiting: WaitingRun | None) -> None:
        """A run waits for somebody's word from now on; None: none does any more."""
        if self._waiting is not None:
            self._settled |= self._waiting.closed
        self._waiting = waiting
        if self._watch is not None and self._watch is not asyncio.current_task():
            self._watch.cancel()
        self._watch = None
        if waiting is not None:
            self._watch = asyncio.create_task(self._watched(waiting), name=f"watching {waiting.run_id}")

    async def _watched(self, waiting: WaitingRun) -> None:
        """It may go on because somebody has answered elsewhere: then the rest of it is told here."""
        try:
            await waiting.resumed()
        except RouteurError as error:
            self._line.refuse(error)
            return
        if self._waiting is waiting:
            self.answer_owed()

    async def _click(self, reply: ApprovalReply, after: str | None, event_id: str | None) -> None:
        new_id = reply.id or item_id()
        item = Item(new_id, {**reply.model_dump(exclude_none=True), "id": new_id}, heard=True)
        try:
            if reply.approval_request_id in self._settled:
                raise Conflict(
                    "This approval has been answered.", code="approval_answered", param="item.approval_request_id"
                )
            if self._waiting is None:
                raise NotFound("No approval is open.", code="approval_not_found", param="item.approval_request_id")
            before = self._line.items.create(item, after)  # what is wrong with it is found before anything is approved
            try:
                await self._waiting.click(reply.approval_request_id, approved=reply.approve, reason=reply.reason)
            except RouteurError:
                self._line.items.remove(item)
                raise
            self._line.announce(item, before)
        except RouteurError as error:
            self._line.refuse(error, event_id)

    async def _told(self, active: _Active, answer: Answer) -> Outcome:
        """Tell the pieces of an answer as they come; gives how it ended."""
        try:
            if active.output is not None:
                await self._speak(active, answer, active.output)
            else:
                await self._write(active, answer)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._line.outbox.closed or task is None:
                raise
            task.uncancel()  # the run itself was stopped while we waited for a slow reader
            if active.cancelled is None:
                late = UpstreamTimeout("The run took longer than its limit.", code="run_timed_out")
                return Outcome("failed", error=self._line.failure(late), usage=answer.ended.usage)
        except RouteurError as error:  # it was written, and cannot be spoken
            return Outcome("failed", error=self._line.failure(error), usage=answer.ended.usage)
        ended = answer.ended
        if ended.cancelled or active.cancelled is not None:
            return Outcome("cancelled", reason=active.cancelled or "client_cancelled", usage=ended.usage)
        if ended.error is not None:
            return Outcome("failed", error=self._line.failure(ended.error), usage=ended.usage)
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
                await self._line.outbox.room()

    async def _speak(self, active: _Active, answer: Answer, wanted: OutputAudio) -> None:
        speaker = self._line.terms.voice.speaker
        if speaker is None:  # pragma: no cover - no session can ask for it without one
            raise InternalError
        spoken = SpokenAnswer(speaker, wanted, self._line.terms.caller, active.events, self._line.outbox)
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
        before = self._resumed or any(item.heard and item not in asked for item in self._line.items)
        if self._config.is_agent or not before:
            raise InvalidRequest("There is nothing to answer: create an item first.", code="conversation_empty")

    @staticmethod
    def _give_back(asked: list[Item]) -> None:
        """What was to be asked is unheard still."""
        for item in asked:
            item.heard = False

    def _stop(self, active: _Active, reason: str) -> None:
        if active.cancelled is None:
            active.cancelled = reason
            if active.spoken is not None:
                active.spoken.hush()
            self._line.hush()
            if active.answer is not None:
                active.answer.cancel(spoken_over=reason == _SPOKEN_OVER)


def _words_of(item: Item) -> str:
    """What a message says."""
    return " ".join(part.get("text") or part.get("transcript") or "" for part in item.shown["content"])


def _says_nothing(message: WireMessage) -> bool:
    return message["role"] == "user" and not message["content"]


def _with_history(question: Question, history: Sequence[WireMessage], deleted: set[str]) -> Question:
    """The same, asked of the whole conversation where no session is remembered."""
    earlier = [message for message in history if message.get("id") not in deleted]
    told = [{name: value for name, value in message.items() if name != "id"} for message in earlier]
    return replace(question, messages=[*told, *question.messages])
