"""What a run tells, whatever its graph does."""

import asyncio
from typing import Any

import anyio
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from domain.enums import FinishReason
from domain.errors import ErrorKind, RateLimited
from domain.events import (
    Envelope,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunStarted,
    RunTimedOut,
    StateUpdated,
    TextDelta,
    ToolFinished,
    ToolStarted,
    UsageReported,
)
from domain.usage import Usage
from services.agent_stream import BUFFER_LIMIT, RunStream
from tests.fakes.chat_models import ForeignModel, ScriptedModel

pytestmark = pytest.mark.anyio


def one_node(node: Any) -> Any:
    graph = StateGraph(MessagesState)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    graph.add_edge("node", END)
    return graph.compile()


def asking(model: Any) -> Any:
    async def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    return one_node(node)


def run_of(graph: Any, *, limit: float = 5, streams: bool = True, steps: int = 25, **kwargs: Any) -> RunStream:
    question = [HumanMessage("hello", id="question")]
    config = {"recursion_limit": steps}
    return RunStream(
        graph, question, config, agent="test", model="fake/scripted", limit=limit, streams=streams, **kwargs
    )


async def told(run: RunStream) -> list[Any]:
    with anyio.fail_after(10):
        envelopes = [envelope async for envelope in run]
    assert [envelope.seq for envelope in envelopes] == list(range(1, len(envelopes) + 1))
    assert isinstance(envelopes[0].event, RunStarted)
    assert [envelope.event.terminal for envelope in envelopes] == [False] * (len(envelopes) - 1) + [True]
    return [envelope.event for envelope in envelopes]


def spoken(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_the_pieces_of_an_answer_come_one_by_one_and_are_closed() -> None:
    events = await told(run_of(asking(ScriptedModel(script=["one two three"]))))
    texts = [event for event in events if isinstance(event, TextDelta)]
    assert [event.text for event in texts] == ["one ", "two ", "three ", ""]
    assert [event.done for event in texts] == [False, False, False, True]
    assert events[-1] == RunFinished(
        output="one two three",
        model="fake/scripted",
        finish_reason=FinishReason.STOP,
        usage=Usage(input_tokens=7, output_tokens=5, total_tokens=12),
    )


async def test_collected_or_streamed_it_is_the_same_story() -> None:
    streamed = await told(run_of(asking(ScriptedModel(script=["one two"]))))
    collected = [e.event for e in await run_of(asking(ScriptedModel(script=["one two"])), streams=False).collect()]
    assert collected == streamed


async def test_a_model_that_the_graph_brought_along_is_streamed_and_counted_too() -> None:
    events = await told(run_of(asking(ForeignModel(words=["un ", "deux ", "trois"]))))
    assert [e.text for e in events if isinstance(e, TextDelta)] == ["un ", "deux ", "trois", ""]
    assert [e.usage.total_tokens for e in events if isinstance(e, UsageReported) and e.usage] == [12]
    assert events[-1].output == "un deux trois"


async def test_an_answer_without_a_model_is_told_as_text() -> None:
    async def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [AIMessage("fixed words")]}

    events = await told(run_of(one_node(node)))
    assert spoken(events) == "fixed words"
    assert events[-1].output == "fixed words"
    assert events[-1].usage is None


async def test_tools_are_opened_and_closed_around_their_work() -> None:
    @tool
    def double(number: int) -> str:
        """Twice the number."""
        return str(number * 2)

    call = AIMessage("", tool_calls=[{"id": "c1", "name": "double", "args": {"number": 21}}])
    model = ScriptedModel(script=[call, "it is 42"])

    async def ask(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_node("tools", ToolNode([double]))
    graph.add_edge(START, "ask")
    graph.add_conditional_edges("ask", tools_condition)
    graph.add_edge("tools", "ask")
    events = await told(run_of(graph.compile()))

    assert ToolStarted(call_id="c1", name="double", arguments={"number": 21}) in events
    assert ToolFinished(call_id="c1", name="double", output="42") in events
    assert events[-1].output == "it is 42"
    assert events[-1].usage == Usage(input_tokens=14, output_tokens=10, total_tokens=24)
    assert isinstance(model.heard[1][-1], ToolMessage)


async def test_old_messages_that_a_node_returns_again_are_not_told_again() -> None:
    async def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": [*state["messages"], AIMessage("new", id="new")]}

    assert spoken(await told(run_of(one_node(node)))) == "new"


async def test_what_a_node_writes_to_the_stream_is_a_state_update() -> None:
    async def node(state: MessagesState) -> dict[str, Any]:
        get_stream_writer()({"step": 1, "odd": {2}})
        return {"messages": [AIMessage("done")]}

    events = await told(run_of(one_node(node)))
    assert [event.data for event in events if isinstance(event, StateUpdated)] == [{"step": 1, "odd": [2]}]


async def test_a_failure_after_some_words_closes_them_and_says_why() -> None:
    async def node(state: MessagesState) -> dict[str, Any]:
        await ScriptedModel(script=["half an"]).ainvoke("x")
        raise RateLimited("Slow down.", retry_after=7)

    run = run_of(one_node(node))
    events = await told(run)
    assert [event.done for event in events if isinstance(event, TextDelta)][-1] is True
    assert events[-1] == RunFailed(
        error="rate_limited", code="rate_limited", message="Slow down.", retry_after=7, usage=events[-1].usage
    )
    assert events[-1].usage is not None, "what was spent before the failure is told"
    assert run.error is not None
    assert run.error.kind is ErrorKind.RATE_LIMITED


async def test_a_bug_in_a_graph_is_a_failed_run_that_tells_no_secret() -> None:
    async def node(state: MessagesState) -> dict[str, Any]:
        raise ZeroDivisionError("/home/secret/path")

    events = await told(run_of(one_node(node)))
    assert isinstance(events[-1], RunFailed)
    assert events[-1].code == "agent_failed"
    assert "secret" not in events[-1].model_dump_json()


async def test_an_agent_that_goes_round_in_circles_is_stopped() -> None:
    async def node(state: MessagesState) -> dict[str, Any]:
        return {"messages": []}

    graph = StateGraph(MessagesState)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    graph.add_edge("node", "node")
    events = await told(run_of(graph.compile(), steps=4))
    assert events[-1].code == "recursion_limit"


async def test_a_run_over_its_limit_is_timed_out_not_failed() -> None:
    model = ScriptedModel(script=["some words"], hold=asyncio.Event())
    events = await told(run_of(asking(model), limit=0.05))
    assert isinstance(events[-1], RunTimedOut)
    assert spoken(events) == "some words "


async def test_a_reader_who_leaves_cancels_the_run() -> None:
    ended: list[Any] = []
    model = ScriptedModel(script=["some words"], hold=asyncio.Event())
    run = run_of(asking(model), on_end=lambda _run, terminal, _seconds: ended.append(terminal))
    batches = run.batches()
    with anyio.fail_after(5):
        await anext(batches)
        await model.spoke.wait()
        await batches.aclose()
    assert [type(terminal) for terminal in ended] == [RunCancelled]


async def test_silence_is_broken_by_empty_batches() -> None:
    hold = asyncio.Event()
    run = run_of(asking(ScriptedModel(script=["word"], hold=hold)))
    silences = 0
    with anyio.fail_after(5):
        async for batch in run.batches(heartbeat=0.01):
            if not batch:
                silences += 1
                if silences == 3:
                    hold.set()
    assert silences >= 3


async def test_a_slow_reader_pauses_the_source_and_loses_nothing() -> None:
    words = BUFFER_LIMIT * 4
    run = run_of(asking(ScriptedModel(script=[" ".join(["w"] * words)])))
    heard, most = 0, 0
    with anyio.fail_after(20):
        async for batch in run.batches():
            most = max(most, len(batch))
            heard += sum(isinstance(e.event, TextDelta) and not e.event.done for e in batch)
            for _ in range(BUFFER_LIMIT * 2):
                await asyncio.sleep(0)  # far slower than the source
    assert heard == words
    assert most <= BUFFER_LIMIT + 2


async def test_every_envelope_names_its_run_and_is_in_utc() -> None:
    run = run_of(asking(ScriptedModel(script=["x"])))
    envelopes: list[Envelope] = [envelope async for envelope in run]
    assert {envelope.run_id for envelope in envelopes} == {run.run_id}
    assert all(str(envelope.at.tzinfo) == "UTC" for envelope in envelopes)


async def test_two_models_at_once_are_both_paused_and_both_go_on() -> None:
    words = " ".join(["w"] * BUFFER_LIMIT)

    async def left(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await ScriptedModel(script=[words], named="left").ainvoke("x")]}

    async def right(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await ScriptedModel(script=[words], named="right").ainvoke("x")]}

    graph = StateGraph(MessagesState)
    graph.add_node("left", left)
    graph.add_node("right", right)
    for node in ("left", "right"):
        graph.add_edge(START, node)
        graph.add_edge(node, END)
    heard = {"msg_left_1": 0, "msg_right_1": 0}
    with anyio.fail_after(20):
        async for batch in run_of(graph.compile()).batches():
            for envelope in batch:
                if isinstance(envelope.event, TextDelta) and not envelope.event.done:
                    heard[envelope.event.message_id] += 1
            for _ in range(BUFFER_LIMIT):
                await asyncio.sleep(0)
    assert heard == {"msg_left_1": BUFFER_LIMIT, "msg_right_1": BUFFER_LIMIT}


async def test_a_graph_that_raises_a_cancellation_by_itself_has_failed() -> None:
    async def node(state: MessagesState) -> dict[str, Any]:
        raise asyncio.CancelledError

    events = await told(run_of(one_node(node)))
    assert events[-1].code == "agent_failed"
    collected = await run_of(one_node(node), streams=False).collect()
    assert isinstance(collected[-1].event, RunFailed)


async def test_words_that_come_after_the_end_are_nobodys() -> None:
    run = run_of(asking(ScriptedModel(script=["x"])), streams=False)
    events = await run.collect()
    run.text("late", "word")
    run.reasoning("late", "thought")
    run.call_finished("fake/late", None, None)
    assert run._pending == []
    assert isinstance(events[-1].event, RunFinished)
