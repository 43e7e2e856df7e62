"""Asking a model itself: the caller's own chat completions body goes to a provider, its answer comes back as it is.

No graph, no LangChain: the bytes are read only as far as recording, counting and telling failures apart need it. All
else is as with an agent: a direct call is a run of the agent `direct` in a session, limited, priced and written down.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import repeat
from typing import Any

import orjson

from config.routing_settings import POOL
from core.http import Patience
from domain.auth import Principal
from domain.enums import FinishReason
from domain.errors import Conflict, InternalError, InvalidRequest, RouteurError, UpstreamFailure, UpstreamTimeout
from domain.events import AgentEvent, RunCancelled, RunFailed, RunFinished, RunId, RunTimedOut, UsageReported
from domain.ports import RecordStore
from domain.text import clean_text
from domain.usage import Usage
from services.agent_messages import from_records, new_message_id, partial_record, record_of
from services.agent_service import AgentService
from services.direct_answer import Block, DirectAnswer
from services.llm_providers.base import BaseProvider
from services.llm_providers.wire.answer import estimated_usage
from services.llm_service import LLMService
from services.open_runs import OpenRuns
from services.run_recorder import Asked, Book, RunRecorder, Told
from services.session_service import require_session
from services.wire_messages import WireMessage, answers_in, to_wire, unsaid, wire_question, wire_record, wire_text

logger = logging.getLogger(__name__)

AGENT = "direct"


@dataclass(frozen=True, slots=True)
class DirectRequest:
    """A chat completions body as the caller sent it, checked for its shape.

    Attributes:
        body: all of it; `messages` are dictionaries that have a `role`.
        model: what is asked for.
        unheard: messages for this one call, put first and kept in no session.
        door: what its door wants to know of it later (`RunStart.request`).
        new_ids: given when all of `messages` are new to the session: the ids that they get in the record.
        without: ids of recorded messages that the model is not told.
    """

    body: Mapping[str, Any]
    model: str
    streamed: bool = False
    session_id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    unheard: tuple[WireMessage, ...] = ()
    door: dict[str, Any] | None = None
    new_ids: tuple[str, ...] | None = None
    without: frozenset[str] = frozenset()


class DirectService:
    """Calls models directly."""

    def __init__(
        self, llm: LLMService, agents: AgentService, runs: OpenRuns, store: RecordStore, recorder: RunRecorder
    ) -> None:
        self.llm = llm
        self.runs = runs
        self._agents = agents
        self._store = store
        self._recorder = recorder

    async def begin(self, request: DirectRequest, caller: Principal) -> "DirectRun":
        """A call, written down, and nothing asked of a model yet.

        Raises:
            NotFound: the caller has no such session.
            ModelNotFound: no configured provider has it.
            Forbidden: the caller's key does not allow this model, or no direct calls.
            Conflict: another run of the session is in progress.
            Unavailable: the call cannot be written down.
            RateLimited: too many runs at once.
        """
        resolved = await self._agents.resolve(AGENT, request.model, request.session_id, caller)
        self.runs.check_room()
        ready: dict[str, Any] | None = None
        if not resolved.model.startswith(f"{POOL}/"):  # refused before it is written down
            provider, name = self.llm.provider_of(resolved.model)
            ready = provider.completions_body(name, request.body, streamed=request.streamed)
        sent: list[WireMessage] = request.body["messages"]
        earlier: list[WireMessage] = []
        last = -1
        if resolved.session is not None:
            stored = await self._agents.stored(resolved.session.id, -1)
            last = stored[-1].message_index if stored else -1
            conversation = from_records(stored, answers_in(sent))
            if request.new_ids is None:
                sent = [sent[place] for place in unsaid(conversation, sent)]
            earlier = to_wire(one for one in conversation if one.id not in request.without)
        now = datetime.now(UTC)
        book = await self._recorder.begin(
            Asked(
                caller=caller,
                kind=resolved.kind,
                agent=AGENT,
                model=resolved.model,
                session_id=request.session_id,
                messages=[wire_record(*one) for one in zip(sent, repeat(now), request.new_ids or repeat(None))],
                text=clean_text(wire_question(sent)) if sent else "",
                metadata=request.metadata,
                request=None if request.door is None else {**request.door, "asked": len(sent)},
            )
        )
        if resolved.session is not None and book.begun.first_index != last + 1:
            # Somebody has said something between our look and our word.
            stored = await self._agents.stored(book.session_id, -1, book.begun.first_index)
            known = from_records(stored, answers_in(sent))
            earlier = to_wire(one for one in known if one.id not in request.without)
        body = request.body
        if resolved.session is not None or request.unheard:
            body, ready = {**body, "messages": [*request.unheard, *earlier, *sent]}, None
        limit = self._agents.limit_of(resolved.agent)
        run = DirectRun(self, book, body, resolved.model, limit, request.streamed, ready)
        self._recorder.follow(run)
        return run

    async def unsaid(self, session_id: str, sent: list[WireMessage], caller: Principal) -> list[int]:
        """Which of `sent` the caller's session does not know yet (`wire_messages.unsaid`).

        Raises:
            NotFound: the caller has no such session.
        """
        await require_session(self._store, session_id, caller)
        if len(sent) == 1:
            return [0]
        return unsaid(from_records(await self._agents.stored(session_id, -1), answers_in(sent)), sent)


class DirectRun:
    """One direct call: `whole()`, or `open()` and then `blocks()`. Call one of them once.

    Attributes:
        model: `provider/name` of what serves it.
        replaced: who was asked before, and could not answer.
        answer: everything that has arrived.
        message_id: of the answer, in the record.
        ended_at: when it ended, as it is written down; before that, when it began.
    """

    agent = AGENT

    def __init__(
        self,
        service: DirectService,
        book: Book,
        body: Mapping[str, Any],
        model: str,
        limit: float,
        streamed: bool,
        ready: dict[str, Any] | None = None,
    ) -> None:
        self.run_id = RunId(book.run_id)
        self.session_id = book.session_id
        self.model = self._asked_model = model
        self.replaced: tuple[str, ...] = ()
        self.message_id = new_message_id()
        self.answer = DirectAnswer(body)
        self.calls: list[UsageReported] = []
        self.usage: Usage | None = None
        self.error: RouteurError | None = None
        self.gone = False
        self._llm = service.llm
        self._runs = service.runs
        self._book = book
        self._body = body
        self._limit = limit
        self._streamed = streamed
        self._ready = ready  # the body as the provider of `model` wants it
        self._begun_at = self.ended_at = datetime.now(UTC)
        self._clock: asyncio.Timeout | None = None
        self._cancelled: str | None = None
        self._over = False
        self._stack: AsyncExitStack | None = None
        self._reads: AsyncIterator[bytes] | None = None
        self._first = b""
        self._provider: BaseProvider | None = None
        self._route = service.llm.router.route(model)
        self._monotonic = time.monotonic()
        self._runs.started()

    # -- services.run_recorder.LiveRun --

    def draft(self) -> str:
        """What has arrived of the answer."""
        return self.answer.text

    def cancel(self, reason: str) -> None:
        """End it as cancelled."""
        if self._cancelled is None and not self._over:
            self._cancelled = reason
            if self._clock is not None:
                with suppress(RuntimeError):  # between `open` and `blocks` none runs: the next one is over at once
                    self._clock.reschedule(asyncio.get_running_loop().time())

    # -- asked --

    async def whole(self) -> bytes:
        """The whole answer, as JSON; it is durable.

        Raises:
            RouteurError: what went wrong; it is written down.
        """
        try:
            async with asyncio.timeout(self._left()) as self._clock:
                raw = await self._ask_whole()
        except BaseException as error:
            raise await self._failed(error) from error
        await self._written(self._finished())
        return raw

    async def open(self) -> None:
        """Ask for a stream, and wait for its first piece: until then, failures still have a status.

        Raises:
            RouteurError: as `whole`.
        """
        try:
            async with asyncio.timeout(self._left()) as self._clock:
                await self._ask_stream()
        except BaseException as error:
            raise await self._failed(error) from error

    async def blocks(self) -> AsyncGenerator[Block]:
        """The answer after `open`, in pieces as they come. The last ones come when everything is durable.

        Raises:
            RouteurError: as `whole`; what arrived before stays.
        """
        failure: RouteurError | None = None
        try:
            stack, self._stack = self._stack or AsyncExitStack(), None
            # What breaks goes out through the stack: there the provider's client knows what it means.
            async with asyncio.timeout(self._left()) as self._clock, stack:
                raw, self._first = self._first, b""
                while raw:
                    block = self.answer.read(self._known_provider().client, raw)
                    if block:
                        yield block
                    if self.answer.failure is not None:
                        raise self.answer.failure
                    if self.answer.done or self._reads is None:
                        break
                    raw = await anext(self._reads, b"")
                self._check_end()
                self._route.succeeded()
        except BaseException as error:
            if isinstance(error, RouteurError):
                self._route.failed(error, begun=True)
            failure = await self._failed(error)
        if failure is not None:
            raise failure
        await self._written(self._finished())
        yield self.answer.ending()

    async def aclose(self) -> None:
        """It will not be read (any more): end it, if it has not ended."""
        if not self._over:
            with suppress(asyncio.CancelledError):
                await self._failed(asyncio.CancelledError())

    def _left(self) -> float:
        """Seconds that it may still take."""
        if self._cancelled is not None:
            return 0
        return max(0.001, self._limit - (time.monotonic() - self._monotonic))

    # -- one provider after the other --

    async def _ask_whole(self) -> bytes:
        while True:
            try:
                provider, body, patience = self._next_call()
                raw, parsed = await provider.completion(body, self.model, patience)
                raw = self.answer.read_whole(provider.client, raw, parsed)
                self._check_end()
            except RouteurError as error:
                self._go_on_after(error)
            else:
                self._route.succeeded()
                return raw

    async def _ask_stream(self) -> None:
        while True:
            try:
                provider, body, patience = self._next_call()
                async with AsyncExitStack() as stack:
                    reads = provider.completion_reads(body, self.model, patience)
                    self._reads = await stack.enter_async_context(reads)
                    self._first = await anext(self._reads, b"")
                    if not self._first:
                        name = provider.config.name
                        raise UpstreamFailure(f"The provider '{name}' sent nothing.", code="upstream_cut")
                    self._stack = stack.pop_all()
            except RouteurError as error:
                self._go_on_after(error)
            else:
                return

    async def _leave_provider(self) -> None:
        stack, self._stack = self._stack, None
        if stack is not None:
            await stack.aclose()

    def _next_call(self) -> tuple[BaseProvider, dict[str, Any], Patience]:
        """Whom to ask now, what, and how long to wait for it."""
        route = self._route
        while True:
            self.model, self.replaced = route.model, route.replaced
            self._provider, name = self._llm.provider_of(route.model)
            body, self._ready = self._ready, None
            if body is None or route.model != self._asked_model:
                try:
                    body = self._provider.completions_body(name, self._body, streamed=self._streamed)
                except InvalidRequest as error:
                    if not route.skipped():
                        raise
                    logger.warning(
                        "model cannot take the parameters and is passed over",
                        extra={"model": self.model, "code": error.code},
                    )
                    continue
            return self._provider, body, Patience(route.timeout, 0) if route.spare else Patience(route.timeout)

    def _go_on_after(self, error: RouteurError) -> None:
        """The next one is asked, or the error raised."""
        if not self._route.failed(error, begun=self.answer.begun):
            raise error
        self.answer = DirectAnswer(self._body)

    def _known_provider(self) -> BaseProvider:
        if self._provider is None:
            raise RuntimeError("open() comes first")
        return self._provider

    def _check_end(self) -> None:
        """Raises:
        UpstreamFailure: it stopped without an end.
        """
        if self.answer.finish is None:
            name = self._known_provider().config.name
            raise UpstreamFailure(f"The provider '{name}' broke off in the middle.", code="upstream_cut")

    # -- written down --

    def _finished(self) -> RunFinished:
        self._count(self.answer.usage)
        finish = FinishReason(self.answer.finish_reason or "stop")
        return RunFinished(output=self.answer.text, model=self.model, finish_reason=finish, usage=self.usage)

    async def _failed(self, error: BaseException) -> RouteurError:
        """End it badly; gives what to raise, or raises what must not be caught."""
        self._over = True
        if isinstance(error, TimeoutError) and self._clock is not None and self._clock.expired():
            error = self._stopped()
        refused = isinstance(error, RouteurError) and not self.answer.begun and self._cancelled is None
        if not refused:  # cut: budgets must not be escaped by leaving early
            texts = (wire_text(message) for message in self._body["messages"])
            self._count(self.answer.usage or estimated_usage(texts, self.answer))
        terminal = self._terminal(error)
        writing = asyncio.ensure_future(self._end(terminal))  # begun, whoever waits for it
        with suppress(RouteurError):
            await self._leave_provider()
        if not isinstance(error, Exception):
            raise error
        if isinstance(error, RouteurError):
            self.error = error
        else:
            logger.error("a direct call failed", exc_info=error, extra={"run_id": self.run_id})
            self.error = InternalError()
        with suppress(RouteurError):
            await asyncio.shield(writing)
        return self.error

    def _stopped(self) -> RouteurError:
        if self._cancelled is not None:
            return Conflict("The run was cancelled.", code="run_cancelled")
        return UpstreamTimeout(f"The run took longer than its limit of {self._limit:g} s.", code="run_timed_out")

    def _terminal(self, error: BaseException) -> AgentEvent:
        if self._cancelled is not None or not isinstance(error, Exception):
            reason = self._cancelled or "the reader left, or the server stopped"
            return RunCancelled(reason=reason, usage=self.usage)
        known = error if isinstance(error, RouteurError) else InternalError()
        if known.code == "run_timed_out":
            return RunTimedOut(limit=self._limit, message=known.message, usage=self.usage)
        return RunFailed(
            error=known.kind.value,
            code=known.code,
            message=known.message,
            retry_after=known.retry_after,
            usage=self.usage,
        )

    def _count(self, usage: Usage | None) -> None:
        self.usage = usage
        self.calls.append(UsageReported(model=self.model, usage=usage))

    async def _written(self, terminal: AgentEvent) -> None:
        """Wait until the end is durable: who is told that a run has finished may rely on it."""
        self._over = True
        await asyncio.shield(self._end(terminal))

    def _end(self, terminal: AgentEvent) -> "asyncio.Future[bool]":
        now = self.ended_at = datetime.now(UTC)
        answer, messages = self.answer, []
        output = answer.text
        if isinstance(terminal, RunFinished):
            data = {"type": "ai", "data": answer.fields(self.message_id, self.model)}
            messages.append(record_of(data, now))
        elif output:
            messages.append(partial_record(self.message_id, output, terminal.kind, self.model, now))
        events, last = self._story(terminal, now)
        self._runs.ended(self, terminal, time.monotonic() - self._monotonic)
        end = self._book.end_of(terminal, self.model, output, messages, self.calls, Told(events, 1, last), now)
        return asyncio.ensure_future(self._book.write(end))

    def _story(self, terminal: AgentEvent, now: datetime) -> tuple[str, int]:
        """The events of this run, as `run_story.Story` would have kept them, made in one go."""
        answer, at = self.answer, self._begun_at
        items: list[dict[str, Any]] = [
            {"seq": 1, "at": at, "kind": "run.started", "agent": AGENT, "model": self.model,
             "session_id": self.session_id},
        ]  # fmt: skip
        seq = 2
        thought = "".join(answer.reasonings)
        if thought:
            items.append(
                {"seq": seq, "at": now, "kind": "reasoning.delta", "text": thought, "message_id": self.message_id}
            )
            seq += 1
        if answer.texts:
            text = {"kind": "text.delta", "message_id": self.message_id}
            items.append({"seq": seq, "at": at, "pieces": answer.texts, **text})
            seq += len(answer.texts)
            items.append({"seq": seq, "at": now, "text": "", "done": True, **text})
            seq += 1
        for event in (*self.calls, terminal):
            items.append({"seq": seq, "at": now, **event.__dict__})
            seq += 1
        return orjson.dumps(items, default=_plain).decode(), seq - 1


def _plain(value: Any) -> Any:
    return value.__dict__
