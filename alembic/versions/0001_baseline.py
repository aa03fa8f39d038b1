"""
Baseline.

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa

from alembic import op
from durably.store.tables import LongText, Word

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade():
    op.create_table(
        "durably_runs",
        sa.Column("id", Word(length=26), nullable=False),
        sa.Column("job_name", Word(length=255), nullable=False),
        sa.Column("status", Word(length=16), nullable=False),
        sa.Column("input", LongText(), nullable=False),
        sa.Column("output", LongText(), nullable=True),
        sa.Column("error", LongText(), nullable=True),
        sa.Column("error_type", Word(length=512), nullable=True),
        sa.Column("error_traceback", LongText(), nullable=True),
        sa.Column("labels", LongText(), nullable=False),
        sa.Column("idempotency_key", Word(length=255), nullable=True),
        sa.Column("concurrency_key", Word(length=255), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("interruptions", sa.Integer(), nullable=False),
        sa.Column("progress", LongText(), nullable=True),
        sa.Column("worker_id", Word(length=26), nullable=True),
        sa.Column("awaited_by", Word(length=26), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("pending_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("completed_at", sa.BigInteger(), nullable=True),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        if_not_exists=True,
    )
    op.create_index(
        "durably_runs_cancelled",
        "durably_runs",
        ["completed_at"],
        unique=False,
        sqlite_where=sa.text("status = 'cancelled'"),
        postgresql_where=sa.text("status = 'cancelled'"),
        if_not_exists=True,
    )
    op.create_index(
        "durably_runs_ended",
        "durably_runs",
        ["completed_at", "id"],
        unique=False,
        sqlite_where=sa.text("completed_at IS NOT NULL"),
        postgresql_where=sa.text("completed_at IS NOT NULL"),
        if_not_exists=True,
    )
    op.create_index(
        "durably_runs_failed",
        "durably_runs",
        ["completed_at"],
        unique=False,
        sqlite_where=sa.text("status = 'failed'"),
        postgresql_where=sa.text("status = 'failed'"),
        if_not_exists=True,
    )
    op.create_index(
        "durably_runs_held",
        "durably_runs",
        ["worker_id"],
        unique=False,
        sqlite_where=sa.text("status = 'running'"),
        postgresql_where=sa.text("status = 'running'"),
        if_not_exists=True,
    )
    op.create_index("durably_runs_listed", "durably_runs", ["created_at", "id"], unique=False, if_not_exists=True)
    op.create_index(
        "durably_runs_one_per_idempotency_key",
        "durably_runs",
        ["job_name", "idempotency_key"],
        unique=True,
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
        if_not_exists=True,
    )
    op.create_index(
        "durably_runs_one_running_per_key",
        "durably_runs",
        ["concurrency_key"],
        unique=True,
        sqlite_where=sa.text("status = 'running' AND concurrency_key IS NOT NULL"),
        postgresql_where=sa.text("status = 'running' AND concurrency_key IS NOT NULL"),
        if_not_exists=True,
    )
    op.create_index(
        "durably_runs_pending",
        "durably_runs",
        ["created_at", "id", "job_name"],
        unique=False,
        sqlite_where=sa.text("status = 'pending'"),
        postgresql_where=sa.text("status = 'pending'"),
        if_not_exists=True,
    )
    op.create_index(
        "durably_runs_waiting_for_key",
        "durably_runs",
        ["concurrency_key", "created_at", "id"],
        unique=False,
        sqlite_where=sa.text("status = 'pending' AND concurrency_key IS NOT NULL"),
        postgresql_where=sa.text("status = 'pending' AND concurrency_key IS NOT NULL"),
        if_not_exists=True,
    )
    op.create_table(
        "durably_workers",
        sa.Column("id", Word(length=26), nullable=False),
        sa.Column("state", Word(length=16), nullable=False),
        sa.Column("host", Word(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("process_key", Word(length=255), nullable=True),
        sa.Column("supervisor_id", Word(length=26), nullable=True),
        sa.Column("jobs", LongText(), nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat_at", sa.BigInteger(), nullable=False),
        sa.Column("loop_lag", sa.Float(), nullable=True),
        sa.Column("oldest_step_age", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        if_not_exists=True,
    )
    op.create_index(
        "durably_workers_alive", "durably_workers", ["state", "heartbeat_at"], unique=False, if_not_exists=True
    )
    op.create_table(
        "durably_labels",
        sa.Column("run_id", Word(length=26), nullable=False),
        sa.Column("key", Word(length=255), nullable=False),
        sa.Column("value", Word(length=255), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["durably_runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "key"),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_index(
        "durably_labels_by_value", "durably_labels", ["key", "value", "run_id"], unique=False, if_not_exists=True
    )
    op.create_table(
        "durably_logs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("run_id", Word(length=26), nullable=False),
        sa.Column("step_name", Word(length=255), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("level", Word(length=16), nullable=False),
        sa.Column("message", LongText(), nullable=False),
        sa.Column("data", LongText(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["durably_runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        if_not_exists=True,
    )
    op.create_index("durably_logs_of_run", "durably_logs", ["run_id", "id"], unique=False, if_not_exists=True)
    op.create_table(
        "durably_steps",
        sa.Column("run_id", Word(length=26), nullable=False),
        sa.Column("name", Word(length=255), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("status", Word(length=16), nullable=False),
        sa.Column("output", LongText(), nullable=True),
        sa.Column("error", LongText(), nullable=True),
        sa.Column("error_type", Word(length=512), nullable=True),
        sa.Column("error_traceback", LongText(), nullable=True),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("completed_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["durably_runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "name", "attempt"),
        sqlite_with_rowid=False,
        if_not_exists=True,
    )
    op.create_index(
        "durably_steps_one_checkpoint_per_name",
        "durably_steps",
        ["run_id", "name"],
        unique=True,
        sqlite_where=sa.text("status = 'completed'"),
        postgresql_where=sa.text("status = 'completed'"),
        if_not_exists=True,
    )


def downgrade():
    op.drop_index(
        "durably_steps_one_checkpoint_per_name",
        table_name="durably_steps",
        sqlite_where=sa.text("status = 'completed'"),
        postgresql_where=sa.text("status = 'completed'"),
    )
    op.drop_table("durably_steps")
    op.drop_index("durably_logs_of_run", table_name="durably_logs")
    op.drop_table("durably_logs")
    op.drop_index("durably_labels_by_value", table_name="durably_labels")
    op.drop_table("durably_labels")
    op.drop_index("durably_workers_alive", table_name="durably_workers")
    op.drop_table("durably_workers")
    op.drop_index(
        "durably_runs_waiting_for_key",
        table_name="durably_runs",
        sqlite_where=sa.text("status = 'pending' AND concurrency_key IS NOT NULL"),
        postgresql_where=sa.text("status = 'pending' AND concurrency_key IS NOT NULL"),
    )
    op.drop_index(
        "durably_runs_pending",
        table_name="durably_runs",
        sqlite_where=sa.text("status = 'pending'"),
        postgresql_where=sa.text("status = 'pending'"),
    )
    op.drop_index(
        "durably_runs_one_running_per_key",
        table_name="durably_runs",
        sqlite_where=sa.text("status = 'running' AND concurrency_key IS NOT NULL"),
        postgresql_where=sa.text("status = 'running' AND concurrency_key IS NOT NULL"),
    )
    op.drop_index(
        "durably_runs_one_per_idempotency_key",
        table_name="durably_runs",
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    )
    op.drop_index("durably_runs_listed", table_name="durably_runs")
    op.drop_index(
        "durably_runs_held",
        table_name="durably_runs",
        sqlite_where=sa.text("status = 'running'"),
        postgresql_where=sa.text("status = 'running'"),
    )
    op.drop_index(
        "durably_runs_failed",
        table_name="durably_runs",
        sqlite_where=sa.text("status = 'failed'"),
        postgresql_where=sa.text("status = 'failed'"),
    )
    op.drop_index(
        "durably_runs_cancelled",
        table_name="durably_runs",
        sqlite_where=sa.text("status = 'cancelled'"),
        postgresql_where=sa.text("status = 'cancelled'"),
    )
    op.drop_index(
        "durably_runs_ended",
        table_name="durably_runs",
        sqlite_where=sa.text("completed_at IS NOT NULL"),
        postgresql_where=sa.text("completed_at IS NOT NULL"),
    )
    op.drop_table("durably_runs")
