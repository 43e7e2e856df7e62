"""A builder and a node that wait as code for threads does."""

import time
from typing import Any

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph

from graphs.builder import AgentGraph, GraphContext


def build_graph(_context: GraphContext) -> AgentGraph:
    """Say, a connection that is opened here."""
    time.sleep(1)
    graph = StateGraph(MessagesState)
    graph.add_node("wait", wait)
    graph.add_edge(START, "wait")
    graph.add_edge("wait", END)
    return graph


def wait(_state: MessagesState) -> dict[str, Any]:
    """Say, a library that knows no async."""
    time.sleep(1)
    return {"messages": [AIMessage("waited")]}
