"""One contract, both databases: who may run what, and that nobody writes with an attempt that is over."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from uuid_utils import uuid7

from core.database.engine import Database, open_database
from core.database.migrate import alembic_config
from domain.background import AskedApproval, Beat, EventBatch, HandOver, Limits, Pause, Submission
from domain.enums import RunStatus, SessionKind
from domain.errors import Conflict, NotFound, RateLimited
from domain.runs import CallCost, RunEnd, RunFilter
from domain.usage import Usage
from tests.contracts.storage import add_owners, new_storage
from tests.contracts.test_record_stores import end, said, start
from tests.engines import ENGINES

pytestmark = pytest.mark.anyio

LEASE = timedelta(seconds=10)
MANY = Limits(room=100, per_owner=100)
USAGE = Usage(input_tokens=3, output_tokens=2, total_tokens=5)


@pytest.fixture(params=ENGINES)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    async with new_storage(request.param, tmp_path) as settings, open_database(settings) as opened:
        await add_owners(opened)
        yield opened


def new(session_id: str | None = None, owner: str = "ada", **more: Any) -> Submission:
    now = datetime.now(UTC)
    made: dict[str, Any] = {
        "id": str(uuid7()), "owner_id": owner, "session_id": session_id or str(uuid7()), "new_session": not session_id,
        "kind": SessionKind.AGENT, "agent": "simple", "model": "a/b", "input": "hello", "messages": [said("hello")],
        "metadata": {"dossier_id": "d1"}, "request": {}, "title": "hello", "created_at": now, "if_busy": "queue",
        "time_limit": 60.0,
    }  # fmt: skip
    return Submission(**(made | more))


async def claimed(
    database: Database, worker: str = "w1", limits: Limits = MANY, run_id: str | None = None
) -> list[str]:
    return [run.id for run in await database.backlog.claim(worker, limits, LEASE, run_id)]


async def status_of(database: Database, run_id: str) -> RunStatus:
    standing = await database.backlog.standing(run_id)
    assert standing is not None
    return standing[0]


def batch(run_id: str, first: int, last: int, attempt: int = 1, **more: Any) -> EventBatch:
    made: dict[str, Any] = {
        "run_id": run_id, "attempt": attempt, "owner_id": "ada", "session_id": None, "agent": "simple",
        "first_seq": first, "last_seq": last, "events": f'["{first}-{last}"]', "calls": [], "usage": None,
        "cost_pico": None, "all_calls": 0, "unmeasured": 0, "unpriced": 0,
    }  # fmt: skip
    return EventBatch(**(made | more))


def ended(run_id: str, session_id: str, attempt: int = 1, **more: Any) -> RunEnd:
    made: dict[str, Any] = {
        "id": run_id, "owner_id": "ada", "session_id": session_id, "agent": "simple", "status": RunStatus.COMPLETED,
        "model": "a/b", "output": "hi", "finish_reason": "stop", "error_code": None, "error_message": None,
        "messages": [said("hi", "assistant")], "calls": [], "events": "[]", "first_seq": 1, "last_seq": 0,
        "completed_at": datetime.now(UTC), "attempt": attempt,
    }  # fmt: skip
    return RunEnd(**(made | more))


async def test_a_run_is_claimed_once_however_many_workers_ask(database: Database) -> None:
    submitted = [new() for _ in range(20)]
    for one in submitted:
        await database.backlog.submit(one)
    taken = await asyncio.gather(*(claimed(database, f"w{number}", Limits(3, 100)) for number in range(10)))
    ids = [run_id for some in taken for run_id in some]
    assert sorted(ids) == sorted(one.id for one in submitted), "every one, and none twice"


async def test_what_was_asked_joins_the_session_when_the_run_begins(database: Database) -> None:
    first = new()
    await database.backlog.submit(first)
    second = new(first.session_id, messages=[said("later")])
    await database.backlog.submit(second)
    assert await claimed(database) == [first.id], "one at a time in a session"
    async with database.reading() as work:
        assert len(await work.raw_messages.find_by_session_id(first.session_id)) == 1
    assert await claimed(database) == []
    assert await database.records.end_run(ended(first.id, first.session_id))
    (run,) = await database.backlog.claim("w2", MANY, LEASE)
    assert (run.id, run.first_index, run.attempt, run.worker) == (second.id, 2, 1, "w2")
    async with database.reading() as work:
        roles = [
            raw.message_data["data"]["content"] for raw in await work.raw_messages.find_by_session_id(first.session_id)
        ]
    assert roles == ["hello", "hi", "later"]


async def test_the_most_urgent_is_first_and_the_oldest_of_those(database: Database) -> None:
    calm, one, other, urgent = new(priority=-1), new(), new(), new(priority=9)
    for submission in (calm, one, other, urgent):
        await database.backlog.submit(submission)
    order = [(await claimed(database, limits=Limits(1, 100)))[0] for _ in range(4)]
    assert order == [urgent.id, one.id, other.id, calm.id]


async def test_limits_of_owners_and_agents_are_kept_over_all_workers(database: Database) -> None:
    for owner, agent in [("ada", "a"), ("ada", "a"), ("ada", "b"), ("bob", "a"), ("bob", "b")]:
        await database.backlog.submit(new(owner=owner, agent=agent))
    limits = Limits(room=10, per_owner=2, per_agent={"a": 2})
    first = await database.backlog.claim("w1", limits, LEASE)
    assert sorted((run.owner_id, run.agent) for run in first) == [("ada", "a"), ("ada", "a"), ("bob", "b")]
    assert await claimed(database, "w2", limits) == []
    run = first[0]
    await database.records.end_run(ended(run.id, run.session_id or ""))
    freed = await database.backlog.claim("w2", limits, LEASE)
    assert sorted((run.owner_id, run.agent) for run in freed) == [("ada", "b"), ("bob", "a")]


async def test_nothing_of_a_disabled_user_begins_before_they_are_let_in_again(database: Database) -> None:
    theirs, other = new(owner="bob"), new()
    for submission in (theirs, other):
        await database.backlog.submit(submission)
    async with database.unit_of_work() as work:
        await work.users.update_one("bob", disabled=True)
    assert await claimed(database) == [other.id]
    assert await claimed(database, run_id=theirs.id) == []
    async with database.unit_of_work() as work:
        await work.users.update_one("bob", disabled=False)
    assert await claimed(database) == [theirs.id]


async def test_one_that_is_asked_for_by_name_is_the_only_one(database: Database) -> None:
    one, other = new(), new()
    await database.backlog.submit(one)
    await database.backlog.submit(other)
    assert await claimed(database, run_id=other.id) == [other.id]
    assert await claimed(database, run_id=other.id) == []


async def test_an_owner_with_too_many_in_the_queue_is_refused(database: Database) -> None:
    for _ in range(2):
        await database.backlog.submit(new(max_queued=2))
    with pytest.raises(RateLimited):
        await database.backlog.submit(new(max_queued=2))
    await database.backlog.submit(new(owner="bob", max_queued=2))
    assert await database.backlog.depth(100) == 3
    assert await database.backlog.depth(2) == 2


async def test_who_would_rather_not_wait_is_refused_and_somebody_elses_session_is_not_found(database: Database) -> None:
    first = new()
    await database.backlog.submit(first)
    with pytest.raises(Conflict):
        await database.backlog.submit(new(first.session_id, if_busy="reject"))
    with pytest.raises(NotFound):
        await database.backlog.submit(new(first.session_id, owner="bob"))
    both = await asyncio.gather(*(database.backlog.submit(new(str(uuid7()))) for _ in range(2)), return_exceptions=True)
    assert all(isinstance(one, NotFound) for one in both)


async def test_of_two_who_would_rather_not_wait_one_is_let_in(database: Database) -> None:
    first = new()
    await database.backlog.submit(first)
    await claimed(database)
    await database.records.end_run(ended(first.id, first.session_id))
    both = await asyncio.gather(
        *(database.backlog.submit(new(first.session_id, if_busy="reject")) for _ in range(2)), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in both) == ["Conflict", "bool"]


async def test_events_calls_and_totals_are_appended(database: Database) -> None:
    one = new()
    await database.backlog.submit(one)
    await claimed(database)
    call = CallCost("a/b", USAGE, 7)
    first = batch(one.id, 1, 3, calls=[call], usage=USAGE, cost_pico=7, all_calls=1, session_id=one.session_id)
    assert await database.backlog.keep_events([first, batch(one.id, 4, 4)], LEASE) == set()
    async with database.reading() as work:
        assert await work.runs.events(one.id) == ['["1-3"]', '["4-4"]']
        assert await work.runs.events(one.id, 3) == ['["4-4"]']
        run = await work.runs.find_one(id=one.id)
        spent = await work.model_calls.usage_of_session(one.session_id)
    assert run is not None
    assert (run.last_seq, run.calls, run.usage, run.cost_pico) == (4, 1, USAGE, 7)
    assert spent.usage == USAGE


async def test_nothing_is_written_with_an_attempt_that_is_over(database: Database) -> None:
    one = new()
    await database.backlog.submit(one)
    await claimed(database, "w1")
    recovered = await database.records.recover_runs(None, frozenset({"w1"}), frozenset(), 5)
    assert recovered.requeued == [one.id]
    (run,) = await database.backlog.claim("w2", MANY, LEASE)
    assert run.attempt == 2
    assert await database.backlog.keep_events([batch(one.id, 1, 1, attempt=1)], LEASE) == {one.id}
    assert await database.backlog.beat([Beat(one.id, 1, 5.0, "x")], "w1", LEASE) == {}
    now = datetime.now(UTC)
    assert not await database.backlog.pause(Pause(one.id, 1, RunStatus.QUEUED, now, 0.0), None)
    assert not await database.records.end_run(ended(one.id, one.session_id, attempt=1))
    assert await status_of(database, one.id) is RunStatus.RUNNING
    assert await database.records.end_run(ended(one.id, one.session_id, attempt=2))
    assert not await database.records.end_run(ended(one.id, one.session_id, attempt=2)), "nor twice"


async def test_a_beat_prolongs_the_lease_and_tells_who_is_to_stop(database: Database) -> None:
    one, other = new(), new()
    for submission in (one, other):
        await database.backlog.submit(submission)
    await claimed(database, "w1")
    assert await database.backlog.cancel(one.id, "ada") is RunStatus.CANCELLING
    told = await database.backlog.beat([Beat(one.id, 1, 1.0, None), Beat(other.id, 1, 1.0, "draft")], "w1", LEASE)
    assert told == {one.id: RunStatus.CANCELLING, other.id: RunStatus.RUNNING}
    assert await database.backlog.cancelling("w1") == [one.id]
    assert await database.backlog.cancelling("w2") == []
    soon = datetime.now(UTC) + LEASE / 2
    assert (await database.records.recover_runs(soon, frozenset(), frozenset(), 5)).requeued == []
    late = datetime.now(UTC) + LEASE * 2
    recovered = await database.records.recover_runs(late, frozenset(), frozenset(), 5)
    assert (recovered.requeued, recovered.cancelled) == ([other.id], [one.id])


async def test_a_run_that_crashed_too_often_or_may_not_resume_is_lost(database: Database) -> None:
    poison, once = new(), new(may_resume=False)
    for submission in (poison, once):
        await database.backlog.submit(submission)
    await claimed(database, "w1")
    first = await database.records.recover_runs(None, frozenset({"w1"}), frozenset(), 1)
    assert (first.requeued, first.lost) == ([poison.id], [once.id])
    await claimed(database, "w2")
    second = await database.records.recover_runs(None, frozenset({"w2"}), frozenset(), 1)
    assert second.lost == [poison.id]
    async with database.reading() as work:
        dead = await work.runs.find_runs(RunFilter("ada", dead=True))
    assert {(run.id, run.error_code) for run in dead} == {(poison.id, "run_poisonous"), (once.id, "run_lost")}


async def test_a_run_that_makes_progress_is_forgiven_its_crashes(database: Database) -> None:
    one = new()
    await database.backlog.submit(one)
    for number in range(6):
        now = datetime.now(UTC) + timedelta(hours=number)
        await claimed(database, "w1")
        async with database.unit_of_work() as work:
            await work.runs.update_one(one.id, available_at=now - timedelta(hours=9))
        standing = await database.backlog.standing(one.id)
        assert standing is not None
        assert standing[0] is RunStatus.RUNNING
        await database.backlog.set_mark(one.id, number + 1, f"checkpoint {number}")
        recovered = await database.records.recover_runs(None, frozenset({"w1"}), frozenset(), 1)
        assert recovered.requeued == [one.id]
        async with database.unit_of_work() as work:
            await work.runs.update_one(one.id, available_at=datetime.now(UTC) - timedelta(seconds=1))


async def test_a_waiting_run_goes_on_when_the_last_approval_is_answered(database: Database) -> None:
    one = new()
    await database.backlog.submit(one)
    await claimed(database)
    now = datetime.now(UTC)
    asked = [AskedApproval("a", {"question": "日本"}), AskedApproval("b", None)]
    pause = Pause(one.id, 1, RunStatus.WAITING, now, 3.5, approvals=asked)
    assert await database.backlog.pause(pause, batch(one.id, 1, 4))
    assert await status_of(database, one.id) is RunStatus.WAITING
    assert await claimed(database) == []

    async def answer(approval_id: str, owner: str = "ada") -> RunStatus:
        return await database.backlog.answer(one.id, owner, approval_id, approved=True, answer={"x": 1}, by="ada")

    with pytest.raises(NotFound):
        await answer("a", "bob")
    with pytest.raises(NotFound):
        await answer("c")
    assert await answer("a") is RunStatus.WAITING
    clicks = await asyncio.gather(*(answer("b") for _ in range(5)), return_exceptions=True)
    assert sorted(str(type(click).__name__) for click in clicks) == ["Conflict"] * 4 + ["RunStatus"]
    (run,) = await database.backlog.claim("w2", MANY, LEASE)
    assert (run.attempt, run.spent, run.last_seq) == (2, 3.5, 4)
    stored = await database.backlog.approvals(one.id)
    assert [(each.id, each.payload, each.status, each.answer) for each in stored] == [
        ("a", {"question": "日本"}, "approved", {"x": 1}), ("b", None, "approved", {"x": 1}),
    ]  # fmt: skip


async def test_an_attached_run_that_asks_waits_in_the_background_from_then_on(database: Database) -> None:
    asking, stopped = start(), start()
    for one in (asking, stopped):
        await database.records.begin_run(one)
    assert await database.backlog.cancel(stopped.id, "ada") is RunStatus.CANCELLING

    def handed(run_id: str) -> HandOver:
        asked = [AskedApproval("a", {"question": "?"})]
        pause = Pause(run_id, 1, RunStatus.WAITING, datetime.now(UTC), 2.5, approvals=asked)
        heard = [said("I see.", "assistant")]
        where = {"session_id": asking.session_id, "owner_id": "ada", "messages": heard}
        return HandOver(pause, **where, request={}, time_limit=60.0, may_resume=True, first_index=0, synced=0)

    paid = {"calls": [CallCost("a/b", USAGE, 7)], "usage": USAGE, "all_calls": 1}
    assert await database.backlog.hand_over(handed(asking.id), batch(asking.id, 1, 4, **paid))
    assert not await database.backlog.hand_over(handed(asking.id), batch(asking.id, 1, 4, **paid)), "once"
    assert not await database.backlog.hand_over(handed(stopped.id), batch(stopped.id, 1, 4, **paid))
    assert not await database.backlog.approvals(stopped.id)
    late = datetime.now(UTC) + timedelta(days=9)
    await database.records.renew(
        {asking.id: "a draft", stopped.id: None}, datetime.now(UTC)
    )  # by who has not heard yet
    recovered = await database.records.recover_runs(late, frozenset({asking.worker}), frozenset(), 5)
    assert recovered.lost == [stopped.id], "who waits has no worker that could die"
    answered = await database.backlog.answer(asking.id, "ada", "a", approved=True, answer=1, by="ada")
    assert answered is RunStatus.QUEUED
    (run,) = await database.backlog.claim("w2", MANY, LEASE)
    assert (run.id, run.attempt, run.spent, run.last_seq, run.time_limit) == (asking.id, 2, 2.5, 4, 60.0)
    assert (run.request, run.may_resume, run.first_index) == ({}, True, 0)
    async with database.reading() as work:
        lines = await work.simple_messages.find_by_session_id(asking.session_id)
    assert [line.content for line in lines][-1] == "I see.", "what was heard is part of the session"


async def test_a_run_that_nobody_runs_is_cancelled_at_once(database: Database) -> None:
    one = new()
    await database.backlog.submit(one)
    with pytest.raises(NotFound):
        await database.backlog.cancel(one.id, "bob")
    assert await database.backlog.cancel(one.id, "ada") is RunStatus.CANCELLED
    assert await database.backlog.cancel(one.id, "ada") is RunStatus.CANCELLED
    assert await claimed(database) == []


async def test_a_run_that_is_cancelled_does_not_go_back_to_the_queue(database: Database) -> None:
    one = new()
    await database.backlog.submit(one)
    await claimed(database)
    await database.backlog.cancel(one.id, "ada")
    pause = Pause(one.id, 1, RunStatus.QUEUED, datetime.now(UTC), 0.0)
    call = CallCost("a/b", USAGE, 7)
    told = batch(one.id, 1, 3, calls=[call], usage=USAGE, all_calls=1, session_id=one.session_id)
    assert not await database.backlog.pause(pause, told)
    async with database.reading() as work:
        run = await work.runs.find_one(id=one.id)
        assert await work.runs.events(one.id) == [], "nothing of it is written"
        assert (await work.model_calls.usage_of_session(one.session_id)).calls == 0
    assert run is not None
    assert run.lease_until is not None, "should its worker die now, somebody finds out"
    assert await database.records.end_run(ended(one.id, one.session_id, status=RunStatus.CANCELLED))


async def test_a_run_may_begin_only_from_its_moment_on(database: Database) -> None:
    one = new()
    await database.backlog.submit(one)
    await claimed(database)
    now = datetime.now(UTC)
    later = now + timedelta(hours=1)
    assert await database.backlog.pause(
        Pause(one.id, 1, RunStatus.QUEUED, now, 0.0, available_at=later, retried=True), None
    )
    assert await claimed(database) == []
    standing = await database.backlog.standing(one.id)
    assert standing is not None
    assert (standing[0], standing[3]) == (RunStatus.QUEUED, later)


async def test_both_or_neither_when_something_else_is_to_be_done_too(database: Database) -> None:
    async def no(_work: Any) -> bool:
        return False

    async def fails(_work: Any) -> bool:
        raise RuntimeError("no")

    one = new()
    assert not await database.backlog.submit(one, no)
    with pytest.raises(RuntimeError):
        await database.backlog.submit(one, fails)
    assert await database.backlog.standing(one.id) is None


async def test_events_are_trimmed_and_threads_are_forgotten_only_of_ended_runs(database: Database) -> None:
    one, other = new(), new()
    for submission in (one, other):
        await database.backlog.submit(submission)
    await claimed(database)
    await database.backlog.keep_events([batch(one.id, 1, 1), batch(other.id, 1, 1)], LEASE)
    await database.records.end_run(ended(one.id, one.session_id, events='["x"]', first_seq=1, last_seq=2))
    assert await database.backlog.threads_to_forget(10) == [one.id]
    await database.backlog.thread_forgotten(one.id)
    assert await database.backlog.threads_to_forget(10) == []
    soon = datetime.now(UTC) + timedelta(seconds=5)
    assert await database.backlog.trim_events(soon, 100) == 1
    async with database.reading() as work:
        assert await work.runs.events(one.id) == []
        assert len(await work.runs.events(other.id)) == 1


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_database_of_the_version_before_keeps_what_it_holds(engine: str, tmp_path: Path) -> None:
    async with new_storage(engine, tmp_path) as settings:
        before = start()
        async with open_database(settings) as database:
            await add_owners(database)
            begun = await database.records.begin_run(before)
            await database.records.end_run(end(before))
            async with database._engine.connect() as plain:
                connection = await plain.execution_options(routeur_begin="BEGIN IMMEDIATE")
                async with connection.begin():
                    await connection.run_sync(lambda one: command.downgrade(alembic_config(one), "0002"))
        async with open_database(settings) as database:
            async with database.reading() as work:
                kept = await work.runs.owned(before.id, "ada")
            assert kept is not None
            assert (kept.status, kept.background, kept.attempt, kept.dead) == (RunStatus.COMPLETED, False, 0, False)
            later = new(begun.session_id)
            await database.backlog.submit(later)
            assert await claimed(database) == [later.id]
