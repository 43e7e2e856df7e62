"""What an agent's builder is given, and what it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.outputs import ChatResult
from langchain_core.tools import BaseTool
from langgraph.graph.state import CompiledStateGraph, StateGraph

from domain.agents import AgentSpec

_NO_PROMPTS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class GraphContext:
    """Everything a builder may need.

    Attributes:
        llm: the chat model that was chosen for this call, its parameters set.
        spec: the agent's config.yaml.
        tools: the tools that config.yaml names, in its order.
        prompts: the files of `prompts/`, by name without `.md`.
    """

    llm: BaseChatModel
    spec: AgentSpec
    tools: tuple[BaseTool, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=lambda: _NO_PROMPTS)

    @property
    def system_prompt(self) -> str:
        """`prompts/system.md`, or nothing."""
        return self.prompts.get("system", "").strip()


class NoChatModel(BaseChatModel):
    """In the place of the model, for agents of the house that ask none."""

    @property
    def _llm_type(self) -> str:
        return "none"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise NotImplementedError("this agent has no chat model")


#: A graph over a state that has `messages`. Leave it uncompiled where you can: the house compiles it with its memory.
AgentGraph: TypeAlias = StateGraph[Any, Any, Any, Any] | CompiledStateGraph[Any, Any, Any, Any]
GraphBuilder: TypeAlias = Callable[[GraphContext], AgentGraph]
