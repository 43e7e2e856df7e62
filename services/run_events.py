"""Following runs: what was told so far from the record, then what is told now, in order and each event once.

Nothing is published before it is written down, so a reader who has seen an event sees the same one again after a crash.
Many may read one run; each has a buffer of its own, and one that is too slow goes back to reading the record.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import suppress

from domain.auth import Principal
from domain.enums import RunStatus
from domain.errors import NotFound, Unavailable
from domain.events import (
    AgentEvent,
    Envelope,
    EventLaws,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunId,
    RunStarted,
    RunTimedOut,
)
from domain.ports import RecordStore, RunSignals, SignalKind
from domain.runs import ENDED, Progress, Run
from services.run_story import load_story

BUFFER = 1_000  # events that a reader may be behind before it is sent back to the record
_AT_ONCE = 500  # runs looked at with one question
_PAGE = 500  # events handed on at once

Gap = tuple[int, int]


class Subscription:
    """One reader's place at a run."""

    def __init__(self) -> None:
        self._waiting: list[Envelope] = []
        self._news = asyncio.Event()
        self.seen: Progress | None = None  # how far the run had come when we last heard of it

    def offer(self, envelopes: Sequence[Envelope]) -> None:
        """What was told now. Too much of it is dropped: the record has it."""
        self.seen = (RunStatus.RUNNING, envelopes[-1].seq) if envelopes else self.seen
        if len(self._waiting) + len(envelopes) > BUFFER:
            self._waiting.clear()
        else:
            self._waiting += envelopes
        self._news.set()

    def poke(self) -> None:
        """There is something in the record."""
        self._news.set()

    async def take(self, within: float) -> list[Envelope]:
        """What was told since, as soon as there is something, or when that many seconds are over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._news.wait()
        self._news.clear()
        taken, self._waiting = self._waiting, []
        return taken


class RunEvents:
    """The readers of this process."""

    def __init__(self, store: RecordStore, signals: RunSignals) -> None:
        self._store = store
        self._signals = signals
        self._readers: dict[str, set[Subscription]] = {}
        self._looking: asyncio.Task[None] | None = None
        self.draining = False
        signals.hear(self._heard)

    @property
    def readers(self) -> int:
        """How many there are."""
        return sum(map(len, self._readers.values()))

    def publish(self, run_id: str, envelopes: Sequence[Envelope]) -> None:
        """Hand on what has been written down, to readers here and to other processes."""
        for reader in self._readers.get(run_id, ()):
            reader.offer(envelopes)
        self._signals.tell("events", [run_id])

    def poke(self, run_id: str) -> None:
        """Something has changed in the record."""
        for reader in self._readers.get(run_id, ()):
            reader.poke()
        self._signals.tell("events", [run_id])

    def drain(self) -> None:
        """End every reader's stream where it stands; they come back elsewhere with their cursor."""
        self.draining = True
        for readers in self._readers.values():
            for reader in readers:
                reader.poke()

    async def is_over(self, run_id: str, caller: Principal, after: int) -> bool:
        """True when there is nothing after `after`, and never will be.

        Raises:
            NotFound: the caller has no such run.
        """
        async with self._store.reading() as work:
            owned = await work.runs.owned(run_id, caller.user_id)
        if owned is None:
            raise NotFound("There is no such run.", code="run_not_found")
        if owned.status not in ENDED:
            return False
        return not (await self._read(run_id, after))[1]

    async def follow(self, run_id: str, after: int, heartbeat: float) -> AsyncGenerator[list[Envelope] | Gap]:
        """Every event with a `seq` above `after`, to the terminal one; a pair of numbers where some are trimmed away.

        Ends early when the server is being drained. An empty list means: silence for `heartbeat` seconds.
        """
        reader = Subscription()
        self._readers.setdefault(run_id, set()).add(reader)
        loop = asyncio.get_running_loop()
        if self._looking is None or self._looking.done():
            self._looking = loop.create_task(self._look(), name="runs of other processes")
        last, spoke = after, loop.time()
        try:
            while not self.draining:
                run, found = await self._read(run_id, last)
                if run is None:
                    return
                reader.seen = (run.status, run.last_seq)
                if found and found[0].seq > last + 1:
                    yield (last + 1, found[0].seq - 1)
                for start in range(0, len(found), _PAGE):
                    yield found[start : start + _PAGE]
                    spoke = loop.time()
                last = found[-1].seq if found else last
                if run.status in ENDED:
                    return
                while not self.draining:
                    told = await reader.take(max(0.0, heartbeat - (loop.time() - spoke)))
                    if loop.time() - spoke >= heartbeat:
                        yield []
                        spoke = loop.time()
                    fresh = [envelope for envelope in told if envelope.seq > last]
                    if not fresh or fresh[0].seq != last + 1:
                        break  # something happened elsewhere, or we were too slow: look into the record
                    yield fresh
                    last, spoke = fresh[-1].seq, loop.time()
                    if fresh[-1].event.terminal:
                        return
        finally:
            self._readers[run_id].discard(reader)
            if not self._readers[run_id]:
                del self._readers[run_id]

    async def _look(self) -> None:
        """What nobody tells us (another process on the same file, a signal that was lost) is seen by looking: one
        question for all runs that are followed here, however many read them."""
        while self._readers:
            await asyncio.sleep(self._signals.poll)
            with suppress(Unavailable):
                for run_ids in batched(self._readers, _AT_ONCE):
                    async with self._store.reading() as work:
                        found = await work.runs.progress(run_ids)
                    for run_id in run_ids:
                        for reader in self._readers.get(run_id, ()):
                            if reader.seen is not None and reader.seen != found.get(run_id):
                                reader.poke()

    async def _read(self, run_id: str, after: int) -> tuple[Run | None, list[Envelope]]:
        async with self._store.reading() as work:
            run = await work.runs.find_one(id=run_id)  # before its events: an end that is seen is then among them
            stored = [] if run is None else await work.runs.events(run_id, after)
            found = [envelope for envelope in load_story(run_id, stored) if envelope.seq > after]
            if run is None or run.status not in ENDED or (found and found[-1].event.terminal):
                return run, found
            whole = list(load_story(run_id, await work.runs.events(run_id)))
        return run, [envelope for envelope in with_an_end(run, whole) if envelope.seq > after]

    def _heard(self, kind: SignalKind, run_id: str) -> None:
        if kind == "events":
            for reader in self._readers.get(run_id, ()):
                reader.poke()


def batched(run_ids: Iterable[str], size: int) -> list[list[str]]:
    """The ids in lists of at most that many."""
    every = list(run_ids)
    return [every[start : start + size] for start in range(0, len(every), size)]


def with_an_end(run: Run, told: list[Envelope]) -> list[Envelope]:
    """The story of an ended run, with the end that nobody lived to tell: the same one whoever asks, and whenever."""
    if told and told[-1].event.terminal:
        return told
    at = run.completed_at or run.updated_at
    if not told and run.last_seq > 1:  # trimmed away: the end is all there is
        return [Envelope(RunId(run.id), run.last_seq, at, _terminal(run))]
    laws = EventLaws()
    added: list[AgentEvent] = []
    for envelope in told:
        laws.admit(envelope.event)
    if not told:
        added.append(RunStarted(agent=run.agent, model=run.model or "", session_id=run.session_id))
    added += laws.closings()
    added.append(_terminal(run))
    first = told[-1].seq + 1 if told else 1
    return [*told, *(Envelope(RunId(run.id), first + place, at, event) for place, event in enumerate(added))]


def _terminal(run: Run) -> AgentEvent:
    message = run.error_message or ""
    match run.status:
        case RunStatus.COMPLETED:
            output = run.output if isinstance(run.output, str) else ""
            return RunFinished.model_validate(
                {
                    "output": output,
                    "model": run.model or "",
                    "finish_reason": run.finish_reason or "stop",
                    "usage": run.usage,
                }
            )
        case RunStatus.CANCELLED:
            return RunCancelled(reason=message, usage=run.usage)
        case RunStatus.TIMEOUT:
            return RunTimedOut(limit=run.time_limit or 0, message=message, usage=run.usage)
        case _:
            return RunFailed(error="internal", code=run.error_code or "run_failed", message=message, usage=run.usage)
