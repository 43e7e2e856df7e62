"""Fails as often as it is told, counted in a file, then answers."""

from pathlib import Path
from typing import Any

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph

from graphs.builder import AgentGraph, GraphContext


class State(MessagesState, total=False):
    """`fails`: how many times; `file`: where they are counted; `prepared`: what a step that has succeeded keeps."""

    fails: int
    file: str
    prepared: int


def build_graph(_context: GraphContext) -> AgentGraph:
    """A step that succeeds, then one that may not."""
    graph = StateGraph(State)
    graph.add_node("prepare", prepare)
    graph.add_node("attempt", attempt)
    graph.add_edge(START, "prepare")
    graph.add_edge("prepare", "attempt")
    graph.add_edge("attempt", END)
    return graph


async def prepare(state: State) -> dict[str, Any]:
    """Done once, whatever becomes of the next step."""
    return {"prepared": state.get("prepared", 0) + 1}


def attempt(state: State) -> dict[str, Any]:
    """Fail, or answer."""
    file = Path(state["file"])
    tried = int(file.read_text()) if file.exists() else 0
    file.write_text(str(tried + 1))
    if tried < state["fails"]:
        raise RuntimeError("not yet")
    return {"messages": [AIMessage(f"tried {tried + 1} times, prepared {state['prepared']} times")]}
