"""
One look at everything. Every statement reads an index to a bound, so that it may be asked every second.

The counts come from partial indexes alone: those of ended runs are counted together, and what failed or was cancelled
taken off, because an index of completed runs would be one that every run pays for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, func, literal_column, select

from durably.status import Failure, HeldKey, Queue, SystemStatus
from durably.store.runs import read_clock
from durably.store.tables import has_status, now, runs, to_time, workers
from durably.store.workers import get_workers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sqlalchemy import ColumnElement, Connection, Select

    from durably.model import Status, Worker

# With so many pending and so many ended, all of it took 71 ms on SQLite and 120 ms on PostgreSQL 18.
_MOST_COUNTED: Final = 100_000
_MOST_QUEUES: Final = 200
_MOST_KEYS: Final = 20
_MOST_FAILURES: Final = 5
_LONGEST_ERROR: Final = 500
_MINUTE: Final = 60 * 1_000_000
_HOUR: Final = 3_600 * 1_000_000

_has_ended: Final = runs.c.completed_at.is_not(None)


def _count(*conditions: ColumnElement[bool]) -> Select[Any]:
    """Count the runs that an index finds, to the bound."""
    found: Select[Any] = (
        select(literal_column("1").label("one")).select_from(runs).where(*conditions).limit(_MOST_COUNTED)
    )
    return select(func.count()).select_from(found.subquery())


_counts: Final = select(
    _count(has_status("pending")).scalar_subquery().label("pending"),
    _count(has_status("running")).scalar_subquery().label("running"),
    _count(_has_ended).scalar_subquery().label("ended"),
    _count(has_status("failed")).scalar_subquery().label("failed"),
    _count(has_status("cancelled")).scalar_subquery().label("cancelled"),
)
_lately: Final = runs.c.completed_at > now() - _MINUTE
_ended_lately: Final = select(
    _count(_has_ended, _lately).scalar_subquery().label("ended"),
    _count(has_status("failed"), _lately).scalar_subquery().label("failed"),
    _count(has_status("cancelled"), _lately).scalar_subquery().label("cancelled"),
)

_oldest: Final = (
    select(runs.c.job_name, runs.c.pending_at)
    .where(has_status("pending"))
    .order_by(runs.c.created_at, runs.c.id)
    .limit(_MOST_COUNTED)
    .subquery()
)
_queues: Final = (
    select(
        _oldest.c.job_name,
        func.count().label("pending"),
        (now() - func.min(_oldest.c.pending_at)).label("age"),
    )
    .group_by(_oldest.c.job_name)
    .order_by(func.count().desc(), _oldest.c.job_name)
    .limit(_MOST_QUEUES)
)

_holder: Final = runs.alias("holder")
_keyed: Final = (
    select(runs.c.concurrency_key)
    .where(has_status("pending"), runs.c.concurrency_key.is_not(None))
    .order_by(runs.c.concurrency_key)
    .limit(_MOST_COUNTED)
    .subquery()
)
_waiting: Final = (
    select(_keyed.c.concurrency_key, func.count().label("waiting")).group_by(_keyed.c.concurrency_key).subquery()
)
_is_held: Final = and_(has_status("running", _holder), _holder.c.concurrency_key == _waiting.c.concurrency_key)
_waiting_for_keys: Final = select(func.coalesce(func.sum(_waiting.c.waiting), 0)).join_from(_waiting, _holder, _is_held)
_held_keys: Final = (
    select(
        _waiting.c.concurrency_key,
        _waiting.c.waiting,
        _holder.c.id,
        _holder.c.job_name,
        _holder.c.worker_id,
        (now() - _holder.c.started_at).label("age"),
    )
    .join_from(_waiting, _holder, _is_held)
    .order_by(_waiting.c.waiting.desc(), _waiting.c.concurrency_key)
    .limit(_MOST_KEYS)
)

_dead: Final = select(func.count()).where(workers.c.state == "dead", workers.c.heartbeat_at > now() - _HOUR)
_failures: Final = (
    select(
        runs.c.id,
        runs.c.job_name,
        runs.c.error_type,
        func.substr(runs.c.error, 1, _LONGEST_ERROR).label("error"),
        runs.c.completed_at,
    )
    .where(has_status("failed"))
    .order_by(runs.c.completed_at.desc())
    .limit(_MOST_FAILURES)
)


def read_status(connection: Connection, *, stale_threshold: float) -> SystemStatus:
    """
    Look at everything once.

    Args:
        stale_threshold: Seconds without a heartbeat after which a worker counts as silent.
    """
    counted = connection.execute(_counts).one()
    living = get_workers(connection, alive_only=True)
    alive = tuple(worker for worker in living if worker.heartbeat_age_seconds <= stale_threshold)
    return SystemStatus(
        read_at=to_time(read_clock(connection)),
        counts={"pending": counted.pending, "running": counted.running, **_by_end(counted)},
        is_capped=_MOST_COUNTED in tuple(counted),
        ended_last_minute=_by_end(connection.execute(_ended_lately).one()),
        queues=_read_queues(connection, alive),
        waiting_for_keys=int(connection.execute(_waiting_for_keys).scalar_one()),
        held_keys=tuple(_to_held_key(row) for row in connection.execute(_held_keys)),
        alive=alive,
        silent=tuple(worker for worker in living if worker not in alive),
        dead_last_hour=connection.execute(_dead).scalar_one(),
        failures=tuple(_to_failure(row) for row in connection.execute(_failures)),
    )


def _by_end(row: Any) -> Mapping[Status, int]:
    # Each is a statement's own moment on some databases, or capped: never less than none.
    completed = max(0, row.ended - row.failed - row.cancelled)
    return {"completed": completed, "failed": row.failed, "cancelled": row.cancelled}


def _read_queues(connection: Connection, alive: Iterable[Worker]) -> tuple[Queue, ...]:
    known = {job for worker in alive for job in worker.jobs}
    return tuple(
        Queue(
            job_name=row.job_name,
            pending=row.pending,
            oldest_seconds=max(0, row.age) / 1e6,
            is_known=row.job_name in known,
        )
        for row in connection.execute(_queues)
    )


def _to_held_key(row: Any) -> HeldKey:
    return HeldKey(
        concurrency_key=row.concurrency_key,
        waiting=row.waiting,
        run_id=row.id,
        job_name=row.job_name,
        worker_id=row.worker_id,
        held_seconds=max(0, row.age) / 1e6,
    )


def _to_failure(row: Any) -> Failure:
    return Failure(
        run_id=row.id,
        job_name=row.job_name,
        error_type=row.error_type,
        error=row.error or "",
        failed_at=to_time(row.completed_at),
    )
