"""One transcription that somebody waits for, or reads as it is heard: a run of the agent `transcription`."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson

from config.transcription_settings import TranscriptionSettings
from domain.audio import Segment, SpanTranscript, Transcript, TranscriptionPlan
from domain.enums import FinishReason
from domain.errors import Conflict, InternalError, RouteurError, UpstreamTimeout
from domain.events import AgentEvent, RunCancelled, RunFailed, RunFinished, RunId, RunTimedOut, UsageReported
from domain.usage import Usage
from services.agent_messages import new_message_id, partial_record, record_of
from services.open_runs import OpenRuns
from services.run_recorder import Book, Told

AGENT = "transcription"
#: Failures of calls that their provider had taken: it may have counted them, and nobody will ever say how much.
MAY_HAVE_COST = frozenset({"timeout", "upstream_unreadable", "upstream_broken", "upstream_cut"})

Piece = str | Segment


class Listener(Protocol):
    """What a run needs of `TranscriptionService`."""

    @property
    def settings(self) -> TranscriptionSettings: ...
    @property
    def runs(self) -> OpenRuns: ...
    @property
    def room(self) -> asyncio.Semaphore: ...
    async def transcribe_span(self, plan: TranscriptionPlan, index: int) -> SpanTranscript: ...
    async def stream_span(
        self, plan: TranscriptionPlan, index: int
    ) -> AbstractAsyncContextManager[AsyncIterator[str | SpanTranscript]] | None: ...
    def join(self, plan: TranscriptionPlan, parts: Sequence[SpanTranscript]) -> Transcript: ...
    def cost(self, plan: TranscriptionPlan, index: int) -> int | None: ...


class TranscriptionRun:
    """`whole()`, or `open()` and then `pieces()`. Call one of them once.

    Attributes:
        model: `provider/name` of what listens.
        transcript: of all of it, when it has finished.
    """

    agent = AGENT

    def __init__(
        self,
        service: "Listener",
        book: Book,
        plan: TranscriptionPlan,
        limit: float,
        left: float,
        *,
        streamed: bool,
    ) -> None:
        self.run_id = RunId(book.run_id)
        self.session_id = book.session_id
        self.model = plan.model
        self.plan = plan
        self.message_id = new_message_id()
        self.transcript: Transcript | None = None
        self.calls: list[UsageReported] = []
        self.usage: Usage | None = None
        self.gone = False
        self._service = service
        self._book = book
        self._limit = limit
        self._until = time.monotonic() + left
        self._streamed = streamed
        self._begun_at = datetime.now(UTC)
        self._monotonic = time.monotonic()
        self._costs: list[int | None] = []
        self._asked: set[int] = set()
        self._told: list[str] = []
        self._clock: asyncio.Timeout | None = None
        self._cancelled: str | None = None
        self._over = False
        self._room = asyncio.Semaphore(service.settings.parallel)
        self._source: AsyncGenerator[Piece] | None = None
        self._first: Piece | None = None
        service.runs.started()

    # -- services.run_recorder.LiveRun --

    def draft(self) -> str:
        """What has been told of the text."""
        return "".join(self._told)

    def cancel(self, reason: str) -> None:
        """End it as cancelled."""
        if self._clock is not None and self._cancelled is None and not self._over:
            self._cancelled = reason
            self._clock.reschedule(asyncio.get_running_loop().time())

    # -- asked --

    async def whole(self) -> Transcript:
        """The whole transcript; it is durable.

        Raises:
            RouteurError: what went wrong; it is written down. Nothing half is given.
        """
        try:
            async with asyncio.timeout(self._left()) as self._clock, aclosing(self._parts()) as parts:
                transcript = self._service.join(self.plan, [part async for part in parts])
        except BaseException as error:
            raise await self._failed(error) from error
        await self._finished(transcript)
        return transcript

    async def open(self) -> None:
        """Listen, and wait for the first words: until then, failures still have a status.

        Raises:
            RouteurError: as `whole`.
        """
        self._source = self._heard()
        try:
            async with asyncio.timeout(self._left()) as self._clock:
                self._first = await anext(self._source, None)
        except BaseException as error:
            raise await self._failed(error) from error

    async def pieces(self) -> AsyncGenerator[Piece]:
        """Words and segments after `open`, as they are heard; afterwards there is `transcript`, and it is durable.

        Raises:
            RouteurError: as `whole`; what was told before stays.
        """
        if self._source is None:
            raise RuntimeError("open() comes first")
        failure: RouteurError | None = None
        try:
            async with asyncio.timeout(self._left()) as self._clock, aclosing(self._source) as source:
                if self._first is not None:
                    yield self._first
                async for piece in source:
                    yield piece
        except BaseException as error:
            failure = await self._failed(error)
        if failure is not None:
            raise failure
        if self.transcript is not None:
            await self._finished(self.transcript)

    async def aclose(self) -> None:
        """It will not be read (any more): end it, if it has not ended."""
        if not self._over:
            with suppress(asyncio.CancelledError):
                await self._failed(asyncio.CancelledError())

    # -- listening --

    async def _heard(self) -> AsyncGenerator[Piece]:
        """Words and segments, in their order."""
        parts: list[SpanTranscript] = []
        live = await self._service.stream_span(self.plan, 0) if len(self.plan.spans) == 1 else None
        if live is not None:
            async with self._service.room, live as pieces:
                self._asked.add(0)
                async for piece in pieces:
                    if isinstance(piece, SpanTranscript):
                        parts.append(piece.moved(self.plan.spans[0]))
                        self._note(0, piece.usage)
                    elif piece:
                        self._told.append(piece)
                        yield piece
        else:
            async with aclosing(self._parts()) as heard:
                async for part in heard:
                    parts.append(part)
                    for text in _told_of(part, first=not self._told):
                        self._told.append(text)
                        yield text
                    if self.plan.options.diarize:
                        known = self._service.join(self.plan, parts).segments
                        for segment in known[len(known) - len(part.segments) :]:
                            yield segment
        self.transcript = self._service.join(self.plan, parts)

    async def _parts(self) -> AsyncGenerator[SpanTranscript]:
        """The parts in their order, several listened to at once. The first that fails ends all."""
        failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def look(task: asyncio.Task[SpanTranscript]) -> None:
            if not task.cancelled() and task.exception() is not None and not failed.done():
                failed.set_result(None)

        tasks = [asyncio.create_task(self._one(index)) for index in range(len(self.plan.spans))]
        try:
            for task in tasks:
                task.add_done_callback(look)
            for task in tasks:
                await asyncio.wait((task, failed), return_when=asyncio.FIRST_COMPLETED)
                if failed.done():
                    raise next(error for one in tasks if one.done() and (error := one.exception()) is not None)
                yield task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, index: int) -> SpanTranscript:
        async with self._room, self._service.room:
            self._asked.add(index)
            try:
                part = await self._service.transcribe_span(self.plan, index)
            except RouteurError as error:
                if error.code not in MAY_HAVE_COST:
                    self._asked.discard(index)
                raise
            self._note(index, part.usage)
            return part

    def _note(self, index: int, usage: Usage | None) -> None:
        """One call is over; it is charged by its tokens, or by its length."""
        self._asked.discard(index)
        self.calls.append(UsageReported(model=self.model, usage=usage))
        self._costs.append(self._service.cost(self.plan, index) if usage is None else None)
        if usage is not None:
            self.usage = usage if self.usage is None else self.usage + usage

    def _left(self) -> float:
        return max(0.001, self._until - time.monotonic())

    # -- written down --

    async def _finished(self, transcript: Transcript) -> None:
        """Wait until the end is durable: who is told that a run has finished may rely on it."""
        self._over = True
        self.transcript = transcript
        if not self._told and transcript.text:
            self._told = [transcript.text]
        finish = RunFinished(
            output=transcript.text, model=self.model, finish_reason=FinishReason.STOP, usage=self.usage
        )
        await asyncio.shield(self._end(finish))

    async def _failed(self, error: BaseException) -> RouteurError:
        """End it badly; gives what to raise, or raises what must not be caught."""
        self._over = True
        if isinstance(error, TimeoutError) and self._clock is not None and self._clock.expired():
            error = self._stopped()
        if self._source is not None:
            with suppress(RouteurError, RuntimeError):
                await self._source.aclose()
        for _ in tuple(self._asked):  # given up in the middle; who listens may count it all the same
            self.calls.append(UsageReported(model=self.model, usage=None))
            self._costs.append(None)
        self._asked.clear()
        writing = self._end(self._terminal(error))  # begun, whoever waits for it
        if not isinstance(error, Exception):
            raise error
        known = error if isinstance(error, RouteurError) else InternalError()
        if known is not error:
            known.__cause__ = error
        with suppress(RouteurError):
            await asyncio.shield(writing)
        return known

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

    def _end(self, terminal: AgentEvent) -> "asyncio.Future[bool]":
        now = datetime.now(UTC)
        text, messages = self.draft(), []
        if isinstance(terminal, RunFinished):
            text = terminal.output
            told = {"routeur_model": self.model}
            data = {"content": text, "id": self.message_id, "response_metadata": told}
            messages.append(record_of({"type": "ai", "data": data}, now))
        elif text:
            messages.append(partial_record(self.message_id, text, terminal.kind, self.model, now))
        events, last = self._story(terminal, now)
        self._service.runs.ended(self, terminal, time.monotonic() - self._monotonic)
        end = self._book.end_of(terminal, self.model, text, messages, self.calls, Told(events, 1, last), now)
        for call, cost in zip(end.calls, self._costs, strict=True):
            call.cost_pico = cost
        return asyncio.ensure_future(self._book.write(end))

    def _story(self, terminal: AgentEvent, now: datetime) -> tuple[str, int]:
        """The events of this run, as `run_story.Story` would have kept them, made in one go."""
        items: list[dict[str, Any]] = [
            {"seq": 1, "at": self._begun_at, "kind": "run.started", "agent": AGENT, "model": self.model,
             "session_id": self.session_id},
        ]  # fmt: skip
        seq = 2
        if self._told:
            text = {"kind": "text.delta", "message_id": self.message_id}
            items.append({"seq": seq, "at": now, "pieces": self._told, **text})
            seq += len(self._told)
            items.append({"seq": seq, "at": now, "text": "", "done": True, **text})
            seq += 1
        for event in (*self.calls, terminal):
            items.append({"seq": seq, "at": now, **event.__dict__})
            seq += 1
        return orjson.dumps(items, default=lambda value: value.__dict__).decode(), seq - 1


def _told_of(part: SpanTranscript, *, first: bool) -> list[str]:
    """The text of a part as pieces: its segments, where these are all of it. Together they are the joined text."""
    if not part.text:
        return []
    before = "" if first else " "
    pieces = [segment.text.strip() for segment in part.segments]
    if " ".join(pieces) != part.text:
        return [before + part.text]
    return [before + pieces[0], *(f" {piece}" for piece in pieces[1:])]
