"""What an agent remembers of an answer that was not heard to its end."""

from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages

from config.settings import Settings
from graphs.checkpointing import Checkpoints

pytestmark = pytest.mark.anyio


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    turns: int


async def answer(state: State) -> dict[str, Any]:
    turns = state.get("turns", 0) + 1
    return {"turns": turns, "messages": [AIMessage("One two three.", id=f"m{turns}")]}


async def test_a_cut_message_is_remembered_cut_and_the_conversation_goes_on(settings: Settings) -> None:
    checkpoints = Checkpoints(settings)
    builder = StateGraph(State)
    builder.add_node("answer", answer)
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    graph = builder.compile(checkpointer=await checkpoints.saver())
    config: RunnableConfig = {"configurable": {"thread_id": "s"}}
    await graph.ainvoke({"messages": [HumanMessage("a")]}, config)
    await checkpoints.cut("s", "m1", "One")
    await checkpoints.cut("s", "nobody", "")
    await checkpoints.cut("another", "m1", "")
    state = await graph.aget_state(config)
    assert [message.content for message in state.values["messages"]] == ["a", "One"]
    assert (state.values["turns"], state.next) == (1, ())
    await graph.ainvoke({"messages": [HumanMessage("b")]}, config)
    state = await graph.aget_state(config)
    assert [message.content for message in state.values["messages"]] == ["a", "One", "b", "One two three."]
    assert state.values["turns"] == 2
    await checkpoints.aclose()
