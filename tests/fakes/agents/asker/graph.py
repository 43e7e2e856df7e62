"""It asks before it does anything: what, the last word of its user says. `done` is what it has really done."""

import asyncio
from typing import Any

from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Send, interrupt

from graphs.builder import AgentGraph, GraphContext

#: What was done, by what was asked: the tests look at it.
done: list[str] = []
#: What it asks in odd ways.
ODD: dict[str, Any] = {
    "blank": {"question": " \n"},
    "giant": {"question": "May I?", "file": "x" * 4_100_000},
    "surrogate": {"question": "a\ud800b?"},
    "calls": {
        "action_requests": [{"name": "pay", "args": {"to": f"number {one}", "why": "w" * 90}} for one in range(20)],
        "review_configs": [],
    },
}
#: Something slow is done when this is set.
may_end = asyncio.Event()


def build_graph(context: GraphContext) -> AgentGraph:
    """One node says what it is about to do, another one asks and does it, a third sums up."""

    async def think(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await context.llm.ainvoke(state["messages"])]}

    def thinks(state: MessagesState) -> bool:
        return last_word(state) == "thought"

    async def first(state: MessagesState) -> dict[str, Any]:
        return await think(state) if thinks(state) else plan(state)

    async def last(state: MessagesState) -> dict[str, Any]:
        return await think(state) if thinks(state) else end(state)

    graph = StateGraph(MessagesState)
    graph.add_node("plan", first)
    graph.add_node("act", act)
    graph.add_node("end", last)
    graph.add_edge(START, "plan")
    graph.add_conditional_edges("plan", targets, ["act", "end"])
    graph.add_edge("act", "end")
    graph.add_edge("end", END)
    return graph


def last_word(state: MessagesState) -> str:
    """What it is to do."""
    said = [message for message in state["messages"] if message.type == "human"]
    return str(said[-1].text).strip(" .?!").rpartition(" ")[2].lower()


def plan(state: MessagesState) -> dict[str, Any]:
    """Say something first, as agents do."""
    return {"messages": [AIMessage(f"I see: {last_word(state)}.")]}


def targets(state: MessagesState) -> list[Send] | str:
    """Two things are asked for at the same time."""
    word = last_word(state)
    if word == "nothing":
        return "end"
    return [Send("act", {"what": what}) for what in (["mail", "letter"] if word == "both" else [word])]


async def act(state: dict[str, str]) -> dict[str, Any]:
    """Ask, and do it."""
    what = state["what"]
    if what == "when":
        given = interrupt({"question": "When shall I send it?", "answer": "text"})
        return {"messages": [AIMessage(f"I shall send it {given}.")]}
    if what in ODD:
        interrupt(ODD[what])
        done.append(what)
        return {"messages": [AIMessage(f"I did the {what}.")]}
    if what == "tool":
        call = {
            "name": "send_mail",
            "args": {"to": "Bob"},
            "description": "Tool execution\n\nTool: send_mail\nArgs: {}",
        }
        decisions = interrupt({"action_requests": [call], "review_configs": []})["decisions"]
        return {"messages": [AIMessage(f"The decision is {decisions[0]['type']}.")]}
    if what == "twice":
        interrupt({"question": "Are you sure?"})
        what = "mail"
    answer = interrupt({"question": f"May I send the {what}?", "to": "Bob"})
    if not answer["approved"]:
        return {"messages": [AIMessage(f"The {what} stays here: {answer['reason']}")]}
    if what == "slow":
        await may_end.wait()
    if what == "fault":
        raise RuntimeError("it fails")
    done.append(what)
    return {"messages": [AIMessage(f"The {what} is on its way.")]}


def end(_state: MessagesState) -> dict[str, Any]:
    """Sum up."""
    return {"messages": [AIMessage("That is all.")]}
