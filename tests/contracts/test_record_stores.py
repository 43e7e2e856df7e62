"""One contract, every store: what sessions, messages, runs and usage promise."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from uuid_utils import uuid7

from domain.enums import RunStatus, SessionKind
from domain.errors import Conflict, NotFound
from domain.ports import RecordStore
from domain.runs import (
    BAD,
    CallCost,
    Cursor,
    ModelCall,
    NewMessage,
    Run,
    RunEnd,
    RunFilter,
    RunStart,
    SimplePart,
    counted_columns,
)
from domain.sessions import Session
from domain.usage import Usage
from tests.contracts.storage import STORES, open_store

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC)
LATER = NOW + timedelta(seconds=30)
USAGE = Usage(input_tokens=11, output_tokens=5, total_tokens=16, cached_tokens=3)


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[RecordStore]:
    async with open_store(request.param, tmp_path) as opened:
        yield opened


def session(owner: str = "ada", **more: Any) -> Session:
    made = Session(
        id=str(uuid7()), owner_id=owner, agent="simple", title="日本", created_at=NOW, updated_at=NOW, used_at=NOW
    )
    return made.model_copy(update=more)


def run(owner: str = "ada", **more: Any) -> Run:
    made = Run(
        id=str(uuid7()), owner_id=owner, agent="simple", status=RunStatus.COMPLETED, input="hi",
        output={"a": [1, None]}, created_at=NOW, started_at=NOW, updated_at=NOW,
        completed_at=NOW + timedelta(seconds=2),
    )  # fmt: skip
    return made.model_copy(update=more)


def said(text: str, role: str = "user", **more: Any) -> NewMessage:
    data = {"type": "human", "data": {"content": text}}
    return NewMessage("langchain", orjson.dumps(data).decode(), [SimplePart(role, text, **more)], NOW)


def start(session_id: str | None = None, owner: str = "ada", *, at: datetime = NOW, **more: Any) -> RunStart:
    made = RunStart(
        id=str(uuid7()), owner_id=owner, session_id=session_id or str(uuid7()), new_session=session_id is None,
        kind=SessionKind.AGENT, agent="simple", model="a/b", input="hello", messages=[said("hello")], metadata={},
        created_at=at, lease_until=at + timedelta(seconds=30), worker="host:1:x", title="hello",
    )  # fmt: skip
    for name, value in more.items():
        setattr(made, name, value)
    return made


def end(begun: RunStart, **more: Any) -> RunEnd:
    made = RunEnd(
        id=begun.id, owner_id=begun.owner_id, session_id=begun.session_id, agent=begun.agent,
        status=RunStatus.COMPLETED, model="a/b", output="answer", finish_reason="stop", error_code=None,
        error_message=None, messages=[said("answer", "assistant", model="a/b")], calls=[CallCost("a/b", USAGE, 42)],
        events='[{"seq":1}]', first_seq=1, last_seq=1, completed_at=begun.created_at + timedelta(seconds=2),
        usage=USAGE, cost_pico=42,
    )  # fmt: skip
    for name, value in more.items():
        setattr(made, name, value)
    return made


async def ran(store: RecordStore, begun: RunStart, **more: Any) -> RunStart:
    await store.begin_run(begun)
    assert await store.end_run(end(begun, **more))
    return begun


async def texts(store: RecordStore, session_id: str) -> list[str]:
    async with store.reading() as work:
        return [line.content for line in await work.simple_messages.find_by_session_id(session_id)]


# -- the generic operations --


async def test_what_is_written_comes_back_the_same(store: RecordStore) -> None:
    one = session(
        kind=SessionKind.TEAM, agents=["a", "b"], state={"step": 1, "x": [None, 1.5]},
        metadata={"dossier_id": "dossier:abc123", "n": 1, "yes": True, "nothing": None},
        parent_id=str(uuid7()), branched_at=3,
    )  # fmt: skip
    two = run(
        metadata={"k": "v"}, cost_pico=10**15, input_tokens=2**40, output_tokens=1, total_tokens=2**40 + 1, calls=1
    )
    async with store.unit_of_work() as work:
        await work.sessions.create(one)
        await work.runs.create(two)
    async with store.reading() as work:
        assert await work.sessions.find_one(id=one.id) == one
        assert await work.runs.find_one(id=two.id) == two
        assert await work.sessions.find_one(id="nobody") is None
        assert await work.sessions.find_many(agent="simple") == [one]
        assert await work.runs.find_many(owner_id="ada", limit=5) == [two]


async def test_one_record_is_changed_or_deleted_and_says_if_it_was_there(store: RecordStore) -> None:
    one = session()
    async with store.unit_of_work() as work:
        await work.sessions.create_session(one)
        assert await work.sessions.update_one(one.id, title="new")
        assert not await work.sessions.update_one("nobody", title="new")
    async with store.unit_of_work() as work:
        found = await work.sessions.find_one(id=one.id)
        assert found == one.model_copy(update={"title": "new"})
        assert await work.sessions.delete_one(one.id)
    async with store.unit_of_work() as work:
        assert not await work.sessions.delete_one(one.id)


async def test_an_id_that_is_taken_is_a_conflict(store: RecordStore) -> None:
    one = session()
    async with store.unit_of_work() as work:
        await work.sessions.create(one)
    with pytest.raises(Conflict):
        async with store.unit_of_work() as work:
            await work.sessions.create(one)


async def test_an_error_undoes_the_whole_unit_of_work(store: RecordStore) -> None:
    one = session()

    async def half() -> None:
        async with store.unit_of_work() as work:
            await work.sessions.create(one)
            await work.raw_messages.append_to_session(one.id, "ada", [said("x")])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        await half()
    async with store.reading() as work:
        assert await work.sessions.find_one(id=one.id) is None
        assert await work.raw_messages.find_by_session_id(one.id) == []


# -- messages --


async def test_a_thousand_appends_at_once_lose_repeat_and_reorder_nothing(store: RecordStore) -> None:
    one = session()
    async with store.unit_of_work() as work:
        await work.sessions.create(one)

    async def append(number: int) -> list[int]:
        return await store.append(one.id, "ada", [said(f"{number} first"), said(f"{number} second")])

    given = await asyncio.gather(*(append(number) for number in range(500)))
    assert sorted(index for pair in given for index in pair) == list(range(1_000))
    found = []
    async with store.reading() as work:
        while page := await work.raw_messages.find_by_session_id(one.id, after=len(found) - 1, limit=300):
            found += page
        stored = await work.sessions.find_one(id=one.id)
    assert [raw.message_index for raw in found] == list(range(1_000))
    assert stored is not None
    assert stored.message_count == 1_000
    for number, (first, second) in enumerate(given):
        assert second == first + 1, "what is appended together stays together"
        assert found[first].message_data["data"]["content"] == f"{number} first"
        assert found[second].message_data["data"]["content"] == f"{number} second"


async def test_units_of_work_and_single_appends_share_one_count(store: RecordStore) -> None:
    one = session()
    async with store.unit_of_work() as work:
        await work.sessions.create(one)
        assert await work.raw_messages.create_for_session(one.id, "ada", [said("a"), said("b")]) == [0, 1]
        assert await work.raw_messages.append_to_session(one.id, "ada", [said("c")]) == [2]
    assert await store.append(one.id, "ada", [said("d")]) == [3]
    assert await texts(store, one.id) == ["a", "b", "c", "d"]


async def test_a_message_of_several_lines_is_never_torn_by_a_page(store: RecordStore) -> None:
    one = session()
    lines = [SimplePart("system", "s"), SimplePart("user", "u"), SimplePart("tool", "t", "tool_result", "clock")]
    async with store.unit_of_work() as work:
        await work.sessions.create(one)
        many = [NewMessage("pydantic-ai", '{"kind": "request"}', lines, NOW) for _ in range(3)]
        await work.raw_messages.append_to_session(one.id, "ada", many)
    async with store.reading() as work:
        first = await work.simple_messages.find_by_session_id(one.id, limit=5)
        assert [(line.message_index, line.part) for line in first] == [(0, 0), (0, 1), (0, 2)]
        rest = await work.simple_messages.find_by_session_id(one.id, after=0, limit=100)
        assert [(line.message_index, line.content) for line in rest[:3]] == [(1, "s"), (1, "u"), (1, "t")]
        assert (rest[2].kind, rest[2].name, rest[2].timestamp) == ("tool_result", "clock", NOW)


async def test_a_message_can_be_cut_and_no_other_is_touched(store: RecordStore) -> None:
    begun = await ran(store, start())
    await ran(store, start(begun.session_id))
    async with store.unit_of_work() as work:
        raws = await work.raw_messages.find_by_session_id(begun.session_id)
        lines = await work.simple_messages.find_by_session_id(begun.session_id)
        data = {"type": "ai", "data": {"content": "ans"}}
        cut = raws[1].model_copy(update={"message_data": data})
        await work.raw_messages.cut(cut, [lines[1].model_copy(update={"content": "ans", "partial": True})])
    async with store.reading() as work:
        assert await work.raw_messages.find_by_session_id(begun.session_id) == [raws[0], cut, *raws[2:]]
    assert await texts(store, begun.session_id) == ["hello", "ans", "hello", "answer"]


async def test_the_simplified_view_can_be_put_in_place_again(store: RecordStore) -> None:
    begun = await ran(store, start())
    async with store.unit_of_work() as work:
        lines = await work.simple_messages.find_by_session_id(begun.session_id)
        await work.simple_messages.replace_for_session(begun.session_id, lines[:1])
    assert await texts(store, begun.session_id) == ["hello"]


async def test_nobody_appends_to_a_session_of_somebody_else(store: RecordStore) -> None:
    begun = await ran(store, start())
    for session_id in (begun.session_id, "nobody"):
        with pytest.raises(NotFound) as caught:
            await store.append(session_id, "bob", [said("x")])
        assert caught.value.code == "session_not_found"
        with pytest.raises(NotFound):
            await store.begin_run(start(session_id, "bob"))
    assert await texts(store, begun.session_id) == ["hello", "answer"]


# -- calls outside of runs --


def lone_call(owner: str = "ada", usage: Usage | None = USAGE, cost: int | None = 42, **more: Any) -> ModelCall:
    made = ModelCall(
        owner_id=owner, run_id=None, session_id=None, agent="", model="a/embed", created_at=NOW,
        **counted_columns(usage, cost),
    )  # fmt: skip
    return made.model_copy(update=more)


async def test_a_call_outside_of_runs_is_its_owners_and_no_sessions(store: RecordStore) -> None:
    begun = await ran(store, start())
    await store.note_call(lone_call())
    await store.note_call(lone_call(usage=None, cost=None, model="a/other"))
    await store.note_call(lone_call("bob"))
    async with store.reading() as work:
        hers = await work.model_calls.outside_runs("ada")
        his = await work.model_calls.outside_runs("bob")
        last = await work.model_calls.outside_runs("ada", limit=1)
        spent = await work.model_calls.usage_of_session(begun.session_id)
    assert [(call.model, call.usage, call.cost_pico) for call in hers] == [
        ("a/other", None, None),
        ("a/embed", USAGE, 42),
    ]
    assert [(call.run_id, call.session_id, call.agent, call.created_at) for call in hers] == [(None, None, "", NOW)] * 2
    assert (len(his), len(last), spent.calls) == (1, 1, 1)


async def test_a_runs_calls_do_not_become_lone_ones_when_it_is_deleted(store: RecordStore) -> None:
    begun = await ran(store, start())
    async with store.unit_of_work() as work:
        assert await work.sessions.delete_session(begun.session_id, "ada")
    async with store.reading() as work:
        assert await work.model_calls.outside_runs("ada") == []


async def test_a_call_that_nobody_waits_for_is_written(store: RecordStore) -> None:
    begun = await ran(store, start())
    writing = store.note_call(lone_call())
    await store.append(begun.session_id, "ada", [said("next")])  # whatever is written after it
    async with store.reading() as work:
        assert len(await work.model_calls.outside_runs("ada")) == 1
    await writing


# -- runs --


async def test_a_run_brings_its_session_its_messages_its_usage_and_its_events(store: RecordStore) -> None:
    begun = await ran(store, start(metadata={"dossier_id": "dossier:abc123"}), synced=True)
    async with store.reading() as work:
        stored = await work.runs.owned(begun.id, "ada")
        kept = await work.sessions.owned(begun.session_id, "ada")
        raws = await work.raw_messages.find_by_session_id(begun.session_id)
        lines = await work.simple_messages.find_by_session_id(begun.session_id)
        calls = await work.model_calls.of_run(begun.id)
        assert await work.runs.events(begun.id) == ['[{"seq":1}]']
        assert await work.runs.owned(begun.id, "bob") is None
        assert await work.sessions.owned(begun.session_id, "bob") is None
    assert stored is not None
    assert (stored.status, stored.output, stored.usage, stored.cost_pico) == (RunStatus.COMPLETED, "answer", USAGE, 42)
    assert (stored.started_at, stored.completed_at) == (NOW, NOW + timedelta(seconds=2))
    assert (stored.lease_until, stored.draft, stored.calls, stored.input) == (None, None, 1, "hello")
    assert kept is not None
    assert (kept.title, kept.model, kept.message_count, kept.synced) == ("hello", "a/b", 2, 2)
    assert kept.metadata == stored.metadata == {"dossier_id": "dossier:abc123"}
    assert [(raw.message_index, raw.run_id, raw.format) for raw in raws] == [
        (0, begun.id, "langchain"),
        (1, begun.id, "langchain"),
    ]
    assert [(line.role.value, line.content, line.model) for line in lines] == [
        ("user", "hello", None),
        ("assistant", "answer", "a/b"),
    ]
    assert [(call.model, call.usage, call.cost_pico) for call in calls] == [("a/b", USAGE, 42)]


async def test_a_session_answers_one_at_a_time(store: RecordStore) -> None:
    first = await ran(store, start())

    async def begin() -> str:
        try:
            return (await store.begin_run(start(first.session_id))).session_id
        except Conflict as error:
            return error.code

    told = await asyncio.gather(*(begin() for _ in range(12)))
    assert sorted(told) == sorted([first.session_id] + ["session_busy"] * 11)
    assert await texts(store, first.session_id) == ["hello", "answer", "hello"], "the refused left nothing behind"


async def test_runs_of_different_sessions_do_not_wait_for_each_other(store: RecordStore) -> None:
    begun = [start() for _ in range(50)]
    await asyncio.gather(*(store.begin_run(one) for one in begun))
    assert all(await asyncio.gather(*(store.end_run(end(one)) for one in begun)))


async def test_a_dead_run_does_not_lock_its_session(store: RecordStore) -> None:
    dead = start()
    await store.begin_run(dead)
    await store.renew({dead.id: "half an ans"}, LATER)
    after = start(dead.session_id, at=LATER + timedelta(seconds=1))
    begun = await store.begin_run(after)
    assert begun.first_index == 2
    assert await texts(store, dead.session_id) == ["hello", "half an ans", "hello"]
    async with store.reading() as work:
        lost = await work.runs.owned(dead.id, "ada")
        lines = await work.simple_messages.find_by_session_id(dead.session_id)
    assert lost is not None
    assert (lost.status, lost.error_code) == (RunStatus.LOST, "run_lost")
    assert [line.partial for line in lines] == [False, True, False]


async def test_what_has_ended_does_not_change_and_what_was_spent_is_kept(store: RecordStore) -> None:
    begun = await ran(store, start())
    assert not await store.end_run(
        end(begun, status=RunStatus.FAILED, output="late", calls=[CallCost("a/b", None, None)])
    )
    async with store.reading() as work:
        stored = await work.runs.owned(begun.id, "ada")
        calls = await work.model_calls.of_run(begun.id)
    assert stored is not None
    assert (stored.status, stored.output) == (RunStatus.COMPLETED, "answer")
    assert [call.usage for call in calls] == [USAGE, None]
    assert await texts(store, begun.session_id) == ["hello", "answer"]


async def test_an_end_that_nobody_waits_for_is_written(store: RecordStore) -> None:
    begun = start()
    await store.begin_run(begun)
    writing = store.end_run(end(begun))
    await store.append(begun.session_id, "ada", [said("next")])  # whatever is written after it
    async with store.reading() as work:
        stored = await work.runs.owned(begun.id, "ada")
    assert stored is not None
    assert stored.status is RunStatus.COMPLETED
    assert await writing


async def test_runs_of_dead_processes_are_ended_with_their_drafts(store: RecordStore) -> None:
    lapsed, here, alive = start(), start(worker="host:2:y"), start(worker="host:3:z")
    long = start(at=NOW - timedelta(days=2), worker="host:3:z")
    for one in (lapsed, here, alive, long):
        await store.begin_run(one)
    await store.renew({here.id: "so far", alive.id: None, long.id: "long"}, LATER + timedelta(hours=1))
    async with store.reading() as work:
        going = await work.runs.in_progress("ada", LATER + timedelta(seconds=1))
        assert {one.id for one in going} == {alive.id, here.id, long.id}
        assert len(going) == 3
        assert going[-1].id == long.id, "newest first, and a long one is seen"
        assert await work.runs.in_progress("bob", NOW) == []
    dead, now = frozenset({"host:2:y"}), LATER + timedelta(seconds=1)
    assert (await store.recover_runs(now, dead, frozenset({lapsed.id, here.id}), 5)).lost == [], "here they are alive"
    assert set((await store.recover_runs(now, dead, frozenset(), 5)).lost) == {lapsed.id, here.id}
    assert (await store.recover_runs(now, dead, frozenset(), 5)).lost == []
    assert await texts(store, here.session_id) == ["hello", "so far"]
    assert await texts(store, lapsed.session_id) == ["hello"]
    async with store.reading() as work:
        found = {one.id: one.status for one in await work.runs.find_runs(RunFilter(owner_id="ada"))}
        raws = await work.raw_messages.find_by_session_id(here.session_id)
    assert found == {
        lapsed.id: RunStatus.LOST, here.id: RunStatus.LOST, alive.id: RunStatus.RUNNING, long.id: RunStatus.RUNNING,
    }  # fmt: skip
    assert raws[1].message_data["data"]["response_metadata"]["partial"] is True


# -- deleting --


async def test_deleting_a_session_leaves_nothing_but_what_it_cost(store: RecordStore) -> None:
    begun = await ran(store, start(metadata={"k": "v"}))
    other = await ran(store, start())
    async with store.unit_of_work() as work:
        assert not await work.sessions.delete_session(begun.session_id, "bob")
        assert await work.sessions.delete_session(begun.session_id, "ada")
    async with store.reading() as work:
        assert await work.sessions.owned(begun.session_id, "ada") is None
        assert await work.raw_messages.find_by_session_id(begun.session_id) == []
        assert await work.simple_messages.find_by_session_id(begun.session_id) == []
        assert await work.runs.owned(begun.id, "ada") is None
        assert await work.runs.events(begun.id) == []
        assert await work.runs.find_runs(RunFilter(owner_id="ada", metadata={"k": "v"})) == []
        assert (await work.model_calls.usage_of_session(begun.session_id)).calls == 0
        assert (await work.model_calls.usage_of_session(other.session_id)).calls == 1
    assert not await store.end_run(end(begun)), "a run that was deleted while it ran"


# -- finding --


async def test_sessions_are_found_by_agent_kind_and_metadata_the_latest_used_first(store: RecordStore) -> None:
    made = [
        session(
            used_at=NOW + timedelta(seconds=number),
            agent="react" if number % 2 else "simple",
            metadata={"n": number % 3},
        )
        for number in range(6)
    ]
    async with store.unit_of_work() as work:
        for one in made:
            await work.sessions.create(one)
        await work.sessions.create(session("bob", agent="react", metadata={"n": 0}))
        await work.sessions.create(session(kind=SessionKind.TEAM, used_at=NOW - timedelta(days=1)))
    newest = [one.id for one in reversed(made)]
    async with store.reading() as work:
        by_agent = await work.sessions.find_by_agent_id("react", "ada")
        assert [one.id for one in by_agent] == [made[5].id, made[3].id, made[1].id]
        assert [one.id for one in await work.sessions.find_recent_sessions("ada", kind="agent")] == newest
        assert len(await work.sessions.find_recent_sessions("ada", kind="team")) == 1
        zero = await work.sessions.find_recent_sessions("ada", metadata={"n": "0"})
        assert [one.id for one in zero] == [made[3].id, made[0].id]
        assert await work.sessions.find_recent_sessions("ada", metadata={"n": "0"}, agent="simple") == [made[0]]
        assert sorted(await work.sessions.ids(after="", limit=100)) == await work.sessions.ids(after="", limit=100)
        assert len(await work.sessions.ids(after="", limit=100)) == 8


async def test_changing_metadata_moves_a_session_in_the_index(store: RecordStore) -> None:
    one = session(metadata={"a": "1", "b": "2"})
    async with store.unit_of_work() as work:
        await work.sessions.create(one)
        assert await work.sessions.update_session(one.id, "ada", metadata={"a": "3"})
        assert not await work.sessions.update_session(one.id, "bob", metadata={"a": "4"})
    async with store.reading() as work:
        assert [s.metadata for s in await work.sessions.find_recent_sessions("ada", metadata={"a": "3"})] == [
            {"a": "3"}
        ]
        assert await work.sessions.find_recent_sessions("ada", metadata={"a": "1"}) == []
        assert await work.sessions.find_recent_sessions("ada", metadata={"b": "2"}) == []


async def test_pages_have_neither_holes_nor_repeats_even_at_one_moment(store: RecordStore) -> None:
    async with store.unit_of_work() as work:
        for number in range(7):
            await work.sessions.create(session(used_at=NOW + timedelta(seconds=number // 3)))
            await work.runs.create(run(created_at=NOW + timedelta(seconds=number // 3), metadata={"k": "v"}))
    sessions: list[Session] = []
    runs: dict[str, list[Run]] = {"all": [], "by metadata": []}
    async with store.reading() as work:
        after = None
        while page := await work.sessions.find_recent_sessions("ada", limit=2, after=after):
            sessions += page
            after = Cursor(page[-1].used_at, page[-1].id)
        for name, wanted in (("all", RunFilter("ada")), ("by metadata", RunFilter("ada", metadata={"k": "v"}))):
            after = None
            while found := await work.runs.find_runs(wanted, limit=2, after=after):
                runs[name] += found
                after = Cursor(found[-1].created_at, found[-1].id)
    assert [(one.used_at, one.id) for one in sessions] == sorted(
        ((one.used_at, one.id) for one in sessions), reverse=True
    )
    assert len({one.id for one in sessions}) == 7
    assert [one.id for one in runs["all"]] == [one.id for one in runs["by metadata"]]
    assert len({one.id for one in runs["all"]}) == 7


async def test_runs_are_found_by_everything_they_carry(store: RecordStore) -> None:
    one = run(metadata={"dossier_id": "dossier:abc123", "user": "user:notaire1", "n": 5})
    two = run(metadata={"dossier_id": "dossier:abc123"}, agent="react", kind=SessionKind.WORKFLOW, created_at=LATER)
    bad = run(status=RunStatus.FAILED, created_at=LATER + timedelta(seconds=1))
    theirs = run("bob", metadata={"dossier_id": "dossier:abc123"})
    async with store.unit_of_work() as work:
        for each in (one, two, bad, theirs):
            await work.runs.create(each)

    async def ids(**wanted: Any) -> list[str]:
        async with store.reading() as work:
            return [found.id for found in await work.runs.find_runs(RunFilter(owner_id="ada", **wanted))]

    assert await ids() == [bad.id, two.id, one.id]
    assert await ids(agent="react") == [two.id]
    assert await ids(kind=SessionKind.WORKFLOW) == [two.id]
    assert await ids(statuses=frozenset({RunStatus.FAILED})) == [bad.id]
    assert await ids(statuses=BAD) == [bad.id]
    assert await ids(statuses=frozenset({RunStatus.COMPLETED, RunStatus.FAILED})) == [bad.id, two.id, one.id]
    assert await ids(since=LATER) == [bad.id, two.id]
    assert await ids(until=LATER) == [one.id]
    assert await ids(metadata={"dossier_id": "dossier:abc123"}) == [two.id, one.id]
    assert await ids(metadata={"dossier_id": "dossier:abc123", "user": "user:notaire1"}) == [one.id]
    assert await ids(metadata={"n": "5"}) == [one.id]
    assert await ids(metadata={"dossier_id": "dossier:abc123"}, since=LATER) == [two.id]
    assert await ids(metadata={"nothing": "x"}) == []


async def test_idle_sessions_are_the_old_ones_with_nothing_going_on(store: RecordStore) -> None:
    old = session(updated_at=NOW - timedelta(days=9), id=_id_of(NOW - timedelta(days=10)))
    fresh = session(updated_at=NOW, id=_id_of(NOW - timedelta(days=10)))
    busy = session(updated_at=NOW - timedelta(days=9), id=_id_of(NOW - timedelta(days=10)))
    async with store.unit_of_work() as work:
        for one in (old, fresh, busy):
            await work.sessions.create(one)
        await work.runs.create(run(session_id=busy.id, status=RunStatus.RUNNING, lease_until=LATER))
    async with store.reading() as work:
        assert [one.id for one in await work.sessions.idle_since(NOW - timedelta(days=1), 10)] == [old.id]


# -- counting --


async def test_usage_of_a_session_tells_zero_from_unknown_from_unmeasured(store: RecordStore) -> None:
    calls = [
        CallCost("a/b", USAGE, 42),
        CallCost("a/free", USAGE, 0),
        CallCost("a/new", USAGE, None),
        CallCost("a/b", None, None),
    ]
    begun = await ran(store, start(), calls=calls, unmeasured=1, unpriced=1)
    silent = await ran(store, start(), calls=[CallCost("a/b", None, None)], usage=None, cost_pico=None, unmeasured=1)
    async with store.reading() as work:
        told = await work.model_calls.usage_of_session(begun.session_id)
        nothing = await work.model_calls.usage_of_session(silent.session_id)
        empty = await work.model_calls.usage_of_session("nobody")
    assert told.usage == Usage(input_tokens=33, output_tokens=15, total_tokens=48, cached_tokens=9)
    assert (told.calls, told.unmeasured_calls, told.unpriced_calls) == (4, 1, 1)
    assert told.cost is not None
    assert told.cost * 10**12 == 42
    assert (nothing.usage, nothing.cost, nothing.calls, nothing.unmeasured_calls) == (None, None, 1, 1)
    assert (empty.usage, empty.cost, empty.calls) == (None, None, 0)


async def test_runs_are_counted_by_agent_status_day_model_and_metadata(store: RecordStore) -> None:
    counted = {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15, "cost_pico": 7, "calls": 1}
    async with store.unit_of_work() as work:
        for number in range(4):
            day = NOW + timedelta(days=number // 2)
            metadata = {"dossier_id": f"d{number % 2}"}
            done = {"created_at": day, "started_at": day, "completed_at": day + timedelta(seconds=number)}
            await work.runs.create(run(metadata=metadata, model="a/b", **done, **counted))
        await work.runs.create(
            run(agent="react", status=RunStatus.FAILED, unmeasured_calls=1, metadata={"dossier_id": "d1"})
        )
        await work.runs.create(run(agent="react", status=RunStatus.RUNNING, completed_at=None, lease_until=LATER))
        await work.runs.create(run("bob"))
    async with store.reading() as work:
        mine = RunFilter(owner_id="ada")
        by_agent = {row.group: row for row in await work.runs.statistics(mine, "agent")}
        by_status = {row.group: row.executions for row in await work.runs.statistics(mine, "status")}
        by_day = {row.group: row.executions for row in await work.runs.statistics(mine, "day")}
        by_model = {row.group: row.executions for row in await work.runs.statistics(mine, "model")}
        by_dossier = {row.group: row for row in await work.runs.statistics(mine, "metadata", "dossier_id")}
        today = await work.runs.statistics(
            RunFilter(owner_id="ada", until=NOW + timedelta(hours=1), metadata={"dossier_id": "d1"}), "agent"
        )
    simple, react = by_agent["simple"], by_agent["react"]
    assert (simple.executions, simple.successes, simple.errors, simple.running, simple.error_rate) == (4, 4, 0, 0, 0.0)
    assert simple.mean_duration == pytest.approx(1.5, abs=1e-3)
    assert (simple.usage.total_tokens, simple.cost and simple.cost * 10**12) == (60, 28)
    assert (react.executions, react.successes, react.errors, react.running, react.error_rate) == (2, 0, 1, 1, 1.0)
    assert (react.unmeasured_runs, react.cost) == (1, None)
    assert by_status == {"completed": 4, "failed": 1, "running": 1}
    assert by_day == {"2026-11-20": 4, "2026-11-21": 2}
    assert by_model == {"a/b": 4, None: 2}
    assert {group: row.executions for group, row in by_dossier.items()} == {"d1": 3, "d0": 2}
    assert {row.group: row.executions for row in today} == {"simple": 1, "react": 1}


def _id_of(moment: datetime) -> str:
    """A UUIDv7 as it would have been made then."""
    stamp = f"{int(moment.timestamp() * 1_000):012x}"
    return f"{stamp[:8]}-{stamp[8:]}-{str(uuid7())[14:]}"


@pytest.mark.parametrize("word", ["a\\u0000b", "🏳️‍🌈", "'; DROP TABLE runs; --", "dossier:abc123", "x" * 500], ids=repr)
async def test_strange_words_are_words(store: RecordStore, word: str) -> None:
    told = word.replace("\\u0000", "")  # the border cleans what a caller sends
    begun = await ran(store, start(metadata={"k": told}, input=told, title=told[:80]), output=told)
    async with store.reading() as work:
        found = await work.runs.find_runs(RunFilter("ada", metadata={"k": told}))
        assert [one.id for one in found] == [begun.id]
        assert (found[0].input, found[0].output, found[0].metadata) == (told, told, {"k": told})


async def test_how_far_runs_have_come_and_who_holds_them(store: RecordStore) -> None:
    going, over = start(), start()
    await store.begin_run(going)
    await store.begin_run(over)
    await store.end_run(end(over))
    async with store.reading() as work:
        assert await work.runs.holders() == {"host:1:x"}
        progress = await work.runs.progress([going.id, over.id, "unknown"])
    assert {run_id: status for run_id, (status, _) in progress.items()} == {
        going.id: RunStatus.RUNNING, over.id: RunStatus.COMPLETED,
    }  # fmt: skip
