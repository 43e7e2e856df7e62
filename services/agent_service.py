"""Asking an agent: `stream()` while somebody reads along, `invoke()` for the whole answer.

Both resolve first (agent, model, permission, room) and raise ordinary errors while a status code can still be sent;
after that a failure is an event. invoke is stream, collected.
"""

import logging
from collections import OrderedDict
from typing import Any

from langgraph.graph.state import CompiledStateGraph

from config.settings import AgentSettings
from core.metrics import Metrics
from domain.auth import Principal
from domain.enums import Role
from domain.errors import Forbidden, InternalError, InvalidRequest, RateLimited
from domain.events import AgentEvent, RunFinished
from domain.messages import Message
from domain.models import CompletionRequest, CompletionResult
from services.agent_messages import to_langchain
from services.agent_registry import AgentRegistry, RegisteredAgent
from services.agent_stream import RunStream
from services.llm_service import LLMService

logger = logging.getLogger(__name__)

_BUSY_RETRY = 1.0  # seconds; runs end all the time

Graph = CompiledStateGraph[Any, Any, Any, Any]
_Key = tuple[str, str, float | None, int | None, str | None]  # agent, model, and what a caller may set


class AgentService:
    """Runs agents. Compiled graphs are kept for each (agent, model, parameters), least recently used go first."""

    def __init__(self, llm: LLMService, registry: AgentRegistry, metrics: Metrics, settings: AgentSettings) -> None:
        self._llm = llm
        self._registry = registry
        self._metrics = metrics
        self._settings = settings
        self._graphs: OrderedDict[_Key, Graph] = OrderedDict()
        self._open = 0
        self.compiled = 0

    @property
    def open_runs(self) -> int:
        """Runs that are going on in this process."""
        return self._open

    @property
    def kept(self) -> int:
        """Compiled graphs in the cache; `compiled` counts those ever made."""
        return len(self._graphs)

    async def invoke(self, request: CompletionRequest, caller: Principal) -> CompletionResult:
        """The whole answer.

        Raises:
            RouteurError: as `stream`, and whatever made the run fail.
        """
        stream = await self.stream(request, caller, streams=False)
        events = await stream.collect()
        if stream.error is not None:
            raise stream.error
        last = events[-1].event
        if not isinstance(last, RunFinished):
            raise InternalError
        return CompletionResult(
            run_id=stream.run_id,
            session_id=stream.session_id,
            agent=stream.agent,
            model=last.model,
            response=last.output,
            message=Message(role=Role.ASSISTANT, content=last.output),
            usage=last.usage,
            finish_reason=last.finish_reason,
        )

    async def stream(self, request: CompletionRequest, caller: Principal, *, streams: bool = True) -> RunStream:
        """The run that answers `request`, ready to be iterated; nothing has been asked of a model yet.

        Args:
            streams: False when nobody reads along; the provider is then asked for one whole answer.

        Raises:
            AgentNotFound, ModelNotFound: no such thing here.
            Forbidden: the caller's key does not allow this agent or model.
            Unavailable: the agent is broken, or no model is configured.
            RateLimited: too many runs at once.
        """
        if request.session_id is not None:
            raise InvalidRequest("Sessions are not recorded yet; leave session_id out.", param="session_id")
        agent = self._agent(request.agent or self._registry.default_agent, caller)
        model = (await self._llm.resolve(request.model, agent.spec.model)).id
        if caller.allowed_models and model not in caller.allowed_models:
            raise Forbidden(f"This key may not use the model '{model}'.", code="model_not_allowed", param="model")
        if self._open >= self._settings.max_concurrent_runs:
            raise RateLimited("Too many runs at once; try again in a moment.", retry_after=_BUSY_RETRY)
        graph = self._graph(agent, model, request)
        messages = request.messages or [Message(role=Role.USER, content=request.message or "")]
        return RunStream(
            graph,
            to_langchain(messages),
            {
                "recursion_limit": agent.spec.recursion_limit,
                "metadata": {"user_id": caller.user_id, "request": request.metadata},
            },
            agent=agent.id,
            model=model,
            limit=min(agent.spec.timeout or self._settings.max_execution_time, self._settings.max_execution_time),
            streams=streams,
            on_start=self._started,
            on_end=self._ended,
        )

    def _agent(self, key: str, caller: Principal) -> RegisteredAgent:
        agent = self._registry.get(key)
        if caller.allowed_agents and agent.id not in caller.allowed_agents:
            raise Forbidden(f"This key may not use the agent '{agent.id}'.", code="agent_not_allowed", param="agent")
        return agent

    def _graph(self, agent: RegisteredAgent, model: str, request: CompletionRequest) -> Graph:
        wanted = request.response_format
        key = (agent.id, model, request.temperature, request.max_tokens, wanted.model_dump_json() if wanted else None)
        graph = self._graphs.get(key)
        if graph is None:
            self.compiled += 1
            parameters = agent.spec.parameters.merged(request.parameters)
            graph = self._graphs[key] = self._registry.compile(agent, self._llm.get_llm(model, parameters=parameters))
            if len(self._graphs) > self._settings.graph_cache_size:
                self._graphs.popitem(last=False)
        else:
            self._graphs.move_to_end(key)
        return graph

    def _started(self) -> None:
        self._open += 1
        self._metrics.runs_open.set(self._open)

    def _ended(self, stream: RunStream, terminal: AgentEvent, seconds: float) -> None:
        self._open -= 1
        self._metrics.runs_open.set(self._open)
        self._metrics.run_ended(stream.agent, terminal.kind.removeprefix("run."), seconds)
        for call in stream.calls:
            self._metrics.model_called(call.model, call.usage)
        logger.info(
            "run ended",
            extra={"run_id": stream.run_id, "agent": stream.agent, "model": stream.model, "outcome": terminal.kind,
                   "seconds": round(seconds, 3)},
        )  # fmt: skip
