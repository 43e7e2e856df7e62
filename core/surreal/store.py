"""The record store over SurrealDB's embedded engine: one process, one file, no server.

Writers take turns (the engine has no transaction that a client can keep open), and what a unit of work writes is sent
as one transaction. The tables are those of the workflow documentation: `workflow_runs`, `workflow_sessions`,
`agent_sessions`, `team_sessions`; what is asked of them in SurrealQL gives what our own queries give.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import orjson
from uuid_utils import uuid7

from core.surreal.connection import EVENTS, Engine, open_engine
from core.surreal.work import SurrealWork
from domain.background import Recovered
from domain.enums import RunStatus
from domain.errors import Conflict
from domain.runs import ACTIVE, ModelCall, NewMessage, Run, RunBegun, RunEnd, RunStart, SimplePart, counted_columns
from domain.sessions import Session

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOST_CODE, _LOST_MESSAGE = "run_lost", "The process that ran it is gone."


class SurrealStore:
    """`domain.ports.RecordStore` over an open engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turns = _Turns()
        self._ends: set[asyncio.Task[Any]] = set()

    @asynccontextmanager
    async def unit_of_work(self) -> AsyncIterator[SurrealWork]:
        """A transaction that may write: written at its end, at once; one writer at a time."""
        async with self._write(self._turns.join()) as work:
            yield work

    @asynccontextmanager
    async def _write(self, turn: "_Turn") -> AsyncIterator[SurrealWork]:
        async with turn:
            work = SurrealWork(self._engine)
            yield work
            await work.commit()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[SurrealWork]:
        """What is there."""
        yield SurrealWork(self._engine)

    async def begin_run(self, start: RunStart) -> RunBegun:
        """Store the run with what it was asked. NotFound, Conflict: as the port says."""
        async with self.unit_of_work() as work:
            session = await self._session_of(work, start)
            work.raw_messages.write(session, start.messages, start.id)
            run = Run(
                id=start.id,
                owner_id=start.owner_id,
                session_id=session.id,
                kind=session.kind,
                agent=start.agent,
                model=start.model,
                status=RunStatus.RUNNING,
                input=start.input,
                metadata=start.metadata,
                created_at=start.created_at,
                started_at=start.created_at,
                updated_at=start.created_at,
                lease_until=start.lease_until,
                worker=start.worker,
                request=start.request,
            )
            await work.runs.create(run)
            count = session.message_count + len(start.messages)
            changed = {"message_count": count, "updated_at": start.created_at, "used_at": start.created_at}
            await work.sessions.update_one(session.id, **changed)
            return RunBegun(session.id, session.message_count, session.synced, session.kind)

    def end_run(self, end: RunEnd) -> Awaitable[bool]:
        """Store how it ended: begun now, done even if nobody waits."""
        return self._begin(self._end_run(end, self._turns.join()))  # its place is taken now

    def _begin(self, writing: Coroutine[None, None, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(writing)
        self._ends.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._ends.discard(task)
        if not task.cancelled() and task.exception() is not None:  # also when nobody waits
            logger.error("a record was lost", exc_info=task.exception())

    def note_call(self, call: ModelCall) -> Awaitable[None]:
        """Store what a call outside of any run cost: begun now, done even if nobody waits."""
        return self._begin(self._note_call(call, self._turns.join()))

    async def append(
        self, session_id: str, owner_id: str, messages: Sequence[NewMessage], run_id: str | None = None
    ) -> list[int]:
        """Append to a session; the indexes given."""
        async with self.unit_of_work() as work:
            return await work.raw_messages.append_to_session(session_id, owner_id, messages, run_id)

    async def renew(self, drafts: dict[str, str | None], lease_until: datetime) -> None:
        """Prolong leases, keep drafts."""
        async with self.unit_of_work() as work:
            for run_id, draft in drafts.items():
                kept = {} if draft is None else {"draft": draft}
                await work.runs.update_one(run_id, lease_until=lease_until, **kept)

    async def recover_runs(
        self, now: datetime | None, dead: frozenset[str], alive: frozenset[str], max_crashes: int
    ) -> Recovered:
        """End the runs of processes that are gone; this store has no background runs that could go on."""
        now = now or datetime.now(UTC)
        async with self.unit_of_work() as work:
            found = [
                run
                for run in await work.runs.active()
                if run.id not in alive and (_lapsed(run, now) or run.worker in dead)
            ]
            for run in found:
                await _lose(work, run, now)
            return Recovered([], [run.id for run in found], [])

    async def aclose(self) -> None:
        """Wait until everything that was begun is written."""
        while self._ends:
            await asyncio.gather(*self._ends, return_exceptions=True)

    async def _session_of(self, work: SurrealWork, start: RunStart) -> Session:
        if start.new_session:
            session = Session(
                id=start.session_id,
                owner_id=start.owner_id,
                kind=start.kind,
                agent=start.agent,
                title=start.title,
                model=start.model,
                metadata=start.metadata,
                created_at=start.created_at,
                updated_at=start.created_at,
                used_at=start.created_at,
            )
            return await work.sessions.create(session)
        await work.sessions.required(start.session_id, start.owner_id)
        for run in await work.runs.active(start.session_id):
            if not _lapsed(run, start.created_at):
                raise Conflict(
                    "Another run of this session is in progress; wait for it or cancel it.",
                    code="session_busy",
                    param="session_id",
                    retry_after=1,
                )
            await _lose(work, run, start.created_at)
        return await work.sessions.required(start.session_id, start.owner_id)

    async def _note_call(self, call: ModelCall, turn: "_Turn") -> None:
        async with self._write(turn) as work:
            work.model_calls.add(str(uuid7()), call)

    async def _end_run(self, end: RunEnd, turn: "_Turn") -> bool:
        async with self._write(turn) as work:
            run = await work.runs.find_one(id=end.id)
            for number, call in enumerate(end.calls):
                made = ModelCall(
                    owner_id=end.owner_id,
                    run_id=end.id if run else None,
                    session_id=run.session_id if run else None,
                    agent=end.agent,
                    model=call.model,
                    created_at=end.completed_at,
                    id=number,
                    **counted_columns(call.usage, call.cost_pico),
                )
                work.model_calls.add(str(uuid7()), made)
            if run is None or run.status not in ACTIVE:
                return False
            await work.runs.update_one(
                end.id,
                status=end.status,
                model=end.model,
                output=end.output,
                finish_reason=end.finish_reason,
                error_code=end.error_code,
                error_message=end.error_message,
                calls=len(end.calls),
                unmeasured_calls=end.unmeasured,
                unpriced_calls=end.unpriced,
                completed_at=end.completed_at,
                updated_at=end.completed_at,
                lease_until=None,
                draft=None,
                **counted_columns(end.usage, end.cost_pico),
            )
            row = {"run_id": end.id, "session_id": run.session_id, "first_seq": end.first_seq, "events": end.events}
            work.create(EVENTS, f"{end.id}_{end.first_seq:09}", row)
            session = await work.sessions.find_one(id=run.session_id) if run.session_id else None
            if session is not None:
                await _add(work, session, end.messages, end.id, end.completed_at, end.model, synced=end.synced)
            return True


class _Turn:
    """A place in the queue of writers."""

    def __init__(self, before: asyncio.Future[None] | None) -> None:
        self._before = before
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> None:
        if self._before is not None:
            try:
                await asyncio.shield(self._before)
            except asyncio.CancelledError:  # who does not wait any more lets the next one follow those before
                self._before.add_done_callback(lambda _: self._end())
                raise

    async def __aexit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


class _Turns:
    """First come, first served; the place is taken by asking, before anything is awaited."""

    def __init__(self) -> None:
        self._last: asyncio.Future[None] | None = None

    def join(self) -> _Turn:
        """A place at the end."""
        turn = _Turn(self._last)
        self._last = turn.over
        return turn


@asynccontextmanager
async def open_surreal_store(
    url: str, namespace: str = "routeur", database: str = "routeur"
) -> AsyncIterator[SurrealStore]:
    """The store at `mem://` or `surrealkv://<folder>`.

    Raises:
        SettingsError: it cannot be opened; the message names the setting.
    """
    async with open_engine(url, namespace, database) as engine:
        store = SurrealStore(engine)
        try:
            yield store
        finally:
            await store.aclose()


def _lapsed(run: Run, now: datetime) -> bool:
    return run.lease_until is not None and run.lease_until < now


async def _lose(work: SurrealWork, run: Run, now: datetime) -> None:
    ended = {"status": RunStatus.LOST, "error_code": _LOST_CODE, "error_message": _LOST_MESSAGE}
    await work.runs.update_one(run.id, **ended, completed_at=now, updated_at=now, lease_until=None, draft=None)
    session = await work.sessions.find_one(id=run.session_id) if run.session_id else None
    if run.draft and session is not None:
        data = {"type": "ai", "data": {"content": run.draft, "response_metadata": {"partial": True}}}
        part = SimplePart("assistant", run.draft, model=run.model, partial=True)
        message = NewMessage("langchain", orjson.dumps(data).decode(), [part], now)
        await _add(work, session, [message], run.id, now, run.model)


async def _add(
    work: SurrealWork,
    session: Session,
    messages: Sequence[NewMessage],
    run_id: str,
    now: datetime,
    model: str | None,
    *,
    synced: bool = False,
) -> None:
    work.raw_messages.write(session, messages, run_id)
    count = session.message_count + len(messages)
    changed = {"message_count": count, "updated_at": now, "model": model}
    await work.sessions.update_one(session.id, **changed, **({"synced": count} if synced else {}))
