"""openai-agents in its default Responses mode, with nothing but our address: tools, handoffs, turns that go on."""

from collections.abc import AsyncIterator

import pytest
from agents import (
    Agent,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

from config.settings import Settings
from tests.fakes.house import House, open_house

pytestmark = pytest.mark.anyio

set_tracing_disabled(disabled=True)
CONFIG = RunConfig(tracing_disabled=True)


@pytest.fixture(scope="module")
async def house(shared_settings: Settings) -> AsyncIterator[House]:
    async with open_house(shared_settings) as opened:
        yield opened


@pytest.fixture
async def model(house: House) -> AsyncIterator[OpenAIResponsesModel]:
    async with AsyncOpenAI(base_url=f"{house.url}/v1", api_key=house.tokens["access_token"], max_retries=0) as client:
        yield OpenAIResponsesModel("offline/rules", client)


@function_tool
def calculator(expression: str) -> str:
    """Work out an arithmetic expression.

    Args:
        expression: such as 6 * 7.
    """
    called.append(expression)
    return str(42 if expression.replace(" ", "") == "6*7" else 0)


called: list[str] = []


async def test_a_tool_is_called_and_its_result_is_said(model: OpenAIResponsesModel) -> None:
    called.clear()
    agent = Agent("Counter", instructions="Count.", tools=[calculator], model=model)
    result = await Runner.run(agent, "What is 6 times 7?", run_config=CONFIG)
    assert called
    assert "42" in str(result.final_output)
    assert result.context_wrapper.usage.requests == 2
    assert result.context_wrapper.usage.total_tokens > 0


async def test_a_stream_calls_the_tool_too(model: OpenAIResponsesModel) -> None:
    called.clear()
    agent = Agent("Counter", instructions="Count.", tools=[calculator], model=model)
    result = Runner.run_streamed(agent, "What is 6 times 7?", run_config=CONFIG)
    kinds = [event.name async for event in result.stream_events() if event.type == "run_item_stream_event"]
    assert called
    assert kinds.count("tool_called") == kinds.count("tool_output") == 1
    assert "42" in str(result.final_output)


@pytest.mark.parametrize("model_id", ["offline/rules", "agent/simple@offline/rules"])
async def test_turns_go_on_by_the_id_of_the_last_response(model: OpenAIResponsesModel, model_id: str) -> None:
    model.model = model_id
    agent = Agent("Talker", instructions="Talk.", model=model)
    first = await Runner.run(agent, "My name is Ada.", run_config=CONFIG)
    second = await Runner.run(agent, "Hello again.", previous_response_id=first.last_response_id, run_config=CONFIG)
    assert second.final_output
    assert second.last_response_id != first.last_response_id


async def test_tools_work_when_each_turn_goes_on_by_itself(model: OpenAIResponsesModel) -> None:
    called.clear()
    agent = Agent("Counter", instructions="Count.", tools=[calculator], model=model)
    result = await Runner.run(agent, "What is 6 times 7?", auto_previous_response_id=True, run_config=CONFIG)
    assert called
    assert "42" in str(result.final_output)
    again = await Runner.run(
        agent, "What is 6 times 7?", previous_response_id=result.last_response_id, run_config=CONFIG
    )
    assert "42" in str(again.final_output)


async def test_a_conversation_of_ours_is_one_of_theirs(house: House, model: OpenAIResponsesModel) -> None:
    made = (await house.client.post("/api/sessions", json={"agent": "direct"})).json()["session_id"]
    agent = Agent("Talker", instructions="Talk.", model=model)
    for words in ("One", "Two"):
        await Runner.run(agent, words, conversation_id=made, run_config=CONFIG)
    lines = (await house.client.get(f"/api/sessions/{made}/messages")).json()["messages"]
    assert [line["content"] for line in lines if line["role"] == "user"] == ["One", "Two"]


async def test_a_handoff_is_a_function_like_any_other(model: OpenAIResponsesModel) -> None:
    counter = Agent("Counter", instructions="Count.", tools=[calculator], model=model, handoff_description="Counts.")
    desk = Agent("Desk", instructions="Hand over.", handoffs=[counter], model=model)
    result = await Runner.run(desk, "Please call transfer_to_counter with {}", run_config=CONFIG, max_turns=4)
    assert result.final_output
    assert result.last_agent is counter
