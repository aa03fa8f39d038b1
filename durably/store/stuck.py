"""Runs that do not move though somebody should move them, for who looks for the cause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, func, literal, or_, select, union_all

from durably.store.tables import has_status, now, runs, workers

if TYPE_CHECKING:
    from sqlalchemy import Connection, Select

_MOST_RUNS: Final = 20
_MOST_READ: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerlessRun:
    """
    A running run whose worker does not work.

    Args:
        worker_state: "alive" of one that is silent; None if its row is gone.
        silent_seconds: Since the worker's last heartbeat; None if its row is gone.
        waiting: Pending runs that wait for its concurrency key.
    """

    run_id: str
    job_name: str
    worker_id: str
    worker_state: str | None
    silent_seconds: float | None
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InterruptedRun:
    """A run that has lost so many workers that it executes alone."""

    run_id: str
    job_name: str
    status: str
    interruptions: int


_waiter: Final = runs.alias("waiter")
_waiters: Final = (
    select(func.count())
    .where(has_status("pending", _waiter), _waiter.c.concurrency_key == runs.c.concurrency_key)
    .scalar_subquery()
)
_ownerless: Final = (
    select(
        runs.c.id,
        runs.c.job_name,
        runs.c.worker_id,
        workers.c.state,
        (now() - workers.c.heartbeat_at).label("age"),
        _waiters.label("waiting"),
    )
    .join_from(runs, workers, workers.c.id == runs.c.worker_id, isouter=True)
    .where(
        has_status("running"),
        or_(
            workers.c.id.is_(None),
            workers.c.state != "alive",
            workers.c.heartbeat_at < now() - bindparam("threshold"),
        ),
    )
    .order_by(runs.c.id)
    .limit(_MOST_RUNS)
)


def _of(status: str) -> Select[Any]:
    columns = (runs.c.id, runs.c.job_name, literal(status).label("status"), runs.c.interruptions)
    return select(*columns).where(has_status(status)).limit(_MOST_READ)


_active: Final = union_all(_of("pending").subquery().select(), _of("running").subquery().select()).subquery()
_interrupted: Final = (
    select(_active)
    .where(_active.c.interruptions >= bindparam("least"))
    .order_by(_active.c.interruptions.desc(), _active.c.id)
    .limit(_MOST_RUNS)
)


def find_ownerless(connection: Connection, stale_threshold: float) -> list[OwnerlessRun]:
    """List running runs whose worker is gone, or silent for so many seconds; at most 20."""
    rows = connection.execute(_ownerless, {"threshold": int(stale_threshold * 1e6)})
    return [
        OwnerlessRun(
            run_id=row.id,
            job_name=row.job_name,
            worker_id=row.worker_id,
            worker_state=row.state,
            silent_seconds=None if row.age is None else row.age / 1e6,
            waiting=row.waiting,
        )
        for row in rows
    ]


def find_interrupted(connection: Connection, least: int) -> list[InterruptedRun]:
    """List pending and running runs with so many interruptions, the worst first; at most 20, among 100,000 of each."""
    rows = connection.execute(_interrupted, {"least": least})
    return [
        InterruptedRun(run_id=row.id, job_name=row.job_name, status=row.status, interruptions=row.interruptions)
        for row in rows
    ]
