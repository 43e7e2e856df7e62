"""Realtime sessions in text: OpenAI's own client and raw sockets, agents and models, friends and others."""

import asyncio
import contextlib
import logging
import socket as sockets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import orjson
import pytest
from openai import AsyncOpenAI
from openai.types.realtime import RealtimeErrorEvent
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from config.settings import Settings
from tests.fakes.house import House, open_house
from tests.fakes.openai_door import reaching, sdk
from tests.fakes.providers import INPUT, OUTPUT, TEXT, FakeProvider, Reply
from tests.fakes.realtime import Socket, address, quiet, talking, user, words

pytestmark = pytest.mark.anyio
Opener = Callable[[Settings], Awaitable[House]]

AGENT, MODEL = "agent/simple@openai/fake-large", "openai/fake-large"
BOTH = (AGENT, MODEL)
TOOL = {
    "type": "function",
    "name": "weather",
    "description": "The weather.",
    "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
}
TEXT_ORDER = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "conversation.item.done",
    "response.output_item.done",
    "response.done",
    "rate_limits.updated",
]


@pytest.fixture(scope="module")
async def served(shared_settings: Settings, shared_provider: FakeProvider) -> AsyncIterator[House]:
    async with open_house(reaching(shared_settings, shared_provider)) as house:
        yield house


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """Their types, repeated ones once."""
    names = [event["type"] for event in events]
    return [name for place, name in enumerate(names) if place == 0 or names[place - 1] != name]


def done(events: list[dict[str, Any]]) -> dict[str, Any]:
    response: dict[str, Any] = next(event["response"] for event in events if event["type"] == "response.done")
    return response


async def lines(house: House, session_id: str) -> list[tuple[str, str]]:
    answer = await house.client.get(f"/api/sessions/{session_id}/messages")
    return [(one["role"], one["content"]) for one in answer.json()["messages"]]


# -- a conversation --


@pytest.mark.parametrize("model", ["agent/simple", "offline/rules", *BOTH])
async def test_the_official_client_holds_a_conversation(served: House, provider: FakeProvider, model: str) -> None:
    async with sdk(served) as client, client.realtime.connect(model=model) as connection:
        assert (await connection.recv()).type == "session.created"
        await connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        assert (await connection.recv()).type == "session.updated"
        for _ in range(2):
            await connection.conversation.item.create(item=user("Salut"))  # type: ignore[arg-type]
            await connection.response.create()
            text = ""
            async for event in connection:
                if event.type == "response.output_text.delta":
                    text += event.delta
                if event.type == "response.done":
                    assert event.response.status == "completed"
                    break
            assert text == TEXT or "You said: Salut" in text


@pytest.mark.parametrize("model", BOTH)
async def test_a_response_tells_everything_in_order(served: House, provider: FakeProvider, model: str) -> None:
    async with talking(served, model) as talk:
        asked = await talk.say("Salut")
        events = await talk.answer()
        assert kinds(events) == TEXT_ORDER
        assert words(events) == TEXT
        response = done(events)
        assert response["status"] == "completed"
        assert response["usage"]["input_tokens"] == INPUT
        assert response["usage"]["output_tokens"] == OUTPUT
        (item,) = response["output"]
        assert item["content"] == [{"type": "output_text", "text": TEXT}]
        added = next(event for event in events if event["type"] == "conversation.item.added")
        assert added["previous_item_id"] == asked["id"]
        assert added["item"]["id"] == item["id"]


@pytest.mark.parametrize("model", BOTH)
async def test_the_record_is_that_of_the_native_door(served: House, provider: FakeProvider, model: str) -> None:
    """The same two questions, here and natively: the same messages, the same runs, the same usage."""
    async with talking(served, model, path="/realtime") as talk:
        await talk.ask("One")
        await talk.ask("Two")
        here = talk.session["id"]
    target = {"agent": "simple", "model": MODEL} if model == AGENT else {"agent": "direct", "model": MODEL}
    there = (await served.client.post("/api/sessions", json={"agent": target["agent"]})).json()["session_id"]
    for text in ("One", "Two"):
        headers = {"x-session-id": there}
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        answer = await served.client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
    assert await lines(served, here) == await lines(served, there)
    sessions = [(await served.client.get(f"/api/sessions/{one}")).json() for one in (here, there)]
    usages = [one["token_usage"] for one in sessions]
    assert usages[0] == usages[1]
    assert usages[0]["usage"]["input_tokens"] == 2 * INPUT
    runs = [(await served.client.get("/api/runs", params={"session_id": one})).json()["runs"] for one in (here, there)]
    for mine, theirs in zip(*runs, strict=True):
        for name in ("agent", "model", "status", "input", "output", "usage"):
            assert mine.get(name) == theirs.get(name), name


@pytest.mark.parametrize("model", BOTH)
async def test_a_session_goes_on_where_it_was(served: House, provider: FakeProvider, model: str) -> None:
    async with talking(served, model) as talk:
        await talk.ask("My name is Ada.")
        name = talk.session["id"]
    async with talking(served, session=name) as talk:  # whoever answered before answers
        assert talk.session["id"] == name
        assert talk.session["model"] == {AGENT: "agent/simple", MODEL: MODEL}[model]
    async with talking(served, model, session=name) as talk:
        await talk.ask("Who am I?")
    told = [(one["role"], one["content"]) for one in provider.asked[-1]["messages"]]
    assert told[-3:] == [("user", "My name is Ada."), ("assistant", TEXT), ("user", "Who am I?")]


@pytest.mark.parametrize("model", BOTH)
async def test_instructions_lead_every_question_and_are_said_once(
    served: House, provider: FakeProvider, model: str
) -> None:
    async with talking(served, model) as talk:
        await talk.send("session.update", session={"type": "realtime", "instructions": "Be brief."})
        assert (await talk.receive())["session"]["instructions"] == "Be brief."
        await talk.ask("One")
        await talk.ask("Two")
    asked = [one["content"] for one in provider.asked[-1]["messages"]]
    assert asked.count("Be brief.") == 1
    assert asked.index("Be brief.") < asked.index("One")


async def test_a_model_calls_a_function_of_the_client(served: House, provider: FakeProvider) -> None:
    provider.then(Reply(tool=("weather", {"town": "Lyon"})), Reply())
    async with talking(served, MODEL) as talk:
        await talk.send("session.update", session={"type": "realtime", "tools": [TOOL]})
        assert (await talk.receive())["type"] == "session.updated"
        await talk.say("How is it in Lyon?")
        events = await talk.answer()
        assert "response.function_call_arguments.done" in kinds(events)
        (call,) = [one for one in done(events)["output"] if one["type"] == "function_call"]
        assert call["name"] == "weather"
        assert orjson.loads(call["arguments"]) == {"town": "Lyon"}
        assert call["status"] == "completed"
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"}
        await talk.send("conversation.item.create", item=output)
        await talk.until("conversation.item.done")
        assert words(await talk.answer()) == TEXT
    assert provider.asked[0]["tools"][0]["function"]["name"] == "weather"
    sent = provider.asked[1]["messages"]
    assert [one["role"] for one in sent] == ["user", "assistant", "tool"]
    assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"] == call["call_id"]


async def test_a_response_out_of_band_leaves_the_conversation_alone(served: House, provider: FakeProvider) -> None:
    async with talking(served, MODEL) as talk:
        await talk.ask("One")
        before = await lines(served, talk.session["id"])
        events = await talk.answer(conversation="none", input=[user("Classify this")], metadata={"topic": "x"})
        assert not [name for name in kinds(events) if name.startswith("conversation.")]
        assert done(events)["metadata"] == {"topic": "x"}
        assert done(events)["conversation_id"] is None
        assert [one["content"] for one in provider.asked[-1]["messages"]] == ["Classify this"]
        await talk.answer(conversation="none", instructions="Sum it up")
        assert [one["content"] for one in provider.asked[-1]["messages"]] == ["Sum it up", "One", TEXT]
        assert await lines(served, talk.session["id"]) == before


# -- cancelling --


@pytest.mark.parametrize("model", BOTH)
async def test_a_cancelled_answer_is_kept_as_far_as_it_was_said(
    served: House, provider: FakeProvider, model: str
) -> None:
    provider.then(Reply(fault="hang_between"), Reply())
    async with talking(served, model) as talk:
        await talk.say("Salut")
        await talk.send("response.create")
        events = await talk.until("response.output_text.delta")
        await talk.send("response.cancel")
        events += await talk.until("rate_limits.updated")
        response = done(events)
        assert response["status"] == "cancelled"
        assert response["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
        assert response["output"][0]["status"] == "incomplete"
        said = response["output"][0]["content"][0]["text"]
        assert said == words(events)
        assert kinds(events)[-6:] == TEXT_ORDER[-6:], "what was open is closed"
        await provider.abort_seen.wait()
        assert (await lines(served, talk.session["id"]))[-1] == ("assistant", said)
        assert await talk.ask("Again") == TEXT
    runs = (await served.client.get("/api/runs", params={"session_id": talk.session["id"]})).json()["runs"]
    assert sorted(run["status"] for run in runs) == ["cancelled", "completed"]


async def test_only_one_response_at_a_time(served: House, provider: FakeProvider) -> None:
    provider.then(Reply(fault="hang_between"))
    async with talking(served, MODEL) as talk:
        await talk.say("Salut")
        await talk.send("response.create")
        await talk.until("response.output_text.delta")
        await talk.send("response.create", event_id="second")
        while (event := await talk.receive())["type"] != "error":
            pass
        assert event["error"]["code"] == "conversation_already_has_active_response"
        assert event["error"]["event_id"] == "second"
        await talk.send("response.cancel")
        assert done(await talk.until("response.done"))["status"] == "cancelled"
        await talk.send("response.cancel", event_id="late")
        assert (await talk.until("error"))[-1]["error"]["code"] == "response_cancel_not_active"


async def test_a_providers_failure_ends_the_response_and_not_the_session(served: House, provider: FakeProvider) -> None:
    provider.then(Reply(status=401), Reply(fault="cut"), Reply(finish="length"), Reply())
    async with talking(served, MODEL) as talk:
        await talk.say("Salut")
        failed = done(await talk.answer())
        assert failed["status"] == "failed"
        assert "sk-secret" not in orjson.dumps(failed).decode()
        await talk.say("Salut")
        cut = done(await talk.answer())
        assert (cut["status"], cut["output"][0]["status"]) == ("failed", "incomplete")
        assert cut["status_details"]["error"]["code"] in ("upstream_cut", "upstream_broken")
        await talk.say("Salut")
        assert done(await talk.answer())["status_details"]["reason"] == "max_output_tokens"
        assert await talk.ask("Salut") == TEXT


# -- items --


async def test_items_are_placed_found_and_deleted(served: House, provider: FakeProvider) -> None:
    async with talking(served, MODEL) as talk:
        second = await talk.say("second")
        await talk.send("conversation.item.create", previous_item_id="root", item={**user("first"), "id": "item_first"})
        added = await talk.receive()
        assert added["previous_item_id"] is None
        assert (await talk.receive())["type"] == "conversation.item.done"
        third = await talk.say("third", previous_item_id=second["id"])
        await talk.send("conversation.item.retrieve", item_id="item_first")
        assert (await talk.receive())["item"]["content"][0]["text"] == "first"
        await talk.send("conversation.item.delete", item_id=third["id"])
        deleted = await talk.receive()
        assert (deleted["type"], deleted["item_id"]) == ("conversation.item.deleted", third["id"])
        await talk.send("conversation.item.retrieve", item_id=third["id"])
        assert (await talk.error())["code"] == "item_not_found"
        await talk.answer()
        assert [one["content"] for one in provider.asked[-1]["messages"]] == ["first", "second"]
        await talk.send("conversation.item.delete", item_id="item_first")
        assert (await talk.receive())["type"] == "conversation.item.deleted"
        await talk.ask("fourth")
        assert [one["content"] for one in provider.asked[-1]["messages"]] == ["second", TEXT, "fourth"]


async def test_an_agent_remembers_what_it_has_heard(served: House, provider: FakeProvider) -> None:
    async with talking(served, AGENT) as talk:
        item = await talk.say("Salut")
        await talk.answer()
        await talk.send("conversation.item.delete", item_id=item["id"])
        assert (await talk.error())["code"] == "item_remembered"
        await talk.send("conversation.item.create", previous_item_id="root", item=user("before"))
        assert (await talk.error())["code"] == "item_order_unsupported"


# -- what is wrong --


def creating(**item: Any) -> dict[str, Any]:
    return {"type": "conversation.item.create", "item": item}


WRONG: list[tuple[Any, str, str | None]] = [
    ("rubbish", "invalid_json", None),
    (b"\x00\x01", "invalid_json", None),
    ('{"type": "response.create", "x": NaN}', "invalid_json", None),
    ("[1]", "invalid_json", None),
    ("[" * 5_000 + "]" * 5_000, "invalid_json", None),
    ({}, "missing_required_parameter", "type"),
    ({"type": 7}, "missing_required_parameter", "type"),
    ({"type": "no.such.event"}, "invalid_value", "type"),
    ({"type": "session.update"}, "missing_required_parameter", "session"),
    ({"type": "session.update", "session": {"type": "realtime", "voice": "x"}}, "unknown_parameter", "session.voice"),
    (
        {"type": "session.update", "session": {"type": "realtime", "audio": {"output": {"speed": "fast"}}}},
        "invalid_type",
        "session.audio.output.speed",
    ),
    (
        {"type": "session.update", "session": {"type": "realtime", "output_modalities": ["audio"]}},
        "audio_not_available",
        "session.output_modalities",
    ),
    ({"type": "session.update", "session": {"type": "transcription"}}, "transcription_not_available", "session.type"),
    (
        {"type": "session.update", "session": {"type": "realtime", "model": "openai/other"}},
        "invalid_value",
        "session.model",
    ),
    (
        {"type": "session.update", "session": {"type": "realtime", "tools": [{"type": "mcp", "server_label": "x"}]}},
        "invalid_value",
        "session.tools.0.type",
    ),
    ({"type": "conversation.item.create"}, "missing_required_parameter", "item"),
    ({"type": "conversation.item.create", "item": {"type": "message"}}, "invalid_value", "item.role"),
    (
        creating(type="message", role="user", content=[{"type": "input_text"}]),
        "missing_required_parameter",
        "item.content.0.text",
    ),
    (
        creating(type="message", role="user", content=[{"type": "input_audio", "audio": "AAAA"}]),
        "audio_not_available",
        "item.content.0.transcript",
    ),
    (
        creating(type="function_call_output", call_id="call_x", output=""),
        "invalid_tool_call_output",
        "item.call_id",
    ),
    (
        {"type": "conversation.item.create", "previous_item_id": "nobody", "item": user("x")},
        "item_not_found",
        "previous_item_id",
    ),
    ({"type": "conversation.item.retrieve", "item_id": "nobody"}, "item_not_found", "item_id"),
    ({"type": "conversation.item.delete", "item_id": "nobody"}, "item_not_found", "item_id"),
    (
        {"type": "conversation.item.truncate", "item_id": "nobody", "content_index": 0, "audio_end_ms": 1},
        "item_not_found",
        "item_id",
    ),
    ({"type": "response.cancel"}, "response_cancel_not_active", "response_id"),
    ({"type": "response.create"}, "conversation_empty", None),
    ({"type": "response.create", "response": {"input": [user("x")]}}, "unsupported_parameter", "response.input"),
    ({"type": "response.create", "response": {"temperature": 1}}, "unknown_parameter", "response.temperature"),
    ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "audio_not_available", None),
    ({"type": "input_audio_buffer.commit"}, "audio_not_available", None),
    ({"type": "input_audio_buffer.clear"}, "audio_not_available", None),
]  # fmt: skip


async def test_what_is_wrong_is_an_error_event_and_the_session_goes_on(served: House, provider: FakeProvider) -> None:
    async with talking(served, MODEL) as talk:
        for place, (frame, code, param) in enumerate(WRONG):
            named = isinstance(frame, dict)
            sent = orjson.dumps({**frame, "event_id": f"e{place}"}).decode() if named else frame
            await talk.wire.send(sent)
            error = await talk.error()
            assert (error["code"], error["param"]) == (code, param), frame
            assert error["type"] == "invalid_request_error"
            assert error["event_id"] == (f"e{place}" if named else None)
        assert await talk.ask("Salut") == TEXT


async def test_an_agent_refuses_the_tools_of_a_client(served: House) -> None:
    async with talking(served, AGENT) as talk:
        await talk.send("session.update", session={"type": "realtime", "tools": [TOOL], "instructions": "no"})
        error = await talk.error()
        assert (error["code"], error["param"]) == ("unsupported_parameter", "session.tools")
        await talk.send("session.update", session={"type": "realtime"})
        assert (await talk.receive())["session"]["instructions"] == "", "nothing of a refused update is taken"


async def test_defaults_of_stock_clients_are_taken(served: House) -> None:
    audio = {
        "input": {
            "format": {"type": "audio/pcm", "rate": 24000},
            "transcription": {"model": "whisper-1"},
            "noise_reduction": None,
            "turn_detection": {"type": "server_vad", "interrupt_response": True},
        },
        "output": {"format": {"type": "audio/pcm", "rate": 24000}, "voice": "marin", "speed": 1},
    }
    async with talking(served, "agent/simple") as talk:
        session = {"type": "realtime", "audio": audio, "tool_choice": "auto", "tools": [], "max_output_tokens": "inf"}
        await talk.send("session.update", session=session)
        updated = await talk.receive()
        assert updated["type"] == "session.updated"
        assert updated["session"]["audio"]["output"]["voice"] == "marin"


async def test_an_error_is_an_event_for_the_official_client(served: House) -> None:
    async with sdk(served) as client, client.realtime.connect(model="agent/simple") as connection:
        await connection.recv()
        await connection.send({"type": "nonsense", "event_id": "mine"})
        error = await connection.recv()
        assert isinstance(error, RealtimeErrorEvent)
        assert error.error.event_id == "mine"


# -- who may --


async def refused(house: House, *, path: str = "/v1/realtime", query: dict[str, str] | None = None, **more: Any) -> int:
    with pytest.raises(InvalidStatus) as caught:
        async with connect(address(house, path, **(query or {})), **more):
            pass
    answer = caught.value.response
    assert answer.body
    body = orjson.loads(answer.body)
    assert "Traceback" not in answer.body.decode()
    assert set(body) == {"error"} if path.startswith("/v1") else "detail" in body
    return answer.status_code


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def test_whoever_may_not_is_told_so_before_the_socket_opens(served: House) -> None:
    token = served.tokens["access_token"]
    assert await refused(served) == 401
    assert await refused(served, path="/realtime") == 401
    assert await refused(served, additional_headers=bearer("bad")) == 401
    assert await refused(served, additional_headers=bearer(served.tokens["refresh_token"])) == 401
    assert await refused(served, query={"token": token}) == 401
    assert await refused(served, query={"token": "x"}, additional_headers=bearer(token)) == 400
    narrow = (await served.log_in(scope="completion")).json()["access_token"]
    assert await refused(served, additional_headers=bearer(narrow)) == 403
    assert await refused(served, query={"model": "agent/nobody"}, additional_headers=bearer(token)) == 404
    assert await refused(served, query={"model": "nobody/x"}, additional_headers=bearer(token)) == 404
    assert await refused(served, query={"call_id": "x"}, additional_headers=bearer(token)) == 400
    headers = {**bearer(token), "x-session-id": "0198c7f0-0000-7000-8000-000000000000"}
    assert await refused(served, additional_headers=headers) == 404
    assert await refused(served, additional_headers={**bearer(token), "origin": "https://evil.example"}) == 403
    both = {"subprotocols": ["realtime", f"openai-insecure-api-key.{token}"]}
    assert await refused(served, additional_headers=bearer(token), **both) == 401


async def test_somebody_elses_session_is_not_there(served: House) -> None:
    await served.add_user("eve")
    eve = (await served.log_in("eve", "a good password")).json()["access_token"]
    async with talking(served, "agent/simple") as talk:
        headers = {**bearer(eve), "x-session-id": talk.session["id"]}
        assert await refused(served, additional_headers=headers) == 404
    async with talking(served, "agent/simple", token=eve) as hers:
        await hers.ask("Salut")
        assert (await served.anyone.get(f"/api/sessions/{hers.session['id']}", headers=bearer(eve))).status_code == 200
        assert (await served.client.get(f"/api/sessions/{hers.session['id']}")).status_code == 404


async def test_browsers_bring_their_key_in_a_subprotocol(served: House) -> None:
    made = await served.client.post("/auth/keys", json={"name": "browser"})
    assert made.status_code == 201, made.text
    protocols = ["realtime", f"openai-insecure-api-key.{made.json()['key']}"]
    async with connect(address(served, model="agent/simple"), subprotocols=protocols) as wire:  # type: ignore[arg-type]
        assert wire.subprotocol == "realtime"
        assert (await Socket(wire).receive())["type"] == "session.created"


async def test_no_credential_and_no_address_is_logged(served: House, caplog: pytest.LogCaptureFixture) -> None:
    token, secret = served.tokens["access_token"], (await client_secret(served))["value"]
    caplog.clear()
    caplog.handler.addFilter(lambda record: not record.name.startswith("websockets.client"))  # those are the test's own
    with caplog.at_level(logging.DEBUG):
        async with talking(served, "agent/simple") as talk:
            await talk.ask("Salut")
        protocols = ["realtime", f"openai-insecure-api-key.{secret}"]
        async with connect(address(served), subprotocols=protocols) as wire:  # type: ignore[arg-type]
            await wire.recv()
        await refused(served, query={"token": token})
    assert token not in caplog.text
    assert secret not in caplog.text


async def client_secret(house: House, model: str = "agent/simple", **more: Any) -> dict[str, Any]:
    body = {"session": {"type": "realtime", "model": model, "instructions": "Be brief."}, **more}
    answer = await house.client.post("/v1/realtime/client_secrets", json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_a_client_secret_opens_its_session_more_than_once_and_nothing_else(served: House) -> None:
    secret = (await client_secret(served))["value"]
    assert secret.startswith("ek_")
    page = {"origin": "https://page.example"}
    for _ in range(2):
        protocols = ["realtime", f"openai-insecure-api-key.{secret}"]
        async with connect(address(served), subprotocols=protocols, additional_headers=page) as wire:  # type: ignore[arg-type]
            session = (await Socket(wire).receive())["session"]
            assert (session["model"], session["instructions"]) == ("agent/simple", "Be brief.")
    assert await refused(served, query={"model": MODEL}, additional_headers=bearer(secret)) == 400
    for path in ("/auth/me", "/v1/models", "/api/sessions"):
        assert (await served.anyone.get(path, headers=bearer(secret))).status_code == 401
        assert (await served.anyone.get(path, headers=bearer(secret.removeprefix("ek_")))).status_code == 401
    assert secret not in (await client_secret(served))["value"]
    again = await served.anyone.post("/v1/realtime/client_secrets", json={}, headers=bearer(secret))
    assert again.status_code == 403
    token = served.tokens["access_token"]
    assert await refused(served, additional_headers=bearer("ek_" + token)) == 401, "an access token is none"


async def test_the_official_client_makes_client_secrets(served: House) -> None:
    async with sdk(served) as client:
        made = await client.realtime.client_secrets.create(
            session={"type": "realtime", "model": "agent/simple"}, expires_after={"anchor": "created_at", "seconds": 60}
        )
    browser = AsyncOpenAI(base_url=f"{served.url}/v1", api_key=made.value)
    async with browser, browser.realtime.connect() as connection:
        assert (await connection.recv()).type == "session.created"


async def test_client_secrets_are_checked(served: House) -> None:
    post = served.client.post
    for body, param in (
        ({"expires_after": {"seconds": 9}}, "expires_after.seconds"),
        ({"session": {"type": "realtime", "nonsense": 1}}, "session.nonsense"),
        ({"session": {"type": "realtime", "instructions": "x" * 9_000}}, "session"),
    ):
        answer = await post("/v1/realtime/client_secrets", json=body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    body = {"session": {"type": "realtime", "model": "agent/nobody"}}
    assert (await post("/v1/realtime/client_secrets", json=body)).status_code == 404


async def test_an_expired_client_secret_opens_nothing(served: House) -> None:
    services, token = served.services, served.tokens["access_token"]
    caller, _ = await services.auth.admit(token)
    session = {"type": "realtime", "model": "agent/simple"}
    old = await services.realtime.secrets.issue(session, caller, token, -60)
    fresh = await services.realtime.secrets.issue(session, caller, token, 10)
    assert await refused(served, additional_headers=bearer(old.value)) == 401
    async with connect(address(served), additional_headers=bearer(fresh.value)) as wire:
        assert (await Socket(wire).receive())["type"] == "session.created"


@pytest.mark.parametrize("by", ["token", "secret"])
async def test_a_session_ends_when_its_credential_does(house: House, by: str) -> None:
    await house.add_user("ada")
    token = (await house.log_in("ada", "a good password")).json()["access_token"]
    mine = bearer(token)
    if by == "secret":
        made = await house.anyone.post("/v1/realtime/client_secrets", json={}, headers=mine)
        mine = bearer(made.json()["value"])
    async with connect(address(house), additional_headers=mine) as wire:
        talk = Socket(wire)
        await talk.receive()
        assert (await house.anyone.post("/auth/logout", headers=bearer(token))).status_code in (200, 204)
        assert (await talk.error())["code"] == "session_expired"
        assert await talk.closed() == 4401
    assert await refused(house, additional_headers=mine) == 401


async def test_a_session_ends_with_its_token(open_with: Opener, settings: Settings) -> None:
    security = settings.security.model_copy(update={"access_token_ttl": 2})
    house = await open_with(settings.model_copy(update={"security": security}))
    async with talking(house, "agent/simple") as talk:
        assert (await talk.error())["code"] == "session_expired"
        assert await talk.closed() == 4401


# -- limits --


def limited(settings: Settings, provider: FakeProvider, **more: Any) -> Settings:
    realtime = settings.realtime.model_copy(update=more)
    return reaching(settings, provider).model_copy(update={"realtime": realtime})


async def test_sessions_are_limited_by_user_and_by_process(
    open_with: Opener, settings: Settings, provider: FakeProvider
) -> None:
    house = await open_with(limited(settings, provider, per_user=1, sessions=2))
    await house.add_user("ada")
    ada = (await house.log_in("ada", "a good password")).json()["access_token"]
    await house.add_user("eve")
    eve = (await house.log_in("eve", "a good password")).json()["access_token"]
    async with talking(house, "agent/simple"):
        mine = bearer(house.tokens["access_token"])
        assert await refused(house, additional_headers=mine) == 429
        async with talking(house, "agent/simple", token=ada):
            assert await refused(house, additional_headers=bearer(eve)) == 429
    await quiet(lambda: house.services.realtime.count)
    async with talking(house, "agent/simple", token=eve):
        pass


@pytest.mark.parametrize(("limit", "code"), [("idle_seconds", 1001), ("total_seconds", 1001)])
async def test_a_session_does_not_last_for_ever(
    open_with: Opener, settings: Settings, provider: FakeProvider, limit: str, code: int
) -> None:
    house = await open_with(limited(settings, provider, **{limit: 0.5}))
    async with talking(house, "agent/simple") as talk:
        assert (await talk.error())["code"] == "session_expired"
        assert await talk.closed() == code


async def test_a_frame_that_is_too_large_closes_with_1009(served: House, caplog: pytest.LogCaptureFixture) -> None:
    async with talking(served, "agent/simple") as talk:
        await talk.send("conversation.item.create", item=user("x" * 900_000))
        assert (await talk.receive())["type"] == "conversation.item.added"
        await talk.receive()
        with contextlib.suppress(ConnectionClosed):
            await talk.wire.send("x" * 6_000_000)
        assert await talk.closed() == 1009
    assert "Traceback" not in caplog.text


async def test_text_that_is_no_utf8_closes_with_1007(served: House, caplog: pytest.LogCaptureFixture) -> None:
    async with talking(served, "agent/simple") as talk:
        await talk.wire.send(b"\xff\xfe", text=True)
        assert await talk.closed() == 1007
    assert "Traceback" not in caplog.text


async def test_a_flood_of_one_does_not_hold_up_another(served: House, provider: FakeProvider) -> None:
    """Ten thousand events at once, while somebody else talks."""
    async with talking(served, MODEL) as flooder, talking(served, MODEL) as other:

        async def flood() -> None:
            with contextlib.suppress(ConnectionClosed):
                for _ in range(10_000):
                    await flooder.wire.send('{"type": "rubbish"}')

        async def drop() -> None:
            with contextlib.suppress(ConnectionClosed):
                async for _ in flooder.wire:
                    pass

        tasks = [asyncio.create_task(flood()), asyncio.create_task(drop())]
        loop = asyncio.get_running_loop()
        for _ in range(5):
            begun = loop.time()
            assert await other.ask("Salut") == TEXT
            assert loop.time() - begun < 2
        for task in tasks:
            task.cancel()
        flooder.wire.transport.abort()  # a close frame would wait behind ten thousand events


async def test_a_reader_that_does_not_read_pauses_the_source_and_is_closed(
    open_with: Opener, settings: Settings, provider: FakeProvider
) -> None:
    house = await open_with(limited(settings, provider, slow_seconds=0.5, outbox_kb=16))
    provider.default = Reply(words=("x" * 20_000,) * 2_000)
    host, port = house.url.removeprefix("http://").split(":")
    small = sockets.socket()
    small.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4_096)
    small.connect((host, int(port)))
    small.setblocking(False)
    async with talking(house, MODEL, sock=small, max_queue=1) as talk:
        await talk.say("Much")
        await talk.send("response.create")
        await provider.begun.wait()
        await quiet(lambda: house.services.realtime.count)
        await quiet(lambda: house.services.agents.open_runs)
        assert await talk_to_the_end(talk) in (1013, 1006)


async def talk_to_the_end(talk: Socket) -> int:
    with contextlib.suppress(ConnectionClosed):
        while True:
            async with asyncio.timeout(10):
                await talk.wire.recv()
    return talk.wire.close_code or 0


# -- leaving --


async def test_a_hundred_who_leave_abruptly_leave_nothing_behind(served: House, provider: FakeProvider) -> None:
    provider.default = Reply(pause=0.05)
    await asyncio.sleep(0)
    tasks = len(asyncio.all_tasks())

    async def come_and_go(number: int) -> None:
        async with talking(served, BOTH[number % 2]) as talk:
            await talk.say("Salut")
            await talk.send("response.create")
            await talk.until("response.output_text.delta")
            talk.wire.transport.abort()

    for first in range(0, 100, 20):
        async with asyncio.TaskGroup() as group:
            for number in range(first, first + 20):
                group.create_task(come_and_go(number))
    services = served.services
    await quiet(lambda: services.realtime.count or services.agents.open_runs or provider.open)
    await quiet(lambda: len(asyncio.all_tasks()) > tasks)
    running = (await served.client.get("/api/runs", params={"status": "running"})).json()["runs"]
    assert not running


async def test_a_stop_of_the_server_waits_for_the_answer(settings: Settings, provider: FakeProvider) -> None:
    provider.default = Reply(pause=0.03)
    async with contextlib.AsyncExitStack() as outside:
        async with open_house(reaching(settings, provider)) as house:
            talk = await outside.enter_async_context(talking(house, MODEL))
            idle = await outside.enter_async_context(talking(house, MODEL))
            await talk.say("Salut")
            await talk.send("response.create")
            events = await talk.until("response.output_text.delta")
        events += await talk.until("rate_limits.updated")
        assert words(events) == TEXT
        assert await talk.closed() == 1012
        assert await idle.closed() == 1012


async def test_a_half_open_socket_is_noticed(open_with: Opener, settings: Settings, provider: FakeProvider) -> None:
    house = await open_with(limited(settings, provider, ping_seconds=0.3))
    host, port = house.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    head = (
        "GET /realtime HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        f"sec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n"
        f"authorization: Bearer {house.tokens['access_token']}\r\n\r\n"
    )
    writer.write(head.encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 101")
    with anyio.fail_after(10):  # it answers no ping
        while await reader.read(1_000):
            pass
        await quiet(lambda: house.services.realtime.count)
    writer.close()
