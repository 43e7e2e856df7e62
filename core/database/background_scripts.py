"""The writes of background runs, as scripts (see `record_scripts`). Every change of state is a compare-and-set."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import orjson

from core.database.record_scripts import (
    CANCELLED_MESSAGE,
    Codec,
    Script,
    Values,
    append_to,
    changed,
    clock,
    forget_events,
    insert_into,
    notify_of_end,
    session_busy,
    session_not_found,
    write_metadata,
    write_session,
)
from domain.background import Beat, EventBatch, HandOver, Limits, Pause, Submission
from domain.enums import RunStatus
from domain.errors import Conflict, NotFound, RateLimited
from domain.runs import NewMessage, SimplePart, counted_columns

_CLAIMS_LOCK = 7_203_518_865  # pg_advisory_xact_lock: claims take turns, so that limits are exact
_MAX_CANDIDATES = 200
_RETRY = 2.0  # seconds, for who finds the queue full
_OWNED = "SELECT id FROM sessions WHERE id = :session_id AND owner_id = :owner_id"
_OWNED_LOCKED = f"{_OWNED} FOR UPDATE"
_BUSY = (
    "SELECT id FROM runs WHERE session_id = :session_id AND status IN ('cancelling', 'running', 'waiting')"
    " UNION ALL SELECT id FROM runs WHERE session_id = :session_id AND status = 'queued' LIMIT 1"
)
_DEPTH = "SELECT count(*) FROM (SELECT 1 FROM runs WHERE owner_id = :owner_id AND status = 'queued' LIMIT :limit) AS q"
_QUEUE = insert_into(
    "runs",
    *("id", "owner_id", "session_id", "kind", "agent", "model", "status", "input", "metadata", "estimated", "calls"),
    *("unmeasured_calls", "unpriced_calls", "created_at", "updated_at", "background", "attempt", "priority"),
    *("queue_rank", "available_at", "time_limit", "spent", "crashes", "retries", "may_resume", "synced", "last_seq"),
    *("request", "pending", "has_thread", "webhook", "retry_of", "dead"),
)
#: In the words of its partial index, and then what is meant: who waits for a human takes nobody's room.
_RUNNING = (
    "SELECT owner_id, agent, count(*) FROM runs WHERE status IN ('cancelling', 'running', 'waiting')"
    " AND status <> 'waiting' GROUP BY owner_id, agent"
)
_MAY_BEGIN = (
    "SELECT id, owner_id, agent, session_id FROM runs AS q WHERE status = 'queued' AND available_at <= :now{more}"
    " AND NOT EXISTS (SELECT 1 FROM runs AS h WHERE h.session_id = q.session_id"
    " AND h.status IN ('cancelling', 'running', 'waiting'))"
    " AND NOT EXISTS (SELECT 1 FROM runs AS f WHERE f.session_id = q.session_id AND f.status = 'queued'"
    " AND f.id < q.id)"
    " AND NOT EXISTS (SELECT 1 FROM users AS u WHERE u.id = q.owner_id AND u.disabled)"
    " ORDER BY queue_rank, available_at, id LIMIT :limit"
)
_COLUMNS = (
    *("id", "owner_id", "session_id", "kind", "agent", "model", "input", "metadata", "created_at", "started_at"),
    *("attempt", "priority", "time_limit", "spent", "crashes", "retries", "may_resume", "first_index", "synced"),
    *("last_seq", "request", "mark", "webhook", "pending"),
)
_TAKE = (
    "UPDATE runs SET status = 'running', attempt = attempt + 1, worker = :worker, lease_until = :lease,"
    " started_at = COALESCE(started_at, :now), updated_at = :now, has_thread = :yes"
    " WHERE id = :id AND status = 'queued' RETURNING " + ", ".join(_COLUMNS)
)
_PLACED = "UPDATE runs SET first_index = :first_index, synced = :synced, pending = NULL WHERE id = :id"
_TOLD = (
    "UPDATE runs SET last_seq = :last_seq, lease_until = :lease WHERE id = :id AND attempt = :attempt"
    " AND status IN ('cancelling', 'running')"
)
_TOTALS = (
    "UPDATE runs SET calls = :calls, unmeasured_calls = :unmeasured, unpriced_calls = :unpriced, "
    + ", ".join(f"{name} = :{name}" for name in counted_columns(None, None))
    + " WHERE id = :id"
)
_EVENTS = insert_into("run_events", "run_id", "first_seq", "last_seq", "events", "at")
_CALL = insert_into(
    "model_calls", "owner_id", "run_id", "session_id", "agent", "model", *counted_columns(None, None), "created_at"
)
_BEAT = (
    "UPDATE runs SET lease_until = :lease, spent = :spent, draft = COALESCE(:draft, draft) WHERE id = :id"
    " AND attempt = :attempt AND status IN ('cancelling', 'running')"
)
_STANDING = (
    "SELECT id, attempt, status FROM runs WHERE status IN ('cancelling', 'running', 'waiting') AND worker = :worker"
)
_PAUSE = (
    "UPDATE runs SET status = :status, lease_until = NULL, worker = NULL, draft = NULL, spent = :spent,"
    " available_at = :available_at, updated_at = :now, retries = retries + :retried,"
    " last_seq = COALESCE(:last_seq, last_seq) WHERE id = :id AND attempt = :attempt AND status = 'running'"
)
_ASK = (
    "INSERT INTO approvals (run_id, id, owner_id, payload, status, created_at) SELECT id, :id, owner_id, :payload,"
    " 'pending', :now FROM runs WHERE id = :run_id ON CONFLICT DO NOTHING"
)
_ASK_AGAIN = (
    "UPDATE approvals SET status = 'pending', answer = NULL, answered_at = NULL, answered_by = NULL, payload = :payload"
    " WHERE run_id = :run_id AND id = :id AND status <> 'pending'"
)
#: As if a worker had taken it once: its attempt is what it writes with from now on.
_HAND_OVER = (
    "UPDATE runs SET background = :yes, attempt = 1, has_thread = :yes, request = :request, time_limit = :time_limit,"
    " may_resume = :may_resume, first_index = :first_index, synced = :synced"
    " WHERE id = :id AND status = 'running' AND NOT background"
)
_OF_OWNER = "SELECT status, background FROM runs WHERE id = :id AND owner_id = :owner_id"
_STOP_WAITING = (
    "UPDATE runs SET status = 'cancelled', error_code = 'run_cancelled', error_message = :message, completed_at = :now,"
    " updated_at = :now, lease_until = NULL, pending = NULL"
    " WHERE id = :id AND status IN ('queued', 'waiting')"
)
_ASK_TO_STOP = "UPDATE runs SET status = 'cancelling', updated_at = :now WHERE id = :id AND status = 'running'"
_ANSWER = (
    "UPDATE approvals SET status = :status, answer = :answer, answered_at = :now, answered_by = :by"
    " WHERE run_id = :run_id AND id = :id AND status = 'pending'"
)
_KNOWN_APPROVAL = "SELECT status FROM approvals WHERE run_id = :run_id AND id = :id"
_OPEN_APPROVALS = "SELECT id FROM approvals WHERE run_id = :run_id AND status = 'pending' LIMIT 1"
_GO_ON = (
    "UPDATE runs SET status = 'queued', available_at = :now, updated_at = :now"
    " WHERE id = :run_id AND status = 'waiting'"
)


_MARK = (
    "UPDATE runs SET mark = :mark, crashes = 0 WHERE id = :id AND attempt = :attempt"
    " AND (mark IS NULL OR mark <> :mark)"
)
_FORGOTTEN = "UPDATE runs SET has_thread = :no WHERE id = :id"


def submit(codec: Codec, new: Submission) -> Script[None]:
    """A queued run, and its session when new.

    Raises:
        NotFound, Conflict, RateLimited: as `domain.ports.RunBacklog.submit`.
    """
    one = {"session_id": new.session_id, "owner_id": new.owner_id}
    rows = yield _DEPTH, {"owner_id": new.owner_id, "limit": new.max_queued}
    if rows[0][0] >= new.max_queued:
        raise RateLimited(f"You have {new.max_queued} runs in the queue; wait for some.", retry_after=_RETRY)
    if new.new_session:
        yield from write_session(codec, new)
    else:
        # The row is locked, so that two who would rather not wait are not both let in.
        if not (yield (_OWNED if codec.dialect == "sqlite" else _OWNED_LOCKED), one):
            raise session_not_found()
        if new.if_busy == "reject" and (yield _BUSY, {"session_id": new.session_id}):
            raise session_busy()
    at = codec.moment(new.created_at)
    yield (
        _QUEUE,
        {
            "id": new.id,
            "owner_id": new.owner_id,
            "session_id": new.session_id,
            "kind": new.kind.value,
            "agent": new.agent,
            "model": new.model,
            "status": RunStatus.QUEUED.value,
            "input": _json(new.input),
            "metadata": _json(new.metadata),
            "estimated": False,
            **dict.fromkeys(("calls", "unmeasured_calls", "unpriced_calls", "attempt", "crashes", "retries"), 0),
            **dict.fromkeys(("synced", "last_seq", "spent"), 0),
            "created_at": at,
            "updated_at": at,
            "background": True,
            "priority": new.priority,
            "queue_rank": -new.priority,
            "available_at": at,
            "time_limit": new.time_limit,
            "may_resume": new.may_resume,
            "request": _json(new.request),
            "pending": _json([_packed(message) for message in new.messages]),
            "has_thread": False,
            "webhook": new.webhook,
            "retry_of": new.retry_of,
            "dead": False,
        },
    )
    yield from write_metadata(codec, new)


def claim(codec: Codec, worker: str, limits: Limits, lease: timedelta, run_id: str | None) -> Script[list[Values]]:
    """Take runs that may begin; what they were asked joins their sessions now. The rows, by column."""
    if codec.dialect != "sqlite":
        yield "SELECT pg_advisory_xact_lock(:lock)", {"lock": _CLAIMS_LOCK}
    now = yield from clock(codec)
    owners: dict[str, int] = {}
    agents: dict[str, int] = {}
    for owner, agent, count in (yield _RUNNING, {}):
        owners[owner] = owners.get(owner, 0) + count
        agents[agent] = agents.get(agent, 0) + count
    more, values = "", {"now": codec.moment(now), "limit": min(_MAX_CANDIDATES, limits.room * 4)}
    if run_id is not None:
        more, values["run_id"] = " AND id = :run_id", run_id
    # Who is at the limit is not even looked at: the others behind them have their turn.
    for column, full in (("owner_id", _full(owners, limits.per_owner)), ("agent", _full_agents(agents, limits))):
        names = [f"{column}_{_letters(number)}" for number in range(len(full))]
        if names:
            more += f" AND {column} NOT IN ({', '.join(f':{name}' for name in names)})"
            values |= dict(zip(names, full, strict=True))
    taken: list[Values] = []
    sessions: set[str] = set()
    for found, owner, agent, session in (yield _MAY_BEGIN.format(more=more), values):
        if len(taken) >= limits.room:
            break
        if session in sessions or owners.get(owner, 0) >= limits.per_owner:
            continue
        if agents.get(agent, 0) >= limits.per_agent.get(agent, limits.room + agents.get(agent, 0)):
            continue
        take = {
            "id": found,
            "worker": worker,
            "lease": codec.moment(now + lease),
            "now": codec.moment(now),
            "yes": True,
        }
        rows = yield _TAKE, take
        if not rows:
            continue
        run = dict(zip(_COLUMNS, rows[0], strict=True))
        for name in ("input", "metadata", "request", "pending"):
            run[name] = codec.read_json(run[name])
        for name in ("created_at", "started_at"):
            run[name] = codec.read_moment(run[name])
        pending = run.pop("pending")
        if pending is not None:
            yield from _place(codec, run, pending, now)
        taken.append(run)
        sessions.add(session)
        owners[owner] = owners.get(owner, 0) + 1
        agents[agent] = agents.get(agent, 0) + 1
    return taken


def keep_events(codec: Codec, batches: Sequence[EventBatch], lease: timedelta) -> Script[set[str]]:
    """Append what runs have told. Ids of those that are somebody else's by now."""
    now = yield from clock(codec)
    gone: set[str] = set()
    for batch in batches:
        told = {
            "id": batch.run_id,
            "attempt": batch.attempt,
            "last_seq": batch.last_seq,
            "lease": codec.moment(now + lease),
        }
        if not changed((yield _TOLD, told)):
            gone.add(batch.run_id)
            continue
        yield from _write_batch(codec, batch, now)
    return gone


def beat(codec: Codec, beats: Sequence[Beat], worker: str, lease: timedelta) -> Script[dict[str, RunStatus]]:
    """Prolong leases, keep drafts; how each run stands."""
    now = yield from clock(codec)
    for one in beats:
        yield (
            _BEAT,
            {
                "id": one.run_id,
                "attempt": one.attempt,
                "spent": one.spent,
                "draft": one.draft,
                "lease": codec.moment(now + lease),
            },
        )
    held = {one.run_id: one.attempt for one in beats}
    rows = yield _STANDING, {"worker": worker}
    return {run_id: RunStatus(status) for run_id, attempt, status in rows if held.get(run_id) == attempt}


def pause(codec: Codec, one: Pause, batch: EventBatch | None) -> Script[bool]:
    """Let go of a run, with what it has told; False when it is somebody else's, or is being cancelled."""
    values = {
        "id": one.run_id,
        "attempt": one.attempt,
        "status": one.status.value,
        "spent": one.spent,
        "available_at": codec.moment(one.available_at or one.at),
        "now": codec.moment(one.at),
        "retried": int(one.retried),
        "last_seq": None if batch is None else batch.last_seq,
    }
    if not changed((yield _PAUSE, values)):
        return False  # and nothing else is written: whoever ends it will
    if batch is not None:
        yield from forget_events(batch.run_id, batch.first_seq)  # many small rows become one
        yield from _write_batch(codec, batch, one.at)
    for asked in one.approvals:
        row = {
            "run_id": one.run_id,
            "id": asked.id,
            "payload": _json(asked.payload),
            "now": codec.moment(one.at),
        }
        if not changed((yield _ASK, row)):
            yield _ASK_AGAIN, {name: row[name] for name in ("run_id", "id", "payload")}
    return True


def hand_over(codec: Codec, one: HandOver, batch: EventBatch) -> Script[bool]:
    """An attached run waits in the background; False when its end was asked for meanwhile."""
    values = {
        "id": one.pause.run_id,
        "yes": True,
        "request": _json(one.request),
        "time_limit": one.time_limit,
        "may_resume": one.may_resume,
        "first_index": one.first_index,
        "synced": one.synced,
    }
    if not changed((yield _HAND_OVER, values)):
        return False
    if one.messages:
        yield from append_to(codec, one.session_id, one.owner_id, one.messages, one.pause.run_id, one.pause.at)
    return (yield from pause(codec, one.pause, batch))


def cancel(codec: Codec, run_id: str, owner_id: str, now: datetime) -> Script[RunStatus]:
    """Ask for a run's end. Raises NotFound."""
    one = {"id": run_id, "now": codec.moment(now)}
    rows = yield _OF_OWNER, {"id": run_id, "owner_id": owner_id}
    if not rows:
        raise run_not_found()
    if changed((yield _STOP_WAITING, one | {"message": CANCELLED_MESSAGE})):
        yield from notify_of_end(run_id, one["now"])
        return RunStatus.CANCELLED
    if changed((yield _ASK_TO_STOP, one)):
        return RunStatus.CANCELLING
    rows = yield _OF_OWNER, {"id": run_id, "owner_id": owner_id}
    return RunStatus(rows[0][0])


def answer(
    codec: Codec, run_id: str, owner_id: str, approval_id: str, *, status: str, value: Any, by: str, now: datetime
) -> Script[RunStatus]:
    """Answer an approval, once. Raises NotFound, Conflict."""
    rows = yield _OF_OWNER, {"id": run_id, "owner_id": owner_id}
    if not rows:
        raise run_not_found()
    place = {"run_id": run_id, "id": approval_id}
    moment = codec.moment(now)
    answered = place | {"status": status, "answer": _json(value), "now": moment, "by": by}
    if not changed((yield _ANSWER, answered)):
        if not (yield _KNOWN_APPROVAL, place):
            raise NotFound("The run has no such approval.", code="approval_not_found", param="approval_id")
        raise Conflict("This approval has been answered.", code="approval_answered", param="approval_id")
    if rows[0][0] != RunStatus.WAITING.value:  # raising undoes the answer
        raise Conflict("The run does not wait for approvals any more.", code="run_not_waiting")
    if (yield _OPEN_APPROVALS, {"run_id": run_id}):
        return RunStatus.WAITING
    yield _GO_ON, {"run_id": run_id, "now": moment}
    return RunStatus.QUEUED


def set_mark(run_id: str, attempt: int, mark: str) -> Script[None]:
    """The checkpoint from which a run goes on; when it has moved, earlier crashes are forgiven."""
    yield _MARK, {"id": run_id, "attempt": attempt, "mark": mark}


def thread_forgotten(run_id: str) -> Script[None]:
    """A run's checkpoints are gone."""
    yield _FORGOTTEN, {"id": run_id, "no": False}


def run_not_found() -> NotFound:
    """The same for a run that does not exist and for somebody else's."""
    return NotFound("There is no such run.", code="run_not_found")


def _place(codec: Codec, run: Values, pending: list[Any], now: datetime) -> Script[None]:
    """What the run was asked becomes part of its session."""
    messages = [_unpacked(one, now) for one in pending]
    first, synced = yield from append_to(codec, run["session_id"], run["owner_id"], messages, run["id"], now)
    run["first_index"], run["synced"] = first, synced
    yield _PLACED, {"id": run["id"], "first_index": first, "synced": synced}


def _write_batch(codec: Codec, batch: EventBatch, now: datetime) -> Script[None]:
    at = codec.moment(now)
    if batch.last_seq >= batch.first_seq:
        yield (
            _EVENTS,
            {
                "run_id": batch.run_id,
                "first_seq": batch.first_seq,
                "last_seq": batch.last_seq,
                "events": batch.events,
                "at": at,
            },
        )
    if batch.calls:
        call = {
            "owner_id": batch.owner_id,
            "run_id": batch.run_id,
            "session_id": batch.session_id,
            "agent": batch.agent,
            "created_at": at,
        }
        yield (
            _CALL,
            [call | counted_columns(one.usage, one.cost_pico) | {"model": one.model} for one in batch.calls],
        )
        yield (
            _TOTALS,
            {
                "id": batch.run_id,
                "calls": batch.all_calls,
                "unmeasured": batch.unmeasured,
                "unpriced": batch.unpriced,
                **counted_columns(batch.usage, batch.cost_pico),
            },
        )


def _full(running: dict[str, int], limit: int) -> list[str]:
    return sorted(name for name, count in running.items() if count >= limit)


def _full_agents(running: dict[str, int], limits: Limits) -> list[str]:
    return sorted(name for name, limit in limits.per_agent.items() if running.get(name, 0) >= limit)


def _letters(number: int) -> str:
    """Placeholders have no digits."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def _packed(message: NewMessage) -> dict[str, Any]:
    parts = [
        {"role": part.role, "content": part.content, "kind": part.kind, "name": part.name, "model": part.model}
        for part in message.simple
    ]
    return {"format": message.format, "data": message.data, "simple": parts}


def _unpacked(stored: dict[str, Any], now: datetime) -> NewMessage:
    return NewMessage(stored["format"], stored["data"], [SimplePart(**part) for part in stored["simple"]], now)


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()
