"""As `hitl`; it asks about each call."""

from graphs.builder import AgentGraph, GraphContext
from tests.fakes.agents.hitl.graph import build


def build_graph(_context: GraphContext) -> AgentGraph:
    """One after the other."""
    return build("per_call")
