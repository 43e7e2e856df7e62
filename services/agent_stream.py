"""LangGraph parts in, `Envelope`s out: the only reader (and writer) of LangChain messages.

A run is heard on two ears. Our own chat models speak to it directly (`ModelListener`), token by token. Everything else,
tools, whole messages, models that a graph brought along, is read from LangGraph's stream parts.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, cast

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, RemoveMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphDrained, GraphRecursionError
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import RunControl
from langgraph.types import Durability
from uuid_utils import uuid7

from domain.background import AskedApproval
from domain.enums import FinishReason
from domain.errors import Conflict, RouteurError, UpstreamTimeout
from domain.events import (
    AgentEvent,
    ApprovalRequested,
    Envelope,
    EventLaws,
    LogWritten,
    ReasoningDelta,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunId,
    RunResumed,
    RunStarted,
    RunTimedOut,
    RunWaiting,
    StateUpdated,
    TextDelta,
    ToolFinished,
    ToolStarted,
    UsageReported,
)
from domain.usage import Usage
from services.agent_memory import Past
from services.agent_messages import messages_in, new_message_id, plain, to_json, usage_of
from services.model_stream import current_listener
from services.run_story import Story
from services.silence import SilenceBell

logger = logging.getLogger(__name__)

#: What LangGraph tells. `messages` adds the tokens of models that are not ours, for those who read along.
_WHOLE: list[Literal["updates", "custom", "messages"]] = ["updates", "custom"]
_MAX_TOOL_OUTPUT = 64_000  # characters of a tool's answer that an event carries; the agent itself sees all of it
_STOPPED = "the reader left, or the server stopped"
BUFFER_LIMIT = 512  # events a slow reader may be behind before the source is paused; about 100 kB
MAX_EVENTS = 100_000  # of one run; an agent that tells more is stopped, before it fills the record
_MAX_STATE = 256_000  # bytes of JSON that one `state.updated` carries


@dataclass(frozen=True, slots=True)
class Paused:
    """A run that stops before its end: it waits for approvals, or goes back to the queue, or is somebody else's now."""

    why: Literal["waiting", "drain", "retry", "gone"]
    approvals: tuple[AskedApproval, ...] = ()


class RunBook(Protocol):
    """Where a run is written down."""

    def close(self, run: "RunStream", terminal: AgentEvent) -> Awaitable[bool]:
        """Write how it ended. Begun when called, done even if nobody waits; durable when awaited.

        Gives False when it was somebody else's, or had ended before.
        """
        ...

    def instead(self, run: "RunStream", failed: RunFailed) -> Paused | None:
        """What happens instead of this failure, if anything: it is tried again."""
        ...

    def pause(self, run: "RunStream", paused: Paused) -> Awaitable[bool]:
        """Write that it stops for now; False when it may not (it is being cancelled, or somebody else's).

        Where it is to wait and cannot, `run.error` says why.
        """
        ...


class AgentFailed(RouteurError):
    """The agent's own code failed or would not come to an end."""


class AgentBlocked(BaseException):
    """Raised inside code of an agent that holds up everybody (`core.loop_guard`); no `except Exception` stops it."""


class RunStream:
    """One run: iterate it once, and it happens while you do; stop iterating, and it is cancelled.

    Attributes:
        run_id: UUIDv7 text.
        model: what was resolved; after the end, what served.
        error: why it failed, when it did.
        limit: seconds that it may take.
        brought: the new messages of the graph, by id, in the order they came.
        cut: ids of messages that had begun and not ended when the run did.
        story: everything told so far, by this attempt.
        past: what earlier attempts have done.
        paused: it has stopped before its end.
        gone: it turned out to be somebody else's; what it told at the end counts for nothing.
    """

    def __init__(
        self,
        graph: CompiledStateGraph[Any, Any, Any, Any],
        messages: Sequence[BaseMessage],
        config: RunnableConfig,
        *,
        agent: str,
        model: str,
        limit: float,
        streams: bool,
        run_id: str | None = None,
        session_id: str | None = None,
        book: RunBook | None = None,
        durability: Durability | None = None,
        given: Any = None,
        past: Past | None = None,
        control: RunControl | None = None,
        waits: bool = False,
        on_start: Callable[[], None] | None = None,
        on_end: Callable[["RunStream", AgentEvent | None, float], None] | None = None,
    ) -> None:
        self.run_id = RunId(run_id or str(uuid7()))
        self.agent = agent
        self.model = model
        self.session_id = session_id
        self.streams = streams
        self.error: RouteurError | None = None
        self.usage: Usage | None = None
        self.calls: list[UsageReported] = []
        self._graph = graph
        self._messages = list(messages)
        self._config = config
        self.limit = limit
        self.brought: dict[str, BaseMessage] = {}
        self.cut: list[str] = []
        self.story = Story()
        self.past = past
        self.paused: Paused | None = None
        self.gone = False
        self._ending = False
        self._book = book
        self._durability = durability
        self._given = given
        self._control = control
        self._waits = waits
        self._asked: dict[str, AskedApproval] = {}
        self._task: asyncio.Task[Any] | None = None
        self._stop: Callable[[], AgentEvent | Paused] | None = None
        self._blocked = 0
        self._on_start = on_start
        self._on_end = on_end
        self._last: Envelope | None = None
        self._kept: Awaitable[bool] | None = None
        self._laws = past.laws if past else EventLaws()
        self._seq = past.last_seq if past else 0
        self._most = self._seq + MAX_EVENTS
        self._pending: list[Envelope] = []
        self._waiter: asyncio.Future[None] | None = None
        self._room = asyncio.Event()
        self._spoken: set[str] = set()  # ids of messages whose text our models told us
        self._seen: set[str] = {message.id for message in messages if message.id} | (past.seen if past else set())
        self._output = past.output if past else ""
        self._finish = FinishReason.STOP
        for call in past.calls if past else ():
            self._add_up(call.usage)
        for message in past.brought if past else ():
            message.id = message.id or new_message_id()
            self.brought[message.id] = message
            self._seen.add(message.id)

    # -- the ear for our own models (services.model_stream.ModelListener) --

    def text(self, message_id: str, text: str) -> None:
        """A piece of an answer. One that comes after the end (a task that a graph left behind) is nobody's."""
        if self._laws.ended:
            return
        self._spoken.add(message_id)
        self._emit(TextDelta(text=text, message_id=message_id))

    def reasoning(self, message_id: str, text: str) -> None:
        """A piece of a thought."""
        if not self._laws.ended:
            self._emit(ReasoningDelta(text=text, message_id=message_id))

    @property
    def full(self) -> bool:
        """True when the reader is behind. Without a reader (`collect`) nothing is held back."""
        return self.streams and len(self._pending) >= BUFFER_LIMIT

    async def drained(self) -> None:
        """Wait until the reader has taken what is pending."""
        while self.full:
            self._room.clear()
            await self._room.wait()

    def call_finished(self, model: str, usage: Usage | None, finish_reason: str | None) -> None:
        """A model call is over."""
        self.model = model
        if finish_reason is not None:
            self._finish = FinishReason(finish_reason)
        self._report(model, usage)

    def charged(self, model: str, usage: Usage | None, cost_pico: int | None) -> None:
        """A call of a model that does not chat is over; `cost_pico` where its price is not by tokens."""
        self._report(model, usage, cost_pico)

    def draft(self) -> str:
        """What has arrived of the message that is being written."""
        return "".join(map(self.story.text_of, self._laws.open_texts))

    def logged(self, level: str, name: str, message: str) -> None:
        """The agent's own code has logged a line."""
        if self._laws.started and not self._laws.ended:
            self._emit(LogWritten(level=level, logger=name, message=message))

    def blocked(self, seconds: float) -> BaseException:
        """The agent's code has held up the process for that long: what is to be raised inside it."""
        self._blocked += 1
        message = f"The agent was stopped: it held up the whole process for {seconds:g} s."
        self.error = AgentFailed(message, code="agent_blocked")
        return AgentBlocked(message)

    # -- stopping it from outside --

    def cancel(self, reason: str) -> None:
        """End it as cancelled."""
        self._stop_with(lambda: RunCancelled(reason=reason, usage=self.usage))

    def time_out(self, limit: float, message: str) -> None:
        """End it as timed out."""

        def end() -> AgentEvent:
            self.error = UpstreamTimeout(message, code="run_timed_out")
            return RunTimedOut(limit=limit, message=message, usage=self.usage)

        self._stop_with(end)

    def drain(self) -> None:
        """Stop before the next step, and go on elsewhere from there."""
        if self._control is not None:
            self._control.request_drain("shutdown")

    def leave(self, why: Literal["drain", "gone"]) -> None:
        """Stop at once, without an end: another worker goes on, or has gone on already."""
        self._stop_with(lambda: Paused(why))

    def _stop_with(self, outcome: Callable[[], AgentEvent | Paused]) -> None:
        if self._stop is None and not self._ending and self._task is not None and not self._task.done():
            self._stop = outcome
            self._task.cancel()

    # -- reading it --

    async def collect(self) -> list[Envelope]:
        """Run to the end and give back every event at once."""
        await self._drive()
        return self.leftover()

    async def batches(self, heartbeat: float | None = None) -> AsyncGenerator[list[Envelope]]:
        """Run it; yield what has happened since the last time, in order, as soon as something has.

        Args:
            heartbeat: yield an empty list after that many seconds of silence, so that the wire can show it lives.
        """
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._drive(), name=f"run {self.run_id}")
        task.add_done_callback(lambda _: self._wake())
        alarm = SilenceBell(loop, heartbeat, self._wake) if heartbeat else None
        try:
            while True:
                if self._pending:
                    events, self._pending = self._pending, []
                    self._room.set()
                    yield events
                    if alarm:
                        alarm.postpone()
                elif task.done():
                    await task
                    return
                else:
                    self._waiter = loop.create_future()
                    await self._waiter
                    if alarm and alarm.rang():
                        yield []
        finally:
            if alarm:
                alarm.cancel()
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    def leftover(self) -> list[Envelope]:
        """What has happened and was not handed out: after a cancelled `batches`, the end of the story."""
        events, self._pending = self._pending, []
        return events

    async def __aiter__(self) -> AsyncIterator[Envelope]:
        """Event by event."""
        async for events in self.batches():
            for event in events:
                yield event

    # -- running it --

    async def _drive(self) -> None:
        """Run the graph and end with exactly one terminal event (or a pause), whatever happens."""
        begun = time.monotonic()
        self._task = asyncio.current_task()
        if self._on_start is not None:
            self._on_start()
        token = current_listener.set(self)
        try:
            await self._end(await self._outcome())
        except asyncio.CancelledError:
            if self._last is None and self.paused is None:
                self._conclude(RunCancelled(reason=_STOPPED, usage=self.usage))
            raise
        finally:
            current_listener.reset(token)
            self._tell_end(time.monotonic() - begun)

    def _begin(self) -> None:
        past = self.past
        if past is None:
            self._emit(RunStarted(agent=self.agent, model=self.model, session_id=self.session_id))
            return
        if not self._laws.started:
            self._emit(RunStarted(agent=self.agent, model=self.model, session_id=self.session_id))
        for message_id in list(self._laws.open_texts):
            if rest := past.rest.get(message_id):
                self._emit(TextDelta(text=rest, message_id=message_id))
            self._emit(TextDelta(text="", message_id=message_id, done=True))
        for call_id in past.dropped:
            if call_id in self._laws.open_tools:
                name = self._laws.open_tools[call_id]
                self._emit(ToolFinished(call_id=call_id, name=name, output="", ok=False))
        self._emit(RunResumed(reason=past.reason, attempt=past.attempt, cut=past.cut))
        for answer in past.unpaid:
            self._report(str(answer.response_metadata.get("routeur_model", self.model)), usage_of(answer))
        for message in past.untold:
            self._seen.discard(message.id or "")
            self._message(message, root=True)

    async def _outcome(self) -> AgentEvent | Paused:
        """What came of the graph, or what somebody outside has decided."""
        try:
            self._begin()
            return await self._run_graph()
        except asyncio.CancelledError:
            if self._stop is None or self._task is None:
                raise
            self._task.uncancel()
            return self._stop()

    async def _end(self, outcome: AgentEvent | Paused) -> None:
        self._ending = True  # from here on nobody stops it
        if isinstance(outcome, RunFailed) and self._book is not None:
            outcome = self._book.instead(self, outcome) or outcome
        if isinstance(outcome, Paused):
            if await self._pause(outcome):
                return
            failed = self.error if outcome.why == "waiting" else None
            cancelled = RunCancelled(reason="Cancelled by its owner.", usage=self.usage)
            outcome = cancelled if failed is None else self._failed(failed)
        self._conclude(outcome)
        await self._written()

    async def _pause(self, paused: Paused) -> bool:
        """Stop for now; False when it may not, because its end was asked for meanwhile."""
        for asked in paused.approvals:
            self._emit(ApprovalRequested(approval_id=asked.id, payload=asked.payload))
        if paused.why == "waiting":
            self._emit(RunWaiting(approval_ids=[asked.id for asked in paused.approvals]))
        if paused.why == "gone":
            self.gone = True
        elif self._book is None or not await self._book.pause(self, paused):
            return False
        self.paused = paused
        return True

    async def _run_graph(self) -> AgentEvent | Paused:
        try:
            async with asyncio.timeout(self.limit) as clock:
                parts = self._graph.astream(
                    {"messages": self._messages} if self.past is None and self._given is None else self._given,
                    self._config,
                    stream_mode=[*_WHOLE, "messages"] if self.streams else _WHOLE,
                    subgraphs=True,
                    version="v2",
                    durability=self._durability,
                    control=self._control,
                )
                async with aclosing(cast(AsyncGenerator[Mapping[str, Any]], parts)):
                    async for part in parts:
                        self._read(part)
                        if self.full:
                            await self.drained()
        except TimeoutError as error:
            if not clock.expired():
                return self._failed(error)
            message = f"The run took longer than its limit of {self.limit:g} s."
            self.error = UpstreamTimeout(message, code="run_timed_out")
            return RunTimedOut(limit=self.limit, message=message, usage=self.usage)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return self._failed(error)  # nobody cancelled us: the graph raised it by itself
        except GraphDrained:
            return Paused("drain")
        except AgentBlocked as error:
            return self._failed(self.error or error)
        except Exception as error:
            return self._failed(error)
        if self._asked:
            return self._interrupted()
        return RunFinished(output=self._output, model=self.model, finish_reason=self._finish, usage=self.usage)

    def _interrupted(self) -> AgentEvent | Paused:
        """The graph asks a human: somebody must be able to answer later."""
        if self._waits:
            return Paused("waiting", tuple(self._asked.values()))
        message = f"The agent '{self.agent}' asks for an approval: start it with POST /api/agents/{self.agent}/run."
        return self._failed(Conflict(message, code="approval_needed"))

    def _failed(self, error: BaseException) -> RunFailed:
        if self._blocked and self.error is not None:
            error = self.error  # whatever its code made of being stopped
        if isinstance(error, MemoryError):
            error = AgentFailed("The agent was stopped: it wanted more memory than there is.", code="out_of_memory")
        if not isinstance(error, RouteurError):
            if isinstance(error, GraphRecursionError):
                steps = self._config.get("recursion_limit")
                error = AgentFailed(
                    f"The agent was stopped after {steps} steps without an answer.", code="recursion_limit"
                )
            else:
                logger.exception("run failed", extra={"run_id": self.run_id, "agent": self.agent}, exc_info=error)
                error = AgentFailed(f"The agent '{self.agent}' failed.", code="agent_failed")
        self.error = error
        return RunFailed(
            error=error.kind.value,
            code=error.code,
            message=error.message,
            retry_after=error.retry_after,
            usage=self.usage,
        )

    def _conclude(self, terminal: AgentEvent) -> None:
        """Close what is open, fix the end, and have it written down. Nobody is told of the end yet."""
        self.cut = list(self._laws.open_texts)
        for closing in self._laws.closings():
            self._emit(closing)
        self._last = self._envelope(terminal)
        if self._book is not None:
            self._kept = self._book.close(self, terminal)

    async def _written(self) -> None:
        """Wait until the end is durable: who is told that a run has finished may rely on it."""
        if self._kept is None or self._last is None:
            return
        try:
            # Who stops waiting does not stop the writing.
            self.gone = not await asyncio.shield(self._kept)
        except RouteurError as error:
            self._last = replace(self._last, event=self._failed(error))

    def _tell_end(self, seconds: float) -> None:
        if self.paused is not None:
            self._wake()
            if self._on_end is not None:
                self._on_end(self, None, seconds)
            return
        if self._last is None:  # pragma: no cover - a fault in the writing itself
            self._last = self._envelope(self._failed(RuntimeError("no end")))
        self._pending.append(self._last)
        self._wake()
        if self._on_end is not None:
            self._on_end(self, self._last.event, seconds)

    # -- the ear for LangGraph --

    def _read(self, part: Mapping[str, Any]) -> None:
        kind, data = part["type"], part["data"]
        if kind == "updates":
            for name, update in data.items():
                if name == "__interrupt__":
                    self._asked |= {one.id: AskedApproval(one.id, plain(one.value)) for one in update}
                    continue
                for message in messages_in(update):
                    self._message(message, root=not part["ns"])
        elif kind == "messages":
            chunk = data[0]
            if isinstance(chunk, AIMessageChunk) and chunk.id not in self._spoken and (text := str(chunk.text)):
                chunk.id = chunk.id or new_message_id()
                self._emit(TextDelta(text=text, message_id=chunk.id))
        elif kind == "custom":
            self._emit(StateUpdated(node=None, data=_bounded(plain(data))))

    def _message(self, message: BaseMessage, *, root: bool) -> None:
        """A message that a node wrote: close its text, open the tools it asks for, close those it answers."""
        if message.id is None:
            message.id = new_message_id()
        if root and message.id not in self._seen and not isinstance(message, RemoveMessage):
            self.brought[message.id] = message
        if isinstance(message, AIMessage):
            text = str(message.text)
            if root:
                self._output = text
            if message.id in self._seen:
                return
            self._seen.add(message.id)
            self._close_text(message.id, text)
            if message.usage_metadata and "routeur_model" not in message.response_metadata:  # ours were told already
                self._report(str(message.response_metadata.get("model_name", self.model)), usage_of(message))
            for call in message.tool_calls:
                call_id = call["id"] or new_message_id()
                self._emit(ToolStarted(call_id=call_id, name=call["name"], arguments=plain(call["args"])))
        elif isinstance(message, ToolMessage) and message.id not in self._seen:
            self._seen.add(message.id)
            if message.tool_call_id in self._laws.open_tools:
                self._emit(
                    ToolFinished(
                        call_id=message.tool_call_id,
                        name=message.name or self._laws.open_tools[message.tool_call_id],
                        output=str(message.text)[:_MAX_TOOL_OUTPUT],
                        ok=message.status != "error",
                    )
                )

    def _close_text(self, message_id: str, text: str) -> None:
        if message_id in self._laws.open_texts:
            self._emit(TextDelta(text="", message_id=message_id, done=True))
        elif text and message_id not in self._spoken:
            self._emit(TextDelta(text=text, message_id=message_id))
            self._emit(TextDelta(text="", message_id=message_id, done=True))

    # -- keeping the book --

    def _report(self, model: str, usage: Usage | None, cost_pico: int | None = None) -> None:
        reported = UsageReported(model=model, usage=usage, cost_pico=cost_pico)
        self.calls.append(reported)
        self._add_up(usage)
        if not self._laws.ended:
            self._emit(reported)

    def _add_up(self, usage: Usage | None) -> None:
        if usage is not None:
            self.usage = usage if self.usage is None else self.usage + usage

    def _emit(self, event: AgentEvent) -> None:
        self._pending.append(self._envelope(event))
        if self._waiter is not None:
            self._wake()

    def _envelope(self, event: AgentEvent) -> Envelope:
        if self._seq >= self._most and self._last is None and not _closes(event):
            self.error = AgentFailed(f"The agent was stopped after {MAX_EVENTS:,} events.", code="too_many_events")
            raise self.error
        self._laws.admit(event)
        self._seq += 1
        envelope = Envelope(self.run_id, self._seq, datetime.now(UTC), event)
        self.story.add(envelope)
        return envelope

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


def _closes(event: AgentEvent) -> bool:
    """What must be told of a run that has told too much."""
    return (
        event.terminal
        or isinstance(event, ToolFinished | UsageReported)
        or (isinstance(event, TextDelta) and event.done)
    )


def _bounded(data: Any) -> Any:
    """What a graph tells of its state; too much of it is only named."""
    size = len(to_json(data))
    return data if size <= _MAX_STATE else {"truncated": True, "bytes": size}
