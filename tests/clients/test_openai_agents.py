"""The examples of OpenAI's own agents SDK, its models being ours."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from agents import (
    Agent,
    ModelSettings,
    MultiProvider,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    RunContextWrapper,
    Runner,
    function_tool,
)
from agents.items import HandoffOutputItem, ToolCallItem, ToolCallOutputItem
from agents.models.interface import Model
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel

from tests.clients.conftest import Door

pytestmark = [pytest.mark.anyio, pytest.mark.e2e]

MODELS = {"chat_completions": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}
UNTRACED = RunConfig(tracing_disabled=True)


@pytest.fixture
async def client(door: Door) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=door.url, api_key=door.key, max_retries=0) as opened:
        yield opened


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, client: AsyncOpenAI) -> Model:
    """The embedded model, over one of the SDK's wires."""
    return MODELS[request.param]("offline/rules", client)


@pytest.fixture(params=MODELS)
def agent_as_model(request: pytest.FixtureRequest, client: AsyncOpenAI) -> Model:
    """An agent of ours in a model's place."""
    return MODELS[request.param]("agent/react", client)


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"The weather in {city} is sunny."


class CalendarEvent(BaseModel):
    name: str
    day: str
    participants: int


async def test_an_agent_answers(model: Model) -> None:
    agent = Agent(name="Assistant", instructions="You only respond in haikus.", model=model)
    result = await Runner.run(agent, "Tell me about recursion in programming.", run_config=UNTRACED)
    assert "You said: Tell me about recursion in programming." in result.final_output
    usage = result.context_wrapper.usage
    assert usage.requests == 1
    assert usage.input_tokens > 0
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


async def test_a_function_is_called_and_its_result_is_told(model: Model) -> None:
    agent = Agent(name="Hello world", instructions="You are a helpful agent.", tools=[get_weather], model=model)
    result = await Runner.run(agent, "What's the weather in Tokyo?", run_config=UNTRACED)
    assert "get_weather answered: The weather in Tokyo is sunny." in result.final_output
    assert [type(item) for item in result.new_items][:2] == [ToolCallItem, ToolCallOutputItem]
    assert result.context_wrapper.usage.requests == 2


async def test_a_function_that_must_be_called_is_called_and_the_agent_comes_to_an_end(model: Model) -> None:
    agent = Agent(
        name="Weather", tools=[get_weather], model=model, model_settings=ModelSettings(tool_choice="required")
    )
    result = await Runner.run(agent, "Hello!", run_config=UNTRACED, max_turns=4)
    assert [item.output for item in result.new_items if isinstance(item, ToolCallOutputItem)] == [
        "The weather in offline is sunny."
    ]


async def test_a_stream_tells_its_words_one_by_one(model: Model) -> None:
    settings = ModelSettings(include_usage=True)  # only OpenAI's own address is asked for it unbidden
    agent = Agent(name="Joker", instructions="You are a helpful assistant.", model=model, model_settings=settings)
    result = Runner.run_streamed(agent, input="Please tell me 5 jokes.", run_config=UNTRACED)
    words = [
        event.data.delta
        async for event in result.stream_events()
        if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent)
    ]
    assert len(words) > 10
    assert "".join(words) == result.final_output
    assert result.context_wrapper.usage.output_tokens > 10


async def test_a_stream_tells_of_calls_and_of_what_came_of_them(model: Model) -> None:
    agent = Agent(name="Weather", tools=[get_weather], model=model)
    result = Runner.run_streamed(agent, input="What is the weather in Buenos Aires?", run_config=UNTRACED)
    told = [event.name async for event in result.stream_events() if event.type == "run_item_stream_event"]
    assert told == ["tool_called", "tool_output", "message_output_created"]
    assert "The weather in Buenos Aires is sunny." in result.final_output


async def test_a_conversation_is_handed_to_the_other_agent(model: Model) -> None:
    taken: list[str] = []

    async def take(_context: RunContextWrapper[Any]) -> None:
        taken.append("spanish")

    spanish = Agent(name="Spanish agent", instructions="You only speak Spanish.", model=model)
    english = Agent(name="English agent", instructions="You only speak English.", model=model)
    triage = Agent(
        name="Triage agent",
        instructions="Handoff to the appropriate agent based on the language of the request.",
        handoffs=[english, spanish],
        model=model,
    )
    result = await Runner.run(triage, "In Spanish, please: hello, how are you?", run_config=UNTRACED)
    assert result.last_agent is spanish
    handed = [item for item in result.new_items if isinstance(item, HandoffOutputItem)]
    assert [(item.source_agent, item.target_agent) for item in handed] == [(triage, spanish)]
    assert result.final_output


async def test_an_output_type_is_filled(model: Model) -> None:
    agent = Agent(name="Calendar extractor", output_type=CalendarEvent, model=model)
    result = await Runner.run(agent, "Event name: Science Fair; day: Friday; 3 will come.", run_config=UNTRACED)
    assert result.final_output == CalendarEvent(name="Science Fair", day="Friday", participants=3)


async def test_what_was_said_before_is_sent_again(model: Model) -> None:
    agent = Agent(name="Assistant", model=model)
    first = await Runner.run(agent, "What city is the Golden Gate Bridge in?", run_config=UNTRACED)
    second = await Runner.run(
        agent, [*first.to_input_list(), {"role": "user", "content": "And the state?"}], run_config=UNTRACED
    )
    assert "You said: And the state?" in second.final_output
    assert second.context_wrapper.usage.input_tokens > first.context_wrapper.usage.input_tokens + 10


async def test_an_agent_of_ours_serves_as_a_model(agent_as_model: Model) -> None:
    agent = Agent(name="Calculator", model=agent_as_model)
    result = Runner.run_streamed(agent, "What is 6 times 7?", run_config=UNTRACED)
    async for _ in result.stream_events():
        pass
    assert "calculator answered: 42" in result.final_output


@pytest.mark.parametrize("use_responses", [False, True], ids=["chat_completions", "responses"])
async def test_models_are_named_as_the_router_names_them(client: AsyncOpenAI, use_responses: bool) -> None:
    """The SDK takes what stands before a slash for a provider of its own, unless it is told otherwise."""
    provider = MultiProvider(openai_client=client, openai_use_responses=use_responses, unknown_prefix_mode="model_id")
    asked = RunConfig(model_provider=provider, tracing_disabled=True)
    for name in ("offline/rules", "agent/simple"):
        result = await Runner.run(Agent(name="Assistant", model=name), "Hello!", run_config=asked)
        assert "You said: Hello!" in result.final_output
