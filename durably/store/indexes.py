"""
The indexes, which hold the invariants: one running run per key, one run per idempotency key, one checkpoint per step.

Apart from the tables because only migrations need them, and partial ones load every dialect that they speak to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Index

from durably.store.tables import has_status, labels, logs, metadata, runs, steps, workers

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

__all__ = ["metadata"]
"""The tables' metadata, which has its indexes when it was imported from here."""


def _partial(name: str, *columns: str, where: ColumnElement[bool], unique: bool = False) -> Index:
    return Index(name, *(runs.c[c] for c in columns), unique=unique, sqlite_where=where, postgresql_where=where)


_partial("durably_runs_pending", "created_at", "id", "job_name", where=has_status("pending"))
_partial("durably_runs_held", "worker_id", where=has_status("running"))
_partial(
    "durably_runs_one_running_per_key",
    "concurrency_key",
    where=has_status("running") & runs.c.concurrency_key.is_not(None),
    unique=True,
)
_partial(
    "durably_runs_waiting_for_key",
    "concurrency_key",
    "created_at",
    "id",
    where=has_status("pending") & runs.c.concurrency_key.is_not(None),
)
_partial(
    "durably_runs_one_per_idempotency_key",
    "job_name",
    "idempotency_key",
    where=runs.c.idempotency_key.is_not(None),
    unique=True,
)
_partial("durably_runs_ended", "completed_at", "id", where=runs.c.completed_at.is_not(None))
_partial("durably_runs_cancelled", "completed_at", where=has_status("cancelled"))
_partial("durably_runs_failed", "completed_at", where=has_status("failed"))
Index("durably_runs_listed", runs.c.created_at, runs.c.id)

_completed = has_status("completed", steps)
Index(
    "durably_steps_one_checkpoint_per_name",
    steps.c.run_id,
    steps.c.name,
    unique=True,
    sqlite_where=_completed,
    postgresql_where=_completed,
)
Index("durably_logs_of_run", logs.c.run_id, logs.c.id)
Index("durably_labels_by_value", labels.c.key, labels.c.value, labels.c.run_id)
Index("durably_workers_alive", workers.c.state, workers.c.heartbeat_at)
