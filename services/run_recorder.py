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
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakValueDictionary

from uuid_utils import uuid4, uuid7

from domain.auth import Principal
from domain.enums import RunStatus, SessionKind
from domain.errors import InternalError, RouteurError
from domain.events import AgentEvent, RunCancelled, RunFailed, RunFinished, RunTimedOut
from domain.ports import RecordStore
from domain.runs import CallCost, NewMessage, RunBegun, RunEnd, RunStart
from domain.text import clean_text, one_line
from domain.usage import Price, to_pico
from services.agent_messages import partial_record, to_record
from services.agent_stream import RunStream

logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=30)  # how long a dead process may hold a session, when nobody can see that it is dead
RENEW_BEFORE = timedelta(seconds=15)
TICK = 1.0  # seconds between drafts: what a crash may cost of an answer
REAP_EVERY = 10.0  # seconds between looks for runs of dead processes
_TITLE_CHARS, _MODEL_CHARS = 80, 200

#: Which process this is: a number may be given to another one, or to the next one of a container.
_PROCESS = uuid4().hex[:12]

_STATUS: dict[type[Any], RunStatus] = {
    RunFinished: RunStatus.COMPLETED,
    RunFailed: RunStatus.FAILED,
    RunTimedOut: RunStatus.TIMEOUT,
    RunCancelled: RunStatus.CANCELLED,
}


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


class RunRecorder:
    """The record of this process's runs."""

    def __init__(self, store: RecordStore, price: Callable[[str], Price | None]) -> None:
        self._store = store
        self._price = price
        self._live: WeakValueDictionary[str, RunStream] = WeakValueDictionary()
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
        )
        try:
            return Book(self, start, await self._store.begin_run(start))
        except asyncio.CancelledError:
            # The caller left meanwhile; it is written all the same, and would hold its session until its lease is over.
            self.end(_never_ran(start, start.session_id, RunStatus.CANCELLED, "run_cancelled", "The caller left."))
            raise

    def follow(self, run: RunStream) -> None:
        """Keep this run's lease alive for as long as somebody holds it."""
        self._live[run.run_id] = run
        self._leases[run.run_id] = datetime.now(UTC) + LEASE

    def end(self, end: RunEnd) -> Awaitable[bool]:
        """Write it; begun at once."""
        self._live.pop(end.id, None)
        self._leases.pop(end.id, None)
        self._drafted.pop(end.id, None)
        for call in end.calls:
            price = self._price(call.model)
            if call.usage is None:
                end.unmeasured += 1
                continue
            end.usage = call.usage if end.usage is None else end.usage + call.usage
            if price is None:
                end.unpriced += 1
                continue
            call.cost_pico = to_pico(price.cost(call.usage))
            end.cost_pico = call.cost_pico + (end.cost_pico or 0)
        return self._store.end_run(end)

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

    async def reap(self) -> int:
        """End the runs of processes that are gone; how many there were."""
        now = datetime.now(UTC)
        async with self._store.reading() as work:
            workers = {run.worker or "" for run in await work.runs.in_progress(None, now)}
        dead = frozenset(worker for worker in workers if not _is_alive(worker, self.host))
        count = await self._store.lose_dead_runs(now, dead)
        if count:
            logger.warning("runs of a dead process were ended", extra={"count": count})
        return count

    async def watch(self) -> None:
        """`tick` and `reap` for ever; a failure is logged and tried again."""
        loop = asyncio.get_running_loop()
        next_reap = loop.time() + REAP_EVERY
        while True:
            await asyncio.sleep(TICK)
            try:
                await self.tick()
                if loop.time() >= next_reap:
                    next_reap = loop.time() + REAP_EVERY
                    await self.reap()
            except RouteurError:
                logger.warning("leases could not be renewed", exc_info=True)


class Book:
    """One run's place in the record (`agent_stream.RunBook`)."""

    def __init__(self, recorder: RunRecorder, start: RunStart, begun: RunBegun) -> None:
        self._recorder = recorder
        self._start = start
        self.begun = begun
        self.run_id = start.id
        self.session_id = begun.session_id
        self.checkpointed = False

    def close(self, run: RunStream, terminal: AgentEvent) -> Awaitable[bool]:
        """Write how the run ended and everything it brought."""
        now = datetime.now(UTC)
        finished = isinstance(terminal, RunFinished)
        messages = [to_record(message, now) for message in run.brought.values()]
        output = terminal.output if isinstance(terminal, RunFinished) else ""
        for message_id in () if finished else run.cut:
            text = run.story.text_of(message_id)
            if text and message_id not in run.brought:
                messages.append(partial_record(message_id, text, terminal.kind, run.model, now))
                output = text
        code, message = _error_of(terminal)
        return self._recorder.end(
            RunEnd(
                id=self.run_id,
                owner_id=self._start.owner_id,
                session_id=self.session_id,
                agent=self._start.agent,
                status=_STATUS[type(terminal)],
                model=clean_text(run.model)[:_MODEL_CHARS],
                output=clean_text(output) if output else ("" if finished else None),
                finish_reason=terminal.finish_reason.value if isinstance(terminal, RunFinished) else None,
                error_code=code,
                error_message=message,
                messages=messages,
                calls=[CallCost(clean_text(call.model)[:_MODEL_CHARS], call.usage, None) for call in run.calls],
                events=run.story.dump(),
                first_seq=1,
                last_seq=run.story.last_seq,
                completed_at=now,
                synced=finished and self.checkpointed,
            )
        )

    async def abandon(self, error: BaseException) -> None:
        """It could not even start: end it, so that the session is free again."""
        known = error if isinstance(error, RouteurError) else InternalError()
        end = _never_ran(self._start, self.session_id, RunStatus.FAILED, known.code, known.message)
        with suppress(RouteurError):
            await asyncio.shield(self._recorder.end(end))


@asynccontextmanager
async def open_recorder(store: RecordStore, price: Callable[[str], Price | None]) -> AsyncIterator[RunRecorder]:
    """A recorder that has freed what a crash left behind, and looks after its runs until the context ends."""
    recorder = RunRecorder(store, price)
    await recorder.reap()
    watching = asyncio.create_task(recorder.watch(), name="run leases")
    try:
        yield recorder
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


def _never_ran(start: RunStart, session_id: str, status: RunStatus, code: str, message: str) -> RunEnd:
    """The end of a run that had not begun to run."""
    return RunEnd(
        id=start.id,
        owner_id=start.owner_id,
        session_id=session_id,
        agent=start.agent,
        status=status,
        model=start.model,
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
