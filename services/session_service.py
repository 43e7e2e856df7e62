"""Sessions for their owners: made, read, continued elsewhere, branched, exported, deleted.

What happens in a run is written by `run_recorder.py`; here is everything else that is done with a conversation.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import UUID, uuid5

from uuid_utils import uuid7

from domain.auth import Principal
from domain.enums import SessionKind
from domain.errors import Conflict, Forbidden, InvalidRequest, NotFound
from domain.messages import Message
from domain.ports import RecordStore, RecordWork
from domain.runs import ACTIVE, NewMessage, RunFilter, RunInfo
from domain.sessions import (
    Appended,
    AppendMessages,
    BranchPoint,
    MessageFormat,
    NewSession,
    RawMessage,
    RawMessageList,
    Session,
    SessionChange,
    SessionDetail,
    SessionExport,
    SessionInfo,
    SessionList,
    SessionUsage,
    SimpleMessage,
    SimpleMessageList,
)
from domain.text import one_line
from services.agent_messages import to_json
from services.cursors import decode_cursor, encode_cursor
from services.foreign_runs import ForeignRun, ForeignRuns, foreign_message
from services.message_transformer import MessageTransformer
from services.run_recorder import RunRecorder

_CHATS = UUID("6d0f6a55-0f0e-5a53-9d0b-3f1f1f0c7a11")  # the name space of chats that clients count themselves
_PAGE = 1_000  # rows read at once while a whole session is walked
_FIRST_PAGE = 100  # lines that `get_session` shows
_TITLE_CHARS = 200
_QUESTION_CHARS = 80  # of a question that becomes a title
MAX_EXPORT = 50_000  # messages; more is read page by page


class SessionMemory(Protocol):
    """What agents remember of a session beside the record (`graphs.checkpointing.Checkpoints`)."""

    async def forget(self, session_id: str) -> None:
        """Delete it."""
        ...

    async def cut(self, session_id: str, message_id: str, text: str) -> None:
        """Leave only `text` of a message that is remembered."""
        ...

    async def copy(self, session_id: str, branch_id: str, before: int) -> int | None:
        """Copy what was remembered before message `before`; the index it goes up to, None: nothing."""
        ...


class Agents(Protocol):
    """Which agents there are (`services.agent_registry.AgentRegistry`)."""

    default_agent: str

    def kind_of(self, key: str) -> SessionKind:
        """What sessions of that agent are counted as. Raises AgentNotFound."""
        ...


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions of the caller's; `metadata` values are compared as text."""

    agent: str | None = None
    kind: SessionKind | None = None
    metadata: dict[str, str] = field(default_factory=dict)


class SessionService:
    """The use cases of sessions. The owner is always the caller."""

    def __init__(self, store: RecordStore, recorder: RunRecorder, memory: SessionMemory, agents: Agents) -> None:
        self._store = store
        self._foreign = ForeignRuns(store, recorder)
        self._memory = memory
        self._agents = agents
        self._transformer = MessageTransformer()

    async def create(self, new: NewSession, caller: Principal, *, session_id: str | None = None) -> SessionInfo:
        """An empty session.

        Args:
            session_id: the id that it gets.

        Raises:
            AgentNotFound: there is no such agent, or no such member of the team.
            Forbidden: the caller's key does not allow it.
        """
        agent = new.agent or self._agents.default_agent
        if caller.allowed_agents and agent not in caller.allowed_agents:
            raise Forbidden(f"This key may not use the agent '{agent}'.", code="agent_not_allowed", param="agent")
        kind = self._agents.kind_of(agent)
        for member in new.agents:
            self._agents.kind_of(member)
        now = datetime.now(UTC)
        session = Session(
            id=session_id or str(uuid7()),
            owner_id=caller.user_id,
            kind=new.kind or kind,
            agent=agent,
            title=new.title,
            state=new.state,
            agents=new.agents,
            metadata=new.metadata,
            created_at=now,
            updated_at=now,
            used_at=now,
        )
        async with self._store.unit_of_work() as work:
            await work.sessions.create_session(session)
        return SessionInfo.of(session)

    async def of_chat(
        self,
        chat_id: str,
        agent: str,
        caller: Principal,
        question: str = "",
        *,
        first: Callable[[], Awaitable[object]] | None = None,
    ) -> str:
        """The caller's session for a chat that their client counts by ids of its own; made when it is new.

        Args:
            question: the title of a new one.
            first: awaited before a new one is made; what it raises is raised.

        Raises:
            AgentNotFound, Forbidden: as `create`.
        """
        session_id = str(uuid5(_CHATS, f"{caller.user_id}:{chat_id}"))
        async with self._store.reading() as work:
            if await work.sessions.owned(session_id, caller.user_id) is not None:
                return session_id
        if first is not None:
            await first()
        try:
            title = one_line(question.strip(), _QUESTION_CHARS)[:_TITLE_CHARS]
            await self.create(NewSession(agent=agent, title=title), caller, session_id=session_id)
        except Exception:
            async with self._store.reading() as work:
                if await work.sessions.owned(session_id, caller.user_id) is None:
                    raise  # else somebody made it at the same moment
        return session_id

    # -- reading --

    async def get_session(self, session_id: str, caller: Principal) -> SessionDetail:
        """One session with its usage and the first lines of its conversation.

        Raises:
            NotFound: the caller has no such session. So do all methods that name one.
        """
        async with self._store.reading() as work:
            session = await _required(work, session_id, caller)
            lines = await work.simple_messages.find_by_session_id(session_id, limit=_FIRST_PAGE)
            usage = await work.model_calls.usage_of_session(session_id)
        return SessionDetail(
            **SessionInfo.of(session).model_dump(),
            token_usage=usage,
            messages=lines,
            next_after=_next_after(lines, session),
        )

    async def recent(
        self, caller: Principal, wanted: SessionFilter | None = None, *, limit: int = 50, cursor: str | None = None
    ) -> SessionList:
        """The caller's sessions, the latest used first.

        Raises:
            InvalidRequest: the cursor is none of ours.
        """
        wanted = wanted or SessionFilter()
        after = decode_cursor(cursor)
        async with self._store.reading() as work:
            if wanted.agent is not None and wanted.kind is None and not wanted.metadata:
                found = await work.sessions.find_by_agent_id(wanted.agent, caller.user_id, limit=limit + 1, after=after)
            else:
                found = await work.sessions.find_recent_sessions(
                    caller.user_id,
                    limit=limit + 1,
                    after=after,
                    metadata=wanted.metadata,
                    kind=wanted.kind,
                    agent=wanted.agent,
                )
        shown = found[:limit]
        more = encode_cursor(shown[-1].used_at, shown[-1].id) if len(found) > limit else None
        return SessionList(sessions=[SessionInfo.of(session) for session in shown], next_cursor=more)

    async def get_sessions_by_agent(
        self, agent: str, caller: Principal, *, limit: int = 50, cursor: str | None = None
    ) -> SessionList:
        """The caller's sessions with one agent, the latest used first."""
        return await self.recent(caller, SessionFilter(agent=agent), limit=limit, cursor=cursor)

    async def get_messages(
        self, session_id: str, caller: Principal, *, after: int = -1, limit: int = 100
    ) -> SimpleMessageList:
        """A page of the simplified view, from the first message with an index above `after`."""
        async with self._store.reading() as work:
            session = await _required(work, session_id, caller)
            lines = await work.simple_messages.find_by_session_id(session_id, after=after, limit=limit)
        return SimpleMessageList(session_id=session_id, messages=lines, next_after=_next_after(lines, session))

    async def get_raw_messages(
        self, session_id: str, caller: Principal, *, after: int = -1, limit: int = 100
    ) -> RawMessageList:
        """A page of the raw messages."""
        async with self._store.reading() as work:
            session = await _required(work, session_id, caller)
            found = await work.raw_messages.find_by_session_id(session_id, after=after, limit=limit)
        return RawMessageList(session_id=session_id, messages=found, next_after=_next_after(found, session))

    async def usage(self, session_id: str, caller: Principal) -> SessionUsage:
        """What the session cost so far."""
        async with self._store.reading() as work:
            await _required(work, session_id, caller)
            return await work.model_calls.usage_of_session(session_id)

    # -- writing --

    async def append_to_session(self, session_id: str, body: AppendMessages, caller: Principal) -> Appended:
        """Append messages that no run of ours brought: ours, or those of another library with what they cost.

        Raises:
            Conflict: a run of the session is in progress (only for `raw`, which is stored as a run).
        """
        if body.raw is not None and body.format is not None:
            return await self._save(session_id, body.raw, body.format, caller)
        now = datetime.now(UTC)
        indexes = await self._store.append(
            session_id, caller.user_id, [self._of_ours(message, now) for message in body.messages or []]
        )
        return Appended(session_id=session_id, indexes=indexes)

    async def save_run(
        self,
        result: Any,
        caller: Principal,
        *,
        agent: str,
        session_id: str | None = None,
        kind: SessionKind = SessionKind.AGENT,
        metadata: dict[str, Any] | None = None,
        run_id: str | None = None,
    ) -> RunInfo:
        """Store a run that another library made: a pydantic-ai `AgentRunResult`, or anything with `new_messages_json`.

        Only what is new in it is stored and counted, never the history that it was given.

        Args:
            session_id: the session that it continues; a new one when None.
            run_id: makes this idempotent: a run of that id that the caller has already is given back as it is.

        Raises:
            NotFound: the caller has no such session.
            Conflict: another run of the session is in progress.
        """
        run_id = run_id or str(uuid7())
        async with self._store.reading() as work:
            known = await work.runs.owned(run_id, caller.user_id)
        if known is not None:
            return RunInfo.of(known)
        messages = self._transformer.run_messages(result)
        output = getattr(result, "output", None)
        foreign = ForeignRun(agent, kind, "pydantic-ai", messages, run_id, session_id, metadata or {}, output)
        await self._foreign.store(foreign, caller)
        async with self._store.reading() as work:
            stored = await work.runs.owned(run_id, caller.user_id)
        if stored is None:  # pragma: no cover - it was written a moment ago
            raise run_not_found()
        return RunInfo.of(stored)

    async def change(self, session_id: str, change: SessionChange, caller: Principal) -> SessionInfo:
        """Rename it, replace its metadata or its state."""
        values = {name: getattr(change, name) for name in change.model_fields_set}
        values = {name: value for name, value in values.items() if value is not None or name == "state"}
        async with self._store.unit_of_work() as work:
            await _required(work, session_id, caller)
            await work.sessions.update_session(session_id, caller.user_id, **values, updated_at=datetime.now(UTC))
            return SessionInfo.of(await _required(work, session_id, caller))

    async def delete(self, session_id: str, caller: Principal) -> None:
        """Delete it with messages, runs, events and checkpoints. What its model calls cost stays in the statistics.

        Raises:
            Conflict: a run of it is in progress.
        """
        async with self._store.unit_of_work() as work:
            await _required(work, session_id, caller)
            now = datetime.now(UTC)
            await work.sessions.update_session(session_id, caller.user_id, updated_at=now)  # nobody begins a run now
            active = await work.runs.find_runs(RunFilter(session_id=session_id, statuses=ACTIVE), limit=1)
            if any(run.lease_until is None or run.lease_until >= now for run in active):
                raise session_is_busy()
            await work.sessions.delete_session(session_id, caller.user_id)
        await self._memory.forget(session_id)

    async def branch(self, session_id: str, point: BranchPoint, caller: Principal) -> SessionInfo:
        """A new session with what stands before a message: to edit that message, or to ask again.

        Raises:
            InvalidRequest: `before` is beyond the end.
        """
        now = datetime.now(UTC)
        async with self._store.unit_of_work() as work:
            session = await _required(work, session_id, caller)
            before = session.message_count if point.before is None else point.before
            if before > session.message_count:
                raise InvalidRequest(f"The session has {session.message_count} messages.", param="before")
            title = one_line(f"{session.title} (branch)" if point.title is None else point.title, _TITLE_CHARS)
            made = session.model_copy(
                update={
                    "id": str(uuid7()),
                    "title": title,
                    "message_count": 0,
                    "synced": 0,
                    "parent_id": session_id,
                    "branched_at": before,
                    "created_at": now,
                    "updated_at": now,
                    "used_at": now,
                }
            )
            await work.sessions.create_session(made)
            after = -1
            while after + 1 < before:
                page = await work.raw_messages.find_by_session_id(
                    session_id, after=after, limit=min(_PAGE, before - 1 - after)
                )
                if not page:
                    break
                copies = [self._copied(raw) for raw in page]
                await work.raw_messages.append_to_session(made.id, caller.user_id, copies)
                after = page[-1].message_index
        synced = await self._memory.copy(session_id, made.id, before)
        async with self._store.unit_of_work() as work:
            if synced is not None:
                await work.sessions.update_session(made.id, caller.user_id, synced=min(synced, before))
            return SessionInfo.of(await _required(work, made.id, caller))

    async def cut_message(self, session_id: str, message_id: str, text: str, caller: Principal) -> bool:
        """Leave of an assistant's message what was heard of it, in the record and in what its agent remembers.

        False: no such message is stored.

        Raises:
            NotFound: the caller has no such session.
        """
        async with self._store.unit_of_work() as work:
            session = await _required(work, session_id, caller)
            found = await self._message(work, session, message_id)
            if found is None:
                return False
            inside = found.message_data["data"]
            told = {"reason": "not heard", **(inside.get("response_metadata") or {}), "partial": True}
            data = {**found.message_data, "data": {**inside, "content": text, "response_metadata": told}}
            cut = found.model_copy(update={"message_data": data})
            await work.raw_messages.cut(cut, self._transformer.transform_messages([cut]))
        await self._memory.cut(session_id, message_id, text)
        return True

    async def rebuild(self, session_id: str) -> int:
        """Derive the simplified view of a session again from its raw messages; how many lines it has now.

        For whoever runs the house: it asks for no owner, and shows nothing.
        """
        async with self._store.unit_of_work() as work:
            lines: list[SimpleMessage] = []
            async for page in _raw_pages(work, session_id):
                lines += self._transformer.transform_messages(page)
            await work.simple_messages.replace_for_session(session_id, lines)
            return len(lines)

    async def every_id(self) -> list[str]:
        """The ids of all sessions of everybody, the oldest first; for whoever runs the house."""
        found: list[str] = []
        async with self._store.reading() as work:
            while page := await work.sessions.ids(after=found[-1] if found else "", limit=_PAGE):
                found += page
        return found

    # -- taking it along --

    async def export(self, session_id: str, caller: Principal) -> SessionExport:
        """Everything there is of a session.

        Raises:
            TooLarge: more than MAX_EXPORT messages; read them page by page.
        """
        async with self._store.reading() as work:
            session = await _required(work, session_id, caller)
            if session.message_count > MAX_EXPORT:
                raise InvalidRequest(
                    f"A session of more than {MAX_EXPORT} messages is not exported at once; read it in pages.",
                    code="session_too_large",
                )
            raws = [raw async for page in _raw_pages(work, session_id) for raw in page]
            runs = await work.runs.find_runs(
                RunFilter(owner_id=caller.user_id, session_id=session_id), limit=MAX_EXPORT
            )
            usage = await work.model_calls.usage_of_session(session_id)
        return SessionExport(
            session=SessionInfo.of(session),
            token_usage=usage,
            messages=self._transformer.transform_messages(raws),
            raw_messages=raws,
            runs=[RunInfo.of(run) for run in reversed(runs)],
        )

    # -- inside --

    async def _message(self, work: RecordWork, session: Session, message_id: str) -> RawMessage | None:
        """A message by the id that its agent or model gave it; it is among the last ones."""
        after = max(-1, session.message_count - _PAGE)
        for raw in reversed(await work.raw_messages.find_by_session_id(session.id, after=after, limit=_PAGE)):
            if raw.format == "langchain" and (raw.message_data.get("data") or {}).get("id") == message_id:
                return raw
        return None

    async def _save(
        self, session_id: str, raw: list[dict[str, Any]], form: MessageFormat, caller: Principal
    ) -> Appended:
        async with self._store.reading() as work:
            session = await _required(work, session_id, caller)
        foreign = ForeignRun(session.agent, session.kind, form, raw, str(uuid7()), session_id, {}, None)
        first = await self._foreign.store(foreign, caller)
        return Appended(session_id=session_id, indexes=list(range(first, first + len(raw))))

    def _of_ours(self, message: Message, now: datetime) -> NewMessage:
        data = message.model_dump(mode="json")
        return foreign_message("message", data, now)

    def _copied(self, raw: RawMessage) -> NewMessage:
        parts = self._transformer.simple_parts(raw.format, raw.message_data)
        return NewMessage(raw.format, to_json(raw.message_data), parts, raw.timestamp)


async def require_session(store: RecordStore, session_id: str, caller: Principal) -> Session:
    """The caller's session.

    Raises:
        NotFound: they have none of that id.
    """
    async with store.reading() as work:
        return await _required(work, session_id, caller)


async def _required(work: RecordWork, session_id: str, caller: Principal) -> Session:
    session = await work.sessions.owned(session_id, caller.user_id)
    if session is None:
        raise NotFound("There is no such session.", code="session_not_found", param="session_id")
    return session


async def _raw_pages(work: RecordWork, session_id: str) -> AsyncIterator[list[RawMessage]]:
    after = -1
    while page := await work.raw_messages.find_by_session_id(session_id, after=after, limit=_PAGE):
        yield page
        after = page[-1].message_index


def session_is_busy() -> Conflict:
    """A run of it is going on."""
    return Conflict(
        "A run of this session is in progress; wait for it or cancel it.",
        code="session_busy",
        param="session_id",
        retry_after=1,
    )


def run_not_found() -> NotFound:
    """The same for a run that does not exist and for somebody else's."""
    return NotFound("There is no such run.", code="run_not_found", param="run_id")


def _next_after(shown: Sequence[SimpleMessage] | Sequence[RawMessage], session: Session) -> int | None:
    """Where the next page begins; None: nothing comes after these."""
    if not shown or shown[-1].message_index + 1 >= session.message_count:
        return None
    return shown[-1].message_index
