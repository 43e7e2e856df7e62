"""The graph of a long transcription: decode, then a few parts at a time, then join. Each step is a checkpoint.

No folder, because nobody talks with this agent: `services/transcription_jobs.py` gives it its steps.
Its state is plain JSON, so that any process can go on with it.
"""

import operator
from typing import Annotated, Any, NamedTuple, Protocol, TypedDict

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from uuid_utils import uuid7

from graphs.builder import AgentGraph
from graphs.checkpointing import RUN_ID


class Plan(TypedDict):
    """What is transcribed by whom, and in which parts (in samples)."""

    model: str
    info: dict[str, Any]
    samples: int
    spans: list[list[int]]


class TranscriptionState(TypedDict):
    """`audio`: what was sent, and how it is to be transcribed. `parts`: those that are done, in their order."""

    messages: Annotated[list[Any], add_messages]
    audio: dict[str, Any]
    plan: Plan
    parts: Annotated[list[dict[str, Any]], operator.add]


class Answer(NamedTuple):
    """The text, and what is kept beside it."""

    text: str
    metadata: dict[str, Any]


class Steps(Protocol):
    """What is done in each step."""

    async def decode(self, run_id: str, audio: dict[str, Any]) -> Plan:
        """Decode the upload and cut it up."""
        ...

    async def listen(self, run_id: str, audio: dict[str, Any], plan: Plan, first: int) -> list[dict[str, Any]]:
        """The next parts from `first` on: at least one, not more than are listened to at once."""
        ...

    def join(self, run_id: str, audio: dict[str, Any], plan: Plan, parts: list[dict[str, Any]]) -> Answer:
        """All parts as the answer."""
        ...

    def progress(self, plan: Plan, done: int, fresh: list[dict[str, Any]]) -> dict[str, Any]:
        """What is told after `done` parts, of which `fresh` are new."""
        ...


def build_transcription_graph(steps: Steps) -> AgentGraph:
    """The graph around these steps."""

    async def decode(state: TranscriptionState, config: RunnableConfig) -> dict[str, Any]:
        plan = await steps.decode(_run_id(config), state["audio"])
        get_stream_writer()(steps.progress(plan, 0, []))
        return {"plan": plan}

    async def transcribe(state: TranscriptionState, config: RunnableConfig) -> dict[str, Any]:
        plan, done = state["plan"], len(state.get("parts", ()))
        fresh = await steps.listen(_run_id(config), state["audio"], plan, done)
        get_stream_writer()(steps.progress(plan, done + len(fresh), fresh))
        return {"parts": fresh}

    async def join(state: TranscriptionState, config: RunnableConfig) -> dict[str, Any]:
        answer = steps.join(_run_id(config), state["audio"], state["plan"], state["parts"])
        return {"messages": [AIMessage(answer.text, id=str(uuid7()), response_metadata=answer.metadata)]}

    def more(state: TranscriptionState) -> str:
        return "transcribe" if len(state["parts"]) < len(state["plan"]["spans"]) else "join"

    graph = StateGraph(TranscriptionState)
    graph.add_node("decode", decode)
    graph.add_node("transcribe", transcribe)
    graph.add_node("join", join)
    graph.add_edge(START, "decode")
    graph.add_edge("decode", "transcribe")
    graph.add_conditional_edges("transcribe", more, ["transcribe", "join"])
    graph.add_edge("join", END)
    return graph


def _run_id(config: RunnableConfig) -> str:
    return str(config["metadata"][RUN_ID])
