"""Claiming: pending runs become a worker's, each by exactly one worker."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import and_, bindparam, exists, func, literal_column, or_, select, tuple_, update

from durably.store.returning import ReturningUpdate
from durably.store.rows import to_labels
from durably.store.tables import has_status, now, runs, steps, workers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import ColumnElement, Connection, Row, Select

Company = Literal["beside", "alone", "isolated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStep:
    """
    What is known of a step when its run is claimed again.

    Args:
        index: Its position in the run.
        attempts: Attempts so far, failed ones included.
        output: JSON of the checkpoint; None if it has not completed.
    """

    index: int
    attempts: int
    output: str | None


@dataclass(slots=True, kw_only=True, eq=False)
class ClaimedRun:
    """
    A run that a worker now holds.

    Args:
        input: JSON.
        waited: Seconds since it last became pending.
        steps: What it has of earlier executions, by name.
    """

    id: str
    job_name: str
    input: str
    labels: Mapping[str, str]
    attempt: int
    generation: int
    interruptions: int
    waited: float
    steps: Mapping[str, StoredStep]


_candidate: Final = runs.alias("candidate")
_older: Final = runs.alias("older")
_holder: Final = runs.alias("holder")


def _is_known(table: Any, count: int) -> ColumnElement[bool]:
    """Compare the job with *count* names, each a parameter: a list as one would be written anew for each execution."""
    known: ColumnElement[bool] = table.c.job_name.in_([bindparam(f"job_{i}") for i in range(count)])
    return known


def _names(jobs: Sequence[str]) -> dict[str, str]:
    return {f"job_{i}": name for i, name in enumerate(jobs)}


def _key_is_free(job_count: int) -> ColumnElement[bool]:
    """Let only the oldest claimable run of a concurrency key through, and none while one is running."""
    running = exists().where(has_status("running", _holder), _holder.c.concurrency_key == _candidate.c.concurrency_key)
    older = exists().where(
        has_status("pending", _older),
        _older.c.concurrency_key == _candidate.c.concurrency_key,
        _is_known(_older, job_count),
        _older.c.interruptions < bindparam("below_interruptions"),
        tuple_(_older.c.created_at, _older.c.id) < tuple_(_candidate.c.created_at, _candidate.c.id),
    )
    return or_(_candidate.c.concurrency_key.is_(None), and_(~running, ~older))


_claimer_lives: Final = workers.c.id == bindparam("claimer"), workers.c.state == "alive"


@lru_cache(maxsize=64)
def _claim_of(job_count: int) -> ReturningUpdate:
    """Make the one claim statement, for a worker that knows so many jobs."""
    claimable = (
        select(_candidate.c.id)
        .where(
            has_status("pending", _candidate),
            _is_known(_candidate, job_count),
            _candidate.c.interruptions >= bindparam("from_interruptions"),
            _candidate.c.interruptions < bindparam("below_interruptions"),
            _key_is_free(job_count),
        )
        .order_by(_candidate.c.created_at, _candidate.c.id)
        .limit(bindparam("limit"))
        .with_for_update(skip_locked=True, of=_candidate)
    )
    take = (
        update(runs)
        .where(
            # That they are pending was tested as they were chosen; again here, it would make PostgreSQL look through
            # the index of all that are pending, where it has no statistics yet.
            # Locked where the database locks rows, so that nobody recovers this worker's runs between look and commit.
            exists(select(literal_column("1")).where(*_claimer_lives).with_for_update(read=True)),
        )
        .values(
            status="running",
            worker_id=bindparam("claimer"),
            awaited_by=None,
            generation=runs.c.generation + 1,
            started_at=func.coalesce(runs.c.started_at, now()),
            updated_at=now(),
        )
    )
    return ReturningUpdate(claimable, take, _CLAIMED)


_CLAIMED: Final = (
    runs.c.id,
    runs.c.job_name,
    runs.c.input,
    runs.c.labels,
    runs.c.attempt,
    runs.c.generation,
    runs.c.interruptions,
    runs.c.created_at,
    runs.c.pending_at,
    runs.c.updated_at,
)
_any: Final = 2**31 - 1


def claim(
    connection: Connection,
    *,
    worker_id: str,
    jobs: Sequence[str],
    limit: int,
    isolate_after: int,
    company: Company,
) -> list[ClaimedRun]:
    """
    Take up to *limit* pending runs of *jobs* for *worker_id*, oldest first.

    A run that was interrupted *isolate_after* times or more is taken by itself, and only by a worker that holds
    nothing else, so that the next death is its own.

    Args:
        worker_id: A living worker; a dead one gets nothing.
        jobs: Names of the jobs that this worker knows. Others stay pending.
        limit: Free slots, from 1.
        isolate_after: The setting.
        company: "beside" if the worker holds runs; "alone" if it holds none, and may take a run that has to be
            alone in its turn; "isolated" if it let its slots run empty for such a run.

    Returns:
        The runs as claimed, each generation raised by one; empty if nothing is claimable.
    """
    if not jobs:
        return []
    statement, common = _claim_of(len(jobs)), {"claimer": worker_id, **_names(jobs)}
    rows: list[Row[Any]] = []
    if company != "beside":
        lowest = isolate_after if company == "isolated" else 0
        first = {"limit": 1, "from_interruptions": lowest, "below_interruptions": _any}
        rows.extend(statement.execute(connection, common | first))
    if company == "beside" or (rows and limit > 1 and rows[0].interruptions < isolate_after):
        more = {"limit": limit - len(rows), "from_interruptions": 0, "below_interruptions": isolate_after}
        rows.extend(statement.execute(connection, common | more))
    rows.sort(key=lambda row: (row.created_at, row.id))
    stored = _stored_steps(connection, [row.id for row in rows if row.generation > 1])
    return [_to_claimed(row, stored.get(row.id, {})) for row in rows]


def _to_claimed(row: Row[Any], stored: Mapping[str, StoredStep]) -> ClaimedRun:
    return ClaimedRun(
        id=row.id,
        job_name=row.job_name,
        input=row.input,
        labels=to_labels(row.labels),
        attempt=row.attempt,
        generation=row.generation,
        interruptions=row.interruptions,
        waited=(row.updated_at - row.pending_at) / 1e6,
        steps=stored,
    )


def _stored_steps(connection: Connection, run_ids: Sequence[str]) -> dict[str, dict[str, StoredStep]]:
    """Read what earlier executions left; a run in its first generation has left nothing."""
    found: dict[str, dict[str, StoredStep]] = {}
    if not run_ids:
        return found
    query = (
        select(steps.c.run_id, steps.c.name, steps.c.position, steps.c.attempt, steps.c.status, steps.c.output)
        .where(steps.c.run_id.in_(bindparam("ids", expanding=True)))
        .order_by(steps.c.run_id, steps.c.name, steps.c.attempt)
    )
    for row in connection.execute(query, {"ids": list(run_ids)}):
        # The rows of one name ascend by attempt and the checkpoint, if any, is the last.
        output = row.output if row.status == "completed" else None
        found.setdefault(row.run_id, {})[row.name] = StoredStep(index=row.position, attempts=row.attempt, output=output)
    return found


@lru_cache(maxsize=64)
def _pending_of(job_count: int) -> Select[Any]:
    return (
        select(literal_column("1")).where(has_status("pending"), _is_known(runs, job_count)).limit(literal_column("1"))
    )


def is_any_claimable(connection: Connection, jobs: Sequence[str]) -> bool:
    """Tell, without the right to write, whether a claim of *jobs* may find anything."""
    return connection.execute(_pending_of(len(jobs)), _names(jobs)).first() is not None


def _may_promise(table: Any) -> ColumnElement[bool]:
    return or_(
        table.c.awaited_by.is_(None),
        table.c.awaited_by == bindparam("claimer"),
        ~exists().where(workers.c.id == table.c.awaited_by, workers.c.state == "alive"),
    )


# Of whatever job and key: with each heartbeat it is asked, and hardly ever is there one.
_passed_over: Final[Select[Any]] = (
    select(literal_column("1"))
    .where(
        has_status("pending"),
        runs.c.interruptions >= bindparam("isolate_after"),
        runs.c.pending_at < now() - bindparam("patience"),
    )
    .limit(literal_column("1"))
)


@lru_cache(maxsize=64)
def _overdue_of(job_count: int) -> Select[Any]:
    return (
        select(_candidate.c.id)
        .where(
            has_status("pending", _candidate),
            _is_known(_candidate, job_count),
            _candidate.c.interruptions >= bindparam("isolate_after"),
            _candidate.c.pending_at < now() - bindparam("patience"),
            _key_is_free(job_count),  # or the slots would run empty for what cannot be claimed anyhow
            _may_promise(_candidate),
        )
        .order_by(_candidate.c.created_at, _candidate.c.id)
        .limit(literal_column("1"))
    )


_await_run: Final = (
    update(runs)
    .where(runs.c.id == bindparam("run_id"), has_status("pending"), _may_promise(runs))
    .values(awaited_by=bindparam("claimer"))
)


def await_overdue_run(
    connection: Connection, *, worker_id: str, jobs: Sequence[str], isolate_after: int, patience: float
) -> bool:
    """
    Promise that *worker_id* lets its slots run empty for a run that must be alone and was passed over too long.

    Args:
        connection: In a write transaction.
        patience: Seconds pending after which it was passed over too long.

    Returns:
        Whether there is such a run that no other living worker has promised to take.
    """
    if not jobs:
        return False
    age = {"isolate_after": isolate_after, "patience": int(patience * 1e6)}
    if connection.execute(_passed_over, age).first() is None:
        return False
    values: dict[str, Any] = {"claimer": worker_id, **_names(jobs), **age, "below_interruptions": _any}
    run_id = connection.execute(_overdue_of(len(jobs)), values).scalar()
    if run_id is None:
        return False
    return connection.execute(_await_run, {"run_id": run_id, "claimer": worker_id}).rowcount > 0
