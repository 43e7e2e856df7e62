"""LangChain's agent with its human-in-the-loop middleware: it asks about each mail that its scripted model sends."""

from typing import Any

from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import tool

from graphs.builder import AgentGraph, GraphContext


@tool
def send_mail(to: str) -> str:
    """Send a mail."""
    return f"sent to {to}"


class Scripted(BaseChatModel):
    """It sends one mail, or two, and says what came of it."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **_more: Any) -> Any:
        """It knows them."""
        return self

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **more: Any) -> ChatResult:
        asked = max(place for place, message in enumerate(messages) if message.type == "human")
        results = [str(message.content) for message in messages[asked:] if message.type == "tool"]
        if results:
            return said(AIMessage("Results: " + "; ".join(results)))
        names = ["Bob", "Eve"] if "two" in str(messages[asked].content) else ["Bob"]
        calls = [{"name": "send_mail", "args": {"to": name}, "id": f"call_{asked}_{name}"} for name in names]
        return said(AIMessage("Let me see.", tool_calls=calls))


def said(message: AIMessage) -> ChatResult:
    """What a model gives back."""
    return ChatResult(generations=[ChatGeneration(message=message)])


def build(mode: Any) -> AgentGraph:
    """It asks about all calls at once (`batched`), or about each (`per_call`)."""
    asks = HumanInTheLoopMiddleware({"send_mail": True}, interrupt_mode=mode)
    return create_agent(Scripted(), [send_mail], middleware=[asks])


def build_graph(_context: GraphContext) -> AgentGraph:
    """All at once."""
    return build("batched")
