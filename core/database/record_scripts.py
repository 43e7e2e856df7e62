"""The writes of every run, as scripts: SQL that SQLite and PostgreSQL both read, apart from who executes it.

A script is a generator: it yields a statement with its values and is sent the rows (how many it changed, when it has
none). The batching writers run scripts on a connection of their own (this is the path of every request: SQLAlchemy
would cost more than the database), the repositories run the same ones inside a unit of work.
"""

import re
import zlib
from collections.abc import Generator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

import orjson

from domain.background import Recovered
from domain.enums import RunStatus, SessionKind
from domain.errors import Conflict, NotFound
from domain.runs import (
    HOLDING,
    ModelCall,
    NewMessage,
    RunBegun,
    RunEnd,
    RunStart,
    SimplePart,
    counted_columns,
    metadata_text,
)

Values = dict[str, Any]
Row = tuple[Any, ...]
#: A statement, and its values: one dict, or a list of them for as many executions.
Step = tuple[str, Values | list[Values]]
T = TypeVar("T")
Script = Generator[Step, list[Row], T]

_PLACEHOLDER = re.compile(r"(?<!:):([a-z_]+)")
_BUSY_RETRY = 1.0  # seconds
_HOLDING = ", ".join(f"'{status.value}'" for status in sorted(HOLDING))
LOST_CODE, LOST_MESSAGE = "run_lost", "The process that ran it is gone."
CANCELLED_MESSAGE = "Cancelled by its owner."
_LONGEST_APART = 60.0  # seconds
POISONOUS_MESSAGE = "Every process that ran it died; it is not tried again."


class Codec:
    """How an engine's driver wants its values."""

    def __init__(self, dialect: str) -> None:
        self.dialect = dialect
        self._last: tuple[datetime | None, str] = (None, "")  # one moment is written many times

    def moment(self, value: datetime | None) -> Any:
        """A moment: SQLite keeps text in UTC, as SQLAlchemy writes and reads it."""
        if value is None or self.dialect != "sqlite":
            return value
        if value is not self._last[0]:
            there = value if value.tzinfo is UTC else value.astimezone(UTC)
            self._last = (value, there.isoformat(" ", "microseconds")[:-6])  # without the offset
        return self._last[1]

    def read_moment(self, value: Any) -> datetime | None:
        """A moment that came back."""
        if value is None or self.dialect != "sqlite":
            moment: datetime | None = value
            return moment
        return datetime.fromisoformat(value).replace(tzinfo=UTC)

    def read_json(self, value: Any) -> Any:
        """JSON that came back: psycopg has read it already."""
        return orjson.loads(value) if value is not None and self.dialect == "sqlite" else value


def insert_into(table: str, *columns: str) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(f':{name}' for name in columns)})"


_NEW_SESSION = (
    "INSERT INTO sessions (id, owner_id, kind, agent, title, model, agents, metadata, message_count, synced,"
    " created_at, updated_at, used_at) VALUES (:session_id, :owner_id, :kind, :agent, :title, :model, '[]', :metadata,"
    " :count, 0, :at, :at, :at)"
)
_FREE_SESSION = (
    "UPDATE runs SET status = 'lost', error_code = :code, error_message = :message, completed_at = :at,"
    f" updated_at = :at, lease_until = NULL WHERE session_id = :session_id AND status IN ({_HOLDING})"
    " AND lease_until < :at AND NOT background RETURNING id, draft"
)
_QUEUED = "SELECT id FROM runs WHERE session_id = :session_id AND status = 'queued' LIMIT 1"
_CLAIM = f"SELECT id FROM runs WHERE session_id = :session_id AND status IN ({_HOLDING}) LIMIT 1"
_BUMP = (
    "UPDATE sessions SET message_count = message_count + :count, updated_at = :at, used_at = :at"
    " WHERE id = :session_id AND owner_id = :owner_id RETURNING message_count - :count, synced, kind"
)
_RAW = insert_into(*("raw_messages", "session_id", "message_index", "run_id", "format", "message_data", "timestamp"))
_SIMPLE = insert_into(
    *("simple_messages", "session_id", "message_index", "part", "run_id", "role", "kind", "content", "name"),
    *("model", "partial", "timestamp"),
)
_RUN = (
    "INSERT INTO runs (id, owner_id, session_id, kind, agent, model, status, input, metadata, estimated, calls,"
    " unmeasured_calls, unpriced_calls, created_at, started_at, updated_at, lease_until, worker, request)"
    " VALUES (:id, :owner_id, :session_id, :kind, :agent, :model, 'running', :input, :metadata, :no, 0, 0, 0,"
    " :at, :at, :at, :lease, :worker, :request)"
)
_RUN_METADATA = insert_into("run_metadata", "run_id", "key", "value", "owner_id", "created_at")
_SESSION_METADATA = insert_into("session_metadata", "session_id", "key", "value", "owner_id")
_COUNTED = tuple(counted_columns(None, None))
_END = (
    "UPDATE runs SET status = :status, model = :model, output = :output, finish_reason = :finish_reason,"
    " error_code = :error_code, error_message = :error_message, calls = :calls, unmeasured_calls = :unmeasured,"
    " unpriced_calls = :unpriced, completed_at = :at, updated_at = :at, lease_until = NULL, draft = NULL, "
    + ", ".join(f"{name} = :{name}" for name in _COUNTED)
    + f", dead = :dead, last_seq = :last_seq WHERE id = :id AND attempt = :attempt AND status IN ({_HOLDING})"
)
_RUN_OF = "SELECT session_id FROM runs WHERE id = :id"
_CALL = insert_into("model_calls", "owner_id", "run_id", "session_id", "agent", "model", *_COUNTED, "created_at")
_EVENTS = insert_into("run_events", "run_id", "first_seq", "last_seq", "events", "at")
_FORGET_EVENTS = "DELETE FROM run_events WHERE run_id = :run_id AND first_seq >= :first_seq"
_NOTIFY = (
    "INSERT INTO webhook_deliveries (run_id, owner_id, url, status, attempts, next_at, created_at)"
    " SELECT id, owner_id, webhook, 'pending', 0, :at, :at FROM runs WHERE id = :id AND webhook IS NOT NULL"
)
_DEAD = frozenset({RunStatus.FAILED, RunStatus.TIMEOUT, RunStatus.LOST})
_AFTER = (
    "UPDATE sessions SET message_count = message_count + :count, updated_at = :at, model = :model,"
    " synced = CASE WHEN :synced = 1 THEN message_count + :count ELSE synced END"
    " WHERE id = :session_id RETURNING message_count - :count"
)
#: Whoever renews may not know yet that it has become a background run: one that waits has no lease.
_ATTACHED = " AND status IN ('cancelling', 'running') AND NOT background"
_RENEW = "UPDATE runs SET lease_until = :lease WHERE id = :id" + _ATTACHED
_RENEW_DRAFT = "UPDATE runs SET lease_until = :lease, draft = :draft WHERE id = :id" + _ATTACHED
_HELD = (
    "SELECT id, session_id, draft, model, worker, lease_until, background, status, may_resume, crashes FROM runs"
    f" WHERE status IN ({_HOLDING})"
)
_LOSE = (
    "UPDATE runs SET status = :status, error_code = :code, error_message = :message, completed_at = :now,"
    " updated_at = :now, lease_until = NULL, worker = NULL, draft = NULL, dead = :dead"
    f" WHERE id = :id AND status IN ({_HOLDING})"
)
_REQUEUE = (
    "UPDATE runs SET status = 'queued', available_at = :later, updated_at = :now, lease_until = NULL, worker = NULL,"
    f" draft = NULL, crashes = crashes + 1 WHERE id = :id AND status IN ({_HOLDING})"
)


def to_qmark(sql: str) -> tuple[str, list[str]]:
    """The same statement with placeholders by place, and the names in their order."""
    return _PLACEHOLDER.sub("?", sql), _PLACEHOLDER.findall(sql)


def to_pyformat(sql: str) -> str:
    """The same statement with psycopg's placeholders."""
    return _PLACEHOLDER.sub(r"%(\1)s", sql.replace("%", "%%"))


def begin_run(codec: Codec, start: RunStart) -> Script[RunBegun]:
    """The run, its session when new, and what it was asked.

    Raises:
        NotFound: the owner has no such session.
        Conflict: another run of that session is in progress.
    """
    at = codec.moment(start.created_at)
    metadata = orjson.dumps(start.metadata).decode() if start.metadata else "{}"
    session = {"session_id": start.session_id, "owner_id": start.owner_id, "count": len(start.messages), "at": at}
    begun = RunBegun(start.session_id, 0, 0, start.kind)
    if start.new_session:
        yield from write_session(codec, start, len(start.messages))
    else:
        yield from _free(codec, start.session_id, start.created_at)
        rows = yield _BUMP, session
        if not rows:
            raise session_not_found()
        begun = RunBegun(start.session_id, rows[0][0], rows[0][1], SessionKind(rows[0][2]))
        # The row of the session is locked by now: who asks next sees our run. The unique index is the last word.
        one = {"session_id": start.session_id}
        if (yield _CLAIM, one) or (yield _QUEUED, one):
            raise session_busy()
    yield (
        _RUN,
        {
            "id": start.id,
            "owner_id": start.owner_id,
            "session_id": start.session_id,
            "kind": begun.kind.value,
            "agent": start.agent,
            "model": start.model,
            "input": orjson.dumps(start.input).decode(),
            "metadata": metadata,
            "no": False,
            "at": at,
            "lease": codec.moment(start.lease_until),
            "worker": start.worker,
            "request": None if start.request is None else orjson.dumps(start.request).decode(),
        },
    )
    yield from _write_messages(codec, start.session_id, begun.first_index, start.messages, start.id)
    yield from write_metadata(codec, start)
    return begun


class NewRun(Protocol):
    """What a run that begins at once and one that is queued have in common."""

    @property
    def id(self) -> str: ...
    @property
    def owner_id(self) -> str: ...
    @property
    def session_id(self) -> str: ...
    @property
    def new_session(self) -> bool: ...
    @property
    def kind(self) -> SessionKind: ...
    @property
    def agent(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def metadata(self) -> dict[str, Any]: ...
    @property
    def created_at(self) -> datetime: ...


def write_session(codec: Codec, run: NewRun, count: int = 0) -> Script[None]:
    """The new session of a run, of which `count` messages follow."""
    yield (
        _NEW_SESSION,
        {
            "session_id": run.session_id,
            "owner_id": run.owner_id,
            "count": count,
            "at": codec.moment(run.created_at),
            "kind": run.kind.value,
            "agent": run.agent,
            "title": run.title,
            "model": run.model,
            "metadata": orjson.dumps(run.metadata).decode() if run.metadata else "{}",
        },
    )


def write_metadata(codec: Codec, run: NewRun) -> Script[None]:
    """The index of a run's metadata, and that of its session when new."""
    if not run.metadata:
        return
    at = codec.moment(run.created_at)
    pairs = [(key, metadata_text(value)) for key, value in run.metadata.items()]
    owner = {"owner_id": run.owner_id}
    yield (
        _RUN_METADATA,
        [{"run_id": run.id, "key": key, "value": value, "created_at": at} | owner for key, value in pairs],
    )
    if run.new_session:
        yield (
            _SESSION_METADATA,
            [{"session_id": run.session_id, "key": key, "value": value} | owner for key, value in pairs],
        )


def append_to(
    codec: Codec, session_id: str, owner_id: str, messages: Sequence[NewMessage], run_id: str | None, at: datetime
) -> Script[tuple[int, int]]:
    """Messages at the end of a session: the index of the first, and how many the agent's checkpoint holds.

    Raises:
        NotFound: the owner has no such session.
    """
    session = {"session_id": session_id, "owner_id": owner_id, "count": len(messages), "at": codec.moment(at)}
    rows = yield _BUMP, session
    if not rows:
        raise session_not_found()
    first: int = rows[0][0]
    yield from _write_messages(codec, session_id, first, messages, run_id)
    return first, rows[0][1]


def forget_events(run_id: str, first_seq: int) -> Script[None]:
    """Delete what a run has told from there on; it is written again at once."""
    yield _FORGET_EVENTS, {"run_id": run_id, "first_seq": first_seq}


def notify_of_end(run_id: str, at: Any) -> Script[None]:
    """Have the owner told, where a webhook was given."""
    yield _NOTIFY, {"id": run_id, "at": at}


def end_run(codec: Codec, end: RunEnd) -> Script[bool]:
    """How it ended, once; what its calls cost, always."""
    at = codec.moment(end.completed_at)
    counted = counted_columns(end.usage, end.cost_pico)
    run = {
        "id": end.id,
        "status": end.status.value,
        "model": end.model,
        "output": None if end.output is None else orjson.dumps(end.output).decode(),
        "finish_reason": end.finish_reason,
        "error_code": end.error_code,
        "error_message": end.error_message,
        "calls": len(end.calls),
        "unmeasured": end.unmeasured,
        "unpriced": end.unpriced,
        "at": at,
        "attempt": end.attempt,
        "dead": bool(end.attempt) and end.status in _DEAD,
        "last_seq": end.last_seq,
        **counted,
    }
    ended = changed((yield _END, run))
    run_id: str | None = end.id
    session_id = end.session_id
    if not ended:
        rows = yield _RUN_OF, {"id": end.id}
        run_id, session_id = (end.id, rows[0][0]) if rows else (None, None)  # it may be deleted by now
    calls = end.calls[end.written :]
    if calls:
        call = {
            "owner_id": end.owner_id,
            "run_id": run_id,
            "session_id": session_id,
            "agent": end.agent,
            "created_at": at,
        }
        yield (
            _CALL,
            [call | counted_columns(one.usage, one.cost_pico) | {"model": one.model} for one in calls],
        )
    if not ended:
        return False
    if end.attempt:  # what was told of it so far stands in many small rows: now they become one
        yield from forget_events(end.id, end.first_seq)
        yield from notify_of_end(end.id, at)
    yield (
        _EVENTS,
        {"run_id": end.id, "first_seq": end.first_seq, "last_seq": end.last_seq, "events": end.events, "at": at},
    )
    if session_id is not None:
        after = {
            "session_id": session_id,
            "count": len(end.messages),
            "at": at,
            "model": end.model,
            "synced": int(end.synced),
        }
        rows = yield _AFTER, after
        yield from _write_messages(codec, session_id, rows[0][0], end.messages, end.id)
    return True


def note_call(codec: Codec, call: ModelCall) -> Script[None]:
    """What one call cost that is no part of a run."""
    values = call.model_dump(exclude={"id"})
    yield _CALL, values | {"created_at": codec.moment(call.created_at)}


def append_messages(
    codec: Codec, session_id: str, owner_id: str, messages: Sequence[NewMessage], run_id: str | None, at: datetime
) -> Script[list[int]]:
    """Messages at the end of a session; the indexes they were given.

    Raises:
        NotFound: the owner has no such session.
    """
    first, _ = yield from append_to(codec, session_id, owner_id, messages, run_id, at)
    return list(range(first, first + len(messages)))


def renew(codec: Codec, drafts: Mapping[str, str | None], lease_until: datetime) -> Script[None]:
    """Prolong the leases of these runs; a text is the draft so far."""
    lease = codec.moment(lease_until)
    quiet = [{"id": run_id, "lease": lease} for run_id, draft in drafts.items() if draft is None]
    grown = [{"id": run_id, "lease": lease, "draft": draft} for run_id, draft in drafts.items() if draft is not None]
    if quiet:
        yield _RENEW, quiet
    if grown:
        yield _RENEW_DRAFT, grown


def recover_runs(
    codec: Codec, now: datetime | None, dead: frozenset[str], alive: frozenset[str], max_crashes: int
) -> Script[Recovered]:
    """What becomes of the runs of processes that are gone: background runs go on, where they may; all others are lost.

    A worker that is not dead after all writes nothing more: the run is not in progress, or has another attempt by then.

    Args:
        dead: workers that are known to be gone; of the others, the lease says it.
        alive: runs of the process that asks; they are alive, whatever the clock says.
        max_crashes: workers that a run may see die without making progress; then it is taken for the cause.
    """
    now = yield from clock(codec, now)
    moment = codec.moment(now)
    recovered = Recovered([], [], [])
    for run_id, session_id, draft, model, worker, lease, background, status, may_resume, crashes in (yield _HELD, {}):
        lapsed = lease is not None and lease < moment
        if run_id in alive or not (lapsed or worker in dead):
            continue
        run = {"id": run_id, "now": moment}
        if background and status == "running" and may_resume and crashes < max_crashes:
            later = codec.moment(now + _apart(run_id, crashes))
            if changed((yield _REQUEUE, run | {"later": later})):
                recovered.requeued.append(run_id)
            continue
        cancelled = background and status == "cancelling"
        fate = _fate(bool(background), cancelled=cancelled, poisoned=bool(may_resume))
        if not changed((yield _LOSE, run | fate)):
            continue
        (recovered.cancelled if cancelled else recovered.lost).append(run_id)
        if background:
            yield from notify_of_end(run_id, moment)
        if draft and session_id:
            yield from _keep_draft(codec, session_id, run_id, draft, model, now)
    return recovered


def _apart(run_id: str, crashes: int) -> timedelta:
    """How long a run waits that has seen `crashes` deaths and made no progress since.

    Not at all at first. Later the runs of one process come back at different times, so that the one that kills it dies
    without the others, and they get on meanwhile.
    """
    longest = min(_LONGEST_APART, 2.0**crashes / 2) if crashes else 0.0
    part = zlib.crc32(f"{run_id}{crashes}".encode()) / 2**32
    return timedelta(seconds=longest * part)


def clock(codec: Codec, now: datetime | None = None) -> Script[datetime]:
    """The time that leases are compared by: the server's where machines share one, else this machine's."""
    if now is not None:
        return now
    if codec.dialect == "sqlite":
        return datetime.now(UTC)
    rows = yield "SELECT clock_timestamp()", {}
    told: datetime = rows[0][0]
    return told


def _fate(background: bool, *, cancelled: bool, poisoned: bool) -> Values:
    if cancelled:
        return {"status": "cancelled", "code": "run_cancelled", "message": CANCELLED_MESSAGE, "dead": False}
    if background and poisoned:
        return {"status": "lost", "code": "run_poisonous", "message": POISONOUS_MESSAGE, "dead": True}
    return {"status": "lost", "code": LOST_CODE, "message": LOST_MESSAGE, "dead": background}


def _free(codec: Codec, session_id: str, now: datetime) -> Script[None]:
    """Let go of a session whose run has outlived its lease: its process is dead."""
    values = {"session_id": session_id, "at": codec.moment(now), "code": LOST_CODE, "message": LOST_MESSAGE}
    for run_id, draft in (yield _FREE_SESSION, values):
        if draft:
            yield from _keep_draft(codec, session_id, run_id, draft, None, now)


def _keep_draft(
    codec: Codec, session_id: str, run_id: str, draft: str, model: str | None, now: datetime
) -> Script[None]:
    part = SimplePart("assistant", draft, model=model, partial=True)
    data = {"type": "ai", "data": {"content": draft, "response_metadata": {"partial": True}}}
    message = NewMessage("langchain", orjson.dumps(data).decode(), [part], now)
    after = {"session_id": session_id, "count": 1, "at": codec.moment(now), "model": model, "synced": 0}
    rows = yield _AFTER, after
    if rows:
        yield from _write_messages(codec, session_id, rows[0][0], [message], run_id)


def _write_messages(
    codec: Codec, session_id: str, first: int, messages: Sequence[NewMessage], run_id: str | None
) -> Script[None]:
    raws: list[Values] = []
    lines: list[Values] = []
    for index, message in enumerate(messages, first):
        place = {
            "session_id": session_id,
            "message_index": index,
            "run_id": run_id,
            "timestamp": codec.moment(message.created_at),
        }
        raws.append({**place, "format": message.format, "message_data": message.data})
        for number, part in enumerate(message.simple):
            lines.append(
                {
                    **place,
                    "part": number,
                    "role": part.role,
                    "kind": part.kind,
                    "content": part.content,
                    "name": part.name,
                    "model": part.model,
                    "partial": part.partial,
                }
            )
    if raws:
        yield _RAW, raws
    if lines:
        yield _SIMPLE, lines


def changed(rows: list[Row]) -> bool:
    """True when a statement without rows changed one; asking for RETURNING would cost as much as a small insert."""
    return bool(rows[0][0] == 1)


def session_not_found() -> NotFound:
    """The same for a session that does not exist and for somebody else's."""
    return NotFound("There is no such session.", code="session_not_found", param="session_id")


def session_busy() -> Conflict:
    """A session answers one at a time."""
    return Conflict(
        "Another run of this session is in progress; wait for it or cancel it.",
        code="session_busy",
        param="session_id",
        retry_after=_BUSY_RETRY,
    )
