"""A run that waits, alone: which words answer which of its questions, whatever else happens meanwhile."""

from collections.abc import AsyncGenerator

import pytest

from domain.auth import CredentialKind, Principal, Scope, UserId
from domain.background import ApprovalAnswer, AskedApproval, RunState
from domain.enums import RunStatus
from domain.errors import Conflict
from domain.events import Envelope
from services.realtime.response import TextPiece
from services.realtime.waiting import FollowedAnswer, HouseAnswer, WaitingRun

pytestmark = pytest.mark.anyio
CALLER = Principal(UserId("u"), "ada", frozenset({Scope.REALTIME}), CredentialKind.API_KEY, "k")


class Desk:
    """Keeps answers; those to `taken` were given by somebody else before."""

    def __init__(self, *taken: str) -> None:
        self.taken = set(taken)
        self.given: list[tuple[str, str, str | None]] = []

    async def approve(self, run_id: str, answer: ApprovalAnswer, caller: Principal) -> RunState:
        if answer.approval_id in self.taken:
            raise Conflict("This approval has been answered.", code="approval_answered")
        self.taken.add(answer.approval_id)
        self.given.append((answer.approval_id, answer.decision, answer.reason))
        return RunState(run_id=run_id, status=RunStatus.WAITING)

    async def cancel(self, run_id: str, caller: Principal) -> RunState:
        return RunState(run_id=run_id, status=RunStatus.CANCELLED)

    async def follow(self, run_id: str, after: int, heartbeat: float) -> AsyncGenerator[list[Envelope]]:
        yield []


def two_questions(desk: Desk) -> WaitingRun:
    asked = [AskedApproval("a", {"question": "May I pay?"}), AskedApproval("b", {"question": "May I delete?"})]
    waiting = WaitingRun(desk, CALLER, "asker", "run", 7, asked)
    waiting.question()
    waiting.was_told(whole=True)
    return waiting


async def text_of(answer: object) -> str:
    assert isinstance(answer, HouseAnswer)
    return "".join([piece.text async for pieces in answer.pieces() for piece in pieces if isinstance(piece, TextPiece)])


async def said(waiting: WaitingRun, item_id: str, text: str) -> object:
    waiting.note(item_id)
    return await waiting.reply([(item_id, text)])


async def test_each_question_has_its_own_answer() -> None:
    desk = Desk()
    waiting = two_questions(desk)
    assert await text_of(await said(waiting, "1", "yes")) == "May I delete?"
    waiting.was_told(whole=True)
    assert isinstance(await said(waiting, "2", "no, keep it"), FollowedAnswer)
    assert desk.given == [("a", "approve", "yes"), ("b", "reject", "no, keep it")]


async def test_a_yes_to_what_somebody_else_has_answered_is_none_to_the_next_question() -> None:
    desk = Desk("a")
    waiting = two_questions(desk)
    with pytest.raises(Conflict):
        await said(waiting, "1", "yes")
    assert await text_of(await waiting.reply([("1", "yes")])) == "May I delete?", "given back, and asked again"
    assert desk.given == []


async def test_a_click_while_the_question_is_told_leaves_the_next_one_untold() -> None:
    desk = Desk()
    waiting = two_questions(desk)
    waiting.question()  # it is being told once more
    await waiting.click("a", approved=True, reason=None)
    waiting.was_told(whole=True)
    assert not waiting.told
    assert await text_of(await said(waiting, "1", "yes")) == "May I delete?"
    assert desk.given == [("a", "approve", None)]


async def test_a_click_on_a_later_question_leaves_the_present_one_open() -> None:
    desk = Desk()
    waiting = two_questions(desk)
    await waiting.click("b", approved=False, reason="no")
    assert waiting.told
    assert isinstance(await said(waiting, "1", "yes"), FollowedAnswer)
    assert desk.given == [("b", "reject", "no"), ("a", "approve", "yes")]


async def test_what_was_said_before_is_a_reason_and_no_answer() -> None:
    desk = Desk()
    waiting = two_questions(desk)
    waiting.was_told(whole=False)
    assert await text_of(await said(waiting, "1", "yes")) == "May I pay?"
    waiting.was_told(whole=True)
    assert (await text_of(await said(waiting, "2", "how much is it"))).startswith("I need a yes or a no. ")
    waiting.was_told(whole=True)
    await said(waiting, "3", "no")
    assert desk.given == [("a", "reject", "yes how much is it no")]
