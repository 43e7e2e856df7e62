"""Small Protocols between the floors: services speak to these, `core` and tests implement them."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol, TypeVar

from domain.auth import Principal
from domain.background import Approval, Beat, EventBatch, HandOver, Limits, Pause, Recovered, Submission
from domain.enums import RunStatus
from domain.runs import Cursor, ModelCall, NewMessage, Progress, Run, RunBegun, RunEnd, RunFilter, RunStart
from domain.sessions import RawMessage, Session, SessionUsage, SimpleMessage
from domain.stats import StatsBy, StatsRow

Record = TypeVar("Record")


class Authenticator(Protocol):
    """Turns a credential into the one who holds it."""

    async def authenticate(self, credential: str) -> Principal:
        """The caller behind an access token (JWT) or an API key (`rk_...`).

        Raises:
            Unauthenticated: the credential is not good, or not any more.
        """
        ...


class Repository(Protocol[Record]):
    """What every kind of record can do, on every engine. Filters are equalities on the record's own fields."""

    async def create(self, record: Record) -> Record:
        """Store a new one. Raises Conflict (at the latest when the unit of work ends) when its id is taken."""
        ...

    async def find_one(self, **equals: Any) -> Record | None:
        """One that fits, or None."""
        ...

    async def find_many(self, *, limit: int = 100, **equals: Any) -> list[Record]:
        """Those that fit, in the order of their key, at most `limit`."""
        ...

    async def update_one(self, record_id: str, **values: Any) -> bool:
        """Change fields of one; False when there is none of that id."""
        ...

    async def delete_one(self, record_id: str) -> bool:
        """Remove one; False when there was none."""
        ...


class SessionRepository(Repository[Session], Protocol):
    """Sessions. Every question names the owner."""

    async def create_session(self, session: Session) -> Session:
        """`create`, by the seed's name."""
        ...

    async def owned(self, session_id: str, owner_id: str) -> Session | None:
        """The session, when it is that owner's."""
        ...

    async def update_session(self, session_id: str, owner_id: str, **values: Any) -> bool:
        """Change an owner's session; its metadata index goes with it. False: they have none of that id."""
        ...

    async def delete_session(self, session_id: str, owner_id: str) -> bool:
        """Remove it with messages, runs and events; what its model calls cost stays. False: none of that id."""
        ...

    async def find_by_agent_id(
        self, agent: str, owner_id: str, *, limit: int = 50, after: Cursor | None = None
    ) -> list[Session]:
        """An owner's sessions with one agent, the latest used first."""
        ...

    async def find_recent_sessions(
        self,
        owner_id: str,
        *,
        limit: int = 50,
        after: Cursor | None = None,
        metadata: dict[str, str] | None = None,
        kind: str | None = None,
        agent: str | None = None,
    ) -> list[Session]:
        """An owner's sessions, the latest used first."""
        ...

    async def ids(self, *, after: str, limit: int) -> list[str]:
        """Ids of anybody's sessions above `after`, in order."""
        ...

    async def idle_since(self, moment: datetime, limit: int, kind: str | None = None) -> list[Session]:
        """Sessions of anybody not used since `moment` and with no run in progress, the oldest first (retention)."""
        ...


class RawMessageRepository(Protocol):
    """Raw messages: appended, read, never changed, but for what was said aloud and not heard to its end."""

    async def create_for_session(
        self, session_id: str, owner_id: str, messages: Sequence[NewMessage], run_id: str | None = None
    ) -> list[int]:
        """The first messages of a session; as `append_to_session`."""
        ...

    async def append_to_session(
        self, session_id: str, owner_id: str, messages: Sequence[NewMessage], run_id: str | None = None
    ) -> list[int]:
        """Append; the indexes given, dense and in order whoever else appends. Writes the simple view too.

        Raises:
            NotFound: the owner has no such session.
        """
        ...

    async def cut(self, raw: RawMessage, lines: Sequence[SimpleMessage]) -> None:
        """Put `raw` in the place of the message of its index, and its lines in the simple view."""
        ...

    async def find_by_session_id(self, session_id: str, *, after: int = -1, limit: int = 1_000) -> list[RawMessage]:
        """Messages with an index above `after`, in order."""
        ...


class SimpleMessageRepository(Protocol):
    """The simplified view: derived from the raw messages, so it can be derived again."""

    async def find_by_session_id(self, session_id: str, *, after: int = -1, limit: int = 1_000) -> list[SimpleMessage]:
        """Lines of raw messages with an index above `after`, in order; those of one raw message stay together."""
        ...

    async def replace_for_session(self, session_id: str, messages: Sequence[SimpleMessage]) -> None:
        """Put these in the place of all there are."""
        ...


class RunRepository(Repository[Run], Protocol):
    """Runs."""

    async def owned(self, run_id: str, owner_id: str) -> Run | None:
        """The run, when it is that owner's."""
        ...

    async def find_runs(self, wanted: RunFilter, *, limit: int = 50, after: Cursor | None = None) -> list[Run]:
        """Those that fit, newest first."""
        ...

    async def in_progress(self, owner_id: str | None, now: datetime) -> list[Run]:
        """Runs that are active and whose lease holds, newest first."""
        ...

    async def holders(self) -> set[str]:
        """The workers that hold runs."""
        ...

    async def progress(self, run_ids: Sequence[str]) -> dict[str, Progress]:
        """How far runs have come."""
        ...

    async def statistics(self, wanted: RunFilter, by: StatsBy, key: str | None = None) -> list[StatsRow]:
        """Counts and sums by group, the largest group first; `key` is the metadata key to group by."""
        ...

    async def events(self, run_id: str, after: int = 0) -> list[str]:
        """The stored events of a run: JSON arrays, in order, from the one that holds `after + 1` on."""
        ...


class ModelCallRepository(Protocol):
    """What model calls cost."""

    async def usage_of_session(self, session_id: str) -> SessionUsage:
        """Sums over the calls of one session."""
        ...

    async def of_run(self, run_id: str) -> list[ModelCall]:
        """The calls of one run, in order."""
        ...

    async def outside_runs(self, owner_id: str, *, limit: int = 100) -> list[ModelCall]:
        """An owner's calls that were no part of a run (embeddings), newest first."""
        ...


class RecordWork(Protocol):
    """The repositories of one transaction."""

    @property
    def sessions(self) -> SessionRepository: ...
    @property
    def raw_messages(self) -> RawMessageRepository: ...
    @property
    def simple_messages(self) -> SimpleMessageRepository: ...
    @property
    def runs(self) -> RunRepository: ...
    @property
    def model_calls(self) -> ModelCallRepository: ...


class RecordStore(Protocol):
    """Where sessions and runs are kept. One contract suite runs over every implementation."""

    def unit_of_work(self) -> AbstractAsyncContextManager[RecordWork]:
        """A transaction that may write: all of it is kept, or nothing."""
        ...

    def reading(self) -> AbstractAsyncContextManager[RecordWork]:
        """A transaction that only reads."""
        ...

    async def begin_run(self, start: RunStart) -> RunBegun:
        """Store the run with what it was asked (and its session, when new).

        When it returns, it survives the death of the process; that of the machine, with its end at the latest.

        Raises:
            NotFound: the owner has no such session.
            Conflict: another run of that session is in progress (code `session_busy`).
        """
        ...

    def end_run(self, end: RunEnd) -> Awaitable[bool]:
        """Store how it ended and what it brought. Begun when called, done even if nobody waits; durable when awaited.

        Gives False, and changes nothing, when the run had ended before (a lease that ran out): late results are
        dropped, but the calls they cost are kept.
        """
        ...

    def note_call(self, call: ModelCall) -> Awaitable[None]:
        """Store what a call outside of any run cost. Begun when called, done even if nobody waits.

        Durable when awaited.

        Raises (when awaited):
            Unavailable: it cannot be written.
        """
        ...

    async def append(
        self, session_id: str, owner_id: str, messages: Sequence[NewMessage], run_id: str | None = None
    ) -> list[int]:
        """`append_to_session` in a transaction of its own, together with whoever else writes now.

        Raises:
            NotFound: the owner has no such session.
        """
        ...

    async def renew(self, drafts: dict[str, str | None], lease_until: datetime) -> None:
        """Prolong the leases of these runs; a text is what has arrived of the answer, None: nothing new."""
        ...

    async def recover_runs(
        self, now: datetime | None, dead: frozenset[str], alive: frozenset[str], max_crashes: int
    ) -> Recovered:
        """See to the active runs whose lease is over, or whose worker is known to be dead.

        Background runs that may go on are queued again; all others are `lost`, and what had arrived of them becomes a
        partial message.

        Args:
            now: of the store's own clock when None.
            dead: workers that are certainly gone.
            alive: runs that are, whatever the clock says.
            max_crashes: workers that a run may see die.
        """
        ...


class RunBacklog(Protocol):
    """Background runs in the record: the truth about who may run what. One contract suite for every engine.

    Whoever runs something holds its `attempt`; what is written with an older one is dropped.
    """

    async def submit(self, new: Submission, also: "Also | None" = None) -> bool:
        """Write down a queued run. Durable when it returns; `also` is done in the same transaction, and may say no.

        Raises:
            NotFound: the owner has no such session.
            Conflict: its session is busy, and the caller would rather not wait.
            RateLimited: the owner has too many in the queue.
        """
        ...

    async def submit_in(self, work: Any, new: Submission) -> None:
        """`submit` as a part of an open unit of work."""
        ...

    async def depth(self, limit: int) -> int:
        """How many runs are in the queue; counted up to `limit`."""
        ...

    async def standing(self, run_id: str) -> tuple[RunStatus, str | None, int, datetime] | None:
        """A run's status, session, priority, and when it may begin; None: there is no such run."""
        ...

    async def claim(self, worker: str, limits: Limits, lease: timedelta, run_id: str | None = None) -> list[Run]:
        """Take queued runs that may begin now, the most urgent first; with `run_id`, only that one."""
        ...

    async def keep_events(self, batches: Sequence[EventBatch], lease: timedelta) -> set[str]:
        """Append what runs have told, and prolong their leases. Ids of those that are somebody else's by now."""
        ...

    async def beat(self, beats: Sequence[Beat], worker: str, lease: timedelta) -> dict[str, RunStatus]:
        """Prolong leases, keep drafts; how each run stands. One that is missing is somebody else's by now."""
        ...

    async def pause(self, pause: Pause, batch: EventBatch | None) -> bool:
        """Let go of a run that waits, or goes back to the queue. False: it is somebody else's by now."""
        ...

    async def hand_over(self, one: HandOver, batch: EventBatch) -> bool:
        """Make an attached run one that waits in the background. False: its end was asked for meanwhile."""
        ...

    async def cancel(self, run_id: str, owner_id: str) -> RunStatus:
        """Ask for a run's end: at once when nobody runs it, else its worker is to see to it. The state it is in now.

        Raises:
            NotFound: the owner has no such run.
        """
        ...

    async def cancelling(self, worker: str) -> list[str]:
        """Runs of that worker whose end was asked for."""
        ...

    async def answer(
        self, run_id: str, owner_id: str, approval_id: str, *, approved: bool, answer: Any, by: str
    ) -> RunStatus:
        """Answer an approval, once; when it was the last one open, the run is queued again. The state it is in now.

        Raises:
            NotFound: the owner has no such run, or the run no such approval.
            Conflict: it is answered already, or the run has ended.
        """
        ...

    async def approvals(self, run_id: str) -> list[Approval]:
        """What the run has asked, in order."""
        ...

    async def waiting_for_a_worker(self, since: datetime, limit: int) -> list[tuple[str, str | None, int]]:
        """Queued runs that could have begun before `since`: id, session, priority."""
        ...

    async def set_mark(self, run_id: str, attempt: int, mark: str) -> None:
        """The checkpoint from which a run goes on; when it has moved, earlier crashes are forgiven."""
        ...

    async def threads_to_forget(self, limit: int) -> list[str]:
        """Ended runs whose checkpoints are still there."""
        ...

    async def thread_forgotten(self, run_id: str) -> None:
        """They are gone."""
        ...

    async def trim_events(self, before: datetime, limit: int) -> int:
        """Delete events of runs that ended before; of how many runs."""
        ...


SignalKind = Literal["events", "cancel", "queue"]


class RunSignals(Protocol):
    """Tells other processes at once what they would find out by looking. Lost signals cost time, never truth."""

    @property
    def poll(self) -> float:
        """Seconds after which who waits had better look for themselves."""
        ...

    def tell(self, kind: SignalKind, run_ids: Sequence[str] = ()) -> None:
        """Say that these runs have new events, are to be cancelled, or that the queue has something. Never waits."""
        ...

    def hear(self, listener: Callable[[SignalKind, str], None]) -> None:
        """From now on, call `listener` on the loop for everything that other processes tell."""
        ...


class RunQueue(Protocol):
    """Carries run ids to workers. The record is the truth: a delivery too many is harmless, a lost one is found."""

    async def submit(self, new: Submission, also: "Also | None" = None) -> bool:
        """Write the run down and see that a worker is told: both, or neither. As `RunBacklog.submit`."""
        ...

    async def wake(self, run_id: str, session_id: str | None, priority: int, at: datetime) -> None:
        """A run of the queue may begin (again) at that moment."""
        ...

    def nudge(self) -> None:
        """The worker has room again."""
        ...

    async def work(self, worker: "Worker") -> None:
        """Hand runs to `worker` until cancelled."""
        ...


#: Something else to be done in a unit of work; False: nothing of it is to be done.
Also = Callable[[Any], Awaitable[bool]]


class Worker(Protocol):
    """Who runs runs."""

    @property
    def room(self) -> int:
        """How many more it takes now; 0: none, it is full or being drained."""
        ...

    async def take(self, run_id: str | None = None) -> int:
        """Claim what may begin now (only that one), and run it in tasks of its own; how many were taken."""
        ...

    async def finished(self, run_id: str) -> None:
        """Return when that run is no longer here."""
        ...
