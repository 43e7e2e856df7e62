"""A long step that is not to be done twice."""

import asyncio
from typing import Any

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph

from graphs.builder import AgentGraph, GraphContext


def build_graph(_context: GraphContext) -> AgentGraph:
    """One node that takes its time."""
    graph = StateGraph(MessagesState)
    graph.add_node("work", work)
    graph.add_edge(START, "work")
    graph.add_edge("work", END)
    return graph


async def work(_state: MessagesState) -> dict[str, Any]:
    """Wait."""
    await asyncio.sleep(60)
    return {"messages": [AIMessage("done")]}
