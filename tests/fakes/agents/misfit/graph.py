"""Everything an agent should not do; `do` in the state says what."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from langchain_core.messages import AIMessage
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import interrupt

from graphs.builder import AgentGraph, GraphContext

logger = logging.getLogger("misfit")


class State(MessagesState, total=False):
    """What it is to do, and how much of it."""

    do: str
    amount: float
    said: list[Any]


def build_graph(_context: GraphContext) -> AgentGraph:
    """One node that misbehaves, and comes back for more when it recurses."""
    graph = StateGraph(State)
    graph.add_node("act", act)
    graph.add_edge(START, "act")
    graph.add_conditional_edges("act", lambda state: "act" if state.get("do") == "recurse" else END)
    return graph


async def act(state: State) -> dict[str, Any]:
    """Do it."""
    do, amount = state.get("do"), state.get("amount", 1)
    if do is None:  # without a state, the words say it: "ask 2"
        word, _, number = str(state["messages"][-1].text).partition(" ")
        do, amount = word, float(number) if number.isdigit() else 1
    if do in _DEEDS:
        found = _DEEDS[do](amount)
        if asyncio.iscoroutine(found):
            found = await found
        return {"messages": [AIMessage(str(found))]}
    if do == "recurse":
        return {"said": [do]}
    return {"messages": [AIMessage("behaved")]}


def block(seconds: float) -> str:
    """Hold up the loop, as a library that was written for threads does."""
    try:
        time.sleep(seconds)
    except Exception:
        return "would not be stopped"
    return "blocked"


def spin(seconds: float) -> str:
    """Hold up the loop with work."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return "span"


async def flood(count: float) -> str:
    """Tell more than anybody wants to know."""
    tell = get_stream_writer()
    for number in range(int(count)):
        tell({"number": number})
        if number % 1_000 == 0:
            await asyncio.sleep(0)
    return "flooded"


def hog(megabytes: float) -> str:
    """Eat memory."""
    kept = [bytearray(1_000_000) for _ in range(int(megabytes))]
    return f"ate {len(kept)}"


async def hang(seconds: float) -> str:
    """Say nothing for a long time."""
    await asyncio.sleep(seconds)
    return "hung"


async def hang_in_a_thread(seconds: float) -> str:
    """A tool that nobody can stop."""
    await asyncio.to_thread(time.sleep, seconds)
    return "hung"


def fail(_amount: float) -> str:
    """Fail for good."""
    raise RuntimeError("it fails")


def log(amount: float) -> str:
    """Write log lines."""
    for number in range(int(amount)):
        logger.warning("line %d", number)
    return "logged"


def ask(count: float) -> str:
    """Ask a human, one question after the other."""
    answers = [interrupt({"question": number}) for number in range(int(count))]
    return " ".join(map(repr, answers))


def leave(_amount: float) -> str:
    """Kill the process."""
    import os

    os._exit(9)


_DEEDS: dict[str, Callable[[float], Any]] = {
    deed.__name__: deed for deed in (block, spin, flood, hog, hang, hang_in_a_thread, fail, log, ask, leave)
}
