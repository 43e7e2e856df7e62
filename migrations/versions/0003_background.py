"""Background runs: the queue's columns of `runs`, approvals, webhook deliveries, schedules."""

import sqlalchemy as sa
from alembic import op

from core.database.types import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ACTIVE = "status IN ('cancelling', 'queued', 'running', 'waiting')"
_HOLDING = "status IN ('cancelling', 'running', 'waiting')"
_QUEUED = "status = 'queued'"
_INDEXES = {
    "ix_runs_queue": (["queue_rank", "available_at", "id"], _QUEUED),
    "ix_runs_queued_session": (["session_id"], _QUEUED),
    "ix_runs_queued_owner": (["owner_id"], _QUEUED),
    "ix_runs_dead": (["owner_id", "created_at", "id"], "dead"),
    "ix_runs_thread": (["id"], "has_thread"),
}


def _columns() -> list[sa.Column]:  # type: ignore[type-arg]
    zero = sa.text("0")
    return [
        sa.Column("background", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("attempt", sa.Integer(), nullable=False, server_default=zero),
        sa.Column("priority", sa.Integer(), nullable=False, server_default=zero),
        sa.Column("queue_rank", sa.Integer(), nullable=False, server_default=zero),
        sa.Column("available_at", UtcDateTime()),
        sa.Column("time_limit", sa.Float()),
        sa.Column("spent", sa.Float(), nullable=False, server_default=zero),
        sa.Column("crashes", sa.Integer(), nullable=False, server_default=zero),
        sa.Column("retries", sa.Integer(), nullable=False, server_default=zero),
        sa.Column("may_resume", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("first_index", sa.Integer()),
        sa.Column("synced", sa.Integer(), nullable=False, server_default=zero),
        sa.Column("last_seq", sa.Integer(), nullable=False, server_default=zero),
        sa.Column("request", sa.JSON(none_as_null=True)),
        sa.Column("pending", sa.JSON(none_as_null=True)),
        sa.Column("mark", sa.String(length=64)),
        sa.Column("has_thread", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("webhook", sa.Text()),
        sa.Column("retry_of", sa.String(length=36)),
        sa.Column("dead", sa.Boolean(), nullable=False, server_default=sa.false()),
    ]


def upgrade() -> None:
    for column in _columns():
        op.add_column("runs", column)
    op.drop_index("uq_runs_one_active", "runs")
    where = sa.text(_HOLDING)
    op.create_index(
        "uq_runs_one_active", "runs", ["session_id"], unique=True, sqlite_where=where, postgresql_where=where
    )
    for name, (columns, condition) in _INDEXES.items():
        op.create_index(name, "runs", columns, sqlite_where=sa.text(condition), postgresql_where=sa.text(condition))
    op.create_table(
        "approvals",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("owner_id", sa.String(length=36), nullable=False),
        sa.Column("payload", sa.JSON(none_as_null=True)),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("answer", sa.JSON(none_as_null=True)),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("answered_at", UtcDateTime()),
        sa.Column("answered_by", sa.String(length=64)),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_approvals_run_id_runs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "id", name="pk_approvals"),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("owner_id", sa.String(length=36), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text()),
        sa.Column("next_at", UtcDateTime()),
        sa.Column("delivered_at", UtcDateTime()),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_webhook_deliveries_run_id_runs", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", name="pk_webhook_deliveries"),
    )
    pending, enabled = sa.text("status = 'pending'"), sa.text("enabled")
    op.create_index(
        "ix_webhook_deliveries_next", "webhook_deliveries", ["next_at"], sqlite_where=pending, postgresql_where=pending
    )
    op.create_table(
        "schedules",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("owner_id", sa.String(length=36), nullable=False),
        sa.Column("agent", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("cron", sa.String(length=100), nullable=False),
        sa.Column("timezone", sa.String(length=64), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("allowed_models", sa.JSON(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("next_at", UtcDateTime()),
        sa.Column("last_at", UtcDateTime()),
        sa.Column("last_run_id", sa.String(length=36)),
        sa.Column("last_error", sa.Text()),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_schedules_owner_id_users", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_schedules"),
    )
    op.create_index("ix_schedules_owner_id", "schedules", ["owner_id"])
    op.create_index("ix_schedules_next", "schedules", ["next_at"], sqlite_where=enabled, postgresql_where=enabled)


def downgrade() -> None:
    for table in ("schedules", "webhook_deliveries", "approvals"):
        op.drop_table(table)
    for name in _INDEXES:
        op.drop_index(name, "runs")
    op.drop_index("uq_runs_one_active", "runs")
    where = sa.text(_ACTIVE)
    op.create_index(
        "uq_runs_one_active", "runs", ["session_id"], unique=True, sqlite_where=where, postgresql_where=where
    )
    for column in reversed(_columns()):
        op.drop_column("runs", column.name)
