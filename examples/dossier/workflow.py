"""`analyse_dossier`: two steps, an extraction and a checklist. An ordinary agent of kind `workflow`."""

from langchain_core.messages import AIMessage, HumanMessage
from langgraph.graph import END, START, MessagesState, StateGraph

from domain.agents import AgentSpec
from domain.enums import SessionKind
from graphs.builder import AgentGraph, GraphContext

KEY = "analyse_dossier"
SPEC = AgentSpec(name="Analyse dossier", kind=SessionKind.WORKFLOW, description="Reads a dossier, writes its checklist")


class State(MessagesState):
    """`facts`: what the first step found."""

    facts: str


def build_workflow(context: GraphContext) -> AgentGraph:
    """Extract, then list."""

    async def extract(state: State) -> dict[str, object]:
        answer = await context.llm.ainvoke(state["messages"])
        return {"facts": str(answer.text)}

    async def list_what_is_missing(state: State) -> dict[str, object]:
        question = HumanMessage(f"From these facts, list what is still to be done:\n{state['facts']}")
        answer = await context.llm.ainvoke([question])
        return {"messages": [AIMessage(str(answer.text))]}

    graph = StateGraph(State)
    graph.add_node("extract", extract)
    graph.add_node("list_what_is_missing", list_what_is_missing)
    graph.add_edge(START, "extract")
    graph.add_edge("extract", "list_what_is_missing")
    graph.add_edge("list_what_is_missing", END)
    return graph
