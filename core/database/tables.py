"""Every table. A change here goes with a revision in `migrations/`; a test compares the two."""

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
)

from core.database.types import IndexedJson, UtcDateTime
from domain.runs import BAD, HOLDING

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = MetaData(naming_convention=NAMING)

users = Table(
    "users",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("username", String(64), nullable=False, unique=True),
    Column("password_hash", Text, nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("token_version", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("user_id", String(36), ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("name", String(100), nullable=False),
    Column("hint", String(16), nullable=False),
    Column("key_hash", String(64), nullable=False, unique=True),
    Column("scopes", JSON, nullable=False),
    Column("models", JSON, nullable=False),
    Column("agents", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
)

refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("user_id", String(36), ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("family", String(36), nullable=False, index=True),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("scopes", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("used_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
)

#: Wrong passwords, by account and by account-and-address. Rows that have been quiet for a day are swept.
login_failures = Table(
    "login_failures",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("blocked_until", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Index("ix_login_failures_updated_at", "updated_at"),
)

#: One row. It grows with everything that ends a credential; whoever has cached one compares it.
auth_epoch = Table(
    "auth_epoch",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", Integer, nullable=False),
)

_HOLDING = text(f"status IN ({', '.join(repr(status.value) for status in sorted(HOLDING))})")
_QUEUED = text("status = 'queued'")
_DEAD = text("dead")
_THREAD = text("has_thread")
_ZERO = text("0")
_BAD = text(f"status IN ({', '.join(repr(status.value) for status in sorted(BAD))})")


def _counted() -> tuple[Column[Any], ...]:
    """The columns of `domain.runs.Counted`."""
    return (
        Column("input_tokens", BigInteger),
        Column("output_tokens", BigInteger),
        Column("total_tokens", BigInteger),
        Column("cached_tokens", BigInteger),
        Column("reasoning_tokens", BigInteger),
        Column("audio_tokens", BigInteger),
        Column("estimated", Boolean, nullable=False),
        Column("cost_pico", BigInteger),
    )


sessions = Table(
    "sessions",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("owner_id", String(36), ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("agent", String(64), nullable=False),
    Column("title", String(200), nullable=False),
    Column("model", String(255)),
    Column("state", JSON(none_as_null=True)),
    Column("agents", JSON, nullable=False),
    Column("metadata", IndexedJson, nullable=False),
    Column("message_count", Integer, nullable=False),
    Column("synced", Integer, nullable=False),
    Column("parent_id", String(36)),
    Column("branched_at", Integer),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    # When something was last said to it. Apart from `updated_at`, because it is indexed: the end of a run leaves it.
    Column("used_at", UtcDateTime, nullable=False),
    Index("ix_sessions_owner_used", "owner_id", "used_at", "id"),
    Index("ix_sessions_owner_agent_used", "owner_id", "agent", "used_at", "id"),
)

#: Append-only, but for speech that was cut short. `message_data` is the library's own JSON, kept to the byte.
raw_messages = Table(
    "raw_messages",
    metadata,
    Column("session_id", String(36), ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    Column("message_index", Integer, primary_key=True, autoincrement=False),
    Column("run_id", String(36)),
    Column("format", String(16), nullable=False),
    Column("message_data", JSON, nullable=False),
    Column("timestamp", UtcDateTime, nullable=False),
    sqlite_with_rowid=False,  # clustered by its key: one tree to write, and a conversation lies together
)

#: Derived from `raw_messages`; `routeur sessions rebuild` derives it again.
simple_messages = Table(
    "simple_messages",
    metadata,
    Column("session_id", String(36), ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    Column("message_index", Integer, primary_key=True, autoincrement=False),
    Column("part", Integer, primary_key=True, autoincrement=False),
    Column("run_id", String(36)),
    Column("role", String(16), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("content", Text, nullable=False),
    Column("name", String(200)),
    Column("model", String(255)),
    Column("partial", Boolean, nullable=False),
    Column("timestamp", UtcDateTime, nullable=False),
    sqlite_with_rowid=False,  # clustered by its key: one tree to write, and a conversation lies together
)

runs = Table(
    "runs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("owner_id", String(36), ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("session_id", String(36), ForeignKey("sessions.id", ondelete="CASCADE")),
    Column("parent_run_id", String(36)),
    Column("kind", String(16), nullable=False),
    Column("agent", String(64), nullable=False),
    Column("model", String(255)),
    Column("status", String(16), nullable=False),
    Column("input", JSON(none_as_null=True)),
    Column("output", JSON(none_as_null=True)),
    Column("finish_reason", String(16)),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("metadata", IndexedJson, nullable=False),
    *_counted(),
    Column("calls", Integer, nullable=False),
    Column("unmeasured_calls", Integer, nullable=False),
    Column("unpriced_calls", Integer, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("completed_at", UtcDateTime),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("lease_until", UtcDateTime),
    Column("worker", String(128)),
    Column("draft", Text),
    # What follows is of background runs. `queue_rank` is the priority turned round: the queue is read in its order.
    Column("background", Boolean, nullable=False, server_default=false()),
    Column("attempt", Integer, nullable=False, server_default=_ZERO),
    Column("priority", Integer, nullable=False, server_default=_ZERO),
    Column("queue_rank", Integer, nullable=False, server_default=_ZERO),
    Column("available_at", UtcDateTime),
    Column("time_limit", Float),
    Column("spent", Float, nullable=False, server_default=_ZERO),
    Column("crashes", Integer, nullable=False, server_default=_ZERO),
    Column("retries", Integer, nullable=False, server_default=_ZERO),
    Column("may_resume", Boolean, nullable=False, server_default=false()),
    Column("first_index", Integer),
    Column("synced", Integer, nullable=False, server_default=_ZERO),
    Column("last_seq", Integer, nullable=False, server_default=_ZERO),
    Column("request", JSON(none_as_null=True)),
    Column("pending", JSON(none_as_null=True)),
    Column("mark", String(64)),
    Column("has_thread", Boolean, nullable=False, server_default=false()),
    Column("webhook", Text),
    Column("retry_of", String(36)),
    Column("dead", Boolean, nullable=False, server_default=false()),
    Index("ix_runs_owner_created", "owner_id", "created_at", "id"),
    Index("ix_runs_owner_agent_created", "owner_id", "agent", "created_at", "id"),
    Index("ix_runs_session", "session_id", "created_at"),
    # Few runs end badly, and those are looked for: an index that the others never touch.
    Index("ix_runs_owner_bad", "owner_id", "status", "created_at", "id", sqlite_where=_BAD, postgresql_where=_BAD),
    # The law that two runs never write into one session at once: kept by the engine, whoever they are. It is also
    # where runs in progress, and those of dead processes, are found.
    Index("uq_runs_one_active", "session_id", unique=True, sqlite_where=_HOLDING, postgresql_where=_HOLDING),
    # The queue, in the order it is taken; and who waits for a session. An attached run never touches them.
    Index("ix_runs_queue", "queue_rank", "available_at", "id", sqlite_where=_QUEUED, postgresql_where=_QUEUED),
    Index("ix_runs_queued_session", "session_id", sqlite_where=_QUEUED, postgresql_where=_QUEUED),
    Index("ix_runs_queued_owner", "owner_id", sqlite_where=_QUEUED, postgresql_where=_QUEUED),
    Index("ix_runs_dead", "owner_id", "created_at", "id", sqlite_where=_DEAD, postgresql_where=_DEAD),
    Index("ix_runs_thread", "id", sqlite_where=_THREAD, postgresql_where=_THREAD),
)

#: What runs ask of humans. Answered once, by compare-and-set.
approvals = Table(
    "approvals",
    metadata,
    Column("run_id", String(36), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("owner_id", String(36), nullable=False),
    Column("payload", JSON(none_as_null=True)),
    Column("status", String(16), nullable=False),
    Column("answer", JSON(none_as_null=True)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("answered_at", UtcDateTime),
    Column("answered_by", String(64)),
)

#: News of runs' ends on their way to their owners: an outbox, filled in the transaction that ends the run.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("run_id", String(36), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("owner_id", String(36), nullable=False),
    Column("url", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("last_error", Text),
    Column("next_at", UtcDateTime),
    Column("delivered_at", UtcDateTime),
    Column("created_at", UtcDateTime, nullable=False),
    Index(
        "ix_webhook_deliveries_next",
        "next_at",
        sqlite_where=text("status = 'pending'"),
        postgresql_where=text("status = 'pending'"),
    ),
)

#: Runs that begin by the clock.
schedules = Table(
    "schedules",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("owner_id", String(36), ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("agent", String(64), nullable=False),
    Column("name", String(100), nullable=False),
    Column("cron", String(100), nullable=False),
    Column("timezone", String(64), nullable=False),
    Column("request", JSON, nullable=False),
    Column("allowed_models", JSON, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("next_at", UtcDateTime),
    Column("last_at", UtcDateTime),
    Column("last_run_id", String(36)),
    Column("last_error", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Index("ix_schedules_next", "next_at", sqlite_where=text("enabled"), postgresql_where=text("enabled")),
)

#: What model calls cost. A row outlives its run and its session: what was spent stays spent.
model_calls = Table(
    "model_calls",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("owner_id", String(36), ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("run_id", String(36), ForeignKey("runs.id", ondelete="SET NULL")),
    Column("session_id", String(36)),
    Column("agent", String(64), nullable=False),
    Column("model", String(255), nullable=False),
    *_counted(),
    Column("created_at", UtcDateTime, nullable=False),
    Index("ix_model_calls_run", "run_id"),
)

#: A run's events in batches: each row a JSON array, its first and last `seq` beside it.
run_events = Table(
    "run_events",
    metadata,
    Column("run_id", String(36), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("first_seq", Integer, primary_key=True, autoincrement=False),
    Column("last_seq", Integer, nullable=False),
    Column("events", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    sqlite_with_rowid=False,  # clustered by its key: one tree to write, and a conversation lies together
)

#: Every key of a run's metadata, as text, so that any of them finds its runs newest first by one index.
run_metadata = Table(
    "run_metadata",
    metadata,
    Column("run_id", String(36), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
    Column("owner_id", String(36), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Index("ix_run_metadata_value", "owner_id", "key", "value", "created_at", "run_id"),
)

session_metadata = Table(
    "session_metadata",
    metadata,
    Column("session_id", String(36), ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
    Column("owner_id", String(36), nullable=False),
    Index("ix_session_metadata_value", "owner_id", "key", "value", "session_id"),
)

#: Answers of POSTs that carried an Idempotency-Key, sealed with the key itself. `lease_until`: still being worked on.
idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("owner_id", String(36), ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("key_hash", String(64), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("lease_until", UtcDateTime),
    Column("status_code", Integer),
    Column("answer", LargeBinary),
    Column("created_at", UtcDateTime, nullable=False),
    Index("ix_idempotency_keys_created", "created_at"),
)
