"""The writes of every run, as scripts: SQL that SQLite and PostgreSQL both read, apart from who executes it.

A script is a generator: it yields a statement with its values and is sent the rows (how many it changed, when it has
none). The batching writers run scripts on a connection of their own (this is the path of every request: SQLAlchemy
would cost more than the database), the repositories run the same ones inside a unit of work.
"""

import re
from collections.abc import Generator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import orjson

from domain.enums import SessionKind
from domain.errors import Conflict, NotFound
from domain.runs import (
    ACTIVE,
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
_ACTIVE = ", ".join(f"'{status.value}'" for status in sorted(ACTIVE))
LOST_CODE, LOST_MESSAGE = "run_lost", "The process that ran it is gone."


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
            self._last = (value, value.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds"))
        return self._last[1]


def _insert(table: str, *columns: str) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(f':{name}' for name in columns)})"


_NEW_SESSION = (
    "INSERT INTO sessions (id, owner_id, kind, agent, title, model, agents, metadata, message_count, synced,"
    " created_at, updated_at, used_at) VALUES (:session_id, :owner_id, :kind, :agent, :title, :model, '[]', :metadata,"
    " :count, 0, :at, :at, :at)"
)
_FREE_SESSION = (
    "UPDATE runs SET status = 'lost', error_code = :code, error_message = :message, completed_at = :at,"
    f" updated_at = :at, lease_until = NULL WHERE session_id = :session_id AND status IN ({_ACTIVE})"
    " AND lease_until < :at RETURNING id, draft"
)
_CLAIM = f"SELECT id FROM runs WHERE session_id = :session_id AND status IN ({_ACTIVE}) LIMIT 1"
_BUMP = (
    "UPDATE sessions SET message_count = message_count + :count, updated_at = :at, used_at = :at"
    " WHERE id = :session_id AND owner_id = :owner_id RETURNING message_count - :count, synced, kind"
)
_RAW = _insert(*("raw_messages", "session_id", "message_index", "run_id", "format", "message_data", "timestamp"))
_SIMPLE = _insert(
    *("simple_messages", "session_id", "message_index", "part", "run_id", "role", "kind", "content", "name"),
    *("model", "partial", "timestamp"),
)
_RUN = (
    "INSERT INTO runs (id, owner_id, session_id, kind, agent, model, status, input, metadata, estimated, calls,"
    " unmeasured_calls, unpriced_calls, created_at, started_at, updated_at, lease_until, worker)"
    " VALUES (:id, :owner_id, :session_id, :kind, :agent, :model, 'running', :input, :metadata, :no, 0, 0, 0,"
    " :at, :at, :at, :lease, :worker)"
)
_RUN_METADATA = _insert("run_metadata", "run_id", "key", "value", "owner_id", "created_at")
_SESSION_METADATA = _insert("session_metadata", "session_id", "key", "value", "owner_id")
_COUNTED = tuple(counted_columns(None, None))
_END = (
    "UPDATE runs SET status = :status, model = :model, output = :output, finish_reason = :finish_reason,"
    " error_code = :error_code, error_message = :error_message, calls = :calls, unmeasured_calls = :unmeasured,"
    " unpriced_calls = :unpriced, completed_at = :at, updated_at = :at, lease_until = NULL, draft = NULL, "
    + ", ".join(f"{name} = :{name}" for name in _COUNTED)
    + f" WHERE id = :id AND status IN ({_ACTIVE})"
)
_RUN_OF = "SELECT session_id FROM runs WHERE id = :id"
_CALL = _insert("model_calls", "owner_id", "run_id", "session_id", "agent", "model", *_COUNTED, "created_at")
_EVENTS = _insert("run_events", "run_id", "first_seq", "last_seq", "events", "at")
_AFTER = (
    "UPDATE sessions SET message_count = message_count + :count, updated_at = :at, model = :model,"
    " synced = CASE WHEN :synced = 1 THEN message_count + :count ELSE synced END"
    " WHERE id = :session_id RETURNING message_count - :count"
)
_RENEW = "UPDATE runs SET lease_until = :lease WHERE id = :id"
_RENEW_DRAFT = "UPDATE runs SET lease_until = :lease, draft = :draft WHERE id = :id"
_ALL_ACTIVE = f"SELECT id, session_id, draft, model, worker, lease_until FROM runs WHERE status IN ({_ACTIVE})"
_LOSE = (
    "UPDATE runs SET status = 'lost', error_code = :code, error_message = :message, completed_at = :now,"
    f" updated_at = :now, lease_until = NULL, draft = NULL WHERE id = :id AND status IN ({_ACTIVE})"
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
        yield (
            _NEW_SESSION,
            session
            | {
                "kind": start.kind.value,
                "agent": start.agent,
                "title": start.title,
                "model": start.model,
                "metadata": metadata,
            },
        )
    else:
        yield from _free(codec, start.session_id, start.created_at)
        rows = yield _BUMP, session
        if not rows:
            raise session_not_found()
        begun = RunBegun(start.session_id, rows[0][0], rows[0][1], SessionKind(rows[0][2]))
        # The row of the session is locked by now: who asks next sees our run. The unique index is the last word.
        if (yield _CLAIM, {"session_id": start.session_id}):
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
        },
    )
    yield from _write_messages(codec, start.session_id, begun.first_index, start.messages, start.id)
    if start.metadata:
        pairs = [(key, metadata_text(value)) for key, value in start.metadata.items()]
        owner = {"owner_id": start.owner_id}
        yield (
            _RUN_METADATA,
            [{"run_id": start.id, "key": key, "value": value, "created_at": at} | owner for key, value in pairs],
        )
        if start.new_session:
            yield (
                _SESSION_METADATA,
                [{"session_id": start.session_id, "key": key, "value": value} | owner for key, value in pairs],
            )
    return begun


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
        **counted,
    }
    ended = _changed((yield _END, run))
    run_id: str | None = end.id
    session_id = end.session_id
    if not ended:
        rows = yield _RUN_OF, {"id": end.id}
        run_id, session_id = (end.id, rows[0][0]) if rows else (None, None)  # it may be deleted by now
    if end.calls:
        call = {
            "owner_id": end.owner_id,
            "run_id": run_id,
            "session_id": session_id,
            "agent": end.agent,
            "created_at": at,
        }
        yield (
            _CALL,
            [call | counted_columns(one.usage, one.cost_pico) | {"model": one.model} for one in end.calls],
        )
    if not ended:
        return False
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


def append_messages(
    codec: Codec, session_id: str, owner_id: str, messages: Sequence[NewMessage], run_id: str | None, at: datetime
) -> Script[list[int]]:
    """Messages at the end of a session; the indexes they were given.

    Raises:
        NotFound: the owner has no such session.
    """
    session = {"session_id": session_id, "owner_id": owner_id, "count": len(messages), "at": codec.moment(at)}
    rows = yield _BUMP, session
    if not rows:
        raise session_not_found()
    first: int = rows[0][0]
    yield from _write_messages(codec, session_id, first, messages, run_id)
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


def lose_dead_runs(codec: Codec, now: datetime, dead: frozenset[str]) -> Script[int]:
    """End the active runs of processes that are gone; what had arrived stays as a partial message."""
    moment = codec.moment(now)
    found = yield _ALL_ACTIVE, {}
    count = 0
    for run_id, session_id, draft, model, worker, lease_until in found:
        lapsed = lease_until is not None and lease_until < moment
        if not lapsed and worker not in dead:
            continue
        ended = {"id": run_id, "now": codec.moment(now), "code": LOST_CODE, "message": LOST_MESSAGE}
        if not _changed((yield _LOSE, ended)):
            continue
        count += 1
        if draft and session_id:
            yield from _keep_draft(codec, session_id, run_id, draft, model, now)
    return count


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


def _changed(rows: list[Row]) -> bool:
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
