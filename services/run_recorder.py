"""Writes runs down: what was asked before a model is called, what came of it before anybody is told that it ended.

Between the two it keeps the runs of this process alive in the record: each has a lease that is renewed, and with it a
draft of what has arrived. A process that dies leaves leases that run out; whoever looks next ends those runs as `lost`
and keeps their drafts as partial messages.
"""

import asyncio
import logging
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from weakref import WeakValueDictionary

from uuid_utils import uuid4, uuid7

from domain.auth import Principal
from domain.background import EventBatch, Recovered
from domain.enums import RunStatus, SessionKind
from domain.errors import InternalError, RouteurError
from domain.events import AgentEvent, RunCancelled, RunFailed, RunFinished, RunId, RunTimedOut, UsageReported
from domain.ports import RecordStore
from domain.runs import CallCost, NewMessage, RunBegun, RunEnd, RunStart
from domain.text import clean_text, one_line
from domain.usage import Price, Usage, to_pico
from services.agent_messages import partial_record, to_record
from services.agent_stream import Paused, RunStream

logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=30)  # how long a dead process may hold a session, when nobody can see that it is dead
RENEW_BEFORE = timedelta(seconds=15)
TICK = 1.0  # seconds between drafts: what a crash may cost of an answer
RECOVER_EVERY = 2.0  # seconds between looks for runs of dead processes
_CLOCK_JUMP = 2.0  # seconds by which the clock may leave the time that has passed, before leases are not believed
_MAX_CRASHES = 15
_TITLE_CHARS, _MODEL_CHARS = 80, 200

#: Which process this is: a number may be given to another one, or to the next one of a container.
_PROCESS = uuid4().hex[:12]

_STATUS: dict[type[Any], RunStatus] = {
    RunFinished: RunStatus.COMPLETED,
    RunFailed: RunStatus.FAILED,
    RunTimedOut: RunStatus.TIMEOUT,
    RunCancelled: RunStatus.CANCELLED,
}


class LiveRun(Protocol):
    """A run that somebody waits for."""

    @property
    def run_id(self) -> RunId: ...

    def draft(self) -> str:
        """What has arrived of the message that is being written."""
        ...

    def cancel(self, reason: str) -> None:
        """End it as cancelled."""
        ...


@dataclass(slots=True)
class Asked:
    """A run that is to begin."""

    caller: Principal
    kind: SessionKind
    agent: str
    model: str
    session_id: str | None
    messages: Sequence[NewMessage]
    text: str
    metadata: dict[str, Any]
    request: dict[str, Any] | None = None


class RunRecorder:
    """The record of this process's runs."""

    def __init__(
        self, store: RecordStore, price: Callable[[str], Price | None], max_crashes: int = _MAX_CRASHES
    ) -> None:
        self._store = store
        self._max_crashes = max_crashes
        self._clocks = (time.monotonic(), time.time())
        self._believe_from = 0.0
        #: Ids of runs that this process runs otherwise (background runs), and who wants to know what was recovered.
        self.also_alive: Callable[[], Iterable[str]] = tuple
        self.on_recovered: Callable[[Recovered], Awaitable[None]] | None = None
        self._price = price
        self._live: WeakValueDictionary[str, LiveRun] = WeakValueDictionary()
        self._leases: dict[str, datetime] = {}
        self._drafted: dict[str, int] = {}
        self.host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())[:60] or "host"
        self.worker = f"{self.host}:{os.getpid()}:{_PROCESS}"

    async def begin(self, asked: Asked) -> "Book":
        """Write down that a run begins, and what it was asked; from then on a crash of this process loses nothing.

        Raises:
            NotFound: the caller has no such session.
            Conflict: another run of that session is in progress.
            Unavailable: it cannot be written.
        """
        now = datetime.now(UTC)
        start = RunStart(
            id=str(uuid7()),
            owner_id=asked.caller.user_id,
            session_id=asked.session_id or str(uuid7()),
            new_session=asked.session_id is None,
            kind=asked.kind,
            agent=asked.agent,
            model=asked.model,
            input=asked.text,
            messages=list(asked.messages),
            metadata=asked.metadata,
            created_at=now,
            lease_until=now + LEASE,
            worker=self.worker,
            title=one_line(asked.text.strip(), _TITLE_CHARS),
            request=asked.request,
        )
        try:
            return Book(self, start, await self._store.begin_run(start))
        except asyncio.CancelledError:
            # The caller left meanwhile; it is written all the same, and would hold its session until its lease is over.
            self.end(never_ran(start, start.session_id, RunStatus.CANCELLED, "run_cancelled", "The caller left."))
            raise

    def follow(self, run: "LiveRun") -> None:
        """Keep this run's lease alive for as long as somebody holds it."""
        self._live[run.run_id] = run
        self._leases[run.run_id] = datetime.now(UTC) + LEASE

    def cancel(self, run_id: str, reason: str) -> bool:
        """Stop an attached run of this process; False: there is none of that id."""
        run = self._live.get(run_id)
        if run is None:
            return False
        run.cancel(reason)
        return True

    @property
    def following(self) -> int:
        """How many attached runs are going on."""
        return len(self._live)

    def let_go(self, run_id: str) -> None:
        """This process keeps that run alive no longer."""
        self._live.pop(run_id, None)
        self._leases.pop(run_id, None)
        self._drafted.pop(run_id, None)

    def batch_of(self, run: "Started", attempt: int, stream: RunStream, told: "Told", written: int) -> EventBatch:
        """What a run that has not ended is to write, with its calls after the first `written` ones."""
        past = stream.past.calls if stream.past else []
        calls = costs_of([*past, *stream.calls])
        totals = self.total(calls)
        return EventBatch(
            run_id=run.id,
            attempt=attempt,
            owner_id=run.owner_id,
            session_id=run.session_id,
            agent=run.agent,
            first_seq=told.first_seq,
            last_seq=told.last_seq,
            events=told.events,
            calls=calls[written:],
            usage=totals.usage,
            cost_pico=totals.cost_pico,
            all_calls=len(calls),
            unmeasured=totals.unmeasured,
            unpriced=totals.unpriced,
        )

    def end(self, end: RunEnd) -> Awaitable[bool]:
        """Write it; begun at once."""
        self.let_go(end.id)
        totals = self.total(end.calls)
        end.usage, end.cost_pico = totals.usage, totals.cost_pico
        end.unmeasured, end.unpriced = totals.unmeasured, totals.unpriced
        return self._store.end_run(end)

    def total(self, calls: Sequence[CallCost]) -> "Totals":
        """The sum of calls; each is given its price on the way, where it has none."""
        totals = Totals()
        for call in calls:
            if call.usage is None:
                totals.unmeasured += 1
                if call.cost_pico is not None:  # charged by something else than tokens
                    totals.cost_pico = call.cost_pico + (totals.cost_pico or 0)
                continue
            totals.usage = call.usage if totals.usage is None else totals.usage + call.usage
            price = self._price(call.model)
            if price is None:
                totals.unpriced += 1
                continue
            call.cost_pico = to_pico(price.cost(call.usage))
            totals.cost_pico = call.cost_pico + (totals.cost_pico or 0)
        return totals

    async def tick(self) -> None:
        """Renew the leases that are half over, and the drafts that have grown."""
        now = datetime.now(UTC)
        drafts: dict[str, str | None] = {}
        for run_id, run in list(self._live.items()):
            text = run.draft()
            grown = text if len(text) != self._drafted.get(run_id, 0) else None
            if grown is not None or self._leases.get(run_id, now) - now < RENEW_BEFORE:
                drafts[run_id] = None if grown is None else clean_text(grown)
                self._drafted[run_id] = len(text)
                self._leases[run_id] = now + LEASE
        for gone in self._leases.keys() - self._live.keys():
            del self._leases[gone]
            self._drafted.pop(gone, None)
        if drafts:
            await self._store.renew(drafts, now + LEASE)

    async def recover(self) -> Recovered:
        """See to the runs of processes that are gone: queued again, or ended."""
        async with self._store.reading() as work:
            workers = await work.runs.holders()
        dead = frozenset(worker for worker in workers if not _is_alive(worker, self.host))
        alive = frozenset([*self._live, *self.also_alive()])
        recovered = await self._store.recover_runs(None, dead, alive, self._max_crashes)
        if recovered.requeued or recovered.lost or recovered.cancelled:
            counts = {"requeued": len(recovered.requeued), "lost": len(recovered.lost)}
            logger.warning("runs of a dead process were found", extra=counts)
            if self.on_recovered is not None:
                await self.on_recovered(recovered)
        return recovered

    async def watch(self) -> None:
        """`tick` and `recover` for ever; a failure is logged and tried again."""
        loop = asyncio.get_running_loop()
        next_look = loop.time() + RECOVER_EVERY
        while True:
            await asyncio.sleep(TICK)
            try:
                await self.tick()
                if loop.time() >= next_look:
                    next_look = loop.time() + RECOVER_EVERY
                    if self._clock_is_believed():
                        await self.recover()
            except RouteurError:
                # When the store comes back, those who are alive have their say before anybody is taken for dead.
                self._believe_from = time.monotonic() + TICK * 5
                logger.warning("leases could not be renewed", exc_info=True)

    def _clock_is_believed(self) -> bool:
        """False for a while after the clock was set: by it, everybody's lease may look over."""
        monotonic, wall = time.monotonic(), time.time()
        passed = monotonic - self._clocks[0]
        if abs((wall - self._clocks[1]) - passed) > _CLOCK_JUMP:
            self._believe_from = monotonic + LEASE.total_seconds()
            logger.warning("the clock was set", extra={"seconds": round(wall - self._clocks[1] - passed, 1)})
        self._clocks = (monotonic, wall)
        return monotonic >= self._believe_from


@dataclass(slots=True)
class Totals:
    """What calls have cost together."""

    usage: Usage | None = None
    cost_pico: int | None = None
    unmeasured: int = 0
    unpriced: int = 0


@dataclass(frozen=True, slots=True)
class Told:
    """What a run has told: `events` as `run_story.Story.dump` gives them."""

    events: str
    first_seq: int
    last_seq: int


class Started(Protocol):
    """A run that has begun."""

    @property
    def id(self) -> str: ...
    @property
    def owner_id(self) -> str: ...
    @property
    def session_id(self) -> str | None: ...
    @property
    def agent(self) -> str: ...
    @property
    def model(self) -> str | None: ...


class Book:
    """One run's place in the record (`agent_stream.RunBook`).

    Attributes:
        keeper: takes the run over when it comes to wait for a human; None: then it has failed.
    """

    def __init__(self, recorder: RunRecorder, start: Started, begun: RunBegun) -> None:
        self.keeper: Callable[[RunStream, Paused], Awaitable[bool]] | None = None
        self._recorder = recorder
        self._start = start
        self.begun = begun
        self.run_id = start.id
        self.session_id = begun.session_id
        self.checkpointed = False

    def close(self, run: RunStream, terminal: AgentEvent) -> Awaitable[bool]:
        """Write how the run ended and everything it brought."""
        return self._recorder.end(self._end_of(run, terminal))

    def instead(self, run: RunStream, failed: RunFailed) -> Paused | None:
        """Somebody waits for it: they try again, or not."""
        return None

    async def pause(self, run: RunStream, paused: Paused) -> bool:
        """Somebody waits for it: it does not stop before its end, unless it is taken over."""
        if self.keeper is None:
            return False
        taking = asyncio.ensure_future(self.keeper(run, paused))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:  # who leaves now does not stop the writing, and is told what came of it
            await asyncio.wait({taking})
            if not taking.cancelled() and taking.exception() is None and taking.result():
                run.paused = paused
            raise
        except RouteurError as error:
            run.error = error
        except Exception as error:
            logger.exception("a run could not be handed over", extra={"run_id": self.run_id})
            run.error = InternalError()
            run.error.__cause__ = error
        return False

    def batch_of(self, run: RunStream, attempt: int) -> EventBatch:
        """Everything that a run has told which has written nothing yet."""
        told = Told(run.story.dump(), 1, run.story.last_seq)
        return self._recorder.batch_of(self._start, attempt, run, told, 0)

    async def went_on_from(self, mark: str) -> None:
        """It goes on from that checkpoint."""

    def _end_of(self, run: RunStream, terminal: AgentEvent) -> RunEnd:
        now = datetime.now(UTC)
        finished = isinstance(terminal, RunFinished)
        messages = [to_record(message, now) for message in run.brought.values()]
        output = terminal.output if isinstance(terminal, RunFinished) else ""
        for message_id in () if finished else run.cut:
            text = run.story.text_of(message_id)
            if text and message_id not in run.brought:
                messages.append(partial_record(message_id, text, terminal.kind, run.model, now))
                output = text
        calls = [*(run.past.calls if run.past else ()), *run.calls]
        told = Told(run.story.dump(), run.past.last_seq + 1 if run.past else 1, run.story.last_seq)
        return self.end_of(terminal, run.model, output, messages, calls, told, now)

    def end_of(
        self,
        terminal: AgentEvent,
        model: str,
        output: str,
        messages: list[NewMessage],
        calls: Iterable[UsageReported],
        told: "Told",
        now: datetime,
    ) -> RunEnd:
        """What is written of a run that ended like this."""
        code, message = _error_of(terminal)
        finished = isinstance(terminal, RunFinished)
        return RunEnd(
            id=self.run_id,
            owner_id=self._start.owner_id,
            session_id=self.session_id,
            agent=self._start.agent,
            status=_STATUS[type(terminal)],
            model=clean_text(model)[:_MODEL_CHARS],
            output=clean_text(output) if output else ("" if finished else None),
            finish_reason=terminal.finish_reason.value if isinstance(terminal, RunFinished) else None,
            error_code=code,
            error_message=message,
            messages=messages,
            calls=costs_of(calls),
            events=told.events,
            first_seq=told.first_seq,
            last_seq=told.last_seq,
            completed_at=now,
            synced=finished and self.checkpointed,
        )

    def write(self, end: RunEnd) -> Awaitable[bool]:
        """Write it. Begun when called; durable when awaited."""
        return self._recorder.end(end)

    async def abandon(self, error: BaseException) -> None:
        """It could not even start: end it, so that the session is free again."""
        known = error if isinstance(error, RouteurError) else InternalError()
        end = never_ran(self._start, self.session_id, RunStatus.FAILED, known.code, known.message)
        with suppress(RouteurError):
            await asyncio.shield(self._recorder.end(end))


@asynccontextmanager
async def open_recorder(
    store: RecordStore, price: Callable[[str], Price | None], max_crashes: int = _MAX_CRASHES
) -> AsyncIterator[RunRecorder]:
    """A recorder that has freed what a crash left behind, and looks after its runs until the context ends."""
    recorder = RunRecorder(store, price, max_crashes)
    await recorder.recover()
    watching = asyncio.create_task(recorder.watch(), name="run leases")
    try:
        yield recorder
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


def costs_of(calls: Iterable[UsageReported]) -> list[CallCost]:
    """Model calls as they are written down; their prices follow."""
    return [CallCost(clean_text(call.model)[:_MODEL_CHARS], call.usage, call.cost_pico) for call in calls]


def never_ran(start: Started, session_id: str, status: RunStatus, code: str, message: str) -> RunEnd:
    """The end of a run that had not begun to run."""
    return RunEnd(
        id=start.id,
        owner_id=start.owner_id,
        session_id=session_id,
        agent=start.agent,
        status=status,
        model=start.model or "",
        output=None,
        finish_reason=None,
        error_code=code,
        error_message=message,
        messages=[],
        calls=[],
        events="[]",
        first_seq=1,
        last_seq=0,
        completed_at=datetime.now(UTC),
    )


def _error_of(terminal: AgentEvent) -> tuple[str | None, str | None]:
    match terminal:
        case RunFailed(code=code, message=message):
            return code, clean_text(message)
        case RunTimedOut(message=message):
            return "run_timed_out", message
        case RunCancelled(reason=reason):
            return "run_cancelled", reason
        case _:
            return None, None


def _is_alive(worker: str, host: str) -> bool:
    """True unless it is certain that the process is gone: it was on this machine, and its number is free or ours."""
    name, _, rest = worker.partition(":")
    pid, _, process = rest.partition(":")
    if name != host or not pid.isdigit():
        return True
    if int(pid) == os.getpid():
        return process == _PROCESS  # else ours by number only: a container starts every time as the same process
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
