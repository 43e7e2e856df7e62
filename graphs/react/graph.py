"""An agent that reasons and acts: it calls tools until it can answer."""

from langchain.agents import create_agent

from graphs.builder import AgentGraph, GraphContext


def build_graph(context: GraphContext) -> AgentGraph:
    """LangChain's tool-calling loop over the tools that config.yaml names."""
    return create_agent(context.llm, list(context.tools), system_prompt=context.system_prompt or None)
