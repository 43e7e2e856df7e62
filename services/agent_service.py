"""Asking an agent: `stream()` while somebody reads along, `invoke()` for the whole answer.

Both resolve first (agent, model, permission, room) and raise ordinary errors while a status code can still be sent;
after that a failure is an event. invoke is stream, collected.
"""

import asyncio
import logging
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.runnables import RunnableConfig
from langgraph.graph.state import CompiledStateGraph

from config.settings import AgentSettings
from core.metrics import Metrics
from domain.auth import Principal
from domain.enums import Role
from domain.errors import Forbidden, InternalError, RateLimited
from domain.events import AgentEvent, RunFinished
from domain.messages import Message
from domain.models import CompletionRequest, CompletionResult
from domain.ports import RecordStore
from domain.sessions import Session
from graphs.checkpointing import FIRST_INDEX, Checkpoints, remembers_more
from services.agent_messages import from_records, to_langchain, to_record
from services.agent_registry import AgentRegistry, RegisteredAgent
from services.agent_stream import RunStream
from services.llm_service import LLMService
from services.run_recorder import Asked, Book, RunRecorder
from services.session_service import require_session

logger = logging.getLogger(__name__)

_BUSY_RETRY = 1.0  # seconds; runs end all the time

Graph = CompiledStateGraph[Any, Any, Any, Any]
_Key = tuple[str, str, float | None, int | None, str | None]  # agent, model, and what a caller may set
_HISTORY_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A graph, and whether it remembers by checkpoints (else the record is its memory)."""

    graph: Graph
    checkpointed: bool


class AgentService:
    """Runs agents. Compiled graphs are kept for each (agent, model, parameters), least recently used go first."""

    def __init__(
        self,
        llm: LLMService,
        registry: AgentRegistry,
        metrics: Metrics,
        settings: AgentSettings,
        *,
        store: RecordStore,
        recorder: RunRecorder,
        checkpoints: Checkpoints,
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._checkpoints = checkpoints
        self._llm = llm
        self._registry = registry
        self._metrics = metrics
        self._settings = settings
        self._graphs: OrderedDict[_Key, _Compiled] = OrderedDict()
        self._open = 0
        self._quiet = asyncio.Event()
        self.compiled = 0

    @property
    def open_runs(self) -> int:
        """Runs that are going on in this process."""
        return self._open

    @property
    def kept(self) -> int:
        """Compiled graphs in the cache; `compiled` counts those ever made."""
        return len(self._graphs)

    async def aclose(self, within: float = 2.0) -> None:
        """Wait until the runs that are being stopped are written down; `within` that many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self._open:
                    await self._quiet.wait()

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
        """The run that answers `request`, ready to be iterated: written down, and nothing asked of a model yet.

        Args:
            streams: False when nobody reads along; the provider is then asked for one whole answer.

        Raises:
            NotFound: the caller has no such session.
            AgentNotFound, ModelNotFound: no such thing here.
            Forbidden: the caller's key does not allow this agent or model.
            Conflict: another run of the session is in progress.
            Unavailable: the agent is broken, no model is configured, or the run cannot be written down.
            RateLimited: too many runs at once.
        """
        session = None
        if request.session_id is not None:
            session = await require_session(self._store, request.session_id, caller)
        agent = self._agent(request.agent or (session.agent if session else self._registry.default_agent), caller)
        model = (await self._llm.resolve(request.model, agent.spec.model)).id
        if caller.allowed_models and model not in caller.allowed_models:
            raise Forbidden(f"This key may not use the model '{model}'.", code="model_not_allowed", param="model")
        if self._open >= self._settings.max_concurrent_runs:
            raise RateLimited("Too many runs at once; try again in a moment.", retry_after=_BUSY_RETRY)
        compiled = await self._graph(agent, model, request)
        asked = to_langchain(request.messages or [Message(role=Role.USER, content=request.message or "")])
        book = await self._begin(request, caller, agent, model, session, asked)
        try:
            earlier = await self._earlier(agent, book, compiled.checkpointed) if session is not None else []
        except BaseException as error:
            await book.abandon(error)
            raise
        config: RunnableConfig = {
            "recursion_limit": agent.spec.recursion_limit,
            "metadata": {"user_id": caller.user_id, "session_id": book.session_id, "request": request.metadata},
        }
        if compiled.checkpointed:
            book.checkpointed = True
            config["configurable"] = {"thread_id": book.session_id}
            config["metadata"][FIRST_INDEX] = book.begun.first_index
        run = RunStream(
            compiled.graph,
            [*earlier, *asked],
            config,
            agent=agent.id,
            model=model,
            limit=min(agent.spec.timeout or self._settings.max_execution_time, self._settings.max_execution_time),
            streams=streams,
            run_id=book.run_id,
            session_id=book.session_id,
            book=book,
            durability="exit" if compiled.checkpointed else None,
            on_start=self._started,
            on_end=self._ended,
        )
        self._recorder.follow(run)
        return run

    async def _begin(
        self,
        request: CompletionRequest,
        caller: Principal,
        agent: RegisteredAgent,
        model: str,
        session: Session | None,
        asked: list[BaseMessage],
    ) -> Book:
        now = datetime.now(UTC)
        question = next((message for message in reversed(asked) if message.type == "human"), asked[-1])
        return await self._recorder.begin(
            Asked(
                caller=caller,
                kind=session.kind if session else agent.spec.kind,
                agent=agent.id,
                model=model,
                session_id=session.id if session else None,
                messages=[to_record(message, now) for message in asked],
                text=str(question.text),
                metadata=request.metadata,
            )
        )

    async def _earlier(self, agent: RegisteredAgent, book: Book, checkpointed: bool) -> list[BaseMessage]:
        """What was said before in this session, as far as the agent is to know it and its checkpoint does not."""
        if agent.spec.memory.kind == "none":
            return []
        after = book.begun.synced - 1 if checkpointed else -1
        if not checkpointed and agent.spec.memory.max_messages is not None:
            after = max(after, book.begun.first_index - 1 - agent.spec.memory.max_messages)
        stored = []
        async with self._store.reading() as work:
            while after + 1 < book.begun.first_index:
                page = await work.raw_messages.find_by_session_id(
                    book.session_id, after=after, limit=min(_HISTORY_PAGE, book.begun.first_index - 1 - after)
                )
                if not page:
                    break
                stored += page
                after = page[-1].message_index
        return from_records(stored)

    def _agent(self, key: str, caller: Principal) -> RegisteredAgent:
        agent = self._registry.get(key)
        if caller.allowed_agents and agent.id not in caller.allowed_agents:
            raise Forbidden(f"This key may not use the agent '{agent.id}'.", code="agent_not_allowed", param="agent")
        return agent

    async def _graph(self, agent: RegisteredAgent, model: str, request: CompletionRequest) -> _Compiled:
        wanted = request.response_format
        key = (agent.id, model, request.temperature, request.max_tokens, wanted.model_dump_json() if wanted else None)
        compiled = self._graphs.get(key)
        if compiled is not None:
            self._graphs.move_to_end(key)
            return compiled
        self.compiled += 1
        parameters = agent.spec.parameters.merged(request.parameters)
        llm = self._llm.get_llm(model, parameters=parameters)
        graph = self._registry.compile(agent, llm)
        keeps = agent.spec.memory.kind == "session" and remembers_more(graph)
        if keeps:
            graph = self._registry.compile(agent, llm, await self._checkpoints.saver())
        compiled = self._graphs[key] = _Compiled(graph, keeps)
        if len(self._graphs) > self._settings.graph_cache_size:
            self._graphs.popitem(last=False)
        return compiled

    def _started(self) -> None:
        self._open += 1
        self._quiet.clear()
        self._metrics.runs_open.set(self._open)

    def _ended(self, stream: RunStream, terminal: AgentEvent, seconds: float) -> None:
        self._open -= 1
        if not self._open:
            self._quiet.set()
        self._metrics.runs_open.set(self._open)
        self._metrics.run_ended(stream.agent, terminal.kind.removeprefix("run."), seconds)
        for call in stream.calls:
            self._metrics.model_called(call.model, call.usage)
        logger.info(
            "run ended",
            extra={"run_id": stream.run_id, "agent": stream.agent, "model": stream.model, "outcome": terminal.kind,
                   "seconds": round(seconds, 3)},
        )  # fmt: skip
