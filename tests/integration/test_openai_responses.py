"""`/v1/responses` as OpenAI's own SDK asks it: strictly its types; streamed, whole and retrieved the same."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from typing import Any

import anyio
import httpx
import openai
import orjson
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_item_list import ResponseItemList
from pydantic import BaseModel, SecretStr, TypeAdapter

from config.settings import CompatibleProvider, ProviderSettings, Settings
from tests.fakes.house import House, open_house
from tests.fakes.processes import AGENTS
from tests.fakes.providers import TEXT, FakeProvider, Reply

pytestmark = pytest.mark.anyio

VENDORS = ("openai/gpt-4o-mini", "mistral/fake-large", "ollama/fake-large", "vllm/fake-large")
TARGETS = (*VENDORS, "offline/rules", "agent/simple@vllm/fake-large", "agent/react@offline/rules")
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
PICTURE = "data:image/png;base64,iVBORw0KGgo="
CLOCK = {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
async def served(shared_settings: Settings, shared_provider: FakeProvider) -> AsyncIterator[House]:
    providers = ProviderSettings(
        discover_local=False,
        openai_api_key=SecretStr("sk-secret-key-of-ours"),
        openai_base_url=f"{shared_provider.url}/v1",
        mistral_base_url=f"{shared_provider.url}/mistral/v1",
        ollama_base_url=shared_provider.url,
        compatible={"vllm": CompatibleProvider(base_url=f"{shared_provider.url}/vllm/v1")},
        first_token_timeout=5,
        idle_timeout=5,
        total_timeout=10,
        max_retries=0,
    )
    agents = shared_settings.agents.model_copy(update={"plugins_dir": AGENTS})
    changed = {"providers": providers, "agents": agents}
    async with open_house(shared_settings.model_copy(update=changed)) as house:
        yield house


@pytest.fixture
async def client(served: House) -> AsyncIterator[AsyncOpenAI]:
    async with sdk(served) as opened:
        yield opened


def sdk(house: House, token: str = "") -> AsyncOpenAI:
    return AsyncOpenAI(
        base_url=f"{house.url}/v1", api_key=token or house.tokens["access_token"], max_retries=0, timeout=20
    )


async def ask(house: House, model: str, given: Any = "Salut", **more: Any) -> dict[str, Any]:
    """A whole response, strictly checked."""
    answer = await house.client.post("/v1/responses", json={"model": model, "input": given, **more})
    assert answer.status_code == 200, answer.text
    return checked(answer.json())


def checked(body: dict[str, Any]) -> dict[str, Any]:
    Response.model_validate(body)
    for name in ("id", "object", "created_at", "model", "output", "parallel_tool_calls", "tool_choice", "tools"):
        assert body[name] is not None
    for name in ("status", "error", "incomplete_details", "instructions", "metadata", "previous_response_id",
                 "temperature", "top_p", "max_output_tokens", "text", "usage"):  # fmt: skip
        assert name in body
    if body["usage"] is not None:
        assert {"cached_tokens", "cache_write_tokens"} <= body["usage"]["input_tokens_details"].keys()
    return body


def events_in(raw: str) -> list[dict[str, Any]]:
    """Events of a stream, strictly checked."""
    events = []
    for frame in raw.split("\n\n"):
        if not frame or frame.startswith(":"):
            continue
        name, data = frame.split("\n")
        event = orjson.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event)
        if "response" in event:
            checked(event["response"])
        events.append(event)
    return events


async def stream(house: House, model: str, given: Any = "Salut", **more: Any) -> list[dict[str, Any]]:
    answer = await house.client.post("/v1/responses", json={"model": model, "input": given, "stream": True, **more})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = events_in(answer.text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


async def retrieved(house: House, response_id: str) -> dict[str, Any]:
    answer = await house.client.get(f"/v1/responses/{response_id}")
    assert answer.status_code == 200, answer.text
    return checked(answer.json())


async def refused(house: House, status: int = 400, **body: Any) -> dict[str, Any]:
    answer = await house.client.post("/v1/responses", json={"model": "vllm/fake-large", "input": "x", **body})
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def text_in(body: dict[str, Any]) -> str:
    return "".join(item["content"][0]["text"] for item in body["output"] if item["type"] == "message")


def likeness(body: dict[str, Any]) -> dict[str, Any]:
    """What two calls that ask the same have in common."""
    kept = dict(body)
    kept["output"] = [{name: value for name, value in item.items() if name != "id"} for item in body["output"]]
    return {name: value for name, value in kept.items() if name not in ("id", "created_at", "completed_at")}


async def messages_of(house: House, session_id: str) -> list[tuple[str, str]]:
    lines = (await house.client.get(f"/api/sessions/{session_id}/messages")).json()["messages"]
    return [(line["role"], line["content"]) for line in lines]


async def session_of(house: House, response_id: str) -> str:
    hexed = response_id.removeprefix("resp_")
    run_id = "-".join((hexed[:8], hexed[8:12], hexed[12:16], hexed[16:20], hexed[20:]))
    session: str = (await house.client.get(f"/api/runs/{run_id}")).json()["session_id"]
    return session


def tokens_paid(house: House) -> int:
    """All that is written of model calls, also of those whose runs are gone."""
    with closing(sqlite3.connect(house.services.settings.storage.data_dir / "routeur.sqlite3")) as record:
        total: int = record.execute("select coalesce(sum(total_tokens), 0) from model_calls").fetchone()[0]
    return total


async def eventually(look: Callable[[], Awaitable[Any]]) -> Any:
    """The first thing that it sees."""
    with anyio.fail_after(10):
        while not (found := await look()):  # noqa: ASYNC110 - what happens elsewhere is only seen by looking
            await asyncio.sleep(0.02)
    return found


async def sessions_of(house: House) -> list[Any]:
    found: list[Any] = (await house.client.get("/api/sessions?limit=200")).json()["sessions"]
    return found


async def runs_that_are(house: House, status: str) -> list[Any]:
    found: list[Any] = (await house.client.get(f"/api/runs?status={status}")).json()["runs"]
    return found


# -- shapes --


@pytest.mark.parametrize("model", TARGETS)
async def test_streamed_whole_and_retrieved_are_the_same(served: House, provider: FakeProvider, model: str) -> None:
    events = await stream(served, model)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[0]["response"]["output"] == []
    last = events[-1]
    assert last["type"] == "response.completed"
    assert await retrieved(served, last["response"]["id"]) == last["response"]
    whole = await ask(served, model)
    assert likeness(whole) == likeness(last["response"])
    assert await retrieved(served, whole["id"]) == whole
    assert text_in(whole)
    assert whole["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("model", TARGETS)
async def test_the_sdks_helper_accumulates_the_stream(client: AsyncOpenAI, provider: FakeProvider, model: str) -> None:
    async with client.responses.stream(model=model, input="Salut") as streaming:
        deltas = [event.delta async for event in streaming if event.type == "response.output_text.delta"]
        final = await streaming.get_final_response()
    assert "".join(deltas) == final.output_text
    assert (await client.responses.retrieve(final.id)).output_text == final.output_text


@pytest.mark.parametrize("model", VENDORS)
async def test_a_function_call_is_the_same_streamed_whole_and_retrieved(
    served: House, provider: FakeProvider, model: str
) -> None:
    reply = Reply(tool=("clock", {"zone": "UTC"}))
    provider.then(reply, reply)
    events = await stream(served, model, tools=[CLOCK])
    call = events[-1]["response"]["output"][0]
    assert (call["type"], call["name"], orjson.loads(call["arguments"])) == ("function_call", "clock", {"zone": "UTC"})
    pieces = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(pieces) == call["arguments"]
    assert await retrieved(served, events[-1]["response"]["id"]) == events[-1]["response"]
    whole = await ask(served, model, tools=[CLOCK])
    assert [item["name"] for item in whole["output"]] == ["clock"]
    assert await retrieved(served, whole["id"]) == whole


@pytest.mark.parametrize("model", ["vllm/fake-large", "agent/simple@vllm/fake-large"])
async def test_a_thought_is_an_item_of_its_own(served: House, provider: FakeProvider, model: str) -> None:
    provider.then(Reply(reasoning="hm"))
    events = await stream(served, model)
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["reasoning", "message"]
    assert await retrieved(served, events[-1]["response"]["id"]) == events[-1]["response"]


@pytest.mark.parametrize("view", ["hidden", "reasoning", "calls"])
async def test_an_agents_tools_are_shown_later_as_they_were(served: House, view: str) -> None:
    body = {"model": "agent/react@offline/rules", "input": "What is 6 times 7?"}
    answer = await served.client.post("/v1/responses", json=body, headers={"x-agent-tools": view})
    whole = checked(answer.json())
    kinds = [item["type"] for item in whole["output"]]
    assert kinds.count("function_call") == (view == "calls")
    assert kinds.count("reasoning") == (view == "reasoning")
    assert await retrieved(served, whole["id"]) == whole


def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    """One event of a provider's stream."""
    return {"id": "x", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def piece(index: int, arguments: str, name: str | None = None, **more: Any) -> dict[str, Any]:
    """A piece of a function call."""
    named = {} if name is None else {"name": name}
    return chunk({"tool_calls": [{"index": index, **more, "function": {**named, "arguments": arguments}}]})


@pytest.mark.parametrize("model", ["openai/gpt-4o-mini", "vllm/fake-large"])
async def test_two_calls_at_once_arrive_whole_however_their_pieces_come(
    served: House, client: AsyncOpenAI, provider: FakeProvider, model: str
) -> None:
    mixed = (
        chunk({"role": "assistant", "content": "Let me see. "}),
        piece(0, "", "clock", id="call_a"),
        piece(1, '{"zone":', "clock", id="call_b"),
        piece(2, "", "clock"),  # neither an id nor arguments
        piece(1, '"UTC"}'),
        chunk({"content": "Done."}),
        chunk({}, "tool_calls"),
    )
    provider.then(*[Reply(events=mixed)] * 2)
    events = await stream(served, model, tools=[CLOCK])
    last = events[-1]["response"]
    assert text_in(last) == "Let me see. Done."
    calls = [item for item in last["output"] if item["type"] == "function_call"]
    assert [call["arguments"] for call in calls] == ["{}", '{"zone":"UTC"}', "{}"]
    assert [call["call_id"] for call in calls][:2] == ["call_a", "call_b"]
    assert calls[2]["call_id"].startswith("call_")
    assert await retrieved(served, last["id"]) == last
    async with client.responses.stream(model=model, input="x", tools=[CLOCK]) as streaming:  # type: ignore[list-item]
        final = await streaming.get_final_response()
    assert [item.type for item in final.output] == [item["type"] for item in last["output"]]
    outputs = [{"type": "function_call_output", "call_id": call["call_id"], "output": "noon"} for call in calls]
    await ask(served, model, outputs, previous_response_id=last["id"], tools=[CLOCK])
    assert [one["role"] for one in provider.asked[-1]["messages"]] == ["user", "assistant", "tool", "tool", "tool"]


@pytest.mark.parametrize("view", ["hidden", "reasoning", "calls"])
@pytest.mark.parametrize("background", [False, True])
async def test_each_message_of_an_agent_is_an_item(
    served: House, client: AsyncOpenAI, provider: FakeProvider, view: Any, background: bool
) -> None:
    call = piece(0, '{"expression": "6*7"}', "calculator", id="call_1")
    said = (chunk({"reasoning_content": "hm"}), chunk({"content": "Let me see."}), call, chunk({}, "tool_calls"))
    turn = Reply(events=said)
    provider.then(turn, turn, Reply())  # the same call id again, as from models that count anew in each answer
    body = {"model": "agent/react@vllm/fake-large", "input": "x", "stream": True, "background": background}
    answer = await served.client.post("/v1/responses", json=body, headers={"x-agent-tools": view})
    last = events_in(answer.text)[-1]["response"]
    assert [item["content"][0]["text"] for item in last["output"] if item["type"] == "message"] == [
        "Let me see.",
        "Let me see.",
        TEXT,
    ]
    assert [item["type"] for item in last["output"]].count("function_call") == (2 if view == "calls" else 0)
    assert await retrieved(served, last["id"]) == last
    if background:
        async with client.responses.stream(response_id=last["id"], starting_after=2) as streaming:
            assert (await streaming.get_final_response()).model_dump()["output"]


@pytest.mark.parametrize("model", ["vllm/fake-large", "agent/simple@vllm/fake-large"])
async def test_a_response_outlives_its_events(served: House, provider: FakeProvider, model: str) -> None:
    made = await ask(served, model)
    with closing(sqlite3.connect(served.services.settings.storage.data_dir / "routeur.sqlite3")) as record:
        record.execute("delete from run_events")  # as the sweep of old ones does
        record.commit()
    assert await retrieved(served, made["id"]) == made


class Answer(BaseModel):
    """What is asked for."""

    city: str


async def test_parse_gives_an_object(client: AsyncOpenAI, provider: FakeProvider) -> None:
    provider.then(Reply(words=('{"city": ', '"Lyon"}')), Reply(words=('{"city": ', '"Lyon"}')))
    parsed = await client.responses.parse(model="openai/gpt-4o-mini", input="Where?", text_format=Answer)
    assert parsed.output_parsed == Answer(city="Lyon")
    asked = provider.asked[-1]["response_format"]
    assert (asked["type"], asked["json_schema"]["name"], asked["json_schema"]["strict"]) == (
        "json_schema",
        "Answer",
        True,
    )
    async with client.responses.stream(model="openai/gpt-4o-mini", input="?", text_format=Answer) as streaming:
        final = await streaming.get_final_response()
    assert final.output_parsed == Answer(city="Lyon")


# -- input --


async def test_every_form_of_input_reaches_the_model(served: House, provider: FakeProvider) -> None:
    await ask(served, "openai/gpt-4o-mini", [
        {"role": "developer", "content": "Be short."},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "What is "}, {"type": "input_text", "text": "this?"}]},
        {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": [
            {"type": "output_text", "text": "A cat.", "annotations": []}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "user", "content": [
            {"type": "input_text", "text": "And these?"},
            {"type": "input_image", "image_url": PICTURE, "detail": "low"},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}]},
    ])  # fmt: skip
    assert provider.asked[-1]["messages"] == [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": "What is this?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": [
            {"type": "text", "text": "And these?"},
            {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}},
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}}]},
    ]  # fmt: skip


CALLS = [
    {"type": "function_call", "id": "fc_a", "call_id": "a", "name": "clock", "arguments": "{}", "status": "completed"},
    {"type": "function_call", "call_id": "b", "name": "clock", "arguments": '{"zone":"UTC"}'},
]
OUTPUTS = [
    {"type": "function_call_output", "call_id": "a", "output": "noon"},
    {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "one"}]},
]


@pytest.mark.parametrize("model", ["vllm/fake-large", "agent/simple@vllm/fake-large"])
async def test_parallel_calls_and_their_outputs_are_one_round(
    served: House, provider: FakeProvider, model: str
) -> None:
    await ask(served, model, [{"role": "user", "content": "Time?"}, *CALLS, *OUTPUTS])
    sent = provider.asked[-1]["messages"]
    sent = sent[next(place for place, one in enumerate(sent) if one["role"] == "user") :]
    assert [one["role"] for one in sent] == ["user", "assistant", "tool", "tool"]
    assert [call["id"] for call in sent[1]["tool_calls"]] == ["a", "b"]
    assert [(one["tool_call_id"], one["content"]) for one in sent[2:]] == [("a", "noon"), ("b", "one")]


async def test_a_calls_output_continues_the_response_that_asked_for_it(served: House, provider: FakeProvider) -> None:
    provider.then(Reply(tool=("clock", {})))
    first = await ask(served, "vllm/fake-large", "Time?", tools=[CLOCK])
    call = first["output"][0]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "noon"}
    second = await ask(served, "vllm/fake-large", [output], tools=[CLOCK], previous_response_id=first["id"])
    sent = provider.asked[-1]["messages"]
    assert [one["role"] for one in sent] == ["user", "assistant", "tool"]
    assert (sent[1]["tool_calls"][0]["id"], sent[2]["content"]) == (call["call_id"], "noon")
    assert text_in(second) == TEXT
    assert second["previous_response_id"] == first["id"]


async def test_instructions_are_for_one_response(served: House, provider: FakeProvider) -> None:
    first = await ask(served, "vllm/fake-large", "One", instructions="Be a pirate.")
    assert provider.asked[-1]["messages"][0] == {"role": "system", "content": "Be a pirate."}
    await ask(served, "vllm/fake-large", "Two", previous_response_id=first["id"])
    assert [one["role"] for one in provider.asked[-1]["messages"]] == ["user", "assistant", "user"]
    items = (await served.client.get(f"/v1/responses/{first['id']}/input_items")).json()["data"]
    assert [item["role"] for item in items] == ["user"]


async def test_instructions_reach_an_agent(served: House, provider: FakeProvider) -> None:
    await ask(served, "agent/simple@vllm/fake-large", "One", instructions="Be a pirate.")
    assert "Be a pirate." in str(provider.asked[-1]["messages"])


async def test_an_agent_is_told_the_same_instructions_once_however_often_they_are_sent(
    served: House, provider: FakeProvider
) -> None:
    last: dict[str, Any] = {"id": None}
    for rule in ("Be a pirate.", "Be a pirate.", "Be a parrot."):
        last = await ask(
            served, "agent/simple@vllm/fake-large", "x", instructions=rule, previous_response_id=last["id"]
        )
    lines = await messages_of(served, await session_of(served, last["id"]))
    assert [text for role, text in lines if role == "system"] == ["Be a pirate.", "Be a parrot."]


async def test_settings_reach_the_vendor_that_has_them(served: House, provider: FakeProvider) -> None:
    form = {"type": "json_schema", "name": "city", "schema": {"type": "object"}, "description": "A city."}
    await ask(served, "openai/gpt-4o-mini", "x", text={"format": form, "verbosity": "low"}, temperature=0.5, top_p=0.9,
              reasoning={"effort": "low", "summary": "auto"}, max_output_tokens=50, tools=[CLOCK],
              tool_choice={"type": "function", "name": "clock"}, parallel_tool_calls=False)  # fmt: skip
    asked = provider.asked[-1]
    sent = {name: asked.get(name) for name in ("verbosity", "reasoning_effort", "temperature", "top_p",
                                               "parallel_tool_calls", "max_completion_tokens")}  # fmt: skip
    assert sent == {"verbosity": "low", "reasoning_effort": "low", "temperature": 0.5, "top_p": 0.9,
                    "parallel_tool_calls": False, "max_completion_tokens": 50}  # fmt: skip
    assert asked["tool_choice"] == {"type": "function", "function": {"name": "clock"}}
    assert asked["response_format"]["json_schema"]["description"] == "A city."
    await ask(served, "mistral/fake-large", "x", text={"format": {"type": "json_object"}})
    assert provider.asked[-1]["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"foo": 1}, "foo"), ({"prompt": {"id": "x"}}, "prompt"), ({"max_tool_calls": 1}, "max_tool_calls"),
        ({"top_logprobs": 2}, "top_logprobs"), ({"context_management": []}, "context_management"),
        ({"truncation": "auto"}, "truncation"), ({"service_tier": "flex"}, "service_tier"),
        ({"include": ["file_search_call.results"]}, "include"), ({"text": {"foo": 1}}, "text.foo"),
        ({"text": {"format": {"type": "text", "foo": 1}}}, "text.format.foo"),
        ({"reasoning": {"foo": 1}}, "reasoning.foo"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"stream_options": {"foo": True}}, "stream_options.foo"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{**CLOCK, "defer_loading": True}]}, "tools.0.defer_loading"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"conversation": {"id": "a", "x": 1}}, "conversation"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [{"role": "user", "content": "x"}, {"type": "web_search_call"}]}, "input.1"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "system", "content": [{"type": "input_image", "image_url": PICTURE}]}]}, "input"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "b"}]}, "input.0.arguments"),
        ({"input": [{"type": "reasoning", "id": "r", "summary": []}]}, "input"),
        ({"model": "mistral/fake-large", "reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"model": "ollama/fake-large", "text": {"verbosity": "low"}}, "text.verbosity"),
        ({"model": "agent/simple", "tools": [CLOCK]}, "tools"),
        ({"model": "agent/simple", "reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"background": True, "tools": [CLOCK]}, "tools"), ({"background": True, "top_p": 0.5}, "top_p"),
        ({"background": True, "store": False}, "store"), ({"temperature": 3}, "temperature"), ({"n": 2}, "n"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)  # fmt: skip
async def test_what_is_not_honoured_is_refused_by_its_name(served: House, body: dict[str, Any], param: str) -> None:
    error = await refused(served, **body)
    assert (error["param"] or "").startswith(param)
    assert (
        error["param"] if param.startswith("input") else param.rpartition(".")[2]
    ) in f"{error['message']} {error['param']}"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", ["vllm/fake-large", "agent/simple@vllm/fake-large"])
async def test_too_long_a_conversation_is_a_fault_of_the_input(
    served: House, provider: FakeProvider, model: str, streamed: bool
) -> None:
    provider.then(Reply(status=400, error={"message": "too long", "code": "context_length_exceeded"}))
    error = await refused(served, model=model, stream=streamed)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")


async def test_fields_that_say_nothing_are_no_fields(served: House, provider: FakeProvider) -> None:
    await ask(served, "vllm/fake-large", prompt=None, max_tool_calls=None, conversation=None, tools=None, text=None)


# -- state --


async def test_a_response_goes_on_after_another(served: House, provider: FakeProvider) -> None:
    first = await ask(served, "vllm/fake-large", "One")
    second = await ask(served, "vllm/fake-large", "Two", previous_response_id=first["id"])
    assert [one["content"] for one in provider.asked[-1]["messages"]] == ["One", TEXT, "Two"]
    assert await session_of(served, second["id"]) == await session_of(served, first["id"])


@pytest.mark.parametrize("model", ["vllm/fake-large", "agent/simple@vllm/fake-large"])
async def test_going_on_after_an_older_one_is_a_branch(served: House, provider: FakeProvider, model: str) -> None:
    first = await ask(served, model, "One")
    second = await ask(served, model, "Two", previous_response_id=first["id"])
    other = await ask(served, model, "Other", previous_response_id=first["id"])
    said = [one["content"] for one in provider.asked[-1]["messages"] if one["role"] != "system"]
    assert said == ["One", TEXT, "Other"], "nothing of what was said elsewhere is known"
    home, branch = await session_of(served, second["id"]), await session_of(served, other["id"])
    assert home != branch
    assert [text for role, text in await messages_of(served, home) if role == "user"] == ["One", "Two"]
    assert [text for role, text in await messages_of(served, branch) if role == "user"] == ["One", "Other"]


@pytest.mark.parametrize("model", ["vllm/fake-large", "agent/simple@vllm/fake-large"])
@pytest.mark.parametrize("background", [False, True])
async def test_many_go_on_after_one_at_the_same_moment_and_hear_nothing_of_each_other(
    served: House, provider: FakeProvider, model: str, background: bool
) -> None:
    first = await ask(served, model, "One")
    more = {"previous_response_id": first["id"], "background": background}
    made = await asyncio.gather(*(ask(served, model, f"Word {number}", **more) for number in range(8)))
    for one in made:
        await until(served, one["id"], "completed")
    heard = [
        [message["content"] for message in asked["messages"] if message["role"] == "user"]
        for asked in provider.asked[1:]
    ]
    assert sorted(heard) == [["One", f"Word {number}"] for number in range(8)]


async def test_a_refused_call_leaves_no_branch_behind(served: House, provider: FakeProvider) -> None:
    first = await ask(served, "vllm/fake-large", "One")
    await ask(served, "vllm/fake-large", "Two", previous_response_id=first["id"])
    before = len(await sessions_of(served))
    await refused(served, 404, model="nobody/x", previous_response_id=first["id"])
    await refused(served, model="mistral/fake-large", reasoning={"effort": "low"}, previous_response_id=first["id"])
    assert len(await sessions_of(served)) == before


@pytest.fixture(scope="module")
async def stranger(served: House) -> str:
    await served.add_user("stranger", password="a good password", scopes=["completion"])
    token: str = (await served.log_in("stranger", "a good password")).json()["access_token"]
    return token


async def test_unknown_deleted_and_anothers_are_the_same_404(
    served: House, client: AsyncOpenAI, provider: FakeProvider, stranger: str
) -> None:
    theirs = await sdk(served, stranger).responses.create(model="offline/rules", input="x")
    gone = await client.responses.create(model="offline/rules", input="x")
    await client.responses.delete(gone.id)
    unknown = "resp_" + "0" * 32
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("GET", "/input_items"),
        ("GET", "?stream=true"),
    ):
        answers = [
            await served.client.request(method, f"/v1/responses/{one}{path}") for one in (theirs.id, gone.id, unknown)
        ]
        assert [answer.status_code for answer in answers] == [404] * 3
        assert len({answer.text for answer in answers}) == 1
    errors = [
        await refused(served, 404, model="offline/rules", previous_response_id=one)
        for one in (theirs.id, gone.id, unknown)
    ]
    assert errors[0] == errors[1] == errors[2]
    assert errors[0]["param"] == "previous_response_id"
    with pytest.raises(openai.NotFoundError) as found:
        await client.responses.retrieve("nonsense")
    assert found.value.code == "response_not_found"


async def test_a_session_is_one_conversation_behind_every_door(served: House, provider: FakeProvider) -> None:
    native = (
        await served.client.post("/completion", json={"message": "One", "agent": "simple", "model": "vllm/fake-large"})
    ).json()
    session = native["session_id"]
    await ask(served, "agent/simple@vllm/fake-large", "Two", conversation=session)
    last = await ask(served, "vllm/fake-large", "Three", conversation={"id": session})
    assert last["conversation"] == {"id": session}
    said = [one["content"] for one in provider.asked[-1]["messages"] if one["role"] == "user"]
    assert said == ["One", "Two", "Three"]
    await served.client.post("/completion", json={"message": "Four", "session_id": session, "model": "vllm/fake-large"})
    assert [text for role, text in await messages_of(served, session) if role == "user"] == [
        "One",
        "Two",
        "Three",
        "Four",
    ]
    headed = await served.client.post(
        "/v1/responses", json={"model": "vllm/fake-large", "input": "Five"}, headers={"x-session-id": session}
    )
    assert headed.headers["x-session-id"] == session
    first = await ask(served, "vllm/fake-large", "New")
    goes_on = {"message": "On", "session_id": await session_of(served, first["id"]), "model": "vllm/fake-large"}
    assert (await served.client.post("/completion", json=goes_on)).status_code == 200


async def test_two_conversations_at_once_are_refused(served: House, provider: FakeProvider) -> None:
    first = await ask(served, "vllm/fake-large", "One")
    session = await session_of(served, first["id"])
    error = await refused(served, previous_response_id=first["id"], conversation=session)
    assert error["param"] == "previous_response_id"
    body = {"model": "vllm/fake-large", "input": "x", "conversation": "another"}
    assert (await served.client.post("/v1/responses", json=body, headers={"x-session-id": session})).status_code == 400
    await refused(served, 404, conversation="nobody")


async def nothing_kept(house: House, response_id: str, run_id: str, session: str) -> None:
    assert (await house.client.get(f"/v1/responses/{response_id}")).status_code == 404
    assert (await house.client.get(f"/api/runs/{run_id}")).status_code == 404
    assert (await house.client.get(f"/api/sessions/{session}")).status_code == 404


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", ["vllm/fake-large", "agent/simple@vllm/fake-large"])
async def test_what_is_not_to_be_kept_is_gone_and_its_cost_is_not(
    served: House, provider: FakeProvider, model: str, streamed: bool
) -> None:
    before = tokens_paid(served)
    body = {"model": model, "input": "secret", "store": False, "stream": streamed}
    answer = await served.client.post("/v1/responses", json=body)
    response = events_in(answer.text)[-1]["response"] if streamed else answer.json()
    assert (response["store"], text_in(response)) == (False, TEXT)
    await nothing_kept(served, response["id"], answer.headers["x-run-id"], answer.headers["x-session-id"])
    assert tokens_paid(served) == before + response["usage"]["total_tokens"]


@pytest.mark.parametrize("reply", [Reply(status=500), Reply(fault="cut")], ids=["refused", "cut"])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", ["vllm/fake-large", "agent/simple@vllm/fake-large"])
async def test_what_is_not_to_be_kept_is_gone_when_it_failed(
    served: House, provider: FakeProvider, model: str, streamed: bool, reply: Reply
) -> None:
    sessions = await sessions_of(served)
    provider.then(reply)
    await served.client.post("/v1/responses", json={"model": model, "input": "x", "store": False, "stream": streamed})
    assert await sessions_of(served) == sessions


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", ["vllm/fake-large", "agent/simple@vllm/fake-large"])
async def test_what_is_not_to_be_kept_is_gone_when_its_reader_left(
    served: House, provider: FakeProvider, model: str, streamed: bool
) -> None:
    sessions = await sessions_of(served)
    provider.then(Reply(fault="hang_between" if streamed else "hang_before"))
    body = {"model": model, "input": "x", "store": False, "stream": streamed}
    await leave(served, provider, body)

    async def as_before() -> bool:
        return await sessions_of(served) == sessions

    assert await eventually(as_before)


async def leave(house: House, provider: FakeProvider, body: dict[str, Any]) -> None:
    """Ask, and go as soon as the provider has begun; it notices within a second."""
    async with httpx.AsyncClient(base_url=house.url, headers=house.client.headers) as leaving:
        asking = asyncio.create_task(leaving.post("/v1/responses", json=body))
        with anyio.fail_after(5):
            await provider.begun.wait()
        asking.cancel()
    provider.begun.clear()
    with anyio.fail_after(1):
        await provider.abort_seen.wait()


async def test_a_deleted_response_takes_its_own_conversation_along_and_no_other(
    served: House, client: AsyncOpenAI, provider: FakeProvider
) -> None:
    alone = await ask(served, "vllm/fake-large", "One")
    session = await session_of(served, alone["id"])
    deleted = await served.client.delete(f"/v1/responses/{alone['id']}")
    assert deleted.json() == {"id": alone["id"], "object": "response", "deleted": True}
    assert (await served.client.get(f"/api/sessions/{session}")).status_code == 404
    made = (await served.client.post("/api/sessions", json={"agent": "simple", "title": "mine"})).json()["session_id"]
    named = await ask(served, "agent/simple@vllm/fake-large", "One", conversation=made)
    await client.responses.delete(named["id"])
    assert (await served.client.get(f"/api/sessions/{made}")).status_code == 200
    first = await ask(served, "vllm/fake-large", "One")
    second = await ask(served, "vllm/fake-large", "Two", previous_response_id=first["id"])
    await client.responses.delete(first["id"])
    assert (await served.client.get(f"/v1/responses/{first['id']}")).status_code == 404
    assert text_in(await retrieved(served, second["id"])) == TEXT


async def test_input_items_come_in_pages_and_in_both_orders(
    served: House, client: AsyncOpenAI, provider: FakeProvider
) -> None:
    given: list[Any] = [
        {"role": "system", "content": "rules"},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": PICTURE}],
        },
        *CALLS,
        *OUTPUTS,
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    made = await ask(served, "openai/gpt-4o-mini", given)
    page = (await served.client.get(f"/v1/responses/{made['id']}/input_items?order=asc&limit=100")).json()
    ResponseItemList.model_validate(page)
    assert [item.get("role") or item["type"] for item in page["data"]] == [
        "system", "user", "function_call", "function_call", "function_call_output", "function_call_output",
        "assistant", "user",
    ]  # fmt: skip
    assert [part["type"] for part in page["data"][1]["content"]] == ["input_text", "input_image"]
    ids = [item["id"] for item in page["data"]]
    for order in ("asc", "desc"):
        walked = [
            item.id
            async for item in client.responses.input_items.list(made["id"], limit=3, order=order)  # type: ignore[arg-type]
        ]
        assert walked == (ids if order == "asc" else ids[::-1])
    assert (await served.client.get(f"/v1/responses/{made['id']}/input_items?after=nobody")).status_code == 400


async def test_metadata_is_kept_and_found(served: House, provider: FakeProvider) -> None:
    made = await ask(served, "vllm/fake-large", metadata={"dossier": "7"})
    assert (await retrieved(served, made["id"]))["metadata"] == {"dossier": "7"}
    runs = (await served.client.get("/api/runs?metadata.dossier=7")).json()["runs"]
    assert [run["session_id"] for run in runs] == [await session_of(served, made["id"])]


# -- in the background --


async def until(house: House, response_id: str, *statuses: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        found = await retrieved(house, response_id)
        return found if found["status"] in statuses else None

    found: dict[str, Any] = await eventually(look)
    return found


@pytest.mark.parametrize("model", ["vllm/fake-large", "agent/simple@vllm/fake-large", "agent/react@offline/rules"])
async def test_a_response_in_the_background_is_queued_and_then_completed(
    served: House, provider: FakeProvider, model: str
) -> None:
    made = await ask(served, model, "Salut", background=True, metadata={"a": "b"})
    assert (made["status"], made["background"], made["output"]) == ("queued", True, [])
    done = await until(served, made["id"], "completed")
    assert text_in(done)
    assert done["usage"]["total_tokens"] > 0
    assert {done[name] == made[name] for name in ("id", "created_at", "model", "metadata")} == {True}
    answer = await served.client.get(f"/v1/responses/{made['id']}?stream=true")
    assert events_in(answer.text)[-1]["response"] == done


async def test_one_in_the_background_is_seen_in_progress_and_cancelled_at_once(
    served: House, client: AsyncOpenAI, provider: FakeProvider
) -> None:
    provider.then(Reply(fault="hang_between"))
    made = await ask(served, "vllm/fake-large", background=True)
    with anyio.fail_after(5):
        await provider.begun.wait()
    assert (await retrieved(served, made["id"]))["status"] == "in_progress"
    with anyio.fail_after(1):
        await client.responses.cancel(made["id"])
        await provider.abort_seen.wait()
        await until(served, made["id"], "cancelled")
    again = await client.responses.cancel(made["id"])
    assert again.status == "cancelled"


async def test_one_that_somebody_reads_is_seen_in_progress_too(served: House, provider: FakeProvider) -> None:
    provider.then(Reply(fault="hang_between"))
    body = {"model": "vllm/fake-large", "input": "x", "stream": True}
    async with served.client.stream("POST", "/v1/responses", json=body) as answer:
        response_id = f"resp_{answer.headers['x-run-id'].replace('-', '')}"
        assert (await retrieved(served, response_id))["status"] == "in_progress"
        assert (await served.client.delete(f"/v1/responses/{response_id}")).status_code == 409
    assert (await until(served, response_id, "cancelled"))["usage"]["total_tokens"] > 0


async def test_only_one_in_the_background_can_be_cancelled_or_streamed_again(
    served: House, client: AsyncOpenAI, provider: FakeProvider
) -> None:
    made = await client.responses.create(model="vllm/fake-large", input="x")
    with pytest.raises(openai.BadRequestError):
        await client.responses.cancel(made.id)
    with pytest.raises(openai.BadRequestError):
        await client.responses.retrieve(made.id, stream=True)


@pytest.mark.parametrize("view", ["hidden", "calls"])
async def test_a_stream_that_was_cut_goes_on_where_it_was(
    served: House, client: AsyncOpenAI, provider: FakeProvider, view: str
) -> None:
    body = {"model": "agent/react@offline/rules", "input": "What is 6 times 7?", "background": True, "stream": True}
    answer = await served.client.post("/v1/responses", json=body, headers={"x-agent-tools": view})
    events = events_in(answer.text)
    assert [event["type"] for event in events[:3]] == ["response.created", "response.queued", "response.in_progress"]
    response_id = events[0]["response"]["id"]
    for cut in (0, 3, len(events) - 2):
        rest = await client.responses.retrieve(response_id, stream=True, starting_after=cut)
        numbers = [event.sequence_number async for event in rest]
        assert numbers == list(range(cut + 1, len(events)))
    again = events_in((await served.client.get(f"/v1/responses/{response_id}?stream=true")).text)
    assert again == events
    assert await retrieved(served, response_id) == events[-1]["response"]


async def test_many_read_one_response_and_leaving_does_not_stop_it(served: House, provider: FakeProvider) -> None:
    provider.then(Reply(pause=0.05))
    body = {"model": "vllm/fake-large", "input": "x", "background": True, "stream": True}
    async with served.client.stream("POST", "/v1/responses", json=body) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                response_id = orjson.loads(line[5:])["response"]["id"]
                break
    answers = await asyncio.gather(*(served.client.get(f"/v1/responses/{response_id}?stream=true") for _ in range(3)))
    told = [events_in(answer.text) for answer in answers]
    assert told[0] == told[1] == told[2]
    assert text_in(told[0][-1]["response"]) == TEXT
    assert provider.aborted == 0


async def test_the_same_key_is_the_same_response(served: House, provider: FakeProvider) -> None:
    body = {"model": "vllm/fake-large", "input": "x", "background": True}
    headers = {"idempotency-key": "once-in-the-background"}
    answers = [await served.client.post("/v1/responses", json=body, headers=headers) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    await until(served, answers[0].json()["id"], "completed")
    assert provider.calls == 1


async def test_one_that_waits_for_an_approval_is_in_progress_until_it_has_it(served: House) -> None:
    made = await ask(served, "agent/misfit@offline/rules", "ask", background=True)
    waiting = await eventually(lambda: runs_that_are(served, "waiting"))
    run = (await served.client.get(f"/api/runs/{waiting[0]['run_id']}")).json()
    assert (await retrieved(served, made["id"]))["status"] == "in_progress"
    asked = next(event for event in run["events"] if event["kind"] == "approval.requested")
    answer = {"approval_id": asked["approval_id"], "decision": "approve"}
    assert (await served.client.post(f"/api/runs/{run['run_id']}/approve", json=answer)).status_code == 200
    assert text_in(await until(served, made["id"], "completed"))


async def test_the_background_needs_the_scope_of_runs(served: House, stranger: str) -> None:
    with pytest.raises(openai.PermissionDeniedError) as refusal:
        await sdk(served, stranger).responses.create(model="offline/rules", input="x", background=True)
    assert refusal.value.code == "missing_scope"


async def test_instructions_in_the_background_are_for_one_response(served: House, provider: FakeProvider) -> None:
    first = await ask(served, "vllm/fake-large", "One", instructions="Be a pirate.", background=True)
    await until(served, first["id"], "completed")
    assert [one["role"] for one in provider.asked[-1]["messages"]] == ["system", "user"]
    await ask(served, "vllm/fake-large", "Two", previous_response_id=first["id"])
    assert [one["role"] for one in provider.asked[-1]["messages"]] == ["user", "assistant", "user"]


async def test_one_that_is_not_finished_cannot_be_gone_on_after_or_deleted(
    served: House, client: AsyncOpenAI, provider: FakeProvider
) -> None:
    provider.then(Reply(fault="hang_between"))
    made = await ask(served, "vllm/fake-large", background=True)
    assert (await refused(served, 409, previous_response_id=made["id"]))["code"] == "response_in_progress"
    with pytest.raises(openai.ConflictError):
        await client.responses.delete(made["id"])
    await client.responses.cancel(made["id"])
    await until(served, made["id"], "cancelled")


# -- failures --


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", ["vllm/fake-large", "agent/simple@vllm/fake-large"])
@pytest.mark.parametrize(
    ("reply", "raised", "code"),
    [
        (Reply(status=429), openai.RateLimitError, "upstream_busy"),
        (Reply(status=500), openai.InternalServerError, "upstream_failure"),
        (Reply(status=404), openai.NotFoundError, "model_not_found"),
        (Reply(status=400), openai.BadRequestError, "provider_refused"),
    ],
)
async def test_before_the_first_token_a_failure_has_a_status(
    client: AsyncOpenAI, provider: FakeProvider, model: str, streamed: bool, reply: Reply, raised: Any, code: str
) -> None:
    provider.then(reply)
    with pytest.raises(raised) as failure:
        await client.responses.create(model=model, input="x", stream=streamed)
    assert failure.value.code == code
    assert "sk-secret" not in str(failure.value.body)


@pytest.mark.parametrize("model", ["vllm/fake-large", "ollama/fake-large", "agent/simple@vllm/fake-large"])
@pytest.mark.parametrize("fault", ["cut", "error_inside", "malformed"])
async def test_after_the_first_token_a_failure_is_the_last_event(
    served: House, provider: FakeProvider, model: str, fault: Any
) -> None:
    provider.then(Reply(fault=fault))
    events = await stream(served, model)
    last = events[-1]["response"]
    assert (events[-1]["type"], last["status"]) == ("response.failed", "failed")
    assert last["error"].keys() == {"code", "message"}
    assert "sk-secret" not in str(events)
    assert "overloaded" not in str(events)
    assert TEXT.startswith(text_in(last))
    assert text_in(last)
    assert await retrieved(served, last["id"]) == last


@pytest.mark.parametrize(("finish", "why"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
@pytest.mark.parametrize("model", ["vllm/fake-large", "agent/simple@vllm/fake-large"])
async def test_an_answer_that_was_cut_short_is_incomplete(
    served: House, provider: FakeProvider, model: str, finish: str, why: str
) -> None:
    provider.then(*[Reply(finish=finish)] * 2)
    events = await stream(served, model)
    whole = await ask(served, model)
    assert events[-1]["type"] == "response.incomplete"
    for body in (events[-1]["response"], whole, await retrieved(served, whole["id"])):
        assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": why})


async def test_a_limit_on_the_demonstration_model_is_reached(served: House) -> None:
    whole = await ask(served, "offline/rules", "Tell me a long story.", max_output_tokens=1)
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}


@pytest.mark.parametrize("model", ["vllm/fake-large", "agent/simple@vllm/fake-large"])
async def test_a_reader_who_leaves_stops_the_model(served: House, provider: FakeProvider, model: str) -> None:
    provider.then(Reply(fault="hang_between"), Reply(fault="hang_before"))
    for streamed in (True, False):
        provider.abort_seen.clear()
        await leave(served, provider, {"model": model, "input": "x", "stream": streamed})


@pytest.mark.parametrize("model", ["vllm/fake-large", "agent/simple@vllm/fake-large"])
async def test_a_cancelled_run_ends_its_stream(served: House, provider: FakeProvider, model: str) -> None:
    provider.then(Reply(fault="hang_between"))
    asking = asyncio.create_task(stream(served, model))
    with anyio.fail_after(5):
        await provider.begun.wait()
    going = await eventually(lambda: runs_that_are(served, "running"))
    await served.client.post(f"/api/runs/{going[0]['run_id']}/cancel")
    events = await asking
    last = events[-1]["response"]
    assert (events[-1]["type"], last["status"]) == ("response.incomplete", "cancelled")
    assert await retrieved(served, last["id"]) == last


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("model", ["vllm/fake-large", "agent/simple@vllm/fake-large"])
async def test_the_end_of_the_server_is_the_end_of_the_stream(
    settings: Settings, provider: FakeProvider, model: str, store: bool
) -> None:
    compatible = {"vllm": CompatibleProvider(base_url=f"{provider.url}/vllm/v1")}
    providers = ProviderSettings(discover_local=False, compatible=compatible)
    provider.then(Reply(fault="hang_between"))
    body = {"model": model, "input": "x", "stream": True, "store": store}
    async with httpx.AsyncClient(timeout=20) as reader:
        async with open_house(settings.model_copy(update={"providers": providers})) as house:
            headers = {"authorization": house.client.headers["authorization"]}
            asking = asyncio.create_task(reader.post(f"{house.url}/v1/responses", json=body, headers=headers))
            with anyio.fail_after(5):
                await provider.begun.wait()
        events = events_in((await asking).text)
    assert events[-1]["type"] == "response.failed"
    assert "server_stopping" in events[-1]["response"]["error"]["message"]
    with closing(sqlite3.connect(settings.storage.data_dir / "routeur.sqlite3")) as record:
        assert record.execute("select count(*) from sessions").fetchone() == (int(store),)


# -- rubbish --

RUBBISH: list[Any] = [
    None, 7, [], "", {}, [None], [7], [[]], ["x"], [{}], [{"role": "user"}], [{"role": "user", "content": None}],
    [{"role": "user", "content": 7}], [{"role": "user", "content": [[]]}], [{"role": "user", "content": [None]}],
    [{"role": "user", "content": {"type": "input_text"}}], [{"role": "user", "content": [{"type": "input_text"}]}],
    [{"role": "user", "content": [{"type": "input_text", "text": ["x"]}]}], [{"role": ["user"], "content": "x"}],
    [{"role": "user", "content": [{"type": ["input_text"], "text": "x"}]}], [{"type": None, "role": "user"}],
    [{"role": "user", "content": [{"type": "input_image", "image_url": {"url": "x"}}]}],
    [{"role": "user", "content": [{"type": "input_image", "image_url": "x", "detail": 7}]}],
    [{"role": "user", "content": [{"type": "input_audio", "input_audio": "x"}]}],
    [{"role": "assistant", "content": [{"type": "refusal"}]}], [{"role": "root", "content": "x"}],
    [{"type": "function_call"}], [{"type": "function_call", "call_id": [], "name": "x", "arguments": "{}"}],
    [{"type": "function_call", "call_id": "", "name": "", "arguments": ""}],
    [{"type": "function_call", "call_id": "a", "name": "x", "arguments": {"a": 1}}],
    [{"type": "function_call_output", "call_id": "a"}], [{"type": "function_call_output", "call_id": "a", "output": 7}],
    [{"type": "function_call_output", "output": "x"}], [{"type": "message"}], [{"type": ["message"]}],
    [{"role": "user", "content": "x"}] * 2_001,
    [{"role": "user", "content": [{"type": "input_text", "text": "x"}] * 300},
     {"role": "user", "content": [{"type": "input_image", "image_url": "x"}] * 300}],
]  # fmt: skip


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("model", ["vllm/fake-large", "agent/simple@vllm/fake-large"])
async def test_input_that_makes_no_sense_is_a_400(
    served: House, provider: FakeProvider, model: str, background: bool
) -> None:
    for given in RUBBISH:
        error = await refused(served, model=model, input=given, background=background)
        assert "input" in f"{error['param']} {error['message']}", given
    assert provider.calls == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"hello", b"[]", b"7", b"null", b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "vllm/fake-large", "input": [' + b'{"content":[' * 5_000 + b"]}" * 5_000 + b"]}",
        b'{"model": "vllm/fake-large", "input": "\\ud800"}', b'{"model": "vllm/fake-large", "input": "\xff"}',
        b'{"model": "vllm/fake-large", "input": "x", "max_output_tokens": ' + b"9" * 5_000 + b"}",
        b'{"model": "vllm/fake-large", "input": "x", "temperature": NaN}',
        b'{"model": "vllm/fake-large", "input": "x", "previous_response_id": "../../etc"}',
        b'{"model": "vllm/fake-large", "input": "x", "metadata": {"session_id": 7}}',
        b'{"model": "vllm/fake-large", "input": "x", "tools": [{"type": "function"}]}',
        b'{"model": "vllm/fake-large", "input": "x", "tools": [{"type": "function", "name": ["x"]}]}',
        b'{"model": "vllm/fake-large", "input": "x", "tools": [7]}',
        b'{"model": "vllm/fake-large", "input": "x", "tool_choice": {"type": "function", "name": []}}',
        b'{"model": "vllm/fake-large", "input": "x", "text": {"format": {"type": "json_schema", "schema": []}}}',
        b'{"model": "vllm/fake-large", "input": "x", "stream": "yes"}',
    ],
    ids=lambda raw: raw[:60].decode("latin-1"),
)  # fmt: skip
async def test_a_body_that_makes_no_sense_is_a_400(served: House, provider: FakeProvider, raw: bytes) -> None:
    answer = await served.client.post("/v1/responses", content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert len(answer.content) < 20_000


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("model", ["vllm/fake-large", "agent/simple@vllm/fake-large"])
@pytest.mark.parametrize("place", ["input", "part", "instructions", "output", "arguments"])
async def test_nul_is_a_character_that_nobody_falls_over(
    served: House, provider: FakeProvider, model: str, place: str, background: bool
) -> None:
    nul, more = "a\x00b", {}
    given: Any = [{"role": "user", "content": "x"}]
    match place:
        case "input":
            given = nul
        case "part":
            given = [{"role": "user", "content": [{"type": "input_text", "text": nul}]}]
        case "instructions":
            more = {"instructions": nul}
        case "output":
            given += [CALLS[0], {"type": "function_call_output", "call_id": "a", "output": nul}]
        case _:
            given += [{**CALLS[0], "arguments": '{"a": "b\\u0000c"}'}, OUTPUTS[0]]
    made = await ask(served, model, given, background=background, **more)
    done = await until(served, made["id"], "completed", "failed")
    assert done["status"] == "completed"
    assert (await served.client.get(f"/v1/responses/{made['id']}/input_items")).status_code == 200
