"""Runs that wait for somebody's word: their questions are asked one after the other, what is said is taken for a yes, a
no or neither, and what was answered goes on in the background, and is followed from here."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from domain.auth import Principal
from domain.background import ApprovalAnswer, AskedApproval, RunState
from domain.enums import FinishReason
from domain.errors import Conflict, ErrorKind, InvalidRequest, NotFound, RouteurError, Unavailable, UpstreamTimeout
from domain.events import (
    AgentEvent,
    ApprovalRequested,
    Envelope,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunTimedOut,
    TextDelta,
    UsageReported,
)
from domain.text import clean_text
from domain.usage import Usage
from services.approval_forms import call_in, question_in, wants_words
from services.realtime.items import asking_id
from services.realtime.replies import decision_in
from services.realtime.response import AskPiece, Piece, TextPiece

logger = logging.getLogger(__name__)

_HEARTBEAT = 15.0  # seconds of silence after which a follower looks up
_MOST_REASON = 4_000  # characters: of `ApprovalAnswer.reason`
_REQUEST, _REASON = "item.approval_request_id", "item.reason"
_UNCLEAR = "I need a yes or a no. "
_TOO_MUCH = "That is more than I can read out: say no, or answer on the screen. "


class House(Protocol):
    """Who keeps runs that wait (`BackgroundService`)."""

    async def approve(self, run_id: str, answer: ApprovalAnswer, caller: Principal) -> RunState: ...
    async def cancel(self, run_id: str, caller: Principal) -> RunState: ...
    def follow(self, run_id: str, after: int, heartbeat: float) -> AsyncGenerator[list[Envelope] | tuple[int, int]]: ...


@dataclass(slots=True)
class Ended:
    """How an answer ended. `waiting`: its run waits for somebody's word, and has asked for it."""

    usage: Usage | None = None
    finish: FinishReason | None = None
    error: RouteurError | None = None
    cancelled: bool = False
    waiting: "WaitingRun | None" = None


class Answer(Protocol):
    """One answer that is being given: read `pieces` once; then `ended` says how it went."""

    @property
    def run_id(self) -> str: ...
    @property
    def ended(self) -> Ended: ...

    def pieces(self) -> AsyncGenerator[list[Piece]]:
        """What is said, as it comes. Closing it ends a run that is nobody else's as cancelled."""
        ...

    def cancel(self, *, spoken_over: bool = False) -> None:
        """End it; what was said is kept as a partial message.

        Args:
            spoken_over: nobody has asked for its end, but somebody speaks.
        """
        ...


class WaitingRun:
    """One run that waits, in one conversation.

    Attributes:
        told: the question that is open was told to its end. Only what is said after that can answer it.
        open: what was asked and is not answered; the first is the one that is spoken of.
        closed: ids of what was answered.
    """

    def __init__(
        self, house: House, caller: Principal, agent: str, run_id: str, after: int, asked: Sequence[AskedApproval]
    ) -> None:
        self.run_id = run_id
        self.told = False
        self.open = list(asked)
        self._house = house
        self._caller = caller
        self._agent = agent
        self._after = after
        self._asked_as = self._asked_for = ""  # the message that asks, and what for
        self._replies: set[str] = set()
        self._said: list[str] = []
        self.closed: set[str] = set()
        self._turn = asyncio.Lock()

    def asks(self) -> list[AskPiece]:
        """All that is open, for a screen."""
        pieces = []
        for one in self.open:
            name, arguments = call_in(one.payload)
            pieces.append(AskPiece(one.id, self._agent, name, arguments))
        return pieces

    def question(self, before: str = "") -> TextPiece:
        """What is asked now, for the ear."""
        self._asked_as, self._asked_for = asking_id(), self.open[0].id
        return TextPiece(self._asked_as, before + question_in(self.open[0].payload).text, done=True)

    def was_told(self, *, whole: bool) -> None:
        """The question has been told; by now another one may be open, which was not."""
        self.told = whole and bool(self.open) and self.open[0].id == self._asked_for

    def cut_short(self, message_id: str) -> None:
        """Not all of that message was heard: if it is the question, whatever was said since is no answer to it."""
        if message_id == self._asked_as:
            self.told = False
            self._replies.clear()

    def note(self, item_id: str) -> None:
        """Somebody begins to say that item."""
        if self.told:
            self._replies.add(item_id)

    async def reply(self, said: Sequence[tuple[str, str]]) -> Answer:
        """What comes of what was said: the question again, the next one, or the rest of the run.

        Args:
            said: ids of items, and their words.

        Raises:
            RouteurError: as `answer`.
        """
        if not self.open:
            return self._rest()
        words = " ".join(words for item_id, words in said if item_id in self._replies).strip()
        everything = [*self._said, *(words for _, words in said if words.strip())]
        asked, understood = self.open[0], self._understood(words)
        if isinstance(understood, str):
            self._said = everything
            return HouseAnswer(self, self.question(understood))
        value = words if wants_words(asked.payload) else None
        await self.answer(asked.id, approved=understood, reason=" ".join(everything), value=value)
        return HouseAnswer(self, self.question()) if self.open else self._rest()

    def _understood(self, words: str) -> bool | str:
        """The decision; or, where there is none, what is said before the question is asked again."""
        payload = self.open[0].payload
        if not words:
            return ""
        if wants_words(payload):
            return True
        question = question_in(payload)
        approved = decision_in(words, question.text)
        if approved is None:
            return _UNCLEAR
        return _TOO_MUCH if approved and not question.whole else approved

    async def answer(self, approval_id: str, *, approved: bool, reason: str | None, value: str | None = None) -> None:
        """Answer one question, once.

        Raises:
            NotFound: it was not asked.
            Conflict: it is answered, or the run waits no more.
            InvalidRequest: it wants words.
        """
        if value is None and approved and self._wants_words(approval_id):
            raise InvalidRequest(
                "It wants words for an answer: put them into reason.", code="words_needed", param=_REASON
            )
        given = ApprovalAnswer(
            approval_id=approval_id,
            decision="approve" if approved else "reject",
            value=None if value is None else clean_text(value),
            reason=None if reason is None else clean_text(reason)[:_MOST_REASON],
        )
        async with self._turn:  # who was first is answered first
            if approval_id in self.closed:
                raise Conflict("This approval has been answered.", code="approval_answered", param=_REQUEST)
            if approval_id not in [one.id for one in self.open]:
                raise NotFound("No such approval is open.", code="approval_not_found", param=_REQUEST)
            try:
                await self._house.approve(self.run_id, given, self._caller)
            except (Conflict, NotFound):  # somebody else was quicker; what comes of it is told with the rest
                self._close(approval_id)
                raise
            self._close(approval_id)

    async def click(self, approval_id: str, *, approved: bool, reason: str | None) -> None:
        """Answer by its id; where words are wanted, `reason` are the words. Raises as `answer`."""
        value = reason if approved and self._wants_words(approval_id) else None
        await self.answer(approval_id, approved=approved, reason=reason, value=value or None)

    async def resumed(self) -> None:
        """Return when the run does not wait any more, whoever has seen to it."""
        async with aclosing(_told(self._house, self.run_id, self._after)) as told:
            async for some in told:
                if some:
                    self.open.clear()
                    return

    def _wants_words(self, approval_id: str) -> bool:
        return any(one.id == approval_id and wants_words(one.payload) for one in self.open)

    def _close(self, approval_id: str) -> None:
        self.closed.add(approval_id)
        if self.open and self.open[0].id == approval_id:
            self.told = False
            self._said.clear()
            self._replies.clear()  # what was said to this question is none to the next
        self.open = [one for one in self.open if one.id != approval_id]

    def _rest(self) -> "FollowedAnswer":
        return FollowedAnswer(self._house, self._caller, self._agent, self.run_id, self._after)


class HouseAnswer:
    """A question, asked (again) by the house: no model has a part in it."""

    def __init__(self, waiting: WaitingRun, question: TextPiece) -> None:
        self.run_id = waiting.run_id
        self.ended = Ended(waiting=waiting)
        self._question = question

    def cancel(self, *, spoken_over: bool = False) -> None:
        """As `Answer.cancel`: the run goes on waiting."""

    async def pieces(self) -> AsyncGenerator[list[Piece]]:
        """As `Answer.pieces`."""
        yield [self._question]


class FollowedAnswer:
    """The rest of a run that goes on in the background.

    Whoever stops reading it does not stop the run, nor does whoever speaks: somebody has just said yes to it.
    """

    def __init__(self, house: House, caller: Principal, agent: str, run_id: str, after: int) -> None:
        self.run_id = run_id
        self.ended = Ended()
        self._house = house
        self._caller = caller
        self._agent = agent
        self._after = after
        self._asked: list[AskedApproval] = []
        self._cancelling: asyncio.Task[None] | None = None

    def cancel(self, *, spoken_over: bool = False) -> None:
        """As `Answer.cancel`."""
        if self._cancelling is None and not spoken_over:
            self._cancelling = asyncio.create_task(self._cancel(), name=f"cancelling {self.run_id}")

    async def _cancel(self) -> None:
        try:
            await self._house.cancel(self.run_id, self._caller)
        except RouteurError as error:
            logger.error("a run could not be cancelled", extra={"run_id": self.run_id, "code": error.code})

    async def pieces(self) -> AsyncGenerator[list[Piece]]:
        """As `Answer.pieces`."""
        self.ended.error = Unavailable("The server is restarting; come back with the session.", code="restarting")
        async with aclosing(_told(self._house, self.run_id, self._after)) as told:
            async for some in told:
                if isinstance(some, tuple):  # trimmed away: what follows is told
                    continue
                pieces, over = self._read(some)
                if pieces:
                    yield pieces
                if over:
                    return

    def _read(self, envelopes: Sequence[Envelope]) -> tuple[list[Piece], bool]:
        """What is to be said of these, and whether they are the last."""
        pieces: list[Piece] = []
        for place, envelope in enumerate(envelopes):
            event = envelope.event
            if isinstance(event, TextDelta):
                cut = event.done and _ends_badly(envelopes[place + 1 :])
                pieces.append(TextPiece(event.message_id, event.text, event.done and not cut))
            elif isinstance(event, UsageReported) and event.usage is not None:
                usage = self.ended.usage
                self.ended.usage = event.usage if usage is None else usage + event.usage
            elif isinstance(event, ApprovalRequested):
                self._asked.append(AskedApproval(event.approval_id, event.payload))
            elif event.kind == "run.waiting":
                waiting = WaitingRun(self._house, self._caller, self._agent, self.run_id, envelope.seq, self._asked)
                self.ended.error, self.ended.waiting = None, waiting
                return [*pieces, *waiting.asks(), waiting.question()], True
            elif event.terminal:
                self._end(event)
                return pieces, True
        return pieces, False

    def _end(self, event: AgentEvent) -> None:
        self.ended.error = None
        if isinstance(event, RunFinished):
            self.ended.finish = event.finish_reason
        elif isinstance(event, RunCancelled):
            self.ended.cancelled = True
        elif isinstance(event, RunFailed):
            self.ended.error = RouteurError(event.message, code=event.code)
            self.ended.error.kind = ErrorKind(event.error)
        elif isinstance(event, RunTimedOut):
            self.ended.error = UpstreamTimeout(event.message, code="run_timed_out")


def _ends_badly(after: Sequence[Envelope]) -> bool:
    """True when nothing but closings is left before an end that was not hoped for: a message was cut, not finished."""
    for envelope in after:
        event = envelope.event
        if event.terminal:
            return not isinstance(event, RunFinished)
        if not (isinstance(event, TextDelta) and event.done) and event.kind != "tool.finished":
            return False
    return False


async def _told(house: House, run_id: str, after: int) -> AsyncGenerator[list[Envelope] | tuple[int, int]]:
    """What a run tells after that; a database that is away for a moment is waited for."""
    while True:
        try:
            async with aclosing(house.follow(run_id, after, _HEARTBEAT)) as told:
                async for some in told:
                    if isinstance(some, list) and some:
                        after = some[-1].seq
                    yield some
            return
        except Unavailable:
            logger.warning("a run cannot be followed; tried again", extra={"run_id": run_id})
        await asyncio.sleep(1)
