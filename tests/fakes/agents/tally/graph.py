"""Its state is more than its messages: it counts its turns. It asks when it is told to."""

from typing import Any

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import interrupt

from graphs.builder import AgentGraph, GraphContext


class State(MessagesState):
    """How many turns there were."""

    count: int


def build_graph(_context: GraphContext) -> AgentGraph:
    """It counts, and then asks or not."""
    graph = StateGraph(State)
    graph.add_node("count", count)
    graph.add_node("act", act)
    graph.add_edge(START, "count")
    graph.add_edge("count", "act")
    graph.add_edge("act", END)
    return graph


def count(state: State) -> dict[str, Any]:
    """One more."""
    turn = state.get("count", 0) + 1
    return {"count": turn, "messages": [AIMessage(f"Turn {turn}.")]}


def act(state: State) -> dict[str, Any]:
    """Ask, when the user says so."""
    said = [message for message in state["messages"] if message.type == "human"]
    if "ask" not in str(said[-1].text):
        return {}
    answer = interrupt({"question": "May I?"})
    return {"messages": [AIMessage("Done." if answer["approved"] else "Left.")]}
