"""Everything about background runs, built together; and the process that is at work on them."""

import asyncio
import resource
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from config.settings import Settings, SettingsError
from core.database.engine import Database
from core.event_log.memory import LocalSignals
from core.event_log.postgres import open_postgres_signals
from core.event_log.redis import open_redis_signals
from core.loop_guard import loop_guard
from core.metrics import Metrics
from core.run_queue.embedded import EmbeddedQueue
from core.run_queue.procrastinate import open_procrastinate
from core.webhooks import WebhookClient, WebhookGuard
from domain.background import Recovered
from domain.ports import RecordStore, RunQueue, RunSignals
from domain.runs import Run
from graphs.checkpointing import Checkpoints
from services.agent_registry import AgentRegistry
from services.agent_service import AgentService
from services.background_service import BackgroundService
from services.run_events import RunEvents
from services.run_logs import run_logs, stop_the_agent
from services.run_recorder import RunRecorder
from services.run_worker import RunWorker
from services.schedule_service import ScheduleService
from services.webhook_service import WebhookService

_THREADS = 64  # for tools and nodes that are plain functions: six that hang (the default on two cores) would stop all


@dataclass(frozen=True, slots=True)
class Background:
    """Background runs of one application."""

    settings: Settings
    metrics: Metrics
    queue: RunQueue
    worker: RunWorker
    events: RunEvents
    runs: BackgroundService
    schedules: ScheduleService
    webhooks: WebhookService
    #: What else is done for ever while this process is at work.
    chores: list[Callable[[], Coroutine[Any, Any, None]]] = field(default_factory=list)

    @asynccontextmanager
    async def at_work(self, *, takes: bool = True) -> AsyncIterator["Background"]:
        """Run what is queued, fire schedules, tell webhooks until the context ends; then hand back what is going on.

        Args:
            takes: False when it runs only what it is told to (`worker.take`).
        """
        settings = self.settings.runs
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="work"))
        jobs: list[Any] = [self.worker.watch(), self.schedules.watch(), self.webhooks.watch(), self.runs.measure()]
        jobs += [chore() for chore in self.chores]
        if takes and settings.concurrency:
            jobs.append(self.queue.work(self.worker))
        async with loop_guard(settings.loop_block_limit, stop_the_agent, self.metrics):
            with run_logs(), _memory_limit(settings.max_memory_mb):
                tasks = [asyncio.create_task(job) for job in jobs]
                try:
                    yield self
                finally:
                    await self.drain()
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

    async def drain(self) -> None:
        """Take nothing new, end the readers' streams, hand running work back; once, whoever asks."""
        self.events.drain()
        if not self.worker.draining:
            await self.worker.drain(self.settings.server.shutdown_grace * 0.8)
            with suppress(Exception):
                await self.worker.flush()


@asynccontextmanager
async def open_signals(settings: Settings, database: Database) -> AsyncIterator[RunSignals]:
    """How this process hears of the others."""
    async with AsyncExitStack() as stack:
        if settings.runs.redis_url is not None:
            url = settings.runs.redis_url.get_secret_value()
            yield await stack.enter_async_context(open_redis_signals(url))
        elif database.server_url is not None:
            yield await stack.enter_async_context(open_postgres_signals(database.server_url))
        else:
            yield LocalSignals()


@asynccontextmanager
async def open_background(
    settings: Settings,
    database: Database,
    store: RecordStore,
    agents: AgentService,
    registry: AgentRegistry,
    recorder: RunRecorder,
    events: RunEvents,
    signals: RunSignals,
    checkpoints: Checkpoints,
    metrics: Metrics,
    server_secret: str,
) -> AsyncIterator[Background]:
    """Background runs over the database; nothing is run before `at_work`."""
    async with AsyncExitStack() as stack:
        backlog, server = database.backlog, database.server_url
        queue: RunQueue = EmbeddedQueue(backlog, signals)
        if settings.runs.queue == "procrastinate":
            if server is None:  # the settings say so too; nobody steps in for what was asked
                raise SettingsError("RUN_QUEUE=procrastinate needs DATABASE_URL=postgresql://...")
            opened = open_procrastinate(server, database, backlog, settings.runs.concurrency)
            queue = await stack.enter_async_context(opened)
        worker = RunWorker(backlog, store, agents, registry, recorder, events, checkpoints, metrics, settings.runs)

        async def queued(run: Run, at: datetime) -> None:
            await queue.wake(run.id, run.session_id, run.priority, at)

        async def recovered(found: Recovered) -> None:
            for run_id in found.requeued:
                standing = await backlog.standing(run_id)
                if standing is not None:
                    # Without its session's lock, which the dead worker's job holds for some seconds more.
                    await queue.wake(run_id, None, standing[2], standing[3])
            metrics.recovered(len(found.requeued), len(found.lost), len(found.cancelled))
            for run_id in [*found.lost, *found.cancelled]:
                events.poke(run_id)
                await worker.on_over(run_id)

        worker.on_room, worker.on_queued, recorder.on_recovered = queue.nudge, queued, recovered
        guard = WebhookGuard(settings.runs.webhook_networks)
        client = WebhookClient(guard, server_secret, settings.runs.webhook_timeout)
        stack.push_async_callback(client.aclose)
        runs = BackgroundService(
            store, backlog, queue, agents, registry, worker, events, signals, guard, metrics, settings.runs
        )
        yield Background(
            settings=settings,
            metrics=metrics,
            queue=queue,
            worker=worker,
            events=events,
            runs=runs,
            schedules=ScheduleService(database, runs),
            webhooks=WebhookService(database, client, metrics, settings.runs),
        )


@contextmanager
def _memory_limit(megabytes: float | None) -> Iterator[None]:
    """Who asks for more gets a MemoryError where they ask; the process lives."""
    if megabytes is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(megabytes * 1_000_000), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
