"""The embedded model: deterministic, labelled, and complete enough to show everything around it."""

import time

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel

from domain.agents import ModelParameters
from domain.errors import InvalidRequest, ModelNotFound
from graphs.tools.calculator import calculator
from graphs.tools.clock import clock
from services.llm_providers.base import ProviderConfig
from services.llm_providers.offline import OfflineChat, Provider, count_tokens

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


@pytest.mark.parametrize("choice", [{"function": "x"}, {"function": {"name": [1]}}, {"function": None}, {}, 7, ["any"]])
async def test_a_choice_of_tool_that_makes_no_sense_is_no_choice(choice: object) -> None:
    answer = await model().bind(tools=[convert_to_openai_tool(clock)], tool_choice=choice).ainvoke("hello")
    assert not answer.tool_calls


async def test_a_tool_that_must_be_called_is_called_again_after_those_that_were_not() -> None:
    bound = model().bind_tools([calculator, clock], tool_choice="any")
    conversation: list[BaseMessage] = [HumanMessage("hello")]
    called = []
    for number in range(3):
        answer = await bound.ainvoke(conversation)
        called.append(answer.tool_calls[0]["name"])
        conversation += [answer, ToolMessage(str(number), tool_call_id=answer.tool_calls[0]["id"])]
    assert called == ["calculator", "clock", "calculator"]
    told = await model().ainvoke(conversation)
    assert "calculator answered: 2" in told.text, "the tool's name is known from its call"


@pytest.mark.parametrize("piece", ["1 ", "call clock with {", "(", "1+", "clock(", "'", "name: "])
async def test_a_question_without_end_is_soon_answered(piece: str) -> None:
    begun = time.process_time()
    await model().bind_tools([calculator, clock]).ainvoke(piece * (900_000 // len(piece)))
    assert time.process_time() - begun < 3, "twenty times what it needs"


async def test_a_model_that_is_not_there_is_not_found() -> None:
    provider = Provider(ProviderConfig("offline", "offline", "", None, "embedded", ""))
    with pytest.raises(ModelNotFound, match="offline/nothing"):
        provider.chat_model("nothing", ModelParameters())
    with pytest.raises(ModelNotFound, match="offline/nothing"):
        provider.completions_body("nothing", {"messages": []}, streamed=False)


async def test_a_schema_that_cannot_be_read_is_refused_by_the_name_of_its_parameter() -> None:
    odd = {"type": "object", "properties": {"a": {"type": []}}, "required": ["a"]}
    with pytest.raises(InvalidRequest) as caught:
        await model().ainvoke("x", response_format={"type": "json_schema", "json_schema": {"schema": odd}})
    assert (caught.value.code, caught.value.param) == ("invalid_schema", "response_format")
    function = {"name": "f", "parameters": odd}
    with pytest.raises(InvalidRequest) as caught:
        await model().ainvoke("x", tools=[{"type": "function", "function": function}], tool_choice="required")
    assert (caught.value.code, caught.value.param) == ("invalid_schema", "tools")
