"""Asking an agent: `stream()` while somebody reads along, `invoke()` for the whole answer.

Both resolve first (agent, model, permission, room) and raise ordinary errors while a status code can still be sent;
after that a failure is an event. invoke is stream, collected.
"""

import asyncio
import time
from collections import OrderedDict, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, TypeAlias

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage, SystemMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import RunControl

from config.settings import AgentSettings
from domain.agents import ModelParameters
from domain.auth import Principal
from domain.background import EventBatch, HandOver, Pause, RunParameters
from domain.enums import Role, RunStatus, SessionKind
from domain.errors import Conflict, Forbidden, InternalError, Unavailable
from domain.events import (
    AgentEvent,
    Envelope,
    RunCancelled,
    RunFinished,
)
from domain.messages import Message
from domain.models import CompletionRequest, CompletionResult
from domain.ports import RecordStore
from domain.runs import Run, RunBegun
from domain.sessions import RawMessage, Session
from graphs.builder import NoChatModel
from graphs.checkpointing import FIRST_INDEX, RUN_ID, Checkpoints, remembers_more
from services.agent_memory import all_texts, past_of, recall
from services.agent_messages import from_records, ids_of, new_message_id, question_of, to_langchain, to_record
from services.agent_registry import AgentRegistry, RegisteredAgent
from services.agent_stream import Paused, RunStream
from services.llm_service import LLMService
from services.open_runs import OpenRuns
from services.run_recorder import Asked, Book, RunRecorder
from services.session_service import require_session

_BUILD_LIMIT = 30.0  # seconds that an agent's builder may take

Graph = CompiledStateGraph[Any, Any, Any, Any]
Saver: TypeAlias = BaseCheckpointSaver[Any]
#: What is kept of a run's state while it runs, so that it can go on: nothing (its messages are in the record), one
#: checkpoint in memory when it stops, or a checkpoint of every step that survives this process.
Kept = Literal["nothing", "held", "durable"]
#: Agent and its version, model, what a caller may set (temperature, max_tokens, top_p, stop, seed, schema), `Kept`.
_Key = tuple[str, int, str, float | None, int | None, float | None, tuple[str, ...], int | None, str | None, Kept]
_HISTORY_PAGE = 1_000


@dataclass(frozen=True, slots=True)
class _Compiled:
    """A graph, and whether it remembers by checkpoints (else the record is its memory)."""

    graph: Graph
    checkpointed: bool


class TakesOver(Protocol):
    """Makes an attached run that waits for a human one that waits in the background."""

    async def take_over(self, one: HandOver, batch: EventBatch) -> bool:
        """False: its end was asked for meanwhile. Raises Unavailable: it cannot be written."""
        ...


class ModelWish(Protocol):
    """How a caller wants the model to be asked."""

    @property
    def parameters(self) -> ModelParameters: ...


@dataclass(frozen=True, slots=True)
class Resolved:
    """Who is to answer: an agent and a model, in a session that exists (or a new one)."""

    agent: RegisteredAgent
    model: str
    session: Session | None

    @property
    def kind(self) -> SessionKind:
        """What the run is counted as."""
        return self.session.kind if self.session else self.agent.spec.kind


class AgentService:
    """Runs agents. Compiled graphs are kept for each (agent, model, parameters), least recently used go first."""

    def __init__(
        self,
        llm: LLMService,
        registry: AgentRegistry,
        runs: OpenRuns,
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
        self._settings = settings
        self._graphs: OrderedDict[_Key, _Compiled] = OrderedDict()
        self._runs = runs
        self._building: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by agent
        self.compiled = 0

    @property
    def open_runs(self) -> int:
        """Runs that are going on in this process."""
        return self._runs.count

    @property
    def kept(self) -> int:
        """Compiled graphs in the cache; `compiled` counts those ever made."""
        return len(self._graphs)

    async def aclose(self, within: float = 2.0) -> None:
        """Wait until the runs that are being stopped are written down; `within` that many seconds."""
        await self._runs.wait_for_silence(within)

    async def invoke(self, request: CompletionRequest, caller: Principal) -> CompletionResult:
        """The whole answer.

        Raises:
            RouteurError: as `stream`, and whatever made the run fail.
        """
        stream = await self.stream(request, caller, streams=False)
        events = await stream.collect()
        return self.result_of(stream, events[-1].event)

    @staticmethod
    def result_of(stream: RunStream, last: AgentEvent) -> CompletionResult:
        """What came of a run that has been read to its end; `last` is its last event.

        Raises:
            RouteurError: whatever made the run fail.
        """
        if stream.error is not None:
            raise stream.error
        if isinstance(last, RunCancelled):
            raise Conflict("The run was cancelled.", code="run_cancelled")
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

    async def stream(
        self,
        request: CompletionRequest,
        caller: Principal,
        *,
        streams: bool = True,
        door: dict[str, Any] | None = None,
        over_to: TakesOver | None = None,
    ) -> RunStream:
        """The run that answers `request`, ready to be iterated: written down, and nothing asked of a model yet.

        Args:
            streams: False when nobody reads along; the provider is then asked for one whole answer.
            door: what its door wants to know of it later (`RunStart.request`).
            over_to: where it goes on when the agent asks a human; without it such a run fails.

        Raises:
            NotFound: the caller has no such session.
            AgentNotFound, ModelNotFound: no such thing here.
            Forbidden: the caller's key does not allow this agent or model.
            Conflict: another run of the session is in progress.
            Unavailable: the agent is broken, no model is configured, or the run cannot be written down.
            RateLimited: too many runs at once.
        """
        resolved = await self.resolve(request.agent, request.model, request.session_id, caller)
        agent, model, session = resolved.agent, resolved.model, resolved.session
        self._runs.check_room()
        compiled = await self._graph(agent, model, request, "nothing" if over_to is None else "held")
        asked = to_langchain(request.messages or [Message(role=Role.USER, content=request.message or "")])
        book = await self._begin(request, caller, resolved, asked, door)
        try:
            earlier = [] if session is None else await self._earlier(agent, book.begun, compiled.checkpointed, asked)
        except BaseException as error:
            await book.abandon(error)
            raise
        config: RunnableConfig = {
            "recursion_limit": agent.spec.recursion_limit,
            "metadata": {"user_id": caller.user_id, "session_id": book.session_id, "request": request.metadata},
        }
        saves = compiled.checkpointed or over_to is not None
        if saves:
            book.checkpointed = compiled.checkpointed
            config["configurable"] = {"thread_id": book.session_id if compiled.checkpointed else book.run_id}
            config["metadata"] |= {FIRST_INDEX: book.begun.first_index, RUN_ID: book.run_id}
        limit = self.limit_of(agent)
        if over_to is not None:
            book.keeper = self._keeper(over_to, book, agent, request, limit, len(asked), caller.user_id)
        run = RunStream(
            compiled.graph,
            [*earlier, *asked],
            config,
            agent=agent.id,
            model=model,
            limit=limit,
            streams=streams,
            run_id=book.run_id,
            session_id=book.session_id,
            book=book,
            durability="exit" if saves else None,
            waits=over_to is not None,
            on_start=self._runs.started,
            on_end=self._ended,
        )
        self._recorder.follow(run)
        return run

    async def resolve(
        self, agent_id: str | None, model: str | None, session_id: str | None, caller: Principal
    ) -> Resolved:
        """Who is to answer this caller. Raises as `stream`."""
        session = await require_session(self._store, session_id, caller) if session_id is not None else None
        key = agent_id or (session.agent if session else self._registry.default_agent)
        await self._registry.settle(key)
        agent = self._agent(key, caller)
        chosen = (await self._llm.resolve(model, agent.spec.model)).id
        if caller.allowed_models and chosen not in caller.allowed_models:
            raise Forbidden(f"This key may not use the model '{chosen}'.", code="model_not_allowed", param="model")
        return Resolved(agent, chosen, session)

    def limit_of(self, agent: RegisteredAgent, asked: float | None = None) -> float:
        """Seconds that a run of that agent may take: the least of what was asked, the agent's own and the house's."""
        most = self._settings.max_execution_time
        return min(most, agent.spec.timeout or most, asked or most)

    async def go_on(self, run: Run, book: Book, told: list[Envelope], answers: Mapping[str, Any]) -> RunStream:
        """A background run that a worker has taken, ready to be iterated: from its beginning, or its checkpoint.

        Args:
            told: its events so far.
            answers: of humans, by the id of the approval.

        Raises:
            RouteurError: its agent or its model is not here (any more).
        """
        await self._registry.settle(run.agent)
        agent = self._registry.get(run.agent)
        model, session_id = run.model or "", run.session_id or ""
        wish = RunParameters.model_validate(run.request or {})
        compiled = await self._graph(agent, model, wish, "durable")
        book.checkpointed = compiled.checkpointed
        thread = session_id if compiled.checkpointed else run.id
        config: RunnableConfig = {
            "recursion_limit": agent.spec.recursion_limit,
            "configurable": {"thread_id": thread},
            "metadata": {
                "user_id": run.owner_id,
                "session_id": session_id,
                "request": run.metadata,
                FIRST_INDEX: run.first_index or 0,
                RUN_ID: run.id,
            },
        }
        mark = await self._checkpoints.latest(thread, run.id) if run.attempt > 1 else None
        past = past_of(run, told) if run.attempt > 1 else None
        given: Any = None
        conversation: list[BaseMessage] = []
        if mark is None or past is None:
            later = await self.stored(session_id, book.begun.first_index - 1)
            asked = from_records([raw for raw in later if raw.run_id == run.id][: wish.asked])
            obeyed = [SystemMessage(wish.instructions, id=new_message_id())] if wish.instructions else []
            conversation = [*obeyed, *await self._earlier(agent, book.begun, compiled.checkpointed, asked), *asked]
            given = {**(wish.state or {}), "messages": conversation}
            if past is not None:
                past.cut, past.dropped = all_texts(told), list(past.laws.open_tools)
        else:
            stored = await self.stored(session_id, -1)
            own = ids_of(raw for raw in stored if raw.run_id == run.id)
            snapshot = await compiled.graph.aget_state(config)
            given = recall(past, told, snapshot, ids_of(stored), own, answers)
            await book.went_on_from(mark)
        return RunStream(
            compiled.graph,
            conversation,
            config,
            agent=agent.id,
            model=model,
            limit=max(0.001, (run.time_limit or self.limit_of(agent)) - run.spent),
            streams=True,
            run_id=run.id,
            session_id=session_id,
            book=book,
            durability=agent.spec.background.durability,
            given=given,
            past=past,
            control=RunControl(),
            waits=True,
            on_start=self._runs.started,
            on_end=self._ended,
        )

    def _keeper(
        self,
        over_to: TakesOver,
        book: Book,
        agent: RegisteredAgent,
        request: CompletionRequest,
        limit: float,
        asked: int,
        owner_id: str,
    ) -> Callable[[RunStream, Paused], Awaitable[bool]]:
        """What an attached run does that comes to wait for a human: it becomes a background run."""
        begun = time.monotonic()

        async def keep(run: RunStream, paused: Paused) -> bool:
            now, spent = datetime.now(UTC), time.monotonic() - begun
            wish = RunParameters(
                temperature=request.temperature,
                max_tokens=request.max_tokens,
                response_format=request.response_format,
                asked=asked,
            )
            one = HandOver(
                pause=Pause(book.run_id, 1, RunStatus.WAITING, now, spent, approvals=list(paused.approvals)),
                session_id=book.session_id,
                owner_id=owner_id,
                messages=[to_record(message, now) for message in run.brought.values()],
                request=wish.model_dump(mode="json", exclude_none=True),
                time_limit=limit,
                may_resume=agent.spec.background.resume,
                first_index=book.begun.first_index,
                synced=book.begun.synced,
            )
            taken = False
            try:
                if not book.checkpointed:
                    await self._checkpoints.keep(book.run_id)
                taken = await over_to.take_over(one, book.batch_of(run, 1))
            finally:
                if taken:
                    self._recorder.let_go(book.run_id)
                elif not book.checkpointed:
                    await self._checkpoints.forget(book.run_id)
            return taken

        return keep

    async def stored(self, session_id: str, after: int, before: int | None = None) -> list[RawMessage]:
        """A session's messages between two indexes, both left out; without `before`, to the end."""
        stored: list[RawMessage] = []
        async with self._store.reading() as work:
            while before is None or after + 1 < before:
                limit = _HISTORY_PAGE if before is None else min(_HISTORY_PAGE, before - 1 - after)
                page = await work.raw_messages.find_by_session_id(session_id, after=after, limit=limit)
                stored += page
                if len(page) < limit:
                    break
                after = page[-1].message_index
        return stored

    async def _begin(
        self,
        request: CompletionRequest,
        caller: Principal,
        resolved: Resolved,
        asked: list[BaseMessage],
        door: dict[str, Any] | None,
    ) -> Book:
        now = datetime.now(UTC)
        session = resolved.session
        return await self._recorder.begin(
            Asked(
                caller=caller,
                kind=resolved.kind,
                agent=resolved.agent.id,
                model=resolved.model,
                session_id=session.id if session else None,
                messages=[to_record(message, now) for message in asked],
                text=question_of(asked),
                metadata=request.metadata,
                request=None if door is None else {**door, "asked": len(asked)},
            )
        )

    async def _earlier(
        self, agent: RegisteredAgent, begun: RunBegun, checkpointed: bool, asked: Sequence[BaseMessage]
    ) -> list[BaseMessage]:
        """What was said before in this session, as far as the agent is to know it and its checkpoint does not."""
        if agent.spec.memory.kind == "none":
            return []
        after = begun.synced - 1 if checkpointed else -1
        if not checkpointed and agent.spec.memory.max_messages is not None:
            after = max(after, begun.first_index - 1 - agent.spec.memory.max_messages)
        answers = [message.tool_call_id for message in asked if isinstance(message, ToolMessage)]
        return from_records(await self.stored(begun.session_id, after, begun.first_index), answers)

    def _agent(self, key: str, caller: Principal) -> RegisteredAgent:
        agent = self._registry.get_partner(key)
        if caller.allowed_agents and agent.id not in caller.allowed_agents:
            raise Forbidden(f"This key may not use the agent '{agent.id}'.", code="agent_not_allowed", param="agent")
        return agent

    async def _graph(self, agent: RegisteredAgent, model: str, wish: ModelWish, kept: Kept) -> _Compiled:
        """The compiled graph."""
        asked = wish.parameters
        schema = asked.response_format.model_dump_json() if asked.response_format else None
        key = (
            *(agent.id, self._registry.version_of(agent), model),
            *(asked.temperature, asked.max_tokens, asked.top_p, asked.stop, asked.seed, schema),
            kept,
        )
        compiled = self._graphs.get(key)
        if compiled is not None:
            self._graphs.move_to_end(key)
            return compiled
        # One at a time of each agent, and whoever has waited finds it made; a slow builder holds up no other agent.
        async with self._building[agent.id]:
            return self._graphs.get(key) or await self._build(key, agent, asked)

    async def _build(self, key: _Key, agent: RegisteredAgent, asked: ModelParameters) -> _Compiled:
        self.compiled += 1
        self._forget_older(key)
        llm: BaseChatModel = NoChatModel()
        if agent.door is None:
            llm = self._llm.get_llm(key[2], parameters=agent.spec.parameters.merged(asked))
        kept = key[-1]
        saver = await self._checkpoints.saver() if kept == "durable" else None
        graph = await self._compile(agent, llm, self._checkpoints.held if kept == "held" else saver)
        keeps = agent.spec.memory.kind == "session" and remembers_more(graph)
        if keeps and kept != "durable":
            graph = await self._compile(agent, llm, await self._checkpoints.saver())
        compiled = self._graphs[key] = _Compiled(graph, keeps)
        if len(self._graphs) > self._settings.graph_cache_size:
            self._graphs.popitem(last=False)
        return compiled

    def _forget_older(self, key: _Key) -> None:
        """Graphs with tools that are not there any more are not asked for again."""
        for other in [one for one in self._graphs if one[0] == key[0] and one[1] < key[1]]:
            del self._graphs[other]

    async def _compile(self, agent: RegisteredAgent, llm: BaseChatModel, saver: Saver | None = None) -> Graph:
        """In a thread: a builder is somebody's code and may wait for anything, and nobody else is to wait with it."""
        try:
            async with asyncio.timeout(_BUILD_LIMIT):
                return await asyncio.to_thread(self._registry.compile, agent, llm, saver)
        except TimeoutError as error:
            raise Unavailable(
                f"The agent '{agent.id}' cannot be used: its builder takes longer than {_BUILD_LIMIT:g} s.",
                code="agent_unavailable",
                param="agent",
            ) from error

    def _ended(self, stream: RunStream, terminal: AgentEvent | None, seconds: float) -> None:
        self._checkpoints.let_go(stream.run_id)
        self._runs.ended(stream, terminal, seconds, stream.paused.why if stream.paused else "gone")
