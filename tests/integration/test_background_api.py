"""Background runs over HTTP, the same scenarios on each database and queue: nothing is lost, everybody is told."""

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response

from config.settings import CompatibleProvider, Settings
from tests.contracts.storage import new_storage
from tests.engines import ENGINES
from tests.fakes.fleet import installed
from tests.fakes.house import House, house_settings, open_house, text_of
from tests.fakes.live_server import live
from tests.fakes.processes import AGENTS
from tests.fakes.providers import FakeProvider, Reply
from tests.fakes.readers import Event, ends, follow, read_to_the_end

pytestmark = pytest.mark.anyio

PLACES = [("sqlite", "embedded")]
if "postgresql" in ENGINES:
    PLACES += [("postgresql", "embedded"), ("postgresql", "procrastinate")]
ENDED = {"completed", "failed", "cancelled", "timeout", "lost"}


def with_agents(settings: Settings, **runs: Any) -> Settings:
    """The test's own agents, and settings of runs."""
    agents = settings.agents.model_copy(update={"plugins_dir": AGENTS})
    return settings.model_copy(update={"agents": agents, "runs": settings.runs.model_copy(update=runs)})


@pytest.fixture(params=PLACES, ids="-".join, scope="module")
async def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """A house on each database and queue; scenarios that change nothing in it share it."""
    engine, queue = request.param
    folder = tmp_path_factory.mktemp(f"{engine}-{queue}")
    async with new_storage(engine, folder) as storage:
        settings = house_settings(folder).model_copy(update={"storage": storage.storage})
        chosen = with_agents(settings, queue=queue, loop_block_limit=1.0, webhook_networks=("127.0.0.0/8",))
        async with open_house(chosen) as opened:
            yield opened


async def submit(house: House, agent: str, given: Any, **more: Any) -> str:
    answer = await house.client.post(f"/api/agents/{agent}/run", json={"input": given, **more})
    assert answer.status_code == 202, answer.text
    run_id: str = answer.json()["run_id"]
    return run_id


async def until(house: House, run_id: str, *states: str) -> dict[str, Any]:
    """The run, when it is in one of these states; any end, when none is named."""
    wanted = set(states) or ENDED
    run: dict[str, Any] = {}
    with anyio.fail_after(20):
        while run.get("status") not in wanted:
            assert run.get("status") not in ENDED, run
            await asyncio.sleep(0.02)
            run = (await house.client.get(f"/api/runs/{run_id}")).json()
    return run


def kinds(run: dict[str, Any]) -> list[str]:
    return [event["kind"] for event in run["events"]]


def timeless(event: Event) -> Event:
    return {name: value for name, value in event.items() if name != "at"}


def told_of(run: dict[str, Any]) -> list[Event]:
    """A run's events as its readers get them."""
    return [{"run_id": run["run_id"], **event} for event in run["events"]]


# -- submitted, followed, looked at --


async def test_a_run_is_accepted_at_once_and_done(place: House) -> None:
    answer = await place.client.post(
        "/api/agents/react/run", json={"input": "What is 6 times 7?", "metadata": {"dossier_id": "d1"}}
    )
    accepted = answer.json()
    assert (answer.status_code, accepted["status"], accepted["agent"]) == (202, "queued", "react")
    assert answer.headers["location"] == f"/api/runs/{accepted['run_id']}"
    run = await until(place, accepted["run_id"])
    assert (run["status"], run["background"], run["attempt"]) == ("completed", True, 1)
    assert "42" in run["output"]
    assert run["result"] == run["output"]
    assert run["usage"]["total_tokens"] > 0
    assert run["metadata"] == {"dossier_id": "d1"}
    status = (await place.client.get(f"/api/agents/react/status?run_id={accepted['run_id']}")).json()
    assert status["status"] == "completed"
    lines = (await place.client.get(f"/api/sessions/{accepted['session_id']}/messages")).json()["messages"]
    assert [line["role"] for line in lines] == ["user", "assistant", "tool", "assistant"]


async def test_a_background_run_leaves_the_same_record_as_a_stream(place: House) -> None:
    streamed = await place.events({"message": "What is 6 times 7?", "agent": "react"})
    run = await until(place, await submit(place, "react", "What is 6 times 7?"))
    other = (await place.client.get(f"/api/runs/{streamed[0]['run_id']}")).json()
    same = ("agent", "model", "status", "input", "output", "usage", "cost", "calls", "finish_reason", "error")
    assert {name: run[name] for name in same} == {name: other[name] for name in same}
    assert kinds(run) == [event["kind"] for event in streamed]
    assert text_of(run["events"]) == text_of(streamed)


async def test_an_agent_has_many_runs_at_once_and_says_so(place: House) -> None:
    ids = [await submit(place, "misfit", {"do": "hang", "amount": 60}) for _ in range(4)]
    for run_id in ids:
        await until(place, run_id, "running")
    status = (await place.client.get("/api/agents/misfit/status")).json()
    assert (status["status"], status["running"]) == ("running", 4)
    assert {run["run_id"] for run in status["runs"]} == set(ids)
    await asyncio.gather(*(place.client.post(f"/api/runs/{run_id}/cancel") for run_id in ids))
    for run_id in ids:
        await until(place, run_id, "cancelled")
    assert (await place.client.get("/api/agents/misfit/status")).json()["status"] == "idle"


async def test_every_run_of_a_session_waits_for_the_one_before_when_it_is_asked_to(place: House) -> None:
    first = (await place.client.post("/api/agents/simple/run", json={"input": "one"})).json()
    session = first["session_id"]
    others = [
        await submit(place, "simple", word, session_id=session, if_busy="queue") for word in ("two", "three", "four")
    ]
    for run_id in others:
        assert (await until(place, run_id))["status"] == "completed"
    lines = (await place.client.get(f"/api/sessions/{session}/messages")).json()["messages"]
    assert [line["content"] for line in lines if line["role"] == "user"] == ["one", "two", "three", "four"]
    assert [line["role"] for line in lines] == ["user", "assistant"] * 4, "nobody spoke between question and answer"


async def test_a_busy_session_refuses_who_would_rather_not_wait(place: House) -> None:
    first = (await place.client.post("/api/agents/misfit/run", json={"input": {"do": "hang", "amount": 60}})).json()
    await until(place, first["run_id"], "running")
    busy = await place.client.post("/api/agents/simple/run", json={"input": "x", "session_id": first["session_id"]})
    assert (busy.status_code, busy.json()["code"]) == (409, "session_busy")
    attached = await place.client.post("/completion", json={"message": "x", "session_id": first["session_id"]})
    assert (attached.status_code, attached.json()["code"]) == (409, "session_busy")
    await place.client.post(f"/api/runs/{first['run_id']}/cancel")
    await until(place, first["run_id"], "cancelled")
    after = await place.client.post("/completion", json={"message": "x", "session_id": first["session_id"]})
    assert after.status_code == 200, "one conversation behind every door"


async def test_a_key_starts_one_run_however_often_it_is_sent(place: House) -> None:
    headers = {"idempotency-key": "once"}
    answers = await asyncio.gather(
        *(place.client.post("/api/agents/simple/run", json={"input": "x"}, headers=headers) for _ in range(10))
    )
    assert {answer.status_code for answer in answers} <= {202, 409}
    again = await place.client.post("/api/agents/simple/run", json={"input": "x"}, headers=headers)
    ids = {answer.json()["run_id"] for answer in [*answers, again] if answer.status_code == 202}
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"input": ""}, 422), ({"input": "   "}, 422), ({"input": {}}, 422), ({"input": []}, 422),
        ({"input": {"messages": []}}, 422), ({"input": 7}, 422), ({}, 422), ({"input": "x", "priority": 101}, 422),
        ({"input": "x", "timeout": 0}, 422), ({"input": "x", "webhook": "ftp://x"}, 422),
        ({"input": "x", "webhook": "http://10.0.0.1/"}, 422), ({"input": "x", "webhook": "http://[::1]/"}, 422),
        ({"input": "x", "webhook": "http://user:pass@example.com/"}, 422),
        ({"input": "x", "webhook": "http://169.254.169.254/latest"}, 422),
        ({"input": "x", "session_id": "nobody"}, 404), ({"input": "x", "model": "nobody/x"}, 404),
        ({"input": {"a": {"b": [1] * 600_000}}}, 422),
    ],
)  # fmt: skip
async def test_a_run_that_makes_no_sense_is_refused(place: House, body: dict[str, Any], code: int) -> None:
    answer = await place.client.post("/api/agents/simple/run", json=body)
    assert answer.status_code == code, answer.text
    assert "Traceback" not in answer.text


async def test_an_unknown_agent_and_an_unknown_run_are_not_found(place: House) -> None:
    assert (await place.client.post("/api/agents/nobody/run", json={"input": "x"})).status_code == 404
    for method, path in (("POST", "cancel"), ("GET", "events"), ("POST", "requeue")):
        assert (await place.client.request(method, f"/api/runs/nobody/{path}")).status_code == 404


async def test_an_agents_config_is_shown_without_its_secrets(place: House) -> None:
    config = (await place.client.get("/api/agents/fickle/config")).json()
    assert (config["name"], config["background"]["retries"]) == ("Fickle", 3)
    assert config["metadata"] == {"team": "tests", "api_key": "[redacted]"}
    listed = (await place.client.get("/api/agents")).json()
    assert {"simple", "react", "fickle"} <= {agent["id"] for agent in listed["agents"]}


# -- readers --


async def test_a_reader_who_comes_back_fifty_times_hears_every_event_once_and_in_order(place: House) -> None:
    run_id = await submit(place, "ledger", {"steps": 200, "seconds": 0.02}, metadata={"name": "x"})
    heard: list[Event] = []
    connections = 0
    with anyio.fail_after(30):
        while not heard or not ends(heard[-1]):
            connections += 1
            count = 0
            reading = follow(place.client, run_id, heard[-1]["seq"] if heard else None)
            async for event in reading:
                heard.append(event)
                count += 1
                if count >= 4:  # gone in the middle
                    break
            await reading.aclose()  # type: ignore[attr-defined]
    assert connections >= 50
    assert [event["seq"] for event in heard] == list(range(1, len(heard) + 1))
    run = (await place.client.get(f"/api/runs/{run_id}")).json()
    assert heard == told_of(run), "what was told is what is kept"
    assert len(heard) >= 203


async def test_many_readers_hear_the_same_and_a_slow_one_holds_nobody_up(place: House) -> None:
    run_id = await submit(place, "misfit", {"do": "flood", "amount": 20_000})
    async with place.client.stream("GET", f"/api/runs/{run_id}/events") as lazy:  # never read
        stories = await asyncio.gather(*(read_to_the_end(place.client, run_id) for _ in range(5)))
        assert lazy.status_code == 200
    assert all(story == stories[0] for story in stories)
    assert [event["seq"] for event in stories[0]] == list(range(1, len(stories[0]) + 1))
    assert len(stories[0]) > 20_000


async def test_the_end_is_told_to_whoever_asks_late_and_nothing_after_it(place: House) -> None:
    run_id = await submit(place, "simple", "hello")
    run = await until(place, run_id)
    late = await read_to_the_end(place.client, run_id)
    assert late == told_of(run)
    assert await read_to_the_end(place.client, run_id, late[-2]["seq"]) == late[-1:]
    done = await place.client.get(f"/api/runs/{run_id}/events?after={late[-1]['seq']}")
    assert done.status_code == 204
    attached = await place.events({"message": "hello"})
    again = await read_to_the_end(place.client, attached[0]["run_id"])
    assert list(map(timeless, again)) == list(map(timeless, attached)), "attached runs can be read again"


@pytest.mark.parametrize("cursor", ["-1", "x", "1.5", "1e3", "9" * 30, "0x10", "٣", "1 2"])
async def test_a_cursor_that_is_none_is_400(place: House, cursor: str) -> None:
    run_id = await submit(place, "simple", "hello")
    path = f"/api/runs/{run_id}/events"
    by_query = await place.client.get(path, params={"after": cursor})
    assert (by_query.status_code, by_query.json()["code"]) == (400, "malformed_cursor")
    if cursor.isascii():
        by_header = await place.client.get(path, headers={"last-event-id": cursor})
        assert by_header.status_code == 400
    await until(place, run_id)


async def test_trimmed_events_are_a_gap_and_the_end_is_told_all_the_same(place: House) -> None:
    run_id = await submit(place, "react", "What is 6 times 7?")
    run = await until(place, run_id)
    background = place.services.background
    assert background is not None
    await place.services.database.backlog.trim_events(datetime.now(UTC) + timedelta(seconds=1), 1_000)
    told = await read_to_the_end(place.client, run_id)
    assert told[0] == {"kind": "gap", "run_id": run_id, "from": 1, "to": run["events"][-1]["seq"] - 1}
    assert (told[-1]["kind"], told[-1]["output"]) == ("run.finished", run["output"])


# -- stopped, retried, sent again --


@pytest.mark.parametrize("deed", ["hang", "hang_in_a_thread"])
async def test_cancel_ends_a_run_within_a_second(place: House, deed: str) -> None:
    run_id = await submit(place, "misfit", {"do": deed, "amount": 3})
    await until(place, run_id, "running")
    begun = time.monotonic()
    assert (await place.client.post(f"/api/runs/{run_id}/cancel")).json()["status"] in ("cancelling", "cancelled")
    run = await until(place, run_id, "cancelled")
    assert time.monotonic() - begun < 1
    assert kinds(run)[-1] == "run.cancelled"
    again = await place.client.post(f"/api/runs/{run_id}/cancel")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled"), "its end stays as it is"


async def test_a_run_that_has_not_begun_is_cancelled_at_once_and_its_readers_hear_it(place: House) -> None:
    blocking = (await place.client.post("/api/agents/misfit/run", json={"input": {"do": "hang", "amount": 60}})).json()
    await until(place, blocking["run_id"], "running")
    run_id = await submit(place, "simple", "x", session_id=blocking["session_id"], if_busy="queue")
    reading = asyncio.create_task(read_to_the_end(place.client, run_id))
    await asyncio.sleep(0)
    assert (await place.client.post(f"/api/runs/{run_id}/cancel")).json()["status"] == "cancelled"
    with anyio.fail_after(5):
        assert [event["kind"] for event in await reading] == ["run.started", "run.cancelled"]
    await place.client.post(f"/api/runs/{blocking['run_id']}/cancel")
    await until(place, blocking["run_id"], "cancelled")


async def test_a_failed_run_is_tried_again_from_its_checkpoint_where_its_agent_says_so(
    place: House, tmp_path: Path
) -> None:
    run = await until(place, await submit(place, "fickle", {"fails": 2, "file": str(tmp_path / "tries")}))
    assert (run["status"], run["output"]) == ("completed", "tried 3 times, prepared 1 times")
    resumed = [event for event in run["events"] if event["kind"] == "run.resumed"]
    assert [(event["reason"], event["attempt"]) for event in resumed] == [("retry", 2), ("retry", 3)]
    other = await until(place, await submit(place, "misfit", {"do": "fail"}))
    assert (other["status"], other["attempt"]) == ("failed", 1), "only where it says so"


async def test_a_dead_letter_is_listed_and_sent_again_once(place: House, tmp_path: Path) -> None:
    run_id = await submit(place, "fickle", {"fails": 4, "file": str(tmp_path / "tries")})
    dead = await until(place, run_id, "failed")
    assert dead["dead_letter"]
    listed = (await place.client.get("/api/runs?dead_letter=true&agent=fickle")).json()["runs"]
    assert run_id in [run["run_id"] for run in listed]
    first, second = await asyncio.gather(*(place.client.post(f"/api/runs/{run_id}/requeue") for _ in range(2)))
    assert sorted((first.status_code, second.status_code)) == [202, 409]
    accepted = first.json() if first.status_code == 202 else second.json()
    run = await until(place, accepted["run_id"], "completed")
    assert (run["retry_of"], run["output"]) == (run_id, "tried 5 times, prepared 1 times")
    listed = (await place.client.get("/api/runs?dead_letter=true&agent=fickle")).json()["runs"]
    assert run_id not in [run["run_id"] for run in listed]
    fine = await place.client.post(f"/api/runs/{accepted['run_id']}/requeue")
    assert (fine.status_code, fine.json()["code"]) == (409, "not_a_dead_letter")


async def test_a_run_that_gives_no_sign_of_life_is_ended_where_its_agent_says_so(place: House) -> None:
    run = await until(place, await submit(place, "unstable", "x"))
    assert (run["status"], run["error"]["message"]) == ("timeout", "The run gave no sign of life for 1 s.")
    assert 1 <= run["duration"] < 3


async def test_an_ended_run_leaves_no_task_no_reader_and_no_checkpoint(place: House, tmp_path: Path) -> None:
    background = place.services.background
    assert background is not None
    ids = [
        await submit(place, "ledger", {"steps": 3, "seconds": 0.01}, metadata={"name": "x"}),
        await submit(place, "fickle", {"fails": 1, "file": str(tmp_path / "tries")}),
        await submit(place, "misfit", {"do": "fail"}),
    ]
    await asyncio.gather(*(read_to_the_end(place.client, run_id) for run_id in ids))
    with anyio.fail_after(5):
        for run_id in ids:
            await background.worker.finished(run_id)
        while background.events.readers:
            await place.client.get("/health")
    saver = await place.services.checkpoints.saver()
    for run_id in ids:
        assert await saver.aget_tuple({"configurable": {"thread_id": run_id}}) is None
    assert await place.services.database.backlog.threads_to_forget(10) == []


async def test_a_conversation_that_is_sent_again_is_asked_as_it_was(place: House) -> None:
    asked = [
        {"role": "system", "content": "be brief"},
        {"role": "assistant", "content": "Shall I fail?"},
        {"role": "user", "content": [{"type": "text", "text": "fail 1"}]},
    ]
    run = await until(place, await submit(place, "misfit", asked), "failed")
    again = (await place.client.post(f"/api/runs/{run['run_id']}/requeue")).json()
    run = await until(place, again["run_id"], "failed")
    assert run["input"] == "fail 1"
    lines = (await place.client.get(f"/api/sessions/{run['session_id']}/messages")).json()["messages"]
    assert [(line["role"], line["content"]) for line in lines] == [
        ("system", "be brief"), ("assistant", "Shall I fail?"), ("user", "fail 1"),
    ] * 2  # fmt: skip


async def test_a_run_ends_at_its_limit(place: House) -> None:
    run = await until(place, await submit(place, "misfit", {"do": "hang", "amount": 60}, timeout=0.3))
    assert (run["status"], run["error"]["code"]) == ("timeout", "run_timed_out")
    assert 0.2 < run["duration"] < 2
    assert kinds(run)[-1] == "run.timed_out"


async def test_what_an_agent_logs_is_kept_with_its_time(place: House) -> None:
    run = await until(place, await submit(place, "misfit", {"do": "log", "amount": 3}))
    assert [line["message"] for line in run["logs"]] == ["line 0", "line 1", "line 2"]
    assert {(line["level"], line["logger"]) for line in run["logs"]} == {("WARNING", "misfit")}
    assert [line["at"] for line in run["logs"]] == sorted(line["at"] for line in run["logs"])


# -- asked --


async def test_an_approval_is_answered_once_even_when_two_click_at_the_same_moment(place: House) -> None:
    run_id = await submit(place, "misfit", {"do": "ask", "amount": 2})
    reading = asyncio.create_task(read_to_the_end(place.client, run_id))
    for question in range(2):
        run = await until(place, run_id, "waiting")
        (open_one,) = [one for one in run["approvals"] if one["status"] == "pending"]
        assert open_one["payload"] == {"question": question}
        body = {"approval_id": open_one["approval_id"], "value": {"answer": question}}
        path = f"/api/runs/{run_id}/approve"
        clicks = await asyncio.gather(*(place.client.post(path, json=body) for _ in range(5)))
        assert sorted(click.status_code for click in clicks) == [200, 409, 409, 409, 409]
        assert {click.json()["code"] for click in clicks if click.status_code == 409} <= {
            "approval_answered", "run_not_waiting",
        }  # fmt: skip
    run = await until(place, run_id, "completed")
    assert run["output"] == "{'answer': 0} {'answer': 1}"
    story = await reading
    assert [event["kind"] for event in story if event["kind"].startswith(("run.", "approval"))] == [
        "run.started", "approval.requested", "run.waiting", "run.resumed", "approval.requested", "run.waiting",
        "run.resumed", "run.finished",
    ]  # fmt: skip
    assert [one["answered_by"] for one in run["approvals"]] == ["admin", "admin"]


async def test_a_rejection_is_an_answer_and_an_unknown_approval_is_none(place: House) -> None:
    run_id = await submit(place, "misfit", {"do": "ask", "amount": 1})
    run = await until(place, run_id, "waiting")
    unknown = await place.client.post(f"/api/runs/{run_id}/approve", json={"approval_id": "nothing"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "approval_not_found")
    body = {"approval_id": run["approvals"][0]["approval_id"], "decision": "reject", "reason": "too dear"}
    assert (await place.client.post(f"/api/runs/{run_id}/approve", json=body)).status_code == 200
    run = await until(place, run_id, "completed")
    assert "'approved': False" in run["output"]
    assert "too dear" in run["output"]
    late = await place.client.post(f"/api/runs/{run_id}/approve", json=body)
    assert late.status_code == 409


async def test_a_waiting_run_can_be_cancelled_and_costs_no_place(place: House) -> None:
    ids = [await submit(place, "misfit", {"do": "ask", "amount": 1}) for _ in range(6)]
    for run_id in ids:  # four at once, says its config; who waits is not counted
        await until(place, run_id, "waiting")
    for run_id in ids:
        assert (await place.client.post(f"/api/runs/{run_id}/cancel")).json()["status"] == "cancelled"
        assert (await until(place, run_id))["status"] == "cancelled"


async def test_an_attached_run_that_asks_is_told_how_to_be_asked(place: House) -> None:
    answer = await place.client.post("/completion", json={"message": "ask 1", "agent": "misfit"})
    assert (answer.status_code, answer.json()["code"]) == (409, "approval_needed")
    assert "/api/agents/misfit/run" in answer.json()["detail"]


# -- poison --


@pytest.mark.parametrize(("deed", "amount"), [("block", 5), ("spin", 5)])
async def test_an_agent_that_holds_up_the_process_is_stopped_and_its_neighbours_go_on(
    place: House, deed: str, amount: float
) -> None:
    neighbour = await submit(place, "ledger", {"steps": 20, "seconds": 0.05}, metadata={"name": "n"})
    bad = await until(place, await submit(place, "misfit", {"do": deed, "amount": amount}))
    assert (bad["status"], bad["error"]["code"]) == ("failed", "agent_blocked")
    assert bad["duration"] < 3
    good = await until(place, neighbour)
    assert good["status"] == "completed"
    metrics = (await place.client.get("/metrics")).text
    assert "routeur_loop_lag_seconds" in metrics


async def test_builders_and_nodes_that_block_hold_nobody_up(place: House) -> None:
    run_id = await submit(place, "slowpoke", "x")
    await until(place, run_id, "running")
    begun = time.monotonic()
    other = await place.client.post("/completion", json={"message": "x", "agent": "simple", "temperature": 0.375})
    assert other.status_code == 200, "an agent whose graph is not made yet either"
    assert time.monotonic() - begun < 0.5, "it waits for no other agent's builder"
    waits: list[float] = []
    run: dict[str, Any] = {}
    with anyio.fail_after(20):
        while run.get("status") not in ENDED:
            begun = time.monotonic()
            await place.client.get("/health")
            waits.append(time.monotonic() - begun)
            run = (await place.client.get(f"/api/runs/{run_id}")).json()
    assert run["output"] == "waited"
    assert run["duration"] >= 1
    assert max(waits) < 0.5, "of two times a second"
    assert run["duration"] < 3, "built once"


@pytest.mark.parametrize(("deed", "code"), [("recurse", "recursion_limit"), ("fail", "agent_failed")])
async def test_an_agent_that_never_ends_or_fails_is_marked(place: House, deed: str, code: str) -> None:
    run = await until(place, await submit(place, "misfit", {"do": deed}))
    assert (run["status"], run["error"]["code"], run["dead_letter"]) == ("failed", code, True)


async def test_an_agent_that_floods_is_stopped_before_it_fills_the_record(settings: Settings, open_with: Any) -> None:
    house = await open_with(with_agents(settings))
    run_id = await submit(house, "misfit", {"do": "flood", "amount": 300_000})
    neighbour = await until(house, await submit(house, "simple", "x"))
    assert neighbour["status"] == "completed"
    with anyio.fail_after(60):
        run = await until(house, run_id, "failed")
    assert run["error"]["code"] == "too_many_events"
    assert len(run["events"]) <= 100_002


# -- told --


class Inbox:
    """Somebody's server, for webhooks."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.told: list[tuple[dict[str, str], bytes]] = []
        self.refuse = 0
        self.status = 200
        self.news = asyncio.Event()
        self.app.add_api_route("/hook", self._take, methods=["POST"])

    async def _take(self, request: Request) -> Response:
        if self.refuse:
            self.refuse -= 1
            return Response(status_code=500)
        self.told.append((dict(request.headers), await request.body()))
        self.news.set()
        return Response(status_code=self.status, headers={"location": "http://127.0.0.1:1/"})


async def test_the_end_of_a_run_is_told_signed_and_once(place: House) -> None:
    inbox = Inbox()
    async with live(inbox.app) as url:
        run_id = await submit(place, "simple", "hello", webhook=f"{url}/hook", metadata={"dossier_id": "d7"})
        with anyio.fail_after(10):
            await inbox.news.wait()
        secret = (await place.client.get("/api/webhooks/secret")).json()["secret"]
        headers, body = inbox.told[0]
        note = orjson.loads(body)
        assert (note["type"], note["data"]["run_id"]) == ("run.completed", run_id)
        assert note["data"]["metadata"] == {"dossier_id": "d7"}
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        right = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        assert headers["webhook-signature"] == f"v1,{right}"
        assert abs(time.time() - int(headers["webhook-timestamp"])) < 30
        run: dict[str, Any] = {}
        with anyio.fail_after(5):
            while run.get("webhook", {}).get("status") != "delivered":
                run = (await place.client.get(f"/api/runs/{run_id}")).json()
        assert len(inbox.told) == 1


async def test_an_end_that_nobody_takes_is_told_again(place: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.webhook_service._FIRST_DELAY", 0.1)
    inbox = Inbox()
    inbox.refuse = 2
    async with live(inbox.app) as url:
        run_id = await submit(place, "misfit", {"do": "fail"}, webhook=f"{url}/hook")
        with anyio.fail_after(15):
            await inbox.news.wait()
        assert orjson.loads(inbox.told[0][1])["type"] == "run.failed"
        run: dict[str, Any] = {}
        with anyio.fail_after(5):
            while run.get("webhook", {}).get("status") != "delivered":
                run = (await place.client.get(f"/api/runs/{run_id}")).json()
        assert run["webhook"]["attempts"] == 3


# -- by the clock --


async def test_a_schedule_begins_a_run_at_its_moment_and_once(place: House) -> None:
    body = {"agent": "simple", "cron": "*/5 * * * *", "timezone": "Europe/Paris", "run": {"input": "Good morning"}}
    made = await place.client.post("/api/schedules", json=body)
    assert made.status_code == 201, made.text
    schedule = made.json()
    next_at = datetime.fromisoformat(schedule["next_at"])
    assert next_at.minute % 5 == 0
    background = place.services.background
    assert background is not None
    assert await background.schedules.fire(datetime.now(next_at.tzinfo)) == 0
    fired = await asyncio.gather(*(background.schedules.fire(next_at) for _ in range(3)))
    assert sum(fired) == 1, "several processes look, one of them begins it"
    told = (await place.client.get(f"/api/schedules/{schedule['schedule_id']}")).json()
    run = await until(place, told["last_run_id"])
    assert (run["status"], run["input"]) == ("completed", "Good morning")
    assert datetime.fromisoformat(told["next_at"]) > next_at
    path = f"/api/schedules/{schedule['schedule_id']}"
    assert (await place.client.patch(path, json={"enabled": False})).json()["enabled"] is False
    assert await background.schedules.fire(datetime.fromisoformat(told["next_at"])) == 0
    assert (await place.client.delete(path)).status_code == 204
    assert (await place.client.get(path)).status_code == 404


async def test_the_clock_fires_by_itself(place: House) -> None:
    body = {"agent": "simple", "cron": "0 0 1 1 *", "run": {"input": "Happy new year"}}
    schedule_id = (await place.client.post("/api/schedules", json=body)).json()["schedule_id"]
    async with place.services.database.unit_of_work() as work:
        await work.schedules.update_one(schedule_id, next_at=datetime.now(UTC) + timedelta(seconds=0.2))
    told: dict[str, Any] = {}
    with anyio.fail_after(10):
        while not told.get("last_run_id"):
            await asyncio.sleep(0.05)
            told = (await place.client.get(f"/api/schedules/{schedule_id}")).json()
    assert (await until(place, told["last_run_id"]))["input"] == "Happy new year"
    await place.client.delete(f"/api/schedules/{schedule_id}")


@pytest.mark.parametrize(
    "change",
    [
        {"cron": "x"}, {"cron": "61 * * * *"}, {"cron": "* * * * * *"}, {"cron": "0 0 31 2 *"}, {"cron": "@reboot a b"},
        {"timezone": "Mars/Olympus"}, {"timezone": "../etc/passwd"}, {"run": {"input": ""}},
        {"run": {"input": "x", "webhook": "http://192.168.1.1/"}},
    ],
    ids=str,
)  # fmt: skip
async def test_a_schedule_that_makes_no_sense_is_refused(place: House, change: dict[str, Any]) -> None:
    body = {"agent": "simple", "cron": "0 7 * * 1-5", "run": {"input": "x"}, **change}
    answer = await place.client.post("/api/schedules", json=body)
    assert answer.status_code == 422, answer.text


# -- with settings of their own --


async def test_who_has_too_many_in_the_queue_is_told_when_to_come_again(settings: Settings, open_with: Any) -> None:
    house = await open_with(with_agents(settings, queued_per_user=3, concurrency=0))
    for number in range(3):
        await submit(house, "simple", str(number))
    full = await house.client.post("/api/agents/simple/run", json={"input": "x"})
    assert (full.status_code, full.json()["code"]) == (429, "rate_limited")
    assert int(full.headers["retry-after"]) >= 1
    await house.add_user("ada")
    token = (await house.log_in("ada", "a good password")).json()["access_token"]
    shown = ""
    with anyio.fail_after(10):
        while "routeur_queue_depth 3.0" not in shown:
            await asyncio.sleep(0.05)
            shown = (await house.client.get("/metrics")).text
    other = await house.anyone.post(
        "/api/agents/simple/run", json={"input": "x"}, headers={"authorization": f"Bearer {token}"}
    )
    assert other.status_code == 202, "others have their own"


async def test_a_full_queue_is_full_for_everybody(settings: Settings, open_with: Any) -> None:
    house = await open_with(with_agents(settings, queued=2, concurrency=0))
    for number in range(2):
        await submit(house, "simple", str(number))
    with anyio.fail_after(5):
        while True:
            full = await house.client.post("/api/agents/simple/run", json={"input": "x"})
            if full.status_code == 429:
                break
    assert int(full.headers["retry-after"]) >= 1


async def test_limits_of_agents_and_users_are_kept_and_others_pass_by(settings: Settings, open_with: Any) -> None:
    house = await open_with(with_agents(settings, per_user=6))
    hanging = [await submit(house, "misfit", {"do": "hang", "amount": 60}) for _ in range(5)]
    other = await until(house, await submit(house, "simple", "x"))
    assert other["status"] == "completed", "an agent that is full holds nobody else up"
    status = (await house.client.get("/api/agents/misfit/status")).json()
    assert (status["running"], status["queued"]) == (4, 1), "four at once, says its config"
    await house.client.post(f"/api/runs/{hanging[0]}/cancel")
    await until(house, hanging[-1], "running")
    more = [await submit(house, "ledger", {"steps": 1, "seconds": 60}, metadata={"name": "x"}) for _ in range(3)]
    await until(house, more[1], "running")
    assert (await house.client.get(f"/api/runs/{more[2]}")).json()["status"] == "queued", "six of one user"


async def test_the_most_urgent_run_is_taken_first(settings: Settings, open_with: Any) -> None:
    house = await open_with(with_agents(settings, concurrency=1))
    first = await submit(house, "ledger", {"steps": 1, "seconds": 0.5}, metadata={"name": "first"})
    await until(house, first, "running")
    calm = await submit(house, "simple", "calm", priority=-5)
    urgent = await submit(house, "simple", "urgent", priority=5)
    runs = [await until(house, run_id) for run_id in (first, urgent, calm)]
    begun = [run["started_at"] for run in runs]
    assert begun == sorted(begun)


async def test_an_agent_that_eats_memory_fails_and_the_process_lives(settings: Settings, tmp_path: Path) -> None:
    """In a process of its own: the limit is the process's."""
    async with installed("embedded", tmp_path, MAX_MEMORY_MB="900") as house:
        run_id = await house.submit("misfit", {"do": "hog", "amount": 5_000})
        run = await house.until(run_id, "failed")
        assert run["error"]["code"] == "out_of_memory"
        after = await house.until(await house.submit("misfit", {"do": "behave"}), "completed")
        assert after["output"] == "behaved"


async def test_an_agent_that_kills_its_process_is_found_out(tmp_path: Path) -> None:
    async with installed("embedded", tmp_path, RUN_MAX_CRASHES="4") as house:
        bad = await house.submit("misfit", {"do": "leave"})
        good = await house.submit("ledger", {"steps": 6, "seconds": 0.4}, metadata={"name": "good"})
        deaths = 0
        with anyio.fail_after(90):
            while deaths <= 7 and (await house.look(bad)).get("status") != "lost":
                if house.fleet.live["web"].process.poll() is not None:
                    deaths += 1
                    await house.fleet.start("web")
                await asyncio.sleep(0.05)
        assert deaths == 6, "the first is forgiven: it had come as far as a checkpoint"
        lost = await house.until(bad, "lost")
        assert (lost["error"]["code"], lost["dead_letter"]) == ("run_poisonous", True)
        assert (await house.until(good, "completed"))["output"] == "good did 6 steps"


async def test_a_run_whose_agent_is_not_to_be_gone_on_with_is_lost_in_sight(tmp_path: Path) -> None:
    async with installed("embedded", tmp_path) as house:
        run_id = await house.submit("unstable", "x")
        await house.until(run_id, "running")
        house.fleet.kill("web")
        await house.fleet.start("web")
        run = await house.until(run_id, "lost")
        assert (run["error"]["code"], run["dead_letter"]) == ("run_lost", True)
        told = await read_to_the_end(house.client, run_id)
        assert (told[-1]["kind"], told[-1]["code"]) == ("run.failed", "run_lost")
        assert told == told_of(run)


async def test_what_a_cancelled_run_spent_is_in_its_account_and_its_provider_is_let_go(
    settings: Settings, open_with: Any, provider: FakeProvider
) -> None:
    provider.default = Reply(words=tuple(f"{number} " for number in range(1_000)), pause=0.02)
    compatible = {"slow": CompatibleProvider(base_url=f"{provider.url}/v1")}
    providers = settings.providers.model_copy(update={"compatible": compatible, "default_model": "slow/fake"})
    house = await open_with(settings.model_copy(update={"providers": providers}))
    run_id = await submit(house, "simple", "count")
    reading = follow(house.client, run_id)
    heard = 0
    async for event in reading:
        heard += event["kind"] == "text.delta"
        if heard == 5:
            break
    await reading.aclose()  # type: ignore[attr-defined]
    assert (await house.client.get(f"/api/runs/{run_id}")).json()["status"] == "running", "the run did not notice"
    begun = time.monotonic()
    await house.client.post(f"/api/runs/{run_id}/cancel")
    run = await until(house, run_id, "cancelled")
    with anyio.fail_after(1):
        await provider.abort_seen.wait()
    assert time.monotonic() - begun < 1
    assert run["usage"]["output_tokens"] > 0
    lines = (await house.client.get(f"/api/sessions/{run['session_id']}/messages")).json()["messages"]
    assert (lines[1]["partial"], lines[1]["content"].startswith("0 1 2")) == (True, True)
