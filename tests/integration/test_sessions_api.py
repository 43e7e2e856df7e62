"""Conversations through the doors: recorded, continued, branched, exported, deleted, and nobody else's."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from config.settings import AgentSettings, ProviderSettings, RetentionSettings, Settings, StorageSettings
from domain.enums import SessionKind
from tests.contracts.storage import new_storage
from tests.engines import ENGINES, POSTGRES_URL
from tests.fakes.house import House, open_house, parse_events, text_of
from tests.fakes.providers import INPUT, WORDS, FakeProvider, Reply

pytestmark = pytest.mark.anyio
Opener = Callable[[Settings], Awaitable[House]]

COUNTER = """
from typing import Annotated
import operator
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph


class State(MessagesState):
    turns: Annotated[int, operator.add]


def build_graph(context):
    def count(state: State):
        said = [message.text for message in state["messages"]]
        return {"turns": 1, "messages": [AIMessage(f"turn {state.get('turns', 0) + 1} of {len(said)}: {said}")]}

    graph = StateGraph(State)
    graph.add_node("count", count)
    graph.add_edge(START, "count")
    graph.add_edge("count", END)
    return graph
"""


@pytest.fixture(scope="module")
async def shared(shared_settings: Settings) -> AsyncIterator[House]:
    async with open_house(shared_settings) as opened:
        yield opened


@pytest.fixture
async def routed(open_with: Opener, settings: Settings, provider: FakeProvider) -> House:
    """A house before the fake provider: as OpenAI, as vLLM (which counts as it goes), as a server that does not."""
    compatible = {
        "vllm": {"base_url": f"{provider.url}/v1", "running_usage": True, "default_model": "fake"},
        "mute": {"base_url": f"{provider.url}/v1"},
    }
    providers = ProviderSettings.model_validate(
        {"discover_local": False, "openai_base_url": f"{provider.url}/v1", "compatible": compatible}
    )
    return await open_with(settings.model_copy(update={"providers": providers}))


def with_counter(settings: Settings, folder: Path) -> Settings:
    """With an agent that remembers more than its messages."""
    agent = folder / "plugins" / "counter"
    agent.mkdir(parents=True)
    (agent / "graph.py").write_text(COUNTER)
    (agent / "config.yaml").write_text("name: Counter\n")
    return settings.model_copy(update={"agents": AgentSettings(plugins_dir=folder / "plugins")})


async def ask(house: House, message: str, **more: Any) -> dict[str, Any]:
    answer = await house.client.post("/completion", json={"message": message, **more})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def ended(house: House, run_id: str) -> dict[str, Any]:
    """The run, when it is over: leaving is noticed by the server in its own time, and nothing says when."""
    while True:
        run: dict[str, Any] = (await house.client.get(f"/api/runs/{run_id}")).json()
        if run["status"] != "running":
            return run


async def lines(house: House, session_id: str) -> list[tuple[str, str]]:
    told = (await house.client.get(f"/api/sessions/{session_id}")).json()
    return [(line["role"], line["content"]) for line in told["messages"]]


# -- recording --


async def test_a_whole_answer_and_a_stream_leave_the_same_record(shared: House) -> None:
    whole = await ask(shared, "What is 6 times 7?", agent="react", metadata={"dossier_id": "dossier:1"})
    events = await shared.events(
        {"message": "What is 6 times 7?", "agent": "react", "metadata": {"dossier_id": "dossier:1"}}
    )
    one = (await shared.client.get(f"/api/runs/{whole['run_id']}")).json()
    other = (await shared.client.get(f"/api/runs/{events[0]['run_id']}")).json()
    same = (
        "agent",
        "model",
        "status",
        "input",
        "output",
        "usage",
        "cost",
        "metadata",
        "calls",
        "finish_reason",
        "error",
    )
    assert {name: one[name] for name in same} == {name: other[name] for name in same}
    assert (one["status"], one["cost"], one["calls"]) == ("completed", "0", 2)
    assert await lines(shared, one["session_id"]) == await lines(shared, other["session_id"])
    assert [(event["seq"], event["kind"]) for event in other["events"]] == [
        (event["seq"], event["kind"]) for event in events
    ]
    assert text_of(other["events"]) == text_of(events), "the events are kept piece by piece"


async def test_raw_messages_are_complete_and_the_simple_view_links_to_them(shared: House) -> None:
    told = await ask(shared, "What is 6 times 7?", agent="react")
    raws = (await shared.client.get(f"/api/sessions/{told['session_id']}/messages/raw")).json()["messages"]
    assert [raw["message_data"]["type"] for raw in raws] == ["human", "ai", "tool", "ai"]
    assert raws[1]["message_data"]["data"]["tool_calls"][0]["args"] == {"expression": "6 * 7"}
    assert raws[3]["message_data"]["data"]["usage_metadata"]["total_tokens"] > 0
    simple = (await shared.client.get(f"/api/sessions/{told['session_id']}/messages")).json()["messages"]
    assert [(line["message_index"], line["kind"]) for line in simple] == [
        (0, "text"), (1, "tool_call"), (2, "tool_result"), (3, "text"),
    ]  # fmt: skip


async def test_the_question_is_written_before_a_model_is_asked(routed: House, provider: FakeProvider) -> None:
    provider.then(Reply(fault="hang_before"))
    asking = asyncio.create_task(routed.client.post("/completion", json={"message": "are you there?"}))
    with anyio.fail_after(10):
        await provider.begun.wait()
    (run,) = (await routed.client.get("/api/runs?in_progress=true")).json()["runs"]
    assert (run["status"], run["input"]) == ("running", "are you there?")
    assert await lines(routed, run["session_id"]) == [("user", "are you there?")]
    asking.cancel()


async def test_a_reader_who_leaves_leaves_what_had_arrived_and_its_price(routed: House, provider: FakeProvider) -> None:
    provider.then(Reply(fault="hang_between"))
    body = {"message": "tell me", "model": "vllm/fake"}
    async with routed.client.stream("POST", "/completion/stream", json=body) as response:
        run_id = response.headers["x-run-id"]
        async for chunk in response.aiter_text():
            if WORDS[0] in chunk:
                break
    with anyio.fail_after(10):
        await provider.abort_seen.wait()
        run = await ended(routed, run_id)
    assert (run["status"], run["output"]) == ("cancelled", WORDS[0])
    assert run["usage"] == {**run["usage"], "input_tokens": INPUT, "output_tokens": 1, "estimated": False}
    told = (await routed.client.get(f"/api/sessions/{run['session_id']}")).json()
    assert [(line["content"], line["partial"]) for line in told["messages"]] == [("tell me", False), (WORDS[0], True)]


async def test_a_provider_that_breaks_off_leaves_what_had_arrived_marked(routed: House, provider: FakeProvider) -> None:
    provider.then(Reply(fault="cut"))
    events = await routed.events({"message": "tell me", "model": "mute/fake"})
    assert events[-1]["kind"] == "run.failed"
    run = (await routed.client.get(f"/api/runs/{events[0]['run_id']}")).json()
    assert (run["status"], run["error"]["code"], run["output"]) == ("failed", "upstream_broken", "".join(WORDS[:2]))
    assert run["usage"]["estimated"] is True, "it had not said what it cost: counted, and marked as counted"
    assert (run["usage"]["output_tokens"], run["unmeasured_calls"]) == (2, 0)
    provider.then(Reply(fault="usage_missing"))
    silent = (await routed.client.get(f"/api/runs/{(await ask(routed, 'x', model='mute/fake'))['run_id']}")).json()
    assert (silent["usage"], silent["unmeasured_calls"], silent["cost"]) == (None, 1, None), "unmeasured, not zero"


async def test_the_usage_of_a_mixed_day_is_the_providers_own_count(routed: House, provider: FakeProvider) -> None:
    tool = ("calculator", {"expression": "6*7"})
    kinds: list[tuple[Reply, dict[str, Any], bool]] = [
        (Reply(), {}, True),
        (Reply(), {}, False),
        (Reply(words=("one",)), {}, True),
        (Reply(status=500), {}, False),
        (Reply(fault="cut"), {}, True),
        (Reply(fault="error_inside"), {}, True),
        (Reply(words=tuple("abcdefgh")), {"agent": "simple", "temperature": 0.1}, False),
    ]
    model = {"model": "vllm/fake"}
    for reply, more, streamed in kinds * 3:
        provider.replies.clear()
        provider.then(*[reply] * 3)
        path = "/completion/stream" if streamed else "/completion"
        await routed.client.post(path, json={"message": "x", **model, **more})
    provider.replies.clear()
    for streamed in (True, False):
        provider.then(Reply(tool=tool), Reply(words=("42",)))
        path = "/completion/stream" if streamed else "/completion"
        await routed.client.post(path, json={"message": "what is 6*7?", "agent": "react", **model})
    stats = (await routed.client.get("/api/stats?by=model")).json()
    served = [sum(column) for column in zip(*provider.ledger, strict=True)]
    usage = stats["total"]["usage"]
    assert [usage["input_tokens"], usage["output_tokens"]] == served
    assert usage["cached_tokens"] > 0
    assert stats["total"]["unmeasured_runs"] == 0
    assert (usage["estimated"], len(provider.ledger)) == (False, 22)


# -- continuity --


async def test_a_session_goes_on_where_it_stood(shared: House) -> None:
    first = await ask(shared, "I am Ada.")
    again = await ask(shared, "Who am I?", session_id=first["session_id"])
    assert again["session_id"] == first["session_id"]
    assert again["usage"]["input_tokens"] > first["usage"]["input_tokens"] * 2, (
        "the model was shown what was said before"
    )
    events = await shared.events({"message": "And now?", "session_id": first["session_id"]})
    assert events[0]["session_id"] == first["session_id"]
    assert [role for role, _ in await lines(shared, first["session_id"])] == ["user", "assistant"] * 3


async def test_a_session_keeps_its_agent_unless_another_is_named(shared: House) -> None:
    first = await ask(shared, "hello", agent="react")
    assert (await ask(shared, "hello", session_id=first["session_id"]))["agent"] == "react"
    assert (await ask(shared, "hello", session_id=first["session_id"], agent="simple"))["agent"] == "simple"


async def test_a_conversation_goes_on_after_a_cut_answer(routed: House, provider: FakeProvider) -> None:
    provider.then(Reply(fault="cut"))
    events = await routed.events({"message": "first", "model": "mute/fake"})
    again = await ask(routed, "second", session_id=events[0]["session_id"], model="mute/fake")
    asked = [(message["role"], message["content"]) for message in provider.asked[-1]["messages"]]
    assert [one for one in asked if one[0] != "system"] == [
        ("user", "first"), ("assistant", "".join(WORDS[:2])), ("user", "second"),
    ]  # fmt: skip
    assert again["finish_reason"] == "stop"


async def test_a_tool_call_that_was_never_answered_does_not_spoil_the_session(
    routed: House, provider: FakeProvider
) -> None:
    made = (await routed.client.post("/api/sessions", json={"agent": "simple"})).json()["session_id"]
    raw = [
        {"type": "human", "data": {"content": "go"}},
        {
            "type": "ai",
            "data": {"content": "", "tool_calls": [{"name": "clock", "args": {}, "id": "c1", "type": "tool_call"}]},
        },
    ]
    answer = await routed.client.post(f"/api/sessions/{made}/messages", json={"raw": raw, "format": "langchain"})
    assert answer.status_code == 201, answer.text
    await ask(routed, "and?", session_id=made, model="mute/fake")
    asked = [message["role"] for message in provider.asked[-1]["messages"] if message["role"] != "system"]
    assert asked == ["user", "assistant", "tool", "user"]


@pytest.mark.parametrize("engine", ENGINES)
async def test_an_agents_own_state_goes_on_too_also_after_a_restart(
    settings: Settings, tmp_path: Path, engine: str
) -> None:
    chosen = with_counter(settings, tmp_path)
    async with on_engine(chosen, engine) as stored:
        async with open_house(stored) as house:
            first = await ask(house, "a", agent="counter")
            assert first["response"].startswith("turn 1 of 1")
            second = await ask(house, "b", session_id=first["session_id"])
            assert second["response"].startswith("turn 2 of 3")
            branch = (await house.client.post(f"/api/sessions/{first['session_id']}/branch", json={"before": 2})).json()
        async with open_house(stored) as house:
            third = await ask(house, "c", session_id=first["session_id"])
            assert third["response"].startswith("turn 3 of 5")
            other = await ask(house, "B", session_id=branch["session_id"])
            assert other["response"].startswith("turn 2 of 3"), "the branch remembers what was before it, and no more"
            assert "'b'" not in other["response"]
            gone = await house.client.delete(f"/api/sessions/{first['session_id']}")
            assert gone.status_code == 204
            saver = await house.services.checkpoints.saver()
            assert [one async for one in saver.alist({"configurable": {"thread_id": first["session_id"]}})] == []
            assert [one async for one in saver.alist({"configurable": {"thread_id": branch["session_id"]}})] != []


async def test_messages_of_elsewhere_are_part_of_the_conversation(shared: House) -> None:
    made = (await shared.client.post("/api/sessions", json={"title": "Imported"})).json()
    body = {
        "messages": [{"role": "user", "content": "My name is Ada."}, {"role": "assistant", "content": "Hello Ada."}]
    }
    appended = await shared.client.post(f"/api/sessions/{made['session_id']}/messages", json=body)
    assert (appended.status_code, appended.json()["indexes"]) == (201, [0, 1])
    await ask(shared, "Who am I?", session_id=made["session_id"])
    assert [content for _, content in await lines(shared, made["session_id"])][:3] == [
        "My name is Ada.", "Hello Ada.", "Who am I?",
    ]  # fmt: skip


async def test_a_session_answers_one_at_a_time(routed: House, provider: FakeProvider) -> None:
    first = await ask(routed, "hello", model="mute/fake")
    provider.begun.clear()
    provider.then(Reply(fault="hang_before"))
    body = {"message": "slow", "session_id": first["session_id"], "model": "mute/fake"}
    slow = asyncio.create_task(routed.client.post("/completion", json=body))
    with anyio.fail_after(10):
        await provider.begun.wait()
    busy = await routed.client.post("/completion", json={**body, "message": "too soon"})
    assert (busy.status_code, busy.json()["code"], busy.headers["retry-after"]) == (409, "session_busy", "1")
    refused = await routed.client.delete(f"/api/sessions/{first['session_id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "session_busy")
    slow.cancel()
    with anyio.fail_after(10):
        await provider.abort_seen.wait()
        (run,) = (await routed.client.get(f"/api/runs?session_id={first['session_id']}&limit=1")).json()["runs"]
        await ended(routed, run["run_id"])
    assert (await routed.client.post("/completion", json={**body, "message": "now"})).status_code == 200
    assert "too soon" not in [content for _, content in await lines(routed, first["session_id"])]


# -- handling --


async def test_a_branch_has_what_was_before_and_leaves_the_session_alone(shared: House) -> None:
    first = await ask(shared, "one")
    await ask(shared, "two", session_id=first["session_id"])
    made = await shared.client.post(f"/api/sessions/{first['session_id']}/branch", json={"before": 2, "title": "Other"})
    branch = made.json()
    assert (made.status_code, branch["title"], branch["parent_id"], branch["branched_at"]) == (
        201, "Other", first["session_id"], 2,
    )  # fmt: skip
    await ask(shared, "two, but better", session_id=branch["session_id"])
    assert [content for role, content in await lines(shared, branch["session_id"]) if role == "user"] == [
        "one",
        "two, but better",
    ]
    assert [content for role, content in await lines(shared, first["session_id"]) if role == "user"] == ["one", "two"]
    beyond = await shared.client.post(f"/api/sessions/{first['session_id']}/branch", json={"before": 99})
    assert (beyond.status_code, beyond.json()["param"]) == (422, "before")
    whole = (await shared.client.post(f"/api/sessions/{first['session_id']}/branch", json={})).json()
    assert whole["message_count"] == 4


async def test_a_session_is_renamed_tagged_and_given_state(shared: House) -> None:
    made = (
        await shared.client.post("/api/sessions", json={"metadata": {"a": 1}, "kind": "team", "agents": ["react"]})
    ).json()
    path = f"/api/sessions/{made['session_id']}"
    changed = (
        await shared.client.patch(path, json={"title": "New\u0000 name", "metadata": {"b": "x"}, "state": {"n": 1}})
    ).json()
    assert (changed["title"], changed["metadata"], changed["state"], changed["agents"]) == (
        "New name",
        {"b": "x"},
        {"n": 1},
        ["react"],
    )
    assert [
        one["session_id"]
        for one in (await shared.client.get("/api/sessions?metadata.b=x&kind=team")).json()["sessions"]
    ] == [made["session_id"]]
    assert (await shared.client.get("/api/sessions?metadata.a=1")).json()["sessions"] == []
    assert (await shared.client.patch(path, json={})).status_code == 422


async def test_a_deleted_session_is_gone_and_its_cost_is_not(shared: House) -> None:
    told = await ask(shared, "secret words", metadata={"unusual": "yes"})
    path = f"/api/sessions/{told['session_id']}"
    assert (await shared.client.delete(path)).status_code == 204
    for gone in (path, f"{path}/messages", f"{path}/messages/raw", f"{path}/export", f"/api/runs/{told['run_id']}"):
        assert (await shared.client.get(gone)).status_code == 404
    assert (await shared.client.delete(path)).status_code == 404
    assert (
        await shared.client.post("/completion", json={"message": "x", "session_id": told["session_id"]})
    ).status_code == 404
    assert (await shared.client.get("/api/runs?metadata.unusual=yes")).json()["runs"] == []
    async with shared.services.records.reading() as work:
        assert (await work.model_calls.usage_of_session(told["session_id"])).calls == 0


async def test_an_export_is_all_of_it_for_machines_and_for_people(shared: House) -> None:
    told = await ask(shared, "What is 6 times 7?", agent="react")
    path = f"/api/sessions/{told['session_id']}/export"
    exported = (await shared.client.get(path)).json()
    assert len(exported["raw_messages"]) == len(exported["messages"]) == 4
    assert [run["run_id"] for run in exported["runs"]] == [told["run_id"]]
    assert exported["token_usage"]["usage"] == told["usage"]
    markdown = await shared.client.get(f"{path}?format=markdown")
    assert markdown.headers["content-type"].startswith("text/markdown")
    assert markdown.text.startswith("# What is 6 times 7?")
    assert '## calls calculator\n\n```\n{"expression":"6 * 7"}\n```' in markdown.text


async def test_the_simple_view_is_derived_again_as_it_was(shared: House) -> None:
    told = await ask(shared, "What is 6 times 7?", agent="react")
    before = (await shared.client.get(f"/api/sessions/{told['session_id']}/messages")).json()
    async with shared.services.records.unit_of_work() as work:
        await work.simple_messages.replace_for_session(told["session_id"], [])
    assert await shared.services.sessions.rebuild(told["session_id"]) == 4
    assert (await shared.client.get(f"/api/sessions/{told['session_id']}/messages")).json() == before


async def test_lists_are_paged_without_holes(house: House) -> None:
    made = [(await ask(house, f"number {number}"))["session_id"] for number in range(7)]
    for path, key in (("/api/sessions", "sessions"), ("/api/runs", "runs"), ("/api/agents/simple/runs", "runs")):
        found: list[str] = []
        cursor: str | None = ""
        while cursor is not None:
            page = (await house.client.get(path, params={"limit": 3, **({"cursor": cursor} if cursor else {})})).json()
            found += [one["session_id"] for one in page[key]]
            cursor = page["next_cursor"]
        assert found == made[::-1]
    for cursor in ("x", "%00", "MjAyNi0wMS0wMXxh", "é" * 50):
        assert (await house.client.get("/api/sessions", params={"cursor": cursor})).status_code == 422


async def test_runs_are_counted_by_what_one_asks_for(house: House) -> None:
    for number in range(3):
        await ask(house, "x", metadata={"dossier_id": f"d{number % 2}"})
    await house.client.post("/completion", json={"message": "x", "agent": "react", "metadata": {"dossier_id": "d1"}})
    stats = (await house.client.get("/api/stats?by=metadata&key=dossier_id")).json()
    assert {row["group"]: row["executions"] for row in stats["groups"]} == {"d0": 2, "d1": 2}
    assert (stats["total"]["executions"], stats["total"]["successes"], stats["total"]["error_rate"]) == (4, 4, 0.0)
    only = (await house.client.get("/api/stats?by=day&metadata.dossier_id=d1")).json()
    assert only["total"]["executions"] == 2
    assert (await house.client.get("/api/stats?by=metadata")).status_code == 422
    mixed = await house.client.get("/api/runs?in_progress=true&kind=team")
    assert (mixed.status_code, mixed.json()["param"]) == (422, "in_progress"), "nothing is accepted and ignored"
    for moment in ("0001-01-01T00:00:00%2B14:00", "9999-12-31T23:59:59-14:00", "yesterday"):
        assert (await house.client.get(f"/api/stats?since={moment}")).status_code == 422
        assert (await house.client.get(f"/api/runs?until={moment}")).status_code == 422
    assert (await house.client.get("/api/stats?since=2020-01-01T00:00:00&until=2020-01-02")).json()["total"][
        "executions"
    ] == 0


# -- whose --


async def test_nobody_reads_changes_or_continues_what_is_somebody_elses(shared: House) -> None:
    """Every route of the document that names an id, asked by another user with the ids of the first one."""
    told = await ask(shared, "mine", metadata={"whose": "mine"})
    key = (await shared.client.post("/auth/keys", json={"name": "k"})).json()
    ids = {
        "session_id": told["session_id"], "run_id": told["run_id"], "agent_id": "simple", "key_id": key["id"],
        "user_id": (await shared.client.get("/auth/me")).json()["user_id"], "model_id": "offline/rules",
    }  # fmt: skip
    await shared.add_user(f"eve{uuid.uuid4().hex[:6]}", "a good password")
    eve = (await shared.client.get("/users")).json()["users"]
    name = next(user["username"] for user in eve if user["username"].startswith("eve"))
    token = (await shared.log_in(name, "a good password")).json()["access_token"]
    bodies = {
        "PATCH": {"title": "stolen"},
        "POST": {"messages": [{"role": "user", "content": "x"}]},
    }
    special: dict[str, Any] = {"branch": {}, "approve": {"approval_id": "x"}}
    document = (await shared.anyone.get("/openapi.json")).json()
    walked = 0
    async with httpx.AsyncClient(base_url=shared.url, headers={"authorization": f"Bearer {token}"}) as client:
        for path, item in document["paths"].items():
            named = [one for one in ("session_id", "run_id", "key_id") if f"{{{one}}}" in path]
            if not named:
                continue
            real = path
            for one, value in ids.items():
                real = real.replace(f"{{{one}}}", value)
            unknown = real.replace(told["session_id"], str(uuid.uuid4())).replace(told["run_id"], str(uuid.uuid4()))
            unknown = unknown.replace(key["id"], str(uuid.uuid4()))
            for method in map(str.upper, item):
                body = special.get(path.rpartition("/")[2], bodies.get(method))
                asked = await client.request(method, real, json=body)
                nothing = await client.request(method, unknown, json=body)
                assert (asked.status_code, method, path) == (404, method, path)
                strip = {"request_id"}
                assert {k: v for k, v in asked.json().items() if k not in strip} == {
                    k: v for k, v in nothing.json().items() if k not in strip
                }
                walked += 1
        assert walked >= 12
        for path in ("/completion", "/completion/stream"):
            answer = await client.post(path, json={"message": "x", "session_id": told["session_id"]})
            assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found")
        for path, kind in (
            ("/api/sessions", "sessions"),
            ("/api/runs", "runs"),
            ("/api/runs?in_progress=true", "runs"),
        ):
            assert (await client.get(path)).json()[kind] == []
        assert (await client.get("/api/runs?metadata.whose=mine")).json()["runs"] == []
        assert (await client.get("/api/stats")).json()["total"]["executions"] == 0
        assert (await client.get("/users/" + ids["user_id"])).status_code == 403
    assert await lines(shared, told["session_id"]) != []


async def test_a_removed_user_takes_their_conversations_along(house: House) -> None:
    user = await house.add_user("gone", "a good password")
    token = (await house.log_in("gone", "a good password")).json()["access_token"]
    told = await house.anyone.post("/completion", json={"message": "x"}, headers={"authorization": f"Bearer {token}"})
    assert (await house.client.delete(f"/users/{user['id']}")).status_code == 204
    async with house.services.records.reading() as work:
        assert await work.sessions.find_one(id=told.json()["session_id"]) is None
        assert await work.runs.find_one(id=told.json()["run_id"]) is None


# -- the same twice --


async def test_the_same_key_does_it_once_and_answers_alike(house: House) -> None:
    headers = {"idempotency-key": str(uuid.uuid4())}
    body = {"message": "What is 6 times 7?", "agent": "react"}
    first = await house.client.post("/completion", json=body, headers=headers)
    again = await house.client.post("/completion", json=body, headers=headers)
    assert (again.status_code, again.content) == (200, first.content)
    assert (again.headers["idempotent-replayed"], again.headers["x-run-id"]) == ("true", first.headers["x-run-id"])
    assert len((await house.client.get("/api/runs")).json()["runs"]) == 1
    other = await house.client.post("/completion", json={**body, "message": "y"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")
    elsewhere = await house.client.post("/api/sessions", json={}, headers=headers)
    assert elsewhere.status_code == 409


async def test_a_stream_sent_twice_is_told_twice_and_run_once(house: House) -> None:
    headers = {"idempotency-key": "a-key"}
    body = {"message": "hello"}
    told = [(await house.client.post("/completion/stream", json=body, headers=headers)).content for _ in range(2)]
    assert told[0] == told[1]
    assert parse_events(told[1])[-1]["kind"] == "run.finished"
    assert len((await house.client.get("/api/runs")).json()["runs"]) == 1


async def test_at_the_same_moment_one_works_and_the_others_are_told_to_wait(house: House) -> None:
    headers = {"idempotency-key": "k"}
    answers = await asyncio.gather(
        *(house.client.post("/api/sessions", json={"title": "x"}, headers=headers) for _ in range(10))
    )
    codes = {answer.status_code for answer in answers}
    assert codes <= {201, 409}
    assert len({answer.json()["session_id"] for answer in answers if answer.status_code == 201}) == 1
    assert all(
        answer.json()["code"] in ("idempotency_in_progress", "conflict")
        for answer in answers
        if answer.status_code == 409
    )
    assert len((await house.client.get("/api/sessions")).json()["sessions"]) == 1


async def test_what_failed_may_be_tried_again_with_the_same_key(routed: House, provider: FakeProvider) -> None:
    headers = {"idempotency-key": "k"}
    body = {"message": "x", "model": "mute/fake"}
    provider.then(*[Reply(status=500)] * 3)
    failed = await routed.client.post("/completion", json=body, headers=headers)
    assert failed.status_code == 502
    provider.replies.clear()
    assert (await routed.client.post("/completion", json=body, headers=headers)).status_code == 200


async def test_a_key_of_one_user_means_nothing_to_another(house: House) -> None:
    await house.add_user("bob", "a good password")
    token = (await house.log_in("bob", "a good password")).json()["access_token"]
    headers = {"idempotency-key": "shared"}
    mine = await house.client.post("/completion", json={"message": "x"}, headers=headers)
    theirs = await house.anyone.post(
        "/completion", json={"message": "x"}, headers={**headers, "authorization": f"Bearer {token}"}
    )
    assert mine.json()["run_id"] != theirs.json()["run_id"]
    assert (await house.anyone.post("/completion", json={"message": "x"}, headers=headers)).status_code == 401


async def test_a_new_api_key_is_not_readable_where_it_is_kept(house: House, settings: Settings) -> None:
    made = await house.client.post("/auth/keys", json={"name": "k"}, headers={"idempotency-key": "k-1"})
    again = await house.client.post("/auth/keys", json={"name": "k"}, headers={"idempotency-key": "k-1"})
    assert again.json() == made.json()
    stored = b"".join(path.read_bytes() for path in settings.storage.data_dir.glob("routeur.sqlite3*"))
    assert made.json()["key"].encode() not in stored


@pytest.mark.parametrize("key", ["", "x" * 256, "t\u00e9l\u00e9"])
async def test_a_key_that_makes_no_sense_is_refused(house: House, key: str) -> None:
    answer = await house.client.post("/api/sessions", json={}, headers={"idempotency-key": key.encode("latin-1")})
    assert (answer.status_code, answer.json()["param"]) == (422, "Idempotency-Key")


class on_engine:
    """The same settings on another engine, in a database of its own."""

    def __init__(self, settings: Settings, engine: str) -> None:
        self._settings = settings
        self._engine = engine

    async def __aenter__(self) -> Settings:
        if self._engine == "sqlite":
            return self._settings
        assert POSTGRES_URL is not None
        self._context = new_storage(self._engine, self._settings.storage.data_dir)
        storage = (await self._context.__aenter__()).storage
        chosen = StorageSettings(data_dir=self._settings.storage.data_dir, database_url=storage.database_url)
        return self._settings.model_copy(update={"storage": chosen})

    async def __aexit__(self, *error: Any) -> None:
        if self._engine != "sqlite":
            await self._context.__aexit__(*error)


async def test_what_is_too_old_is_swept_and_counted(open_with: Opener, settings: Settings) -> None:
    retention = RetentionSettings(agent_days=1)
    house = await open_with(settings.model_copy(update={"retention": retention}))
    old, fresh, team = [(await ask(house, "x"))["session_id"] for _ in range(3)]
    long_ago = datetime.now(UTC) - timedelta(days=3)
    async with house.services.records.unit_of_work() as work:
        for number, one in enumerate((old, team)):
            kept = await work.sessions.find_one(id=one)
            assert kept is not None
            aged = f"0100000{number}-0000-7000-8000-000000000000"
            kind = SessionKind.TEAM if one == team else SessionKind.AGENT
            await work.sessions.create(kept.model_copy(update={"id": aged, "updated_at": long_ago, "kind": kind}))
    assert (await house.services.retention.sweep()).sessions == 1
    assert (await house.services.retention.sweep()).sessions == 0
    left = {one["session_id"] for one in (await house.client.get("/api/sessions")).json()["sessions"]}
    assert left == {old, fresh, team, "01000001-0000-7000-8000-000000000000"}
    assert 'routeur_swept_total{what="sessions"} 1.0' in (await house.client.get("/metrics")).text
