"""Chats of clients that count them themselves, and send all of a conversation each time: one stored session each."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from config.settings import Settings
from tests.fakes.house import House, open_house

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def house(shared_settings: Settings) -> AsyncIterator[House]:
    async with open_house(shared_settings) as opened:
        yield opened


async def ask(house: House, chat: str, model: str, messages: list[dict[str, Any]], *, stream: bool) -> tuple[str, str]:
    """The answer, and its session."""
    body = {"model": model, "messages": messages, "stream": stream}
    response = await house.client.post("/v1/chat/completions", json=body, headers={"X-OpenWebUI-Chat-Id": chat})
    assert response.status_code == 200, response.text
    session = response.headers["x-session-id"]
    if not stream:
        return response.json()["choices"][0]["message"]["content"], session
    frames = [orjson.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    return "".join(frame["choices"][0]["delta"].get("content") or "" for frame in frames), session


async def said_in(house: House, session: str) -> list[str]:
    stored = (await house.client.get(f"/api/sessions/{session}/messages")).json()["messages"]
    return [line["content"] for line in stored if line["role"] == "user"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("model", ["agent/react", "agent/simple", "offline/rules"])
async def test_a_conversation_that_is_sent_whole_each_time_is_stored_once(
    house: House, model: str, stream: bool
) -> None:
    questions = ["What is 6 times 7?", "What is 7 times 8?", "Thank you."]
    messages: list[dict[str, Any]] = []
    sessions = set()
    for question in questions:
        messages.append({"role": "user", "content": question})
        answer, session = await ask(house, f"{model} {stream}", model, messages, stream=stream)
        messages.append({"role": "assistant", "content": answer})
        sessions.add(session)
    assert len(sessions) == 1
    assert await said_in(house, session) == questions


async def test_a_title_for_a_chat_is_asked_for_beside_it(house: House) -> None:
    title = {"role": "user", "content": "### Task:\nGenerate a concise title.\n### Chat History:\nUSER: Hello!"}
    _, beside = await ask(house, "titled", "agent/simple", [title], stream=False)
    _, session = await ask(house, "titled", "agent/simple", [{"role": "user", "content": "Hello!"}], stream=False)
    assert beside != session
    assert await said_in(house, session) == ["Hello!"]
    assert (await house.client.get(f"/api/sessions/{session}")).json()["title"] == "Hello!"


async def test_any_question_can_name_a_chat(house: House) -> None:
    question = "a" + "\u0001" * 300
    _, session = await ask(house, "odd", "agent/simple", [{"role": "user", "content": question}], stream=False)
    title = (await house.client.get(f"/api/sessions/{session}")).json()["title"]
    assert title.startswith("a\\x01")
    assert len(title) <= 200


async def test_a_key_is_shown_what_it_may_call_and_no_more(house: House) -> None:
    fence = {"name": "k", "scopes": ["completion"], "agents": ["react"]}
    for agents, shown in (
        [["react"], {"offline/hash", "agent/react"}],
        [["direct"], {"offline/rules", "offline/hash"}],
    ):
        key = (await house.client.post("/auth/keys", json={**fence, "agents": agents})).json()["key"]
        bearer = {"Authorization": f"Bearer {key}"}
        listed = (await house.anyone.get("/v1/models", headers=bearer)).json()["data"]
        programs = {"offline/flite", "offline/espeak", "offline/pocketsphinx"}  # where the machine has them
        assert {one["id"] for one in listed} - programs == shown
        body = {"model": "offline/rules", "messages": [{"role": "user", "content": "Hi"}]}
        answer = await house.anyone.post("/v1/chat/completions", json=body, headers=bearer)
        assert answer.is_success == ("offline/rules" in shown)


@pytest.mark.parametrize("model", ["nobody/m", "agent/nobody", "agent/simple@nobody/m"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_a_chat_with_somebody_who_is_not_there_leaves_no_session(house: House, path: str, model: str) -> None:
    said = {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {"input": "Hi"}
    before = (await house.client.get("/api/sessions")).json()["sessions"]
    headers = {"X-Conversation-Id": f"chat with {model}"}
    assert (await house.client.post(path, json={"model": model, **said}, headers=headers)).status_code == 404
    assert (await house.client.get("/api/sessions")).json()["sessions"] == before
