"""Asking over HTTP: the shapes that clients rely on, and what must not be told."""

import json
import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from config.settings import Settings
from core.logging import JsonFormatter
from tests.fakes.house import ADMIN_PASSWORD, House, open_house, text_of

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def shared(shared_settings: Settings) -> AsyncIterator[House]:
    async with open_house(shared_settings) as opened:
        yield opened


async def test_a_whole_answer_has_its_documented_shape(shared: House) -> None:
    response = await shared.client.post("/completion", json={"message": "Hello!"})
    answer = response.json()
    assert set(answer) == {
        "run_id", "session_id", "agent", "model", "response", "message", "usage", "finish_reason",
    }  # fmt: skip
    assert (answer["agent"], answer["model"]) == ("simple", "offline/rules")
    stored = (await shared.client.get(f"/api/sessions/{answer['session_id']}")).json()
    assert [line["content"] for line in stored["messages"]] == ["Hello!", answer["response"]]
    assert answer["message"]["role"] == "assistant"
    assert answer["message"]["content"] == answer["response"]
    assert (response.headers["x-model"], response.headers["x-run-id"]) == ("offline/rules", answer["run_id"])


async def test_a_stream_tells_the_same_answer_in_pieces(shared: House) -> None:
    whole = (await shared.client.post("/completion", json={"message": "Hello!"})).json()
    events = await shared.events({"message": "Hello!"})
    assert events[0]["kind"] == "run.started"
    assert {event["run_id"] for event in events} == {events[0]["run_id"]}
    assert text_of(events) == events[-1]["output"] == whole["response"]
    assert events[-1]["usage"] == whole["usage"]
    assert [event["kind"] for event in events].count("run.finished") == 1


async def test_a_whole_conversation_may_be_given(shared: House) -> None:
    call = {"id": "c", "name": "calculator", "arguments": {"expression": "2+2"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "2+2?"}]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "4", "tool_call_id": "c", "name": "calculator"},
    ]
    answer = await shared.client.post("/completion", json={"messages": messages, "metadata": {"case": "a-1", "n": 2}})
    assert answer.json()["response"].startswith("calculator answered: 4")


async def test_a_failure_before_the_stream_is_a_status_and_not_an_event(shared: House) -> None:
    for body, status, code in (
        ({"message": "x", "agent": "nobody"}, 404, "agent_not_found"),
        ({"message": "x", "model": "nobody/x"}, 404, "model_not_found"),
    ):
        for path in ("/completion", "/completion/stream"):
            answer = await shared.client.post(path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_agents_are_listed_with_what_they_can(shared: House) -> None:
    listed = (await shared.client.get("/agents")).json()
    assert listed["default_agent"] == "simple"
    by_id = {agent["id"]: agent for agent in listed["agents"]}
    assert by_id["react"]["tools"] == ["calculator", "clock"]
    assert (await shared.client.get("/agents/react")).json() == by_id["react"]
    assert (await shared.client.get("/agents/nobody")).status_code == 404


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Every line that is logged, as a file would have it, at the most talkative level."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Keep()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    root.setLevel(level)


async def test_no_secret_is_in_any_line_or_answer(house: House, logged: list[str]) -> None:
    tokens = (await house.log_in()).json()
    key = (await house.client.post("/auth/keys", json={"name": "k"})).json()["key"]
    headers = {"authorization": f"Bearer {key}"}
    answers = [
        await house.anyone.post("/completion", json={"message": "x"}, headers=headers),
        await house.anyone.get(f"/auth/me?token={tokens['access_token']}", headers=headers),
        await house.anyone.get("/auth/me", headers={"authorization": f"Bearer {key}x"}),
        await house.log_in("admin", "a wrong password of mine"),
        await house.refresh(tokens["refresh_token"] + "x"),
        await house.client.get("/auth/keys"),
        await house.client.get("/metrics"),
        await house.client.get("/openapi.json"),
    ]
    secret = (house.services.settings.storage.data_dir / "secret_key").read_text()
    hidden = [key, tokens["access_token"], tokens["refresh_token"], secret, ADMIN_PASSWORD.get_secret_value(),
              "a wrong password of mine", str(house.services.settings.storage.data_dir)]  # fmt: skip
    assert len(logged) > 5
    for line in logged:
        json.loads(line)
    told = "\n".join(logged) + "\n".join(answer.text for answer in answers)
    for one in hidden:
        assert one not in told
