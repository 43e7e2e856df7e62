"""A run that goes on tells what a crash left untold, once, and pays for what it had called."""

from datetime import UTC, datetime
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from domain.events import (
    AgentEvent,
    Envelope,
    EventLaws,
    RunId,
    RunStarted,
    TextDelta,
    ToolFinished,
    ToolStarted,
    UsageReported,
)
from services.agent_memory import Past, recall
from services.agent_stream import RunStream

pytestmark = pytest.mark.anyio

NOW = datetime(2026, 11, 21, tzinfo=UTC)
STARTED = RunStarted(agent="a", model="m", session_id="s")
USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
QUESTION = HumanMessage("?", id="q")


def answer(identity: str, text: str, **more: Any) -> AIMessage:
    metadata = {"routeur_model": "m"}
    return AIMessage(text, id=identity, usage_metadata=USAGE, response_metadata=metadata, **more)  # type: ignore[arg-type]


def graph(messages: list[BaseMessage], ask: bool = False) -> Any:
    """One step that has been done and is in the checkpoint, and one that is to be done."""

    def second(_state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage(str(interrupt({"sure": True})) if ask else "the end", id="last")]}

    made = StateGraph(MessagesState)
    made.add_node("first", lambda _state: {"messages": messages})
    made.add_node("second", second)
    made.add_edge(START, "first")
    made.add_edge("first", "second")
    made.add_edge("second", END)
    return made


async def gone_on(told: list[AgentEvent], messages: list[BaseMessage]) -> list[AgentEvent]:
    """What is told by the second attempt: the first one died after `first`, when so much had been told."""
    saver, config = InMemorySaver(), {"configurable": {"thread_id": "t"}}
    first = graph(messages).compile(checkpointer=saver, interrupt_before=["second"])
    await first.ainvoke({"messages": [QUESTION]}, config)
    compiled = graph(messages).compile(checkpointer=saver)
    story = [Envelope(RunId("r"), seq, NOW, event) for seq, event in enumerate([STARTED, *told], 1)]
    laws = EventLaws()
    for envelope in story:
        laws.admit(envelope.event)
    calls = [event for event in told if isinstance(event, UsageReported)]
    past = Past("crash", 2, len(story), laws, calls=calls)
    given = recall(past, story, await compiled.aget_state(config), {"q"}, {"q"}, {})
    assert given is None, "the checkpoint knows what comes next"
    stream = RunStream(
        compiled, [], config, agent="a", model="m", limit=5, streams=False, run_id="r", given=given, past=past,
        waits=True,
    )  # fmt: skip
    events = await stream.collect()
    assert [one.seq for one in events] == list(range(len(story) + 1, len(story) + len(events) + 1))
    return [one.event for one in events]


def kinds(events: list[AgentEvent]) -> list[str]:
    return [event.kind for event in events]


END_OF_IT = ["text.delta", "text.delta", "run.finished"]


async def test_a_message_that_nobody_was_told_is_told_and_paid() -> None:
    events = await gone_on([], [answer("m1", "hello")])
    assert kinds(events) == ["run.resumed", "usage.reported", "text.delta", "text.delta", *END_OF_IT]
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["hello", "", "the end", ""]
    assert events[-1].usage.total_tokens == 5  # type: ignore[union-attr]


async def test_of_a_message_that_was_told_in_part_the_rest_is_told() -> None:
    events = await gone_on([TextDelta(text="hel", message_id="m1")], [answer("m1", "hello")])
    assert kinds(events) == ["text.delta", "text.delta", "run.resumed", "usage.reported", *END_OF_IT]
    assert isinstance(events[0], TextDelta)
    assert events[0].text == "lo"


async def test_a_message_that_was_told_is_not_told_again() -> None:
    told: list[AgentEvent] = [
        TextDelta(text="hello", message_id="m1"),
        UsageReported(model="m", usage=None),
        TextDelta(text="", message_id="m1", done=True),
    ]
    assert kinds(await gone_on(told, [answer("m1", "hello")])) == ["run.resumed", *END_OF_IT]


async def test_a_message_that_is_in_no_checkpoint_is_cut() -> None:
    events = await gone_on([TextDelta(text="I was going to", message_id="m0")], [answer("m1", "hello")])
    assert kinds(events)[:2] == ["text.delta", "run.resumed"]
    assert events[1].cut == ["m0"]  # type: ignore[union-attr]


async def test_calls_of_tools_are_told_once_whatever_was_told_before() -> None:
    call = {"id": "c1", "name": "calculator", "args": {"expression": "6*7"}}
    messages = [answer("m1", "", tool_calls=[call]), ToolMessage("42", tool_call_id="c1", name="calculator", id="t1")]
    nothing_told = await gone_on([], messages)
    assert kinds(nothing_told) == ["run.resumed", "usage.reported", "tool.started", "tool.finished", *END_OF_IT]
    usage = UsageReported(model="m", usage=None)
    started = ToolStarted(call_id="c1", name="calculator", arguments={})
    begun = await gone_on([usage, started], messages)
    assert kinds(begun) == ["run.resumed", "tool.finished", *END_OF_IT]
    assert (begun[1].output, begun[1].ok) == ("42", True)  # type: ignore[union-attr] # its answer, not a failure
    finished = ToolFinished(call_id="c1", name="calculator", output="42", ok=True)
    assert kinds(await gone_on([usage, started, finished], messages)) == ["run.resumed", *END_OF_IT]


async def test_answers_are_handed_to_the_questions_they_answer() -> None:
    saver, config = InMemorySaver(), {"configurable": {"thread_id": "t"}}
    compiled = graph([answer("m1", "hello")], ask=True).compile(checkpointer=saver)
    await compiled.ainvoke({"messages": [QUESTION]}, config)
    snapshot = await compiled.aget_state(config)
    past = Past("approval", 2, 0, EventLaws())
    asked = snapshot.interrupts[0].id
    given = recall(past, [], snapshot, {"q"}, {"q"}, {asked: "yes", "another": "no"})
    assert isinstance(given, Command)
    assert given.resume == {asked: "yes"}
