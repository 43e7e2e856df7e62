"""Small Protocols between the floors: services speak to these, `core` and tests implement them."""

from collections.abc import Awaitable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Protocol, TypeVar

from domain.auth import Principal
from domain.runs import Cursor, ModelCall, NewMessage, Run, RunBegun, RunEnd, RunFilter, RunStart
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
    """Raw messages: appended, read, never changed."""

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

    async def statistics(self, wanted: RunFilter, by: StatsBy, key: str | None = None) -> list[StatsRow]:
        """Counts and sums by group, the largest group first; `key` is the metadata key to group by."""
        ...

    async def events(self, run_id: str) -> list[str]:
        """The stored events of a run: JSON arrays, in order."""
        ...


class ModelCallRepository(Protocol):
    """What model calls cost."""

    async def usage_of_session(self, session_id: str) -> SessionUsage:
        """Sums over the calls of one session."""
        ...

    async def of_run(self, run_id: str) -> list[ModelCall]:
        """The calls of one run, in order."""
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

    async def lose_dead_runs(self, now: datetime, dead: frozenset[str]) -> int:
        """End as `lost` the active runs whose lease is over, or whose worker is known to be dead.

        What had arrived becomes a partial message. How many there were.
        """
        ...
