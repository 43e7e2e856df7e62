"""Agents as tools that another model calls: which there are for a caller, and calling one. Knows no protocol."""

import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from domain.agents import MODEL_ID_PATTERN, SESSION_ID_PATTERN
from domain.auth import Principal
from domain.errors import AgentNotFound
from domain.events import Envelope, TextDelta, ToolStarted
from domain.messages import MAX_MESSAGE_CHARS
from domain.models import AgentInfo, CompletionRequest, CompletionResult
from domain.usage import Usage
from services.agent_registry import AgentRegistry
from services.agent_service import AgentService

_TOLD_EVERY = 0.5  # seconds between two looks at the text that is being written
_TOLD_CHARS = 500  # of its end; the whole text comes with the answer

#: Told how far a run is: a number that grows, and words.
Listener = Callable[[int, str], None]


class AgentCall(BaseModel):
    """What an agent takes as a tool."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    message: Annotated[
        str, Field(min_length=1, max_length=MAX_MESSAGE_CHARS, description="what to ask or tell the agent")
    ]
    session_id: Annotated[
        str | None,
        Field(pattern=SESSION_ID_PATTERN, description="goes on with the conversation that an earlier call began"),
    ] = None
    model: Annotated[
        str | None, Field(max_length=200, pattern=MODEL_ID_PATTERN, description="provider/name; default: the agent's")
    ] = None


class AgentAnswer(BaseModel):
    """What an agent gives back as a tool. `session_id` continues the conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    response: str
    session_id: str | None
    run_id: str
    model: str
    usage: Usage | None

    @classmethod
    def of(cls, result: CompletionResult) -> "AgentAnswer":
        """The part of `result` that a tool's caller needs."""
        return cls(
            response=result.response,
            session_id=result.session_id,
            run_id=result.run_id,
            model=result.model,
            usage=result.usage,
        )


class AgentTools:
    """The agents of this house as tools."""

    def __init__(self, registry: AgentRegistry, agents: AgentService) -> None:
        self._registry = registry
        self._agents = agents

    def offered(self, caller: Principal) -> list[AgentInfo]:
        """The agents that this caller may call and that can be called now."""
        return [agent for agent in self._registry.list_agents() if agent.available and _may(caller, agent.id)]

    async def call(
        self, agent: str, call: AgentCall, caller: Principal, listener: Listener | None = None
    ) -> AgentAnswer:
        """The agent's answer: a run like that of POST /completion. Who stops waiting cancels it.

        Raises:
            AgentNotFound: there is no such agent for this caller.
            ValidationError: the message holds nothing that can be said.
            RouteurError: as `AgentService.invoke`.
        """
        if not _may(caller, agent) or all(one.id != agent for one in self._registry.list_agents()):
            raise AgentNotFound(agent, [one.id for one in self.offered(caller)])
        request = CompletionRequest(agent=agent, **call.model_dump())
        if listener is None:
            return AgentAnswer.of(await self._agents.invoke(request, caller))
        run = await self._agents.stream(request, caller)
        progress = _Progress(listener)
        last: Envelope | None = None
        async with aclosing(run.batches()) as batches:
            async for envelopes in batches:
                progress.note(envelopes)
                last = envelopes[-1]
        if last is None:  # pragma: no cover - every run has its end
            raise RuntimeError("a run without events")
        return AgentAnswer.of(self._agents.result_of(run, last.event))


class _Progress:
    """Tells tool calls as they begin, and now and then the end of the text so far."""

    def __init__(self, listener: Listener) -> None:
        self._tell = listener
        self._message_id = ""
        self._text = ""
        self._next = 0.0

    def note(self, envelopes: Sequence[Envelope]) -> None:
        """Something has happened."""
        written = 0
        for envelope in envelopes:
            event = envelope.event
            if isinstance(event, ToolStarted):
                self._tell(envelope.seq, f"calls {event.name}")
            elif isinstance(event, TextDelta) and event.text:
                if event.message_id != self._message_id:
                    self._message_id, self._text = event.message_id, ""
                self._text = (self._text + event.text)[-_TOLD_CHARS:]
                written = envelope.seq
        if written and time.monotonic() >= self._next:
            self._next = time.monotonic() + _TOLD_EVERY
            self._tell(max(written, envelopes[-1].seq), self._text)


def _may(caller: Principal, agent: str) -> bool:
    return not caller.allowed_agents or agent in caller.allowed_agents
