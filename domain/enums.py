"""Closed vocabularies. Open ones (model ids, agent ids) are strings that a registry checks."""

from enum import StrEnum


class Role(StrEnum):
    """Who speaks in a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class RunStatus(StrEnum):
    """Where a run stands. The last five never change again."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    LOST = "lost"


class FinishReason(StrEnum):
    """Why a model stopped, in the words every OpenAI client knows."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class AgentType(StrEnum):
    """The agents that come with the house; others are found by the registry."""

    SIMPLE = "simple"
    REACT = "react"


class ModelName(StrEnum):
    """Well-known models that may be called by their bare name; any `provider/name` works too."""

    GPT_4 = "openai/gpt-4"
    GPT_4O = "openai/gpt-4o"
    GPT_4O_MINI = "openai/gpt-4o-mini"
    GPT_4_1 = "openai/gpt-4.1"
    GPT_4_1_MINI = "openai/gpt-4.1-mini"
    MISTRAL_LARGE = "mistral/mistral-large-latest"
    MISTRAL_MEDIUM = "mistral/mistral-medium-latest"
    MISTRAL_SMALL = "mistral/mistral-small-latest"
    OFFLINE_RULES = "offline/rules"

    @property
    def bare(self) -> str:
        """The name without its provider."""
        return self.value.partition("/")[2]


class SessionKind(StrEnum):
    """What talks in a session, and what a run is of: one agent, a workflow, a team."""

    AGENT = "agent"
    WORKFLOW = "workflow"
    TEAM = "team"
