"""The embedded model: deterministic, labelled, and complete enough to show everything around it."""

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from pydantic import BaseModel

from domain.agents import ModelParameters
from graphs.tools.calculator import calculator
from graphs.tools.clock import clock
from services.llm_providers.base import ProviderConfig
from services.llm_providers.offline import OfflineChat, Provider, count_tokens, smallest_instance

pytestmark = pytest.mark.anyio


def model(**parameters: object) -> OfflineChat:
    provider = Provider(ProviderConfig("offline", "offline", "", None, "embedded", ""))
    made = provider.chat_model("rules", ModelParameters.model_validate(parameters))
    assert isinstance(made, OfflineChat)
    return made


async def test_the_same_question_gets_the_same_labelled_answer() -> None:
    first, second = await model().ainvoke("hello"), await model().ainvoke("hello")
    assert first.text == second.text
    assert "offline demonstration model" in first.text
    assert first.response_metadata["routeur_model"] == "offline/rules"


async def test_streamed_pieces_are_the_whole_answer_and_usage_is_counted() -> None:
    chunks = [chunk async for chunk in model().astream("hello there")]
    whole = await model().ainvoke("hello there")
    assert "".join(str(chunk.text) for chunk in chunks) == whole.text
    assert len(chunks) > 5
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["input_tokens"] == 2
    assert whole.usage_metadata["output_tokens"] == count_tokens(str(whole.text))
    assert chunks[-1].usage_metadata == whole.usage_metadata


@pytest.mark.parametrize(
    ("question", "expression"),
    [
        ("What is 6 times 7?", "6 * 7"),
        ("compute (3+4)*2 please", "(3+4)*2"),
        ("12.5 / 2", "12.5 / 2"),
        ("2 plus 2", "2 + 2"),
        ("2^10 is?", "2^10"),
    ],
)
async def test_arithmetic_is_given_to_the_calculator(question: str, expression: str) -> None:
    answer = await model().bind_tools([clock, calculator]).ainvoke(question)
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("calculator", {"expression": expression})]
    assert answer.response_metadata["finish_reason"] == "tool_calls"


async def test_the_time_is_asked_of_the_clock() -> None:
    answer = await model().bind_tools([calculator, clock]).ainvoke("what day is it today?")
    assert [call["name"] for call in answer.tool_calls] == ["clock"]


async def test_a_call_can_be_asked_for_by_name_and_no_tool_is_called_unasked() -> None:
    bound = model().bind_tools([calculator, clock])
    asked = await bound.ainvoke('call clock with {"timezone": "Europe/Paris"}')
    assert asked.tool_calls[0]["args"] == {"timezone": "Europe/Paris"}
    assert not (await bound.ainvoke("hello")).tool_calls
    assert not (await bound.ainvoke("call hammer with {}")).tool_calls


async def test_a_tools_answer_is_told_and_ends_the_calling() -> None:
    conversation = [
        HumanMessage("6*7?"),
        AIMessage("", tool_calls=[{"id": "1", "name": "calculator", "args": {"expression": "6*7"}}]),
        ToolMessage("42", tool_call_id="1", name="calculator"),
    ]
    answer = await model().bind_tools([calculator]).ainvoke(conversation)
    assert "42" in answer.text
    assert not answer.tool_calls


async def test_max_tokens_cuts_and_stop_ends() -> None:
    short = await model(max_tokens=3).ainvoke("hello")
    assert count_tokens(str(short.text)) <= 3
    assert short.response_metadata["finish_reason"] == "length"
    stopped = await model(stop=["demonstration"]).ainvoke("hello")
    assert stopped.text == "This is the offline"
    assert stopped.response_metadata["finish_reason"] == "stop"


async def test_structured_output_fits_the_class() -> None:
    class Place(BaseModel):
        city: str
        size: int
        tags: list[str]

    found = await model().with_structured_output(Place).ainvoke("where?")
    assert isinstance(found, Place)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "object", "properties": {"a": {"type": "integer", "minimum": 3}}, "required": ["a"]}, {"a": 3}),
        ({"enum": ["x", "y"]}, "x"),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2}, [False, False]),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"const": 7}}}, 7),
        ({"type": "string", "minLength": 10}, "offline..."),
        ({"$ref": "#"}, None),
    ],
)
def test_the_smallest_instance_fits_its_schema(schema: dict[str, object], value: object) -> None:
    assert smallest_instance(schema, schema) == value


@pytest.mark.parametrize("arguments", ['{"a": 1}', "", "[1]", "{broken"])
async def test_calls_that_stand_alone_or_are_no_json_can_be_answered_over_the_wire(arguments: str) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "lookup", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "Look it up."},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "it is blue"},
    ]
    provider = Provider(ProviderConfig("offline", "offline", "", None, "embedded", ""))
    _, answer = await provider.completion({"messages": messages}, "offline/rules")
    assert "it is blue" in answer["choices"][0]["message"]["content"]
