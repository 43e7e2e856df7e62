"""The plain conversation: system prompt, messages, one answer."""

from langchain_core.messages import AnyMessage, SystemMessage
from langgraph.graph import END, START, MessagesState, StateGraph

from graphs.builder import AgentGraph, GraphContext


def build_base_graph(context: GraphContext) -> AgentGraph:
    """One node that asks the model. `spec.memory.max_messages` bounds what it is shown of a long conversation."""
    system = [SystemMessage(context.system_prompt)] if context.system_prompt else []
    window = context.spec.memory.max_messages

    async def answer(state: MessagesState) -> dict[str, list[AnyMessage]]:
        messages = state["messages"] if window is None else _last(state["messages"], window)
        return {"messages": [await context.llm.ainvoke([*system, *messages])]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    return graph


def _last(messages: list[AnyMessage], count: int) -> list[AnyMessage]:
    """The last `count` messages, never beginning with a tool's answer whose call was cut off."""
    kept = messages[-count:]
    while kept and kept[0].type == "tool":
        kept = kept[1:]
    return kept or messages[-1:]
