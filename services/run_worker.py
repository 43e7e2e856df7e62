"""Runs background runs: takes them from the queue, writes down what they tell as they tell it, keeps them alive.

Every write carries the run's attempt. Whoever was taken for dead and is not finds out at the next one, and leaves.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from config.run_settings import RunSettings
from core.metrics import Metrics
from domain.background import Beat, EventBatch, Limits, Pause
from domain.enums import RunStatus
from domain.errors import ErrorKind, InternalError, RouteurError, Unavailable
from domain.events import AgentEvent, Envelope, RunFailed
from domain.ports import RecordStore, RunBacklog
from domain.runs import Run, RunBegun
from domain.text import clean_text
from graphs.checkpointing import CHECKPOINTS_AWAY, Checkpoints
from services.agent_registry import AgentRegistry
from services.agent_service import AgentService
from services.agent_stream import Paused, RunStream
from services.run_events import RunEvents
from services.run_recorder import Book, RunRecorder, Told, never_ran
from services.run_story import Story, load_story

logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=10)  # after which a silent worker is taken for dead
BEAT = 0.5  # seconds between signs of life, and looks for runs that are to be cancelled
_MOST_PENDING = 2_000  # events of a run that wait to be written down
FLUSH = 0.05  # seconds that events gather before they are written down, and then told
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0  # seconds between tries to write an end, while the database is away
_FOR_GOOD = frozenset({"recursion_limit", "agent_blocked", "out_of_memory", "too_many_events", "agent_not_found"})
_STORE_AWAY = frozenset({"unavailable", CHECKPOINTS_AWAY})  # what a run cannot help
_COOLING = timedelta(seconds=2)  # before it is tried again
_NEVER_RETRIED = frozenset({ErrorKind.INVALID, ErrorKind.NOT_FOUND, ErrorKind.FORBIDDEN, ErrorKind.QUOTA})


class _Live:
    """A run that is here."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.began = self.active_at = time.monotonic()
        self.stream: RunStream | None = None
        self.pending: list[Envelope] = []  # told by the run, not yet written down and told to readers
        self.written = 0  # of its model calls
        self.drafted = 0
        self.over = asyncio.Event()
        self.room = asyncio.Event()

    @property
    def spent(self) -> float:
        """Seconds of running, those of earlier attempts too."""
        return self.run.spent + time.monotonic() - self.began


class RunWorker:
    """The background runs of this process (`domain.ports.Worker`)."""

    def __init__(
        self,
        backlog: RunBacklog,
        store: RecordStore,
        agents: AgentService,
        registry: AgentRegistry,
        recorder: RunRecorder,
        events: RunEvents,
        checkpoints: Checkpoints,
        metrics: Metrics,
        settings: RunSettings,
    ) -> None:
        self.backlog = backlog
        self.recorder = recorder
        self._store = store
        self._agents = agents
        self._registry = registry
        self._events = events
        self._checkpoints = checkpoints
        self._metrics = metrics
        self._settings = settings
        self._live: dict[str, _Live] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._dirty: dict[str, _Live] = {}
        self._some = asyncio.Event()
        self._flushing = asyncio.Lock()
        self.draining = False
        #: Called when there is room again, and when a run is back in the queue: (run, from when on).
        self.on_room: Callable[[], None] = lambda: None
        self.on_queued: Callable[[Run, datetime], Awaitable[None]] = _nobody
        #: Called with the id of a run that has ended, however and wherever; perhaps more than once.
        self.on_over: Callable[[str], Awaitable[None]] = _no_more
        recorder.also_alive = lambda: self._live

    # -- taking --

    @property
    def room(self) -> int:
        """How many more it takes now."""
        return 0 if self.draining else max(0, self._settings.concurrency - len(self._live))

    @property
    def live(self) -> frozenset[str]:
        """Ids of the runs that are here."""
        return frozenset(self._live)

    async def take(self, run_id: str | None = None) -> int:
        """Claim what may begin now (only that one), and run it in tasks of its own; how many were taken."""
        room = self.room if run_id is None else min(1, self.room)
        if not room:
            return 0
        limits = Limits(room, self._settings.per_user, self._registry.run_limits())
        runs = await self.backlog.claim(self.recorder.worker, limits, LEASE, run_id)
        for run in runs:
            live = self._live[run.id] = _Live(run)
            task = asyncio.create_task(self._run(live), name=f"background run {run.id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._metrics.background_open.set(len(self._live))
        return len(runs)

    async def finished(self, run_id: str) -> None:
        """Return when that run is no longer here."""
        live = self._live.get(run_id)
        if live is not None:
            await live.over.wait()

    def cancel(self, run_id: str) -> bool:
        """Stop a run that is here; False: it is not."""
        live = self._live.get(run_id)
        if live is None:
            return self.recorder.cancel(run_id, "Cancelled by its owner.")
        if live.stream is not None:
            live.stream.cancel("Cancelled by its owner.")
        return True

    async def drain(self, within: float) -> None:
        """Take nothing new, stop every run at its next step, hand it back to the queue; `within` that many seconds."""
        self.draining = True
        for live in list(self._live.values()):
            if live.stream is not None:
                live.stream.drain()
        await self._quiet(within * 0.5)
        for live in list(self._live.values()):
            if live.stream is not None and live.run.may_resume:
                live.stream.leave("drain")  # the step it is in is done again elsewhere
        await self._quiet(within * 0.4)
        for live in list(self._live.values()):
            if live.stream is not None:
                live.stream.leave("gone")  # nothing is written: the next process finds it, and says what became of it
        await self._quiet(within * 0.1)
        for task in list(self._tasks):
            task.cancel()

    async def _quiet(self, within: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                while self._tasks:
                    await asyncio.wait(self._tasks)

    # -- running --

    async def _run(self, live: _Live) -> None:
        run = live.run
        try:
            stream = await self._open(live)
            async for envelopes in stream.batches():
                live.pending += envelopes
                live.active_at = time.monotonic()
                self._dirty[run.id] = live
                self._some.set()
                while len(live.pending) >= _MOST_PENDING:  # it tells faster than it can be written down: let it wait
                    live.room.clear()
                    await live.room.wait()
            await self._close(live, stream)
        except asyncio.CancelledError:
            raise  # the process ends; its lease runs out, and another one goes on
        except RouteurError as error:
            if error.code in _STORE_AWAY:
                await self._put_back(live)
            else:
                await self._fail(live, error)
        except Exception:
            logger.exception("background run failed outside its agent", extra={"run_id": run.id})
            await self._fail(live, InternalError())
        finally:
            self._dirty.pop(run.id, None)
            del self._live[run.id]
            live.over.set()
            self._metrics.background_open.set(len(self._live))
            self.on_room()

    async def _open(self, live: _Live) -> RunStream:
        run = live.run
        told: list[Envelope] = []
        answers = {}
        if run.attempt > 1:
            async with self._store.reading() as work:
                told = list(load_story(run.id, await work.runs.events(run.id)))
            approvals = await self.backlog.approvals(run.id)
            answers = {one.id: one.answer for one in approvals if one.status != "pending"}
        live.stream = await self._agents.go_on(run, _BackgroundBook(self, live), told, answers)
        if live.stream.past:
            live.written = len(live.stream.past.calls)
        return live.stream

    async def _close(self, live: _Live, stream: RunStream) -> None:
        """Tell the readers what is left, and see to what remains."""
        async with self._flushing:
            if not stream.gone:
                self._events.publish(live.run.id, live.pending)
            live.pending = []
        paused = stream.paused
        if paused is None and not stream.gone:
            await self.on_over(live.run.id)
            await self._forget(live.run.id)
        elif paused is not None and paused.why in ("drain", "retry"):
            at = datetime.now(UTC) if paused.why == "drain" else self.retry_at(live.run)
            await self.on_queued(live.run, at)

    async def _fail(self, live: _Live, error: RouteurError) -> None:
        """It could not even be opened: its end is told by its row."""
        run = live.run
        logger.warning("background run could not be run", extra={"run_id": run.id, "why": error.message})
        end = never_ran(run, run.session_id or "", RunStatus.FAILED, error.code, clean_text(error.message))
        end.attempt, end.first_seq, end.last_seq = run.attempt, run.last_seq + 1, run.last_seq
        with suppress(RouteurError):
            await self.recorder.end(end)
            self._events.poke(run.id)
            await self.on_over(run.id)
            await self._forget(run.id)

    async def _put_back(self, live: _Live) -> None:
        """A database was away before it could begin: somebody tries later."""
        now = datetime.now(UTC)
        run, at = live.run, now + _COOLING
        pause = Pause(run.id, run.attempt, RunStatus.QUEUED, now, run.spent, at)
        with suppress(RouteurError):  # then its lease runs out
            if await insist(lambda: self.backlog.pause(pause, None), lambda: self.draining):
                await self.on_queued(run, at)

    async def _forget(self, run_id: str) -> None:
        """Its checkpoints are needed no more; when this fails, retention finds them."""
        try:
            await self._checkpoints.forget(run_id)
            await self.backlog.thread_forgotten(run_id)
        except Exception:  # whatever a saver raises: the run is over and told
            logger.warning("checkpoints could not be forgotten", extra={"run_id": run_id}, exc_info=True)

    # -- what the book asks --

    def batch_of(self, live: _Live, stream: RunStream, told: Told) -> EventBatch:
        """What is to be written, with the calls that have ended since the last time: they count as written now."""
        batch = self.recorder.batch_of(live.run, live.run.attempt, stream, told, live.written)
        live.written = batch.all_calls
        return batch

    def may_retry(self, run: Run, error: RouteurError | None) -> bool:
        """True when the agent's config wants this failure to be tried again."""
        if error is None or error.code in _FOR_GOOD or error.kind in _NEVER_RETRIED:
            return False
        return run.retries < self._registry.get(run.agent).spec.background.retries

    def retry_at(self, run: Run) -> datetime:
        """When a failed run is tried again."""
        delay = self._registry.get(run.agent).spec.background.retry_delay
        return datetime.now(UTC) + timedelta(seconds=delay * 2**run.retries)

    # -- looking after them --

    async def flush(self) -> None:
        """Write down what the runs have told since the last time, then tell their readers."""
        async with self._flushing:
            lives, self._dirty = list(self._dirty.values()), {}
            told: list[tuple[_Live, int, int]] = []
            batches: list[EventBatch] = []
            for live in lives:
                count, written = len(live.pending), live.written
                if not count or live.stream is None:
                    continue
                story = Story()
                for envelope in live.pending:
                    story.add(envelope)
                new = Told(story.dump(), live.pending[0].seq, live.pending[-1].seq)
                batches.append(self.batch_of(live, live.stream, new))
                told.append((live, count, written))
            if not batches:
                return
            try:
                gone = await self.backlog.keep_events(batches, LEASE)
            except Unavailable:
                for live, _, written in told:
                    live.written = min(live.written, written)
                    self._dirty[live.run.id] = live
                raise
            for live, count, _ in told:
                if live.run.id not in gone:
                    self._events.publish(live.run.id, live.pending[:count])
                    del live.pending[:count]
                    live.room.set()
                elif live.stream is not None:  # taken for dead; nothing happens when it has just ended
                    live.stream.leave("gone")

    async def beat(self) -> None:
        """Say that the runs are alive; stop those that are cancelled, silent for too long, or somebody else's."""
        beats = []
        for run_id, live in self._live.items():
            draft = live.stream.draft() if live.stream is not None else ""
            grown = len(draft) != live.drafted
            live.drafted = len(draft)
            beats.append(Beat(run_id, live.run.attempt, live.spent, clean_text(draft) if grown else None))
            self._look_for_silence(live)
        if not beats:
            return
        standing = await self.backlog.beat(beats, self.recorder.worker, LEASE)
        for one in beats:
            beaten = self._live.get(one.run_id)
            if beaten is None or beaten.stream is None:
                continue
            status = standing.get(one.run_id)
            if status is None:
                beaten.stream.leave("gone")
            elif status is RunStatus.CANCELLING:
                beaten.stream.cancel("Cancelled by its owner.")

    async def stop_cancelled(self) -> None:
        """Stop what somebody else has asked to be stopped, here or attached."""
        if not self._live and not self.recorder.following:
            return
        for run_id in await self.backlog.cancelling(self.recorder.worker):
            self.cancel(run_id)

    def _look_for_silence(self, live: _Live) -> None:
        limit = self._registry.idle_limit(live.run.agent)
        if limit is None or live.stream is None or time.monotonic() - live.active_at < limit:
            return
        live.stream.time_out(limit, f"The run gave no sign of life for {limit:g} s.")

    async def watch(self) -> None:
        """Flush and beat for ever."""
        await asyncio.gather(self._flush_for_ever(), self._beat_for_ever())

    async def _flush_for_ever(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            await asyncio.sleep(FLUSH)
            try:
                await self.flush()
            except RouteurError:
                logger.warning("events could not be written; tried again", exc_info=True)
                await asyncio.sleep(_FIRST_PAUSE)
                self._some.set()

    async def _beat_for_ever(self) -> None:
        while True:
            try:
                await asyncio.sleep(BEAT / 2)
                await self.stop_cancelled()
                await asyncio.sleep(BEAT / 2)
                await self.beat()
                await self.stop_cancelled()
            except RouteurError:
                logger.warning("leases could not be renewed", exc_info=True)


class _BackgroundBook(Book):
    """A background run's place in the record."""

    def __init__(self, worker: RunWorker, live: _Live) -> None:
        run = live.run
        begun = RunBegun(run.session_id or "", run.first_index or 0, run.synced, run.kind)
        super().__init__(worker.recorder, run, begun)
        self._worker = worker
        self._live = live

    def close(self, run: RunStream, terminal: AgentEvent) -> Awaitable[bool]:
        """Write how it ended, as soon as the database is there to take it."""
        return asyncio.ensure_future(self._insist(lambda: self._write_end(run, terminal)))

    def instead(self, run: RunStream, failed: RunFailed) -> Paused | None:
        """Try a failed run again, where its agent wants that, or could not help it."""
        if run.error is not None and run.error.code == CHECKPOINTS_AWAY and self._live.run.may_resume:
            return Paused("drain")
        return Paused("retry") if self._worker.may_retry(self._live.run, run.error) else None

    async def pause(self, run: RunStream, paused: Paused) -> bool:
        """Let go of it for now."""
        written = self._live.written
        done = await asyncio.shield(asyncio.ensure_future(self._insist(lambda: self._write_pause(run, paused))))
        if not done:
            self._live.written = written  # its calls are still to be accounted for, with its end
        return done

    async def went_on_from(self, mark: str) -> None:
        """It goes on from that checkpoint: when it is not the one it went on from before, it makes progress."""
        if self._live.run.crashes:
            await self._worker.backlog.set_mark(self._live.run.id, self._live.run.attempt, mark)

    def _write_end(self, run: RunStream, terminal: AgentEvent) -> Awaitable[bool]:
        end = self._end_of(run, terminal)
        end.attempt, end.written = self._live.run.attempt, self._live.written
        return self._recorder.end(end)

    def _write_pause(self, run: RunStream, paused: Paused) -> Awaitable[bool]:
        live, now = self._live, datetime.now(UTC)
        waiting = paused.why == "waiting"
        first = run.past.last_seq + 1 if run.past else 1
        batch = self._worker.batch_of(live, run, Told(run.story.dump(), first, run.story.last_seq))
        pause = Pause(
            run_id=live.run.id,
            attempt=live.run.attempt,
            status=RunStatus.WAITING if waiting else RunStatus.QUEUED,
            at=now,
            spent=live.spent,
            available_at=self._worker.retry_at(live.run) if paused.why == "retry" else now,
            approvals=list(paused.approvals),
            retried=paused.why == "retry",
        )
        return self._worker.backlog.pause(pause, batch)

    async def _insist(self, write: Callable[[], Awaitable[bool]]) -> bool:
        """Try until the database takes it: for as long as nobody else may have the run, and then in vain."""
        written = self._live.written

        def again() -> Awaitable[bool]:
            self._live.written = written
            return write()

        return await insist(again, lambda: self._worker.draining)


async def insist(write: Callable[[], Awaitable[bool]], hurry: Callable[[], bool]) -> bool:
    """Write as soon as the database is there to take it. Raises Unavailable when it is away and there is no time."""
    pause = _FIRST_PAUSE
    while True:
        try:
            return await write()
        except Unavailable:
            if hurry():
                raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)


async def _nobody(run: Run, at: datetime) -> None:
    """Nobody waits for runs that are back in the queue."""


async def _no_more(run_id: str) -> None:
    """Nobody keeps anything for runs."""
