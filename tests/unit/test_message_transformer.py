"""Raw messages of two libraries, real objects of both, as lines and as usage."""

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    messages_to_dict,
)
from pydantic_ai import Agent, BinaryContent, ImageUrl, ModelRetry
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelResponse,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RequestUsage

from domain.enums import Role
from domain.messages import Message, ToolCall
from domain.sessions import MessageFormat, RawMessage
from domain.usage import Usage
from services.message_transformer import MessageTransformer

pytestmark = pytest.mark.anyio

TRANSFORMER = MessageTransformer()
NOW = datetime(2026, 11, 20, tzinfo=UTC)


def raws(form: MessageFormat, datas: list[dict[str, Any]]) -> list[RawMessage]:
    """As they come back from a store: through JSON."""
    return [
        RawMessage(
            session_id="s", message_index=index, run_id="r", format=form,
            message_data=orjson.loads(orjson.dumps(data)), timestamp=NOW,
        )
        for index, data in enumerate(datas)
    ]  # fmt: skip


def told(form: MessageFormat, datas: list[dict[str, Any]]) -> list[tuple[int, str, str, str]]:
    lines = TRANSFORMER.transform_messages(raws(form, datas))
    return [(line.message_index, line.role.value, line.kind, line.content) for line in lines]


def langchain(*messages: Any) -> list[dict[str, Any]]:
    return messages_to_dict(list(messages))


# -- LangChain --


def test_a_langchain_conversation_is_read_line_by_line() -> None:
    call = {"name": "calculator", "args": {"expression": "6*7"}, "id": "c", "type": "tool_call"}
    answer = AIMessage("Let me see.", tool_calls=[call], response_metadata={"model_name": "gpt-4o"})
    datas = langchain(
        SystemMessage("Be brief."), HumanMessage("6*7?"), answer, ToolMessage("42", tool_call_id="c", name="calculator")
    )
    assert told("langchain", datas) == [
        (0, "system", "text", "Be brief."),
        (1, "user", "text", "6*7?"),
        (2, "assistant", "text", "Let me see."),
        (2, "assistant", "tool_call", '{"expression":"6*7"}'),
        (3, "tool", "tool_result", "42"),
    ]
    lines = TRANSFORMER.transform_messages(raws("langchain", datas))
    assert [(line.part, line.name, line.model) for line in lines[2:]] == [
        (0, None, "gpt-4o"), (1, "calculator", "gpt-4o"), (0, "calculator", None),
    ]  # fmt: skip


def test_parts_that_are_no_text_are_named_and_thoughts_are_left_out() -> None:
    content: list[Any] = [
        {"type": "thinking", "thinking": "hmm"},
        {"type": "text", "text": "Look: "},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
        "and ",
        {"type": "input_audio", "input_audio": {"data": "AA"}},
        {"type": "something new"},
    ]
    datas = langchain(HumanMessage(content), AIMessage(content[:2]))
    assert told("langchain", datas) == [
        (0, "user", "text", "Look: [image]and [audio][something new]"), (1, "assistant", "text", "Look: "),
    ]  # fmt: skip


def test_arguments_that_are_text_and_calls_that_are_invalid_are_shown() -> None:
    message = AIMessage(
        "",
        invalid_tool_calls=[{"name": "f", "args": '{"a": 1', "id": "x", "error": "cut", "type": "invalid_tool_call"}],
    )
    data = langchain(message)
    data[0]["data"]["tool_calls"] = [{"name": "g", "args": '{"b": 2}', "id": "y"}]
    assert [(kind, content) for _, _, kind, content in told("langchain", data)] == [
        ("tool_call", '{"b":2}'), ("tool_call", '{"a": 1'),
    ]  # fmt: skip


def test_what_was_cut_is_marked() -> None:
    data = {
        "type": "ai",
        "data": {"content": "half an", "response_metadata": {"partial": True, "routeur_model": "a/b"}},
    }
    (line,) = TRANSFORMER.transform_messages(raws("langchain", [data]))
    assert (line.partial, line.model) == (True, "a/b")


def test_usage_is_read_with_its_details_and_counted_once() -> None:
    usage = {
        "input_tokens": 10, "output_tokens": 5, "total_tokens": 15,
        "input_token_details": {"cache_read": 3, "audio": 1}, "output_token_details": {"reasoning": 2},
    }  # fmt: skip
    first = AIMessage("a", usage_metadata=usage)  # type: ignore[arg-type]
    chunk = AIMessageChunk(content="b", usage_metadata=usage)  # type: ignore[arg-type]
    stored = raws("langchain", langchain(HumanMessage("q"), first, HumanMessage("q"), chunk, AIMessage("silent")))
    one = Usage(input_tokens=10, output_tokens=5, total_tokens=15, cached_tokens=3, audio_tokens=1, reasoning_tokens=2)
    assert TRANSFORMER.aggregate_token_usage(stored) == one + one
    assert TRANSFORMER.aggregate_token_usage(stored + stored) == one + one, "the same message is not counted again"
    assert TRANSFORMER.aggregate_token_usage(stored, since_index=2) == one
    assert TRANSFORMER.aggregate_token_usage(stored, since_index=4) is None
    calls = TRANSFORMER.model_calls("langchain", [raw.message_data for raw in stored])
    assert [usage for _, usage in calls] == [one, one, None]


# -- pydantic-ai --


def answering(*responses: ModelResponse) -> FunctionModel:
    """A model that gives these answers, one after the other."""
    queue = list(responses)

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return queue.pop(0)

    return FunctionModel(answer, model_name="scripted")


def usage_of(inputs: int, outputs: int, **more: int) -> RequestUsage:
    return RequestUsage(input_tokens=inputs, output_tokens=outputs, **more)


async def test_one_request_of_several_parts_becomes_several_lines() -> None:
    agent = Agent(TestModel(custom_output_text="Bonjour"), system_prompt="Be brief.")
    result = await agent.run(["Look: ", ImageUrl(url="https://x.y/z.png"), BinaryContent(b"x", media_type="audio/wav")])
    assert told("pydantic-ai", TRANSFORMER.run_messages(result)) == [
        (0, "system", "text", "Be brief."),
        (0, "user", "text", "Look: [image][audio]"),
        (1, "assistant", "text", "Bonjour"),
    ]


async def test_tool_calls_thoughts_and_retries_are_read() -> None:
    thinking = ModelResponse(
        [ThinkingPart("hmm"), TextPart("Let me see."), ToolCallPart("double", {"x": 1}, "a")], usage=usage_of(10, 5)
    )
    again = ModelResponse([ToolCallPart("double", '{"x": 21}', "b")], usage=usage_of(20, 3, cache_read_tokens=8))
    agent = Agent(answering(thinking, again, ModelResponse([TextPart("It is 42.")], usage=usage_of(30, 4))))

    @agent.tool_plain
    def double(x: int) -> int:
        if x == 1:
            raise ModelRetry("larger, please")
        return 2 * x

    result = await agent.run("double it")
    datas = TRANSFORMER.run_messages(result)
    assert told("pydantic-ai", datas) == [
        (0, "user", "text", "double it"),
        (1, "assistant", "text", "Let me see."),
        (1, "assistant", "tool_call", '{"x":1}'),
        (2, "tool", "tool_result", "larger, please"),
        (3, "assistant", "tool_call", '{"x":21}'),
        (4, "tool", "tool_result", "42"),
        (5, "assistant", "text", "It is 42."),
    ]
    calls = TRANSFORMER.model_calls("pydantic-ai", datas)
    assert [usage and usage.total_tokens for _, usage in calls] == [15, 23, 34]
    assert all(model.endswith("scripted") for model, _ in calls)
    total = TRANSFORMER.aggregate_token_usage(raws("pydantic-ai", datas))
    assert total is not None
    assert (total.input_tokens, total.output_tokens, total.cached_tokens) == (60, 12, 8)


async def test_history_is_neither_stored_nor_counted_again() -> None:
    answers = [ModelResponse([TextPart(str(number))], usage=usage_of(number, 1)) for number in (10, 20)]
    agent = Agent(answering(*answers))
    first = await agent.run("one")
    second = await agent.run("two", message_history=first.all_messages())
    assert len(second.all_messages()) == 4
    datas = TRANSFORMER.run_messages(second)
    assert [content for *_, content in told("pydantic-ai", datas)] == ["two", "20"]
    assert TRANSFORMER.aggregate_token_usage(raws("pydantic-ai", datas)) == Usage(
        input_tokens=20, output_tokens=1, total_tokens=21
    )


def test_an_older_release_is_still_understood() -> None:
    old = {
        "kind": "response", "model_name": "gpt-4o", "parts": [{"part_kind": "text", "content": "hi"}],
        "usage": {"request_tokens": 7, "response_tokens": 2, "total_tokens": 9, "details": {"cached_tokens": 1}},
    }  # fmt: skip
    assert TRANSFORMER.usage_of("pydantic-ai", old) == Usage(
        input_tokens=7, output_tokens=2, total_tokens=9, cached_tokens=1
    )
    assert TRANSFORMER.extract_model_info("pydantic-ai", {**old, "provider_name": "openai"}) == "openai/gpt-4o"


def test_what_a_real_dump_holds_is_what_the_adapter_reads() -> None:
    message: ModelMessage = ModelResponse([TextPart("x")], usage=usage_of(1, 1))
    data = orjson.loads(ModelMessagesTypeAdapter.dump_json([message]))
    assert told("pydantic-ai", data) == [(0, "assistant", "text", "x")]
    assert UserPromptPart("x").part_kind == "user-prompt"


def test_something_else_is_no_run() -> None:
    with pytest.raises(TypeError, match="new_messages_json"):
        TRANSFORMER.run_messages(object())


# -- ours, and rubbish --


def test_our_own_messages_are_read_too() -> None:
    message = Message(role=Role.ASSISTANT, content="x", tool_calls=[ToolCall(id="c", name="f", arguments={"a": 1})])
    answer = Message(role=Role.TOOL, content="1", name="f", tool_call_id="c")
    datas = [message.model_dump(mode="json"), answer.model_dump(mode="json")]
    assert told("message", datas) == [
        (0, "assistant", "text", "x"), (0, "assistant", "tool_call", '{"a":1}'), (1, "tool", "tool_result", "1"),
    ]  # fmt: skip
    first = TRANSFORMER.extract_simple_message(raws("message", datas)[0])
    assert first is not None
    assert first.content == "x"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
WORDS = st.sampled_from(
    ["type", "data", "content", "tool_calls", "kind", "parts", "part_kind", "role", "args", "usage", "usage_metadata",
     "response_metadata", "name", "model_name", "instructions", "invalid_tool_calls", "tool_name"]
)  # fmt: skip
VALUES = st.sampled_from(
    [
        "ai",
        "human",
        "tool",
        "request",
        "response",
        "text",
        "tool-call",
        "tool-return",
        "retry-prompt",
        "user-prompt",
        "user",
    ]
)
SHAPED = st.dictionaries(WORDS, JSON | VALUES | st.lists(st.dictionaries(WORDS, JSON | VALUES, max_size=5)), max_size=8)


@given(form=st.sampled_from(["langchain", "pydantic-ai", "message"]), data=SHAPED, inner=SHAPED)
def test_nothing_that_is_stored_makes_it_raise(
    form: MessageFormat, data: dict[str, Any], inner: dict[str, Any]
) -> None:
    for one in (data, {**data, "data": inner}):
        (raw,) = raws(form, [one])
        for line in TRANSFORMER.transform_messages([raw]):
            assert line.message_index == 0
            line.content.encode()
        TRANSFORMER.aggregate_token_usage([raw])
        TRANSFORMER.model_calls(form, [one])
        TRANSFORMER.extract_model_info(form, one)
