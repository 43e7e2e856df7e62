"""Chat completions by OpenAI's own client and LangChain's: every vendor and agents, whole and streamed."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI
from pydantic import BaseModel, SecretStr

from config.settings import ServerSettings, Settings
from tests.fakes.house import House, open_house
from tests.fakes.openai_door import (
    MODELS,
    TARGETS,
    VENDED,
    error_of,
    frames_of,
    post,
    reaching,
    says,
    sdk,
    streamed,
    words_of,
)
from tests.fakes.providers import INPUT, OUTPUT, TEXT, FakeProvider, Reply

pytestmark = pytest.mark.anyio
Opener = Callable[[Settings], Awaitable[House]]
FUNCTION = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Calculates.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}


@pytest.fixture(scope="module")
async def served(shared_settings: Settings, shared_provider: FakeProvider) -> AsyncIterator[House]:
    async with open_house(reaching(shared_settings, shared_provider)) as house:
        yield house


@pytest.fixture
async def client(served: House) -> AsyncIterator[AsyncOpenAI]:
    async with sdk(served) as made:
        yield made


def head(name: str = "x") -> dict[str, Any]:
    return {"id": name, "object": "chat.completion.chunk", "created": 1, "model": "m"}


def chunk(delta: dict[str, Any], finish: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    return {**head(), "choices": [{"index": index, "delta": delta, "finish_reason": finish}], **more}


# -- the wire --


@pytest.mark.parametrize("model", VENDED)
async def test_the_official_client_reads_a_whole_answer(
    client: AsyncOpenAI, provider: FakeProvider, model: str
) -> None:
    answer = await client.chat.completions.create(model=model, messages=says())
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == INPUT + OUTPUT


@pytest.mark.parametrize("model", VENDED)
async def test_the_official_client_reads_a_stream(client: AsyncOpenAI, provider: FakeProvider, model: str) -> None:
    options: Any = {"include_usage": True}
    stream = await client.chat.completions.create(model=model, messages=says(), stream=True, stream_options=options)
    chunks = [one async for one in stream]
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == TEXT
    assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == INPUT + OUTPUT


@pytest.mark.parametrize("model", TARGETS)
async def test_a_stream_has_the_form_that_clients_rely_on(served: House, provider: FakeProvider, model: str) -> None:
    frames = await streamed(served, {"model": model, "messages": says()})
    assert frames[-1] == "[DONE]"
    chunks = frames[:-1]
    assert all(set(one) >= {"id", "object", "created", "model", "choices"} for one in chunks)
    assert len({(one["id"], one["created"], one["model"], one["object"]) for one in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    finishes = [one["choices"][0]["finish_reason"] for one in chunks]
    assert finishes == [None] * (len(chunks) - 1) + ["stop"]
    assert not any(one.get("usage") for one in chunks), "nobody has asked"
    assert all(one["choices"] for one in chunks)


@pytest.mark.parametrize("model", TARGETS)
async def test_usage_comes_last_and_only_when_asked_for(served: House, provider: FakeProvider, model: str) -> None:
    body = {"model": model, "messages": says(), "stream_options": {"include_usage": True}}
    *chunks, usage, done = await streamed(served, body)
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == usage["usage"]["prompt_tokens"] + usage["usage"]["completion_tokens"]
    assert usage["id"] == chunks[0]["id"]
    assert not any(one.get("usage") for one in chunks)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", TARGETS)
async def test_the_headers_say_what_served_it(served: House, provider: FakeProvider, model: str, stream: bool) -> None:
    answer = await post(served, {"model": model, "messages": says(), "stream": stream})
    assert answer.headers["x-model"] == model.rpartition("@")[2]
    assert answer.headers["x-request-id"]
    run = (await served.client.get(f"/api/runs/{answer.headers['x-run-id']}")).json()
    assert run["session_id"] == answer.headers["x-session-id"]
    assert run["model"] == answer.headers["x-model"]
    kind = "text/event-stream; charset=utf-8" if stream else "application/json"
    assert answer.headers["content-type"] == kind


@pytest.mark.parametrize("fault", ["split", "crlf", "cr", "no_done", "after_end", "empty_choices", "usage_twice"])
@pytest.mark.parametrize("model", VENDED)
async def test_however_a_provider_cuts_and_decorates_its_stream_the_words_are_whole(
    served: House, provider: FakeProvider, model: str, fault: Any
) -> None:
    provider.then(Reply(fault=fault))
    body = {"model": model, "messages": says(), "stream_options": {"include_usage": True}}
    frames = await streamed(served, body)
    assert words_of(frames) == TEXT
    assert frames[-1] == "[DONE]"
    assert sum(1 for one in frames[:-1] if one.get("usage")) == 1
    assert frames[-2]["usage"]["completion_tokens"] == OUTPUT


@pytest.mark.parametrize("fault", ["usage_missing", "usage_negative"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", VENDED)
async def test_a_count_that_is_none_is_not_told(
    served: House, provider: FakeProvider, model: str, stream: bool, fault: Any
) -> None:
    provider.then(Reply(fault=fault))
    body = {"model": model, "messages": says(), "stream": stream}
    answer = await post(served, {**body, "stream_options": {"include_usage": True}} if stream else body)
    told = frames_of(answer.content)[:-1] if stream else [answer.json()]
    assert not any(one.get("usage") for one in told)


async def test_thinking_pauses_are_bridged_by_comments_that_the_client_survives(
    open_with: Opener, settings: Settings, provider: FakeProvider
) -> None:
    beating = reaching(settings, provider).model_copy(update={"server": ServerSettings(heartbeat=0.05)})
    house = await open_with(beating)
    for model in ("openai/m", "agent/simple@openai/m"):
        provider.then(Reply(words=("a", "b"), pause=0.3))
        answer = await post(house, {"model": model, "messages": says(), "stream": True})
        assert b"\n\n: ping\n\n" in answer.content
        assert words_of(frames_of(answer.content)) == "ab"
        provider.then(Reply(words=("a", "b"), pause=0.3))
        async with sdk(house) as client:
            stream = await client.chat.completions.create(model=model, messages=says(), stream=True)
            assert "".join([one.choices[0].delta.content or "" async for one in stream]) == "ab"


@pytest.mark.parametrize("model", ["openai/m", "offline/rules", "agent/simple@openai/m"])
async def test_the_body_ends_with_done_so_that_the_connection_is_used_again(
    client: AsyncOpenAI, provider: FakeProvider, model: str
) -> None:
    ports = set()
    for _ in range(5):
        stream = await client.chat.completions.create(model=model, messages=says(), stream=True)
        ports.add(stream.response.extensions["network_stream"].get_extra_info("client_addr")[1])
        assert [one async for one in stream]
    assert len(ports) == 1


async def test_the_connection_to_the_provider_is_used_again(served: House, provider: FakeProvider) -> None:
    provider.connections.clear()
    for stream in (True, False, True, True):
        await post(served, {"model": "openai/m", "messages": says(), "stream": stream})
    assert len(provider.connections) == 1


# -- parameters --


@pytest.mark.parametrize("stream", [True, False])
async def test_what_openai_knows_reaches_openai_as_it_was_sent(
    served: House, provider: FakeProvider, stream: bool
) -> None:
    sent = {
        "temperature": 0.5,
        "top_p": 0.9,
        "max_completion_tokens": 50,
        "stop": ["END"],
        "seed": 7,
        "n": 1,
        "logprobs": True,
        "top_logprobs": 3,
        "logit_bias": {"50256": -100},
        "reasoning_effort": "low",
        "verbosity": "low",
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "prediction": {"type": "content", "content": "x"},
        "prompt_cache_key": "k",
        "service_tier": "flex",
    }
    answer = await post(served, {"model": "openai/m", "messages": says(), "stream": stream, **sent})
    assert answer.status_code == 200, answer.text
    asked = provider.asked[-1]
    assert {name: asked[name] for name in sent} == sent
    assert asked["messages"] == says()
    assert set(asked) - set(sent) == {"model", "messages"} | ({"stream", "stream_options"} if stream else set())


@pytest.mark.parametrize(
    ("model", "name", "value"),
    [
        ("mistral/m", "logprobs", True),
        ("mistral/m", "reasoning_effort", "low"),
        ("mistral/m", "logit_bias", {"1": 1}),
        ("mistral/m", "something_new", 1),
        ("ollama/m", "n", 2),
        ("ollama/m", "logit_bias", {"1": 1}),
        ("ollama/m", "service_tier", "flex"),
        ("ollama/m", "tool_choice", "required"),
        ("vllm/m", "audio", {"voice": "x", "format": "wav"}),
        ("vllm/m", "web_search_options", {}),
        ("openai/m", "top_k", 5),
        ("offline/rules", "n", 2),
        ("offline/rules", "logprobs", True),
        ("offline/rules", "frequency_penalty", 1.0),
        ("agent/simple", "n", 2),
        ("agent/simple", "tools", [FUNCTION]),
        ("agent/simple", "tool_choice", "required"),
        ("agent/simple", "reasoning_effort", "low"),
        ("agent/simple", "functions", []),
        ("agent/simple", "something_new", 1),
        ("agent/simple@openai/m", "logprobs", True),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_what_a_target_does_not_take_is_refused_by_name_and_nothing_is_asked(
    served: House, provider: FakeProvider, model: str, name: str, value: Any, stream: bool
) -> None:
    runs = (await served.client.get("/api/runs?limit=1")).json()["runs"]
    answer = await post(served, {"model": model, "messages": says(), "stream": stream, name: value})
    assert answer.status_code == 400, answer.text
    error = error_of(answer)
    assert (error["code"], error["param"]) == ("unsupported_parameter", name)
    assert name in error["message"]
    assert provider.calls == 0
    assert (await served.client.get("/api/runs?limit=1")).json()["runs"] == runs, "nothing is written down"


@pytest.mark.parametrize("model", TARGETS)
async def test_what_changes_nothing_is_taken_by_everybody(served: House, provider: FakeProvider, model: str) -> None:
    idle = {
        "n": 1, "logprobs": False, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "user": "u",
        "store": False, "metadata": {"a": "b"}, "service_tier": "auto", "modalities": ["text"], "tools": None,
        "tool_choice": None, "stream": None, "reasoning_effort": None, "prompt_cache_key": "k",
    }  # fmt: skip
    answer = await post(served, {"model": model, "messages": says(), **idle})
    assert answer.status_code == 200, answer.text


async def test_each_vendor_gets_its_own_words(served: House, provider: FakeProvider) -> None:
    body = {"messages": [{"role": "developer", "content": "Be short."}, *says()], "seed": 1, "max_completion_tokens": 9}
    for model in MODELS:
        assert (await post(served, {"model": model, **body})).status_code == 200
    openai_, mistral, ollama, vllm = provider.asked
    assert [one["messages"][0]["role"] for one in provider.asked] == ["developer", "system", "system", "system"]
    assert (openai_["max_completion_tokens"], openai_["seed"]) == (9, 1)
    assert (mistral["max_tokens"], mistral["random_seed"]) == (9, 1)
    assert (ollama["max_tokens"], vllm["max_tokens"]) == (9, 9)
    assert "stream_options" not in mistral


async def test_sampling_parameters_of_other_servers_reach_a_compatible_one(
    served: House, provider: FakeProvider
) -> None:
    answer = await post(served, {"model": "vllm/m", "messages": says(), "top_k": 5, "guided_choice": ["a"]})
    assert answer.status_code == 200
    assert (provider.asked[-1]["top_k"], provider.asked[-1]["guided_choice"]) == (5, ["a"])


async def test_two_answers_are_both_told_and_the_first_is_recorded(served: House, provider: FakeProvider) -> None:
    events = (
        chunk({"role": "assistant", "content": ""}),
        chunk({"role": "assistant", "content": ""}, index=1),
        chunk({"content": "one"}),
        chunk({"content": "two"}, index=1),
        chunk({"content": " first"}),
        chunk({"content": " second"}, index=1),
        chunk({}, "stop"),
        chunk({"content": "!"}, index=1),
        chunk({}, "length", index=1),
        b"[DONE]",
    )
    provider.then(Reply(events=events))
    body = {"model": "openai/m", "messages": says(), "n": 2, "stream": True}
    answer = await post(served, body)
    frames = frames_of(answer.content)
    for index, words in ((0, "one first"), (1, "two second!")):
        choices = [one["choices"][0] for one in frames[:-1] if one["choices"][0]["index"] == index]
        assert "".join(one["delta"].get("content") or "" for one in choices) == words
        assert [one["finish_reason"] for one in choices if one["finish_reason"]] == [["stop", "length"][index]]
    told = (await served.client.get(f"/api/sessions/{answer.headers['x-session-id']}")).json()["messages"]
    assert told[-1]["content"] == "one first"


# -- content and form --

PICTURE: dict[str, Any] = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "high"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
LETTER = {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}}


@pytest.mark.parametrize("part", [PICTURE, SOUND, LETTER], ids=["picture", "sound", "file"])
async def test_parts_reach_the_provider_as_sent_now_and_in_every_later_turn(
    served: House, provider: FakeProvider, part: dict[str, Any]
) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, part]}]
    first = await post(served, {"model": "openai/m", "messages": messages})
    assert first.status_code == 200
    assert provider.asked[-1]["messages"] == messages
    session = first.headers["x-session-id"]
    second = await post(served, {"model": "openai/m", "messages": says("And now?")}, x_session_id=session)
    assert second.status_code == 200, second.text
    assert provider.asked[-1]["messages"][0]["content"] == messages[0]["content"]


async def test_agents_take_pictures_and_refuse_sound_by_name(served: House, provider: FakeProvider) -> None:
    seen = [{"role": "user", "content": [{"type": "text", "text": "x"}, PICTURE]}]
    assert (await post(served, {"model": "agent/simple@openai/m", "messages": seen})).status_code == 200
    assert provider.asked[-1]["messages"][-1]["content"][1]["image_url"]["url"] == PICTURE["image_url"]["url"]
    heard = [*says(), {"role": "user", "content": [SOUND]}]
    error = error_of(await post(served, {"model": "agent/simple@openai/m", "messages": heard}))
    assert error["param"] == "messages.1.content"
    assert "input_audio" in error["message"]


class Answered(BaseModel):
    """What was found."""

    answer: str
    certain: bool


@pytest.mark.parametrize("model", ["offline/rules", "agent/simple@offline/rules"])
async def test_a_schema_is_filled_and_parsed_by_the_client(client: AsyncOpenAI, model: str) -> None:
    parsed = await client.chat.completions.parse(model=model, messages=says(), response_format=Answered)
    assert isinstance(parsed.choices[0].message.parsed, Answered)


async def test_langchain_asks_for_a_schema_with_a_description(served: House) -> None:
    model = langchain(served, "offline/rules")
    schema = {"title": "Found", "description": "What was found.", "type": "object",
              "properties": {"answer": {"type": "string"}}, "required": ["answer"]}  # fmt: skip
    found = await model.with_structured_output(schema, method="json_schema").ainvoke("x")
    assert found == {"answer": "offline"}


PARTED = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm. "}, {"type": "text", "text": "Yes."}]},
    {"type": "text", "text": "Bon"},
]


async def test_thoughts_in_parts_become_text_and_reasoning(served: House, provider: FakeProvider) -> None:
    message = {"role": "assistant", "content": PARTED}
    provider.then(
        Reply(whole={**head(), "choices": [{"index": 0, "message": message, "finish_reason": "model_length"}]}),
        Reply(events=(chunk({"role": "assistant", "content": ""}), chunk({"content": PARTED}),
                      chunk({"content": "jour"}), chunk({"content": ""}, "model_length"), b"[DONE]")),
    )  # fmt: skip
    body = {"model": "mistral/m", "messages": says()}
    whole = (await post(served, body)).json()["choices"][0]
    assert (whole["message"]["content"], whole["message"]["reasoning_content"]) == ("Bon", "Hm. Yes.")
    assert whole["finish_reason"] == "length"
    frames = await streamed(served, body)
    assert words_of(frames) == "Bonjour"
    thoughts = [one["choices"][0]["delta"].get("reasoning_content") for one in frames[:-1]]
    assert "".join(filter(None, thoughts)) == "Hm. Yes."
    assert frames[-2]["choices"][0]["finish_reason"] == "length"


# -- tools --


@tool
def calculator(expression: str) -> str:
    """Calculates."""
    return expression


def langchain(house: House, model: str, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model=model,
        base_url=f"{house.url}/v1",
        api_key=SecretStr(house.tokens["access_token"]),
        max_retries=0,
        **more,
    )


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", [*MODELS, "offline/rules"])
async def test_a_functions_call_comes_back_whole_and_its_result_is_sent_on(
    served: House, provider: FakeProvider, model: str, stream: bool
) -> None:
    provider.then(Reply(tool=("calculator", {"expression": "6*7"}), finish="tool_calls"))
    asked = HumanMessage("What is 6*7?")
    bound = langchain(served, model, streaming=stream).bind_tools([calculator])
    answer = await bound.ainvoke([asked])
    [call] = answer.tool_calls
    assert (call["name"], call["args"]) == ("calculator", {"expression": "6*7"})
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    done = await bound.ainvoke([asked, answer, ToolMessage("42", tool_call_id=call["id"])])
    if model == "offline/rules":
        assert "42" in str(done.content)
        return
    assert done.content == TEXT
    sent = provider.asked[-1]
    assert [one["role"] for one in sent["messages"]] == ["user", "assistant", "tool"]
    assert sent["messages"][1]["tool_calls"][0]["id"] == sent["messages"][2]["tool_call_id"] == call["id"]
    assert sent["tools"][0]["function"]["name"] == "calculator"


@pytest.mark.parametrize("model", MODELS)
async def test_the_official_accumulator_puts_a_call_together(
    client: AsyncOpenAI, provider: FakeProvider, model: str
) -> None:
    provider.then(Reply(tool=("calculator", {"expression": "6*7"})))
    async with client.chat.completions.stream(model=model, messages=says(), tools=[FUNCTION]) as stream:  # type: ignore[list-item]
        final = await stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls or []
    assert (call.id, call.function.name, call.function.arguments) == ("call_1", "calculator", '{"expression":"6*7"}')
    assert final.choices[0].finish_reason == "tool_calls"


async def test_arguments_that_are_no_json_are_the_clients_to_judge(served: House, provider: FakeProvider) -> None:
    odd = Reply(tool=("calculator", {"expression": "6*7"}), fault="not_json_arguments")
    provider.then(odd, odd)
    answer = await langchain(served, "openai/m").bind_tools([calculator]).ainvoke("x")
    assert answer.tool_calls == []
    assert answer.invalid_tool_calls[0]["args"] == '{"expression": 6*7'
    frames = await streamed(served, {"model": "openai/m", "messages": says(), "tools": [FUNCTION]})
    calls = [call for one in frames[:-1] for call in one["choices"][0]["delta"].get("tool_calls") or ()]
    assert "".join(call["function"]["arguments"] for call in calls) == '{"expression": 6*7'


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("view", ["hidden", "reasoning", "calls"])
async def test_an_agents_own_calls_are_shown_as_the_caller_wants(served: House, view: str, stream: bool) -> None:
    body = {"model": "agent/react@offline/rules", "messages": says("What is 6 times 7?"), "stream": stream}
    answer = await post(served, body, x_agent_tools=view)
    assert answer.status_code == 200, answer.text
    if stream:
        deltas = [one["choices"][0]["delta"] for one in frames_of(answer.content)[:-1]]
        finish = frames_of(answer.content)[-2]["choices"][0]["finish_reason"]
    else:
        choice = answer.json()["choices"][0]
        deltas, finish = [choice["message"]], choice["finish_reason"]
    assert finish == "stop", "the caller has nothing to do"
    calls = [call for delta in deltas for call in delta.get("tool_calls") or ()]
    thoughts = "".join(delta.get("reasoning_content") or "" for delta in deltas)
    assert "42" in "".join(delta.get("content") or "" for delta in deltas)
    assert ("calculator" in thoughts and "42" in thoughts) == (view == "reasoning")
    assert [call["function"]["name"] for call in calls] == (["calculator"] if view == "calls" else [])
    if calls:
        assert calls[0]["function"]["arguments"].startswith('{"expression"')


async def test_an_unknown_view_of_tools_is_refused(served: House) -> None:
    answer = await post(served, {"model": "agent/react", "messages": says()}, x_agent_tools="loud")
    assert error_of(answer)["param"] == "X-Agent-Tools"


# -- models --


async def test_models_and_agents_are_one_list(client: AsyncOpenAI, provider: FakeProvider) -> None:
    found = [one.id async for one in client.models.list()]
    assert {"openai/fake-large", "vllm/fake-large", "offline/rules", "agent/simple", "agent/react"} <= set(found)
    assert len(found) == len(set(found))
    for name in ("offline/rules", "agent/simple", "vllm/fake-large", "agent/simple@offline/rules"):
        one = await client.models.retrieve(name)
        assert (one.id, one.object) == (name, "model")


@pytest.mark.parametrize("name", ["nobody/nothing", "agent/nobody", "agent/simple@nobody/nothing"])
async def test_a_model_that_is_not_there_is_not_found(client: AsyncOpenAI, name: str) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await client.models.retrieve(name)
    assert caught.value.code in ("model_not_found", "agent_not_found")


async def test_everything_listed_can_be_asked(served: House, client: AsyncOpenAI, provider: FakeProvider) -> None:
    listed = [one.id async for one in client.models.list()]
    names = [name for name in listed if name.startswith("agent/") or name.endswith(("/fake-large", "/rules"))]
    answers = await asyncio.gather(*(post(served, {"model": name, "messages": says("hi")}) for name in names))
    failed = {name: answer.text for name, answer in zip(names, answers, strict=True) if answer.status_code != 200}
    assert failed == {}
