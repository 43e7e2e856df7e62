"""Sessions, their messages raw and simplified, runs, what model calls cost, events, metadata, idempotency keys.

The views carry the names that the workflow and agent tables have elsewhere (workflow_runs, agent_sessions, ...).
"""

import sqlalchemy as sa
from alembic import op

from core.database.types import IndexedJson, UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ACTIVE = "status IN ('cancelling', 'queued', 'running', 'waiting')"
_BAD = "status IN ('cancelled', 'failed', 'lost', 'timeout')"
_SEED_STATUS = """CASE WHEN status IN ('queued', 'running', 'waiting', 'cancelling') THEN 'running'
    WHEN status = 'completed' THEN 'success' ELSE 'error' END"""
_MESSAGES = {
    "sqlite": """(SELECT json_group_array(json_object('role', role, 'content', content, 'timestamp', timestamp))
    FROM (SELECT role, content, timestamp FROM simple_messages
    WHERE session_id = sessions.id ORDER BY message_index, part))""",
    "postgresql": """(SELECT coalesce(json_agg(json_build_object('role', role, 'content', content, 'timestamp',
    timestamp) ORDER BY message_index, part), '[]') FROM simple_messages WHERE session_id = sessions.id)""",
}
_VIEWS = {
    "workflow_runs": f"""SELECT id, agent AS workflow_name, {_SEED_STATUS} AS status, input, output, metadata,
    created_at, updated_at, completed_at, error_message FROM runs WHERE kind = 'workflow'""",
    "agent_runs": """SELECT id, id AS run_id, agent AS agent_id, session_id, status, input, output AS result,
    error_message AS error, metadata, created_at, started_at, completed_at FROM runs WHERE kind = 'agent'""",
    "agent_sessions": """SELECT id, id AS session_id, agent AS agent_id, agent AS agent_name, {messages} AS messages,
    model, metadata, created_at, updated_at FROM sessions WHERE kind = 'agent'""",
    "workflow_sessions": """SELECT id, id AS session_id, agent AS workflow_name, state, created_at, updated_at
    FROM sessions WHERE kind = 'workflow'""",
    "team_sessions": """SELECT id, id AS session_id, agent AS team_name, agents, state, created_at, updated_at
    FROM sessions WHERE kind = 'team'""",
}


def upgrade() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("owner_id", sa.String(length=36), nullable=False),
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("lease_until", UtcDateTime()),
        sa.Column("status_code", sa.Integer()),
        sa.Column("answer", sa.LargeBinary()),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["owner_id"], ["users.id"], name="fk_idempotency_keys_owner_id_users", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("owner_id", "key_hash", name="pk_idempotency_keys"),
    )
    op.create_index("ix_idempotency_keys_created", "idempotency_keys", ["created_at"])
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner_id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("agent", sa.String(length=64), nullable=False),
        sa.Column("title", sa.String(length=200), nullable=False),
        sa.Column("model", sa.String(length=255)),
        sa.Column("state", sa.JSON(none_as_null=True)),
        sa.Column("agents", sa.JSON(), nullable=False),
        sa.Column("metadata", IndexedJson, nullable=False),
        sa.Column("message_count", sa.Integer(), nullable=False),
        sa.Column("synced", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.String(length=36)),
        sa.Column("branched_at", sa.Integer()),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.Column("used_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_sessions_owner_id_users", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
    )
    op.create_index("ix_sessions_owner_agent_used", "sessions", ["owner_id", "agent", "used_at", "id"])
    op.create_index("ix_sessions_owner_used", "sessions", ["owner_id", "used_at", "id"])
    op.create_table(
        "raw_messages",
        sa.Column("session_id", sa.String(length=36), nullable=False),
        sa.Column("message_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.String(length=36)),
        sa.Column("format", sa.String(length=16), nullable=False),
        sa.Column("message_data", sa.JSON(), nullable=False),
        sa.Column("timestamp", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="fk_raw_messages_session_id_sessions", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("session_id", "message_index", name="pk_raw_messages"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner_id", sa.String(length=36), nullable=False),
        sa.Column("session_id", sa.String(length=36)),
        sa.Column("parent_run_id", sa.String(length=36)),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("agent", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=255)),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("input", sa.JSON(none_as_null=True)),
        sa.Column("output", sa.JSON(none_as_null=True)),
        sa.Column("finish_reason", sa.String(length=16)),
        sa.Column("error_code", sa.String(length=64)),
        sa.Column("error_message", sa.Text()),
        sa.Column("metadata", IndexedJson, nullable=False),
        sa.Column("input_tokens", sa.BigInteger()),
        sa.Column("output_tokens", sa.BigInteger()),
        sa.Column("total_tokens", sa.BigInteger()),
        sa.Column("cached_tokens", sa.BigInteger()),
        sa.Column("reasoning_tokens", sa.BigInteger()),
        sa.Column("audio_tokens", sa.BigInteger()),
        sa.Column("estimated", sa.Boolean(), nullable=False),
        sa.Column("cost_pico", sa.BigInteger()),
        sa.Column("calls", sa.Integer(), nullable=False),
        sa.Column("unmeasured_calls", sa.Integer(), nullable=False),
        sa.Column("unpriced_calls", sa.Integer(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("started_at", UtcDateTime()),
        sa.Column("completed_at", UtcDateTime()),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.Column("lease_until", UtcDateTime()),
        sa.Column("worker", sa.String(length=128)),
        sa.Column("draft", sa.Text()),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_runs_owner_id_users", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="fk_runs_session_id_sessions", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    op.create_index("ix_runs_owner_agent_created", "runs", ["owner_id", "agent", "created_at", "id"])
    op.create_index("ix_runs_owner_created", "runs", ["owner_id", "created_at", "id"])
    op.create_index(
        "ix_runs_owner_bad",
        "runs",
        ["owner_id", "status", "created_at", "id"],
        sqlite_where=sa.text(_BAD),
        postgresql_where=sa.text(_BAD),
    )
    op.create_index("ix_runs_session", "runs", ["session_id", "created_at"])
    op.create_index(
        "uq_runs_one_active",
        "runs",
        ["session_id"],
        unique=True,
        sqlite_where=sa.text(_ACTIVE),
        postgresql_where=sa.text(_ACTIVE),
    )
    op.create_table(
        "session_metadata",
        sa.Column("session_id", sa.String(length=36), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="fk_session_metadata_session_id_sessions", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("session_id", "key", name="pk_session_metadata"),
    )
    op.create_index("ix_session_metadata_value", "session_metadata", ["owner_id", "key", "value", "session_id"])
    op.create_table(
        "simple_messages",
        sa.Column("session_id", sa.String(length=36), nullable=False),
        sa.Column("message_index", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("part", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("run_id", sa.String(length=36)),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("name", sa.String(length=200)),
        sa.Column("model", sa.String(length=255)),
        sa.Column("partial", sa.Boolean(), nullable=False),
        sa.Column("timestamp", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.id"], name="fk_simple_messages_session_id_sessions", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("session_id", "message_index", "part", name="pk_simple_messages"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "model_calls",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("owner_id", sa.String(length=36), nullable=False),
        sa.Column("run_id", sa.String(length=36)),
        sa.Column("session_id", sa.String(length=36)),
        sa.Column("agent", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=255), nullable=False),
        sa.Column("input_tokens", sa.BigInteger()),
        sa.Column("output_tokens", sa.BigInteger()),
        sa.Column("total_tokens", sa.BigInteger()),
        sa.Column("cached_tokens", sa.BigInteger()),
        sa.Column("reasoning_tokens", sa.BigInteger()),
        sa.Column("audio_tokens", sa.BigInteger()),
        sa.Column("estimated", sa.Boolean(), nullable=False),
        sa.Column("cost_pico", sa.BigInteger()),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_model_calls_owner_id_users", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_model_calls_run_id_runs", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name="pk_model_calls"),
    )
    op.create_index("ix_model_calls_run", "model_calls", ["run_id"])
    op.create_table(
        "run_events",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("first_seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last_seq", sa.Integer(), nullable=False),
        sa.Column("events", sa.Text(), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_run_events_run_id_runs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "first_seq", name="pk_run_events"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "run_metadata",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.String(length=36), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_run_metadata_run_id_runs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "key", name="pk_run_metadata"),
    )
    op.create_index("ix_run_metadata_value", "run_metadata", ["owner_id", "key", "value", "created_at", "run_id"])
    dialect = op.get_context().dialect.name
    for name, query in _VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query.format(messages=_MESSAGES[dialect])}")
    if dialect == "postgresql":
        for table in ("sessions", "runs"):
            op.execute(f"CREATE INDEX ix_{table}_metadata_gin ON {table} USING gin (metadata jsonb_path_ops)")


def downgrade() -> None:
    for view in _VIEWS:
        op.execute(f"DROP VIEW {view}")
    for table in (
        "idempotency_keys",
        "session_metadata",
        "run_metadata",
        "run_events",
        "model_calls",
        "runs",
        "simple_messages",
        "raw_messages",
        "sessions",
    ):
        op.drop_table(table)
