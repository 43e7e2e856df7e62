"""What chat completions leave behind: the record of the native door, sessions that both share, and no loose end."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import httpx
import pytest
from pydantic import TypeAdapter

from config.settings import AgentSettings, Settings
from domain.auth import CredentialKind, Principal, Scope, UserId
from domain.errors import Conflict
from domain.events import AgentEvent, EventLaws
from services.direct_service import DirectRequest, DirectRun
from tests.fakes.house import House, open_house
from tests.fakes.openai_door import error_in, error_of, frames_of, post, reaching, says, sdk, words_of
from tests.fakes.providers import TEXT, FakeProvider, Reply
from tests.fakes.readers import read_to_the_end

pytestmark = pytest.mark.anyio
Opener = Callable[[Settings], Awaitable[House]]
MODEL = "openai/gpt-4o-mini"  # one that has a price
_EVENT: TypeAdapter[AgentEvent] = TypeAdapter(AgentEvent)
DOORS = {"direct": MODEL, "simple": f"agent/simple@{MODEL}"}


@pytest.fixture(scope="module")
async def served(shared_settings: Settings, shared_provider: FakeProvider) -> AsyncIterator[House]:
    async with open_house(reaching(shared_settings, shared_provider)) as house:
        yield house


async def until(true: Callable[[], object], within: float = 3) -> None:
    """Wait for it."""
    with anyio.fail_after(within):
        while not true():  # noqa: ASYNC110 - nobody rings
            await anyio.sleep(0.005)


async def quiet(house: House, provider: FakeProvider) -> None:
    """Wait until nothing goes on; fail when something stays."""
    await house.services.direct.runs.wait_for_silence(2)
    await until(lambda: not provider.open)
    with anyio.fail_after(3):  # nobody waits for the record of somebody who has left
        while (await house.client.get("/api/runs?in_progress=true")).json()["runs"]:
            pass
    assert house.services.direct.runs.count == 0
    assert house.services.recorder.following == 0


async def newest(house: House) -> dict[str, Any]:
    run: dict[str, Any] = (await house.client.get("/api/runs?limit=1")).json()["runs"][0]
    return run


async def record_of(house: House, run: dict[str, Any]) -> dict[str, Any]:
    """Everything that is told of a run, without what is another one each time."""
    session = f"/api/sessions/{run['session_id']}"
    told = (await house.client.get(session)).json()
    raw = (await house.client.get(f"{session}/messages/raw")).json()["messages"]
    usage = (await house.client.get(f"{session}/usage")).json()
    kept = (
        *("kind", "agent", "model", "status", "input", "output", "finish_reason", "error", "metadata"),
        *("usage", "cost", "calls", "unmeasured_calls", "unpriced_calls"),
    )
    return {
        "run": {name: run[name] for name in kept if name in run},
        "title": told["title"],
        "lines": [(one["role"], one["kind"], one["content"], one["partial"], one["model"]) for one in told["messages"]],
        "raw": [
            (one["format"], one["message_data"]["type"], one["message_data"]["data"]["content"],
             one["message_data"]["data"].get("usage_metadata"), one["message_data"]["data"].get("response_metadata"))
            for one in raw
        ],
        "usage": {name: value for name, value in usage.items() if name != "session_id"},
    }  # fmt: skip


def asked_of(door: str, agent: str, stream: bool) -> tuple[str, dict[str, Any]]:
    """Where to ask the same thing, and how."""
    if door == "native":
        body: dict[str, Any] = {"message": "Salut", "agent": agent, "model": MODEL, "metadata": {"a": "b"}}
        return ("/completion/stream" if stream else "/completion"), body
    body = {"model": DOORS[agent], "messages": says(), "stream": stream, "metadata": {"a": "b"}}
    return "/v1/chat/completions", body


async def make(house: House, provider: FakeProvider, ending: str, door: str, agent: str, stream: bool) -> None:
    """One call that ends like that."""
    path, body = asked_of(door, agent, stream)
    provider.reset()
    match ending:
        case "finished" | "length":
            provider.then(Reply(finish="length" if ending == "length" else "stop"))
        case "thought":
            provider.then(Reply(reasoning="Hm."))
        case "unmeasured":
            provider.then(Reply(fault="usage_missing"))
        case "cut" | "error_inside" | "no_finish":
            provider.then(Reply(fault=ending))
        case "refused":
            provider.then(Reply(status=400))
        case "left" | "cancelled":
            provider.then(Reply(words=("a", "b", "c"), fault="hang_between"))
    if ending not in ("left", "cancelled"):
        await house.client.post(path, json=body)
        return
    task = asyncio.create_task(house.client.post(path, json=body))
    await until(lambda: provider.open)
    if stream:
        await until(lambda: any(run.draft() for run in list(house.services.recorder._live.values())))
    if ending == "cancelled":
        run = await newest(house)
        answer = await house.client.post(f"/api/runs/{run['run_id']}/cancel")
        assert answer.status_code in (200, 202), answer.text
        await task
        return
    task.cancel()
    await asyncio.wait([task])


ENDINGS = ["finished", "length", "thought", "unmeasured", "cut", "no_finish", "refused", "left", "cancelled"]


@pytest.mark.parametrize("agent", DOORS)
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("ending", ENDINGS)
async def test_both_doors_write_the_same_record(
    served: House, provider: FakeProvider, ending: str, stream: bool, agent: str
) -> None:
    written = []
    for door in ("native", "openai"):
        await make(served, provider, ending, door, agent, stream)
        await quiet(served, provider)
        written.append(await record_of(served, await newest(served)))
    if ending == "no_finish" and not stream and agent == "direct":
        written[0] = {**written[1], "run": {**written[0]["run"], "output": TEXT}}  # here it keeps what arrived
    assert written[1] == written[0]
    run = written[1]["run"]
    expected = {"left": "cancelled", "cancelled": "cancelled", "cut": "failed", "no_finish": "failed",
                "refused": "failed"}  # fmt: skip
    assert run["status"] == expected.get(ending, "completed")
    if ending in ("finished", "length", "thought"):
        [(inputs, outputs)] = provider.ledger
        assert (run["usage"]["input_tokens"], run["usage"]["output_tokens"]) == (inputs, outputs)
        assert run["cost"] is not None
    if ending in ("left", "cancelled"):
        assert run["usage"]["estimated"]
        assert provider.aborted == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("ending", ENDINGS)
async def test_the_events_of_a_direct_run_are_lawful_and_tell_the_same_again(
    served: House, provider: FakeProvider, ending: str, stream: bool
) -> None:
    await make(served, provider, ending, "openai", "direct", stream)
    await quiet(served, provider)
    run = await newest(served)
    events = await read_to_the_end(served.client, run["run_id"])
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    laws = EventLaws()
    for event in events:
        laws.admit(_EVENT.validate_python({name: event[name] for name in event.keys() - {"seq", "at", "run_id"}}))
    assert laws.ended
    assert "".join(event["text"] for event in events if event["kind"] == "text.delta") == (run["output"] or "")
    assert events[0]["model"] == MODEL
    assert events[-1]["usage"] == run["usage"]


# -- sessions --


@pytest.mark.parametrize("agent", DOORS)
@pytest.mark.parametrize("stream", [True, False])
async def test_a_session_goes_on_from_one_door_to_the_other(
    served: House, provider: FakeProvider, agent: str, stream: bool
) -> None:
    provider.default = Reply(words=("one",))
    first = (await served.client.post("/completion", json={"message": "1", "agent": agent, "model": MODEL})).json()
    session = first["session_id"]
    await post(served, {"model": DOORS[agent], "messages": says("2"), "stream": stream}, x_session_id=session)
    await served.client.post("/completion", json={"message": "3", "session_id": session, "model": MODEL})
    sent = [one for one in provider.asked[-1]["messages"] if one["role"] != "system"]
    assert [(one["role"], one["content"]) for one in sent] == [
        ("user", "1"), ("assistant", "one"), ("user", "2"), ("assistant", "one"), ("user", "3")
    ]  # fmt: skip
    told = (await served.client.get(f"/api/sessions/{session}")).json()
    assert [line["content"] for line in told["messages"]] == ["1", "one", "2", "one", "3", "one"]


@pytest.mark.parametrize("model", [*DOORS.values()])
async def test_an_empty_session_made_natively_is_filled(served: House, provider: FakeProvider, model: str) -> None:
    made = (await served.client.post("/api/sessions", json={"title": "Mine"})).json()["session_id"]
    answer = await post(served, {"model": model, "messages": says(), "metadata": {"session_id": made}})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-session-id"] == made
    told = (await served.client.get(f"/api/sessions/{made}")).json()
    assert (told["title"], len(told["messages"])) == ("Mine", 2)
    assert "session_id" not in (await newest(served))["metadata"]


@pytest.mark.parametrize("model", [*DOORS.values()])
@pytest.mark.parametrize("stream", [True, False])
async def test_somebody_elses_session_is_as_unknown_as_one_that_never_was(
    served: House, provider: FakeProvider, model: str, stream: bool
) -> None:
    first = await post(served, {"model": model, "messages": says()})
    foreign = first.headers["x-session-id"]
    name = f"u{abs(hash((model, stream)))}"
    await served.add_user(name)
    token = (await served.log_in(name, "a good password")).json()["access_token"]
    told = []
    for session in (foreign, "0198c0de-0000-7000-8000-000000000000"):
        for more in ({"headers": {"x-session-id": session}}, {}):
            body = {"model": model, "messages": [*says(), *says("2")], "stream": stream}
            if not more:
                body["metadata"] = {"session_id": session}
            headers = {"authorization": f"Bearer {token}", **more.get("headers", {})}
            answer = await served.anyone.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 404
            told.append(error_of(answer))
    assert all(one == told[0] for one in told)


async def test_two_different_sessions_in_one_call_are_refused(served: House) -> None:
    one = (await served.client.post("/api/sessions", json={})).json()["session_id"]
    two = (await served.client.post("/api/sessions", json={})).json()["session_id"]
    body = {"model": "offline/rules", "messages": says(), "metadata": {"session_id": two}}
    assert error_of(await post(served, body, x_session_id=one))["param"] == "metadata"
    body["metadata"] = {"session_id": one}
    assert (await post(served, body, x_session_id=one)).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", [*DOORS.values()])
async def test_a_client_that_sends_everything_each_time_adds_only_what_is_new(
    served: House, provider: FakeProvider, model: str, stream: bool
) -> None:
    provider.default = Reply(words=("fine",))
    rule = {"role": "system", "content": "Be short."}
    talk: list[Any] = [rule]
    headers: dict[str, str] = {"x_conversation_id": f"chat {model} {stream}"}
    for turn in range(4):
        talk.append({"role": "user", "content": f"q{turn}"})
        answer = await post(served, {"model": model, "messages": talk, "stream": stream}, **headers)
        assert answer.status_code == 200, answer.text
        talk.append({"role": "assistant", "content": "fine"})
    told = (await served.client.get(f"/api/sessions/{answer.headers['x-session-id']}")).json()["messages"]
    assert [line["content"] for line in told] == ["Be short.", *(word for n in range(4) for word in (f"q{n}", "fine"))]
    asked = [one["content"] for one in provider.asked[-1]["messages"]]
    assert asked[-7:] == ["q0", "fine", "q1", "fine", "q2", "fine", "q3"]
    assert asked.count("q0") == 1


async def test_the_answer_of_a_tool_takes_its_place_in_the_session(served: House, provider: FakeProvider) -> None:
    function = {"type": "function", "function": {"name": "calculator", "parameters": {"type": "object"}}}
    for whole in (True, False):
        provider.then(Reply(tool=("calculator", {"expression": "6*7"})), Reply(words=("42",)))
        first = await post(served, {"model": MODEL, "messages": says("6*7?"), "tools": [function]})
        call = first.json()["choices"][0]["message"]
        result = {"role": "tool", "tool_call_id": "call_1", "content": "42!"}
        sent = [*says("6*7?"), call, result] if whole else [result]
        session = first.headers["x-session-id"]
        await post(served, {"model": MODEL, "messages": sent, "tools": [function]}, x_session_id=session)
        asked = provider.asked[-1]["messages"]
        assert [one["role"] for one in asked] == ["user", "assistant", "tool"]
        assert asked[-1]["content"] == "42!"
        told = (await served.client.get(f"/api/sessions/{session}")).json()["messages"]
        assert [line["kind"] for line in told] == ["text", "tool_call", "tool_result", "text"]


@pytest.mark.parametrize("header", ["x_openwebui_chat_id", "x_conversation_id"])
async def test_a_chat_is_one_session_for_each_owner(served: House, provider: FakeProvider, header: str) -> None:
    name = f"chatter{header[2:6]}"
    await served.add_user(name)
    token = (await served.log_in(name, "a good password")).json()["access_token"]
    body = {"model": MODEL, "messages": says()}
    mine = {(await post(served, body, **{header: "chat 1"})).headers["x-session-id"] for _ in range(2)}
    named = {header.replace("_", "-"): "chat 1", "authorization": f"Bearer {token}"}
    theirs = {
        (await served.anyone.post("/v1/chat/completions", json=body, headers=named)).headers["x-session-id"]
        for _ in range(2)
    }
    assert len(mine) == len(theirs) == 1
    assert mine != theirs


@pytest.mark.parametrize("model", [*DOORS.values()])
async def test_twenty_first_requests_of_a_chat_at_one_moment_make_one_session(
    served: House, provider: FakeProvider, model: str
) -> None:
    body = {"model": model, "messages": says()}
    answers = await asyncio.gather(*(post(served, body, x_conversation_id=f"at once {model}") for _ in range(20)))
    assert {answer.status_code for answer in answers} <= {200, 409}, [answer.text for answer in answers]
    sessions = {answer.headers["x-session-id"] for answer in answers if answer.status_code == 200}
    assert len(sessions) == 1
    told = (await served.client.get(f"/api/sessions/{sessions.pop()}")).json()["messages"]
    assert len(told) == 2 * sum(answer.status_code == 200 for answer in answers)


# -- a client that leaves, an owner who stops, a server that stops --


@pytest.mark.parametrize("model", [*DOORS.values()])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", ["hang_before", "hang_between"])
async def test_when_the_client_leaves_the_provider_is_let_go_within_a_second(
    served: House, provider: FakeProvider, model: str, stream: bool, fault: Any
) -> None:
    provider.then(Reply(fault=fault))
    task = asyncio.create_task(post(served, {"model": model, "messages": says(), "stream": stream}))
    await until(lambda: provider.open)
    await asyncio.sleep(0.05)
    task.cancel()
    with anyio.fail_after(1):
        await provider.abort_seen.wait()
    await quiet(served, provider)
    run = await newest(served)
    assert run["status"] == "cancelled"
    assert run["usage"]["estimated"], "asked is spent"
    assert run["usage"]["input_tokens"] > 0


@pytest.mark.parametrize("model", [*DOORS.values()])
async def test_fifty_that_leave_at_once_leave_nothing_behind(served: House, provider: FakeProvider, model: str) -> None:
    provider.default = Reply(fault="hang_between")
    before = len(asyncio.all_tasks())
    body = {"model": model, "messages": says()}
    calls = [asyncio.create_task(post(served, {**body, "stream": number % 2 == 0})) for number in range(50)]
    await until(lambda: provider.open == 50, within=10)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    await until(lambda: provider.aborted == 50)
    await quiet(served, provider)
    runs = (await served.client.get("/api/runs?limit=50")).json()["runs"]
    assert {run["status"] for run in runs} == {"cancelled"}
    await until(lambda: len(asyncio.all_tasks()) <= before + 5)


@pytest.mark.parametrize("model", [*DOORS.values()])
async def test_a_stream_that_its_owner_stops_says_so(served: House, provider: FakeProvider, model: str) -> None:
    provider.then(Reply(fault="hang_between"))
    async with sdk(served) as client:
        stream = await client.chat.completions.create(model=model, messages=says(), stream=True)
        first = await anext(aiter(stream))
        assert first.choices
        run_id = stream.response.headers["x-run-id"]
        assert (await served.client.post(f"/api/runs/{run_id}/cancel")).status_code in (200, 202)
        with pytest.raises(Exception, match="cancelled") as caught:
            async for _ in stream:
                pass
        assert getattr(caught.value, "code", "") == "run_cancelled"
    await quiet(served, provider)


@pytest.mark.parametrize("model", [*DOORS.values()])
async def test_a_cancel_at_the_end_leaves_one_outcome(served: House, provider: FakeProvider, model: str) -> None:
    for _ in range(30):
        async with served.client.stream(
            "POST", "/v1/chat/completions", json={"model": model, "messages": says(), "stream": True}
        ) as answer:
            run_id = answer.headers["x-run-id"]
            stopping = asyncio.create_task(served.client.post(f"/api/runs/{run_id}/cancel"))
            frames = frames_of(await answer.aread())
            stopped = await stopping
        assert stopped.status_code < 500, stopped.text
        run = (await served.client.get(f"/api/runs/{run_id}")).json()
        assert run["status"] == ("completed" if frames[-1] == "[DONE]" else "cancelled")
    await quiet(served, provider)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_stop_that_comes_before_the_model_is_asked_is_heard(
    served: House, provider: FakeProvider, stream: bool
) -> None:
    run = await begun(served, stream=stream)
    run.cancel("early")
    with pytest.raises(Conflict, match="cancelled"):
        await (run.open() if stream else run.whole())
    await quiet(served, provider)
    assert (await newest(served))["status"] == "cancelled"


async def test_a_stop_between_the_first_piece_and_its_reading_is_heard(served: House, provider: FakeProvider) -> None:
    provider.then(Reply(fault="hang_between"))
    run = await begun(served, stream=True)
    await run.open()
    run.cancel("between")
    with pytest.raises(Conflict, match="cancelled"):
        assert [block async for block in run.blocks()] == []
    await quiet(served, provider)
    assert (await newest(served))["status"] == "cancelled"


async def begun(house: House, *, stream: bool) -> DirectRun:
    """A call that is written down, and nothing asked yet."""
    admin = await house.services.users.find("admin")
    caller = Principal(UserId(admin.id), "admin", frozenset({Scope.ADMIN}), CredentialKind.API_KEY, "k")
    request = DirectRequest({"model": MODEL, "messages": says()}, MODEL, stream)
    return await house.services.direct.begin(request, caller)


async def slow_reader(house: House, model: str) -> tuple[Any, str]:
    """A client that asks for a long stream and does not read; its reader, and the run."""
    host, port = house.url.removeprefix("http://").split(":")
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    narrow.setblocking(False)
    await asyncio.get_running_loop().sock_connect(narrow, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=narrow, limit=1_000)
    body = (f'{{"model":"{model}","stream":true,"messages":[{{"role":"user","content":"x"}}]}}').encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
        f"authorization: Bearer {house.tokens['access_token']}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    run_id = ""
    while (line := await reader.readline()) != b"\r\n":
        name, _, value = line.decode().partition(": ")
        run_id = value.strip() if name == "x-run-id" else run_id
    return (reader, writer), run_id


@pytest.mark.parametrize("model", [*DOORS.values()])
async def test_a_run_whose_reader_is_slow_can_be_stopped_and_says_so(
    served: House, provider: FakeProvider, model: str
) -> None:
    provider.then(Reply(words=("word " * 400,) * 10_000))
    (reader, writer), run_id = await slow_reader(served, model)
    await anyio.sleep(0.5)
    assert provider.open == 1, "the source waits for the reader"
    assert (await served.client.post(f"/api/runs/{run_id}/cancel")).status_code in (200, 202)
    with anyio.fail_after(10):
        raw = await reader.read(-1)
    writer.close()
    assert b"run_cancelled" in raw[-2_000:]
    assert b"[DONE]" not in raw
    await quiet(served, provider)
    assert (await served.client.get(f"/api/runs/{run_id}")).json()["status"] == "cancelled"


@pytest.mark.parametrize("model", [*DOORS.values()])
async def test_a_time_limit_that_ends_while_the_reader_is_slow_is_a_time_limit(
    open_with: Opener, settings: Settings, provider: FakeProvider, model: str
) -> None:
    short = reaching(settings, provider).model_copy(update={"agents": AgentSettings(max_execution_time=0.7)})
    house = await open_with(short)
    provider.then(Reply(words=("word " * 400,) * 10_000))
    (reader, writer), run_id = await slow_reader(house, model)
    await anyio.sleep(1)
    with anyio.fail_after(10):
        raw = await reader.read(-1)
    writer.close()
    assert b"run_timed_out" in raw[-2_000:]
    await quiet(house, provider)
    assert (await house.client.get(f"/api/runs/{run_id}")).json()["status"] == "timeout"


@pytest.mark.parametrize("model", [*DOORS.values()])
async def test_who_reads_when_the_server_stops_is_told(settings: Settings, provider: FakeProvider, model: str) -> None:
    provider.then(Reply(fault="hang_between"))
    raw = b""

    async def read(house: House) -> None:
        nonlocal raw
        body = {"model": model, "messages": says(), "stream": True}
        async with house.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for chunk in answer.aiter_bytes():
                raw += chunk

    async with anyio.create_task_group() as group, open_house(reaching(settings, provider)) as house:
        reading = httpx.AsyncClient(base_url=house.url, headers=dict(house.client.headers), timeout=20)
        group.start_soon(read, House(house.url, house.app, reading, house.anyone, house.tokens))
        await until(lambda: b"Bon" in raw)
    await reading.aclose()
    frames = frames_of(raw)
    assert error_in(frames[-1])["code"] == "server_stopping"
    assert words_of(frames)
