"""Runs as callers see them: look up, list, count; and cancel, retry, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import and_, bindparam, delete, func, literal_column, or_, select, update

from durably.errors import ConflictError, NotFoundError
from durably.ids import is_id
from durably.store.rows import to_labels, to_log_entry, to_run, to_step
from durably.store.tables import has_status, logs, now, runs, steps
from durably.store.tables import labels as labels_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection, Row, Select

    from durably.model import LogEntry, Run, Status, Step

_MOST_ROWS: Final = 2**62
_run: Final = select(runs).where(runs.c.id == bindparam("run_id"))
# Nobody changes it until the transaction's end, where the database locks rows; else nobody does anyhow.
_locked_run: Final = _run.with_for_update()
_steps: Final = (
    select(steps).where(steps.c.run_id == bindparam("run_id")).order_by(steps.c.position, steps.c.name, steps.c.attempt)
)
_logs: Final = (
    select(logs).where(logs.c.run_id == bindparam("run_id"), logs.c.id > bindparam("after")).order_by(logs.c.id)
)
_active: Final[Select[Any]] = (
    select(literal_column("1")).where(or_(has_status("pending"), has_status("running"))).limit(1)
)
_newest_pending: Final = (
    select(runs.c.id, runs.c.pending_at, runs.c.job_name)
    .where(has_status("pending"))
    .order_by(runs.c.created_at.desc(), runs.c.id.desc())
    .limit(bindparam("limit"))
)
_newest_cancelled: Final = (
    select(runs.c.id, runs.c.completed_at)
    .where(has_status("cancelled"))
    .order_by(runs.c.completed_at.desc())
    .limit(bindparam("limit"))
)


def get_run(connection: Connection, run_id: str) -> Run | None:
    """Look a run up; None if there is none of that id."""
    row = _find(connection, _run, run_id)
    return None if row is None else _with_counts(connection, [row])[0]


def _find(connection: Connection, query: Select[Any], run_id: str) -> Row[Any] | None:
    # What is no id may be text that a database refuses.
    return connection.execute(query, {"run_id": run_id}).first() if is_id(run_id) else None


def require_run(connection: Connection, run_id: str, *, locked: bool = False) -> Run:
    """
    Look a run up.

    Args:
        locked: Keep it as it is until the end of the write transaction.

    Raises:
        NotFoundError: There is none of that id.
    """
    row = _find(connection, _locked_run if locked else _run, run_id)
    if row is None:
        raise NotFoundError(f"there is no run {run_id!r}")
    return _with_counts(connection, [row])[0]


def get_runs(
    connection: Connection,
    *,
    statuses: Sequence[Status] = (),
    job_names: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    limit: int | None = None,
    offset: int = 0,
    before: str | None = None,
) -> list[Run]:
    """
    List runs, newest first: by created_at, then id, both descending, which is a total order.

    Args:
        statuses: Any of these; empty for all.
        job_names: Any of these; empty for all.
        labels: All of these.
        limit: At most so many; None for all.
        offset: Skip so many.
        before: Only the runs that follow this one in the order.

    Raises:
        NotFoundError: There is no run *before*.
    """
    query = select(runs).order_by(runs.c.created_at.desc(), runs.c.id.desc())
    if statuses:
        query = query.where(runs.c.status.in_(statuses))
    if job_names:
        query = query.where(runs.c.job_name.in_(job_names))
    for key, value in (labels or {}).items():
        query = query.where(
            runs.c.id.in_(select(labels_table.c.run_id).where(labels_table.c.key == key, labels_table.c.value == value))
        )
    if before is not None:
        row = _find(connection, _run, before)
        if row is None:
            raise NotFoundError(f"before: there is no run {before!r}")
        query = query.where(
            or_(
                runs.c.created_at < row.created_at,
                and_(runs.c.created_at == row.created_at, runs.c.id < before),
            )
        )
    if limit is not None or offset:
        # An offset needs a limit on some dialects.
        query = query.limit(_bounded(limit)).offset(_bounded(offset))
    return _with_counts(connection, connection.execute(query).all())


def _bounded(count: int | None) -> int:
    """Fit a count, or None for no bound, into what databases take; no table holds more rows."""
    return _MOST_ROWS if count is None else min(count, _MOST_ROWS)


def _with_counts(connection: Connection, rows: Sequence[Row[Any]]) -> list[Run]:
    """Read rows as runs, with what their checkpoints tell."""
    counts: dict[str, tuple[int, int]] = {}
    for start in range(0, len(rows), 500):
        found = connection.execute(
            select(steps.c.run_id, func.max(steps.c.position) + 1, func.count())
            .where(
                steps.c.run_id.in_([row.id for row in rows[start : start + 500]]),
                has_status("completed", steps),
            )
            .group_by(steps.c.run_id)
        )
        counts |= {run_id: (next_index, completed) for run_id, next_index, completed in found}
    return [
        to_run(row, next_index=next_index, completed=completed)
        for row in rows
        for next_index, completed in (counts.get(row.id, (0, 0)),)
    ]


def get_steps(connection: Connection, run_id: str) -> list[Step]:
    """List a run's checkpoints and failed attempts, by index, then attempt."""
    return [to_step(row) for row in connection.execute(_steps, {"run_id": run_id})]


def get_logs(connection: Connection, run_id: str, *, after: int = 0) -> tuple[list[LogEntry], int]:
    """
    List a run's log entries in the order in which they were logged.

    Args:
        after: Where the last call ended, to read on.

    Returns:
        The entries, and where they end.
    """
    rows = connection.execute(_logs, {"run_id": run_id, "after": after}).all()
    return [to_log_entry(row) for row in rows], rows[-1].id if rows else after


def last_log_position(connection: Connection, run_id: str) -> int:
    """Tell where a run's log ends now; 0 without an entry."""
    found: int | None = connection.execute(select(func.max(logs.c.id)).where(logs.c.run_id == run_id)).scalar()
    return found or 0


def count_by_status(connection: Connection) -> dict[str, int]:
    """Count runs by status; a status without runs is missing."""
    found = connection.execute(select(runs.c.status, func.count()).group_by(runs.c.status))
    return {status: count for status, count in found}  # noqa: C416 - rows are no pairs to the type checker


def is_any_active(connection: Connection) -> bool:
    """Tell whether any run is pending or running."""
    return connection.execute(_active).first() is not None


def newest_pending(connection: Connection, limit: int) -> set[tuple[str, int, str]]:
    """Name the latest pending runs, at most *limit*: id, when each last became pending, and its job."""
    rows = connection.execute(_newest_pending, {"limit": limit})
    return {(row.id, row.pending_at, row.job_name) for row in rows}


def newest_cancelled(connection: Connection, limit: int) -> set[tuple[str, int]]:
    """Name the runs that were cancelled last, at most *limit*: id, and when."""
    return {(row.id, row.completed_at) for row in connection.execute(_newest_cancelled, {"limit": limit})}


_cancel: Final = (
    update(runs)
    .where(runs.c.id == bindparam("run_id"), runs.c.status == bindparam("expected"))
    .values(status="cancelled", worker_id=None, awaited_by=None, completed_at=now(), updated_at=now())
)
_retry: Final = (
    update(runs)
    .where(runs.c.id == bindparam("run_id"), runs.c.status.in_(["failed", "cancelled"]))
    .values(
        status="pending",
        attempt=runs.c.attempt + 1,
        interruptions=0,
        error=None,
        error_type=None,
        error_traceback=None,
        completed_at=None,
        pending_at=now(),
        updated_at=now(),
    )
)


_delete: Final = delete(runs).where(runs.c.id == bindparam("run_id"), runs.c.completed_at.is_not(None))


def cancel(connection: Connection, run_id: str) -> tuple[Run, Status]:
    """
    Cancel a pending or running run.

    Returns:
        The run as it is now, and its status before.

    Raises:
        NotFoundError: There is none of that id.
        ConflictError: It has ended; with its status.
    """
    run = require_run(connection, run_id, locked=True)
    changed = run.is_active and connection.execute(_cancel, {"run_id": run_id, "expected": run.status}).rowcount
    if not changed:
        raise ConflictError(
            f"run {run_id} is {run.status}; only a pending or running run can be cancelled", status=run.status
        )
    return require_run(connection, run_id), run.status


def retry(connection: Connection, run_id: str) -> tuple[Run, Status]:
    """
    Put a failed or cancelled run back to pending; its completed steps stay.

    Returns:
        The run as it is now, and its status before.

    Raises:
        NotFoundError: There is none of that id.
        ConflictError: It is pending, running or completed; with its status.
    """
    run = require_run(connection, run_id, locked=True)
    if not connection.execute(_retry, {"run_id": run_id}).rowcount:
        raise ConflictError(
            f"run {run_id} is {run.status}; only a failed or cancelled run can be retried", status=run.status
        )
    return require_run(connection, run_id), run.status


def delete_run(connection: Connection, run_id: str) -> Run:
    """
    Delete an ended run with its steps, logs and labels.

    Returns:
        The run as it was.

    Raises:
        NotFoundError: There is none of that id.
        ConflictError: It is pending or running.
    """
    run = require_run(connection, run_id)  # not locked: a claim passes over what somebody holds
    if run.is_active or not connection.execute(_delete, {"run_id": run_id}).rowcount:
        run = require_run(connection, run_id)
        raise ConflictError(f"run {run_id} is {run.status}; cancel it before deleting it", status=run.status)
    return run


def purge_runs(connection: Connection, *, before: int, limit: int) -> list[tuple[str, str, Mapping[str, str]]]:
    """
    Delete ended runs, oldest end first.

    Args:
        before: Only those that ended before this time, in microseconds by the database's clock.
        limit: At most so many.

    Returns:
        Id, job name and labels of each deleted run.
    """
    doomed = connection.execute(
        select(runs.c.id, runs.c.job_name, runs.c.labels)
        .where(runs.c.completed_at.is_not(None), runs.c.completed_at < before)
        .order_by(runs.c.completed_at, runs.c.id)
        .limit(_bounded(limit))
        .with_for_update(skip_locked=True)  # one that is being retried is no longer ended
    ).all()
    _delete_all(connection, [row.id for row in doomed])
    return [(row.id, row.job_name, to_labels(row.labels)) for row in doomed]


def _delete_all(connection: Connection, ids: Iterable[str]) -> None:
    listed = list(ids)
    for start in range(0, len(listed), 500):
        connection.execute(delete(runs).where(runs.c.id.in_(listed[start : start + 500])))


def read_clock(connection: Connection) -> int:
    """Read the database's clock, in microseconds since 1970."""
    return int(connection.execute(select(now())).scalar_one())
