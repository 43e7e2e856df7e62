"""Steps with side effects: each writes a line before and after it works, so that a test can count what was done."""

import asyncio
import os
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph

from graphs.builder import AgentGraph, GraphContext

LEDGER = "TEST_LEDGER"


class State(MessagesState, total=False):
    """`steps` of `seconds` each."""

    step: int
    steps: int
    seconds: float


def build_graph(_context: GraphContext) -> AgentGraph:
    """One node that comes back to itself; every visit is a step with a checkpoint."""
    graph = StateGraph(State)
    graph.add_node("work", work)
    graph.add_edge(START, "work")
    graph.add_conditional_edges("work", lambda state: "work" if state["step"] < state.get("steps", 4) else END)
    return graph


async def work(state: State, config: RunnableConfig) -> dict[str, Any]:
    """Do a step: write that it begins, take some time, tell about it, write that it is done."""
    number = state.get("step", 0) + 1
    name = config["metadata"]["request"]["name"]
    note(f"{name} {number} begun")
    await asyncio.sleep(state.get("seconds", 0.1))
    get_stream_writer()({"step": number})
    note(f"{name} {number} done")
    done: dict[str, Any] = {"step": number}
    if number >= state.get("steps", 4):
        done["messages"] = [AIMessage(f"{name} did {number} steps")]
    return done


def note(line: str) -> None:
    """One write that is whole or not there, whoever else writes and whatever kills us."""
    path = os.environ.get(LEDGER)
    if path is None:
        return
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, f"{line} {os.getpid()}\n".encode())
    finally:
        os.close(file)
