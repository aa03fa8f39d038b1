"""Workers' rows, and recovery: what a lost worker held goes back to pending, or fails as poison."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import Integer, String, and_, bindparam, case, delete, exists, func, insert, or_, select, update

from durably.store.returning import ReturningUpdate
from durably.store.rows import to_labels, to_worker
from durably.store.tables import has_status, now, runs, workers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

    from durably.model import Worker

POISON: Final = "TooManyInterruptions"
_FORGOTTEN_AFTER_MICROSECONDS: Final = 24 * 3600 * 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWorker:
    """
    A worker about to begin.

    Args:
        id: Fresh per boot; names are reused, ids are not.
        process_key: See `durably.worker.identity`; None where it cannot be told.
        supervisor_id: Whose child it is; None without a supervisor.
        jobs: Names of the jobs it knows.
    """

    id: str
    host: str
    pid: int
    process_key: str | None
    supervisor_id: str | None = None
    jobs: Sequence[str]
    concurrency: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredRun:
    """
    A run that its worker lost.

    Args:
        failed: Whether it was interrupted too often and failed; else it is pending again.
        error: With *failed*, why.
    """

    id: str
    job_name: str
    labels: Mapping[str, str]
    attempt: int
    interruptions: int
    failed: bool
    error: str | None


def register(connection: Connection, worker: NewWorker) -> None:
    """Insert a worker's row, alive."""
    connection.execute(
        insert(workers).values(
            id=worker.id,
            state="alive",
            host=worker.host,
            pid=worker.pid,
            process_key=worker.process_key,
            supervisor_id=worker.supervisor_id,
            jobs=json.dumps(list(worker.jobs)),
            concurrency=worker.concurrency,
            started_at=now(),
            heartbeat_at=now(),
        )
    )


_beat: Final = (
    update(workers)
    .where(workers.c.id == bindparam("worker_id"), workers.c.state == "alive")
    .values(
        heartbeat_at=now(),
        jobs=bindparam("names"),
        loop_lag=bindparam("lag"),
        oldest_step_age=bindparam("step_age"),
    )
)


def beat(
    connection: Connection,
    worker_id: str,
    *,
    jobs: Sequence[str],
    loop_lag: float,
    oldest_step_age: float | None,
) -> bool:
    """
    Write a heartbeat in database time, with its evidence (seconds).

    Returns:
        Whether it was accepted; a worker that was declared dead stays dead.
    """
    values = {
        "worker_id": worker_id,
        "names": json.dumps(list(jobs)),
        "lag": loop_lag,
        "step_age": oldest_step_age,
    }
    return connection.execute(_beat, values).rowcount > 0


_holds: Final = exists().where(has_status("running"), runs.c.worker_id == workers.c.id)
_close: Final = (
    update(workers)
    .where(workers.c.id == bindparam("worker_id"), workers.c.state == "alive", ~_holds)
    .values(state="stopped", heartbeat_at=now())
)


def close(connection: Connection, worker_id: str) -> bool:
    """
    Close a worker's row as it stops; one that holds runs stays alive, to fall silent, or nobody would recover them.

    Returns:
        Whether it was still alive, and held nothing.
    """
    return connection.execute(_close, {"worker_id": worker_id}).rowcount > 0


_of_others: Final = func.coalesce(workers.c.supervisor_id, "") != bindparam("mine")
# Locked, so that it waits for whatever a heartbeat would wait for: see Upkeep's judgement of others.
_silent: Final = (
    select(workers.c.id)
    .where(workers.c.state == "alive", workers.c.heartbeat_at < now() - bindparam("threshold"), _of_others)
    .order_by(workers.c.id)
    .with_for_update(key_share=True)
)
_on_host: Final = select(workers.c.id, workers.c.process_key).where(
    workers.c.state == "alive", workers.c.process_key.like(bindparam("machine"), escape="\\"), _of_others
)


def find_silent(connection: Connection, stale_threshold: float, *, except_of: str | None = None) -> list[str]:
    """List the living workers, but *except_of* that supervisor, whose last heartbeat is older than so many seconds."""
    values = {"threshold": int(stale_threshold * 1e6), "mine": except_of or "-"}
    return list(connection.execute(_silent, values).scalars())


def find_on_machine(connection: Connection, machine: str, *, except_of: str | None = None) -> list[tuple[str, str]]:
    """List one machine's living workers, but *except_of* that supervisor: id and process key, which names *machine*."""
    pattern = machine.replace("%", "\\%").replace("_", "\\_") + "%"
    rows = connection.execute(_on_host, {"machine": pattern, "mine": except_of or "-"})
    return [(row.id, row.process_key) for row in rows]


_declare_dead: Final = (
    update(workers).where(workers.c.id == bindparam("worker_id"), workers.c.state == "alive").values(state="dead")
)
_declare_silent_dead: Final = _declare_dead.where(workers.c.heartbeat_at < now() - bindparam("threshold"))
_lost_by = runs.c.worker_id == bindparam("lost")
_culprit: Final = bindparam("culprit", type_=String)
_counts = case((or_(_culprit == "", runs.c.id == _culprit), bindparam("counted", type_=Integer)), else_=0)
_interruptions = runs.c.interruptions + _counts
_is_poison = _interruptions > bindparam("most")
_recover: Final = ReturningUpdate(
    select(runs.c.id).where(_lost_by, has_status("running")).with_for_update(),
    update(runs)
    .where(has_status("running"))
    # The count last: where assignments take effect one after the other, those before it must see the old one.
    .ordered_values(
        (runs.c.status, case((_is_poison, "failed"), else_="pending")),
        (runs.c.worker_id, None),
        (runs.c.error, case((_is_poison, bindparam("reason")), else_=None)),
        (runs.c.error_type, case((_is_poison, POISON), else_=None)),
        (runs.c.completed_at, case((_is_poison, now()), else_=None)),
        (runs.c.pending_at, now()),
        (runs.c.updated_at, now()),
        (runs.c.interruptions, _interruptions),
    ),
    (
        runs.c.id,
        runs.c.job_name,
        runs.c.labels,
        runs.c.attempt,
        runs.c.interruptions,
        runs.c.status,
        runs.c.error,
    ),
)


def recover(
    connection: Connection,
    worker_id: str,
    *,
    ending: str,
    max_interruptions: int,
    interrupts: bool,
    culprit: str | None = None,
    silent_for: float | None = None,
) -> tuple[bool, list[RecoveredRun]]:
    """
    Declare a worker dead and recover what it held, in the one transaction of *connection*.

    Args:
        ending: How the worker ended, for the error of a run that fails ("was killed by SIGKILL").
        max_interruptions: A run interrupted more often fails.
        interrupts: Whether the loss counts as an interruption; not in a drain.
        culprit: The run for which alone it counts; None for all.
        silent_for: Seconds; only if it is still silent for so long, as it may have beaten since somebody looked.

    Returns:
        Whether the worker was alive until now, and what it held, oldest first. Called again: False and nothing.
    """
    if silent_for is None:
        declared = connection.execute(_declare_dead, {"worker_id": worker_id}).rowcount > 0
    else:
        condition = {"worker_id": worker_id, "threshold": int(silent_for * 1e6)}
        declared = connection.execute(_declare_silent_dead, condition).rowcount > 0
        if not declared:
            return False, []
    values = {
        "lost": worker_id,
        "counted": int(interrupts),
        "culprit": culprit or "",
        "most": max_interruptions if interrupts else 2**31 - 1,
        "reason": (
            f"lost its worker more than {max_interruptions} times; the last worker {ending}. "
            "Its checkpoints are kept: retry resumes it"
        ),
    }
    rows = _recover.execute(connection, values)
    return declared, [
        RecoveredRun(
            id=row.id,
            job_name=row.job_name,
            labels=to_labels(row.labels),
            attempt=row.attempt,
            interruptions=row.interruptions,
            failed=row.status == "failed",
            error=row.error,
        )
        for row in sorted(rows, key=lambda row: row.id)
    ]


def get_workers(connection: Connection, *, alive_only: bool = False) -> list[Worker]:
    """List the workers whose rows remain, the living first, then the latest."""
    held = (
        select(runs.c.worker_id, func.count().label("running")).where(has_status("running")).group_by(runs.c.worker_id)
    ).subquery()
    query = (
        select(
            workers,
            func.coalesce(held.c.running, 0).label("running"),
            (now() - workers.c.heartbeat_at).label("age"),
        )
        .outerjoin(held, held.c.worker_id == workers.c.id)
        .order_by(workers.c.state, workers.c.id.desc())
    )
    if alive_only:
        query = query.where(workers.c.state == "alive")
    return [to_worker(row) for row in connection.execute(query)]


def forget_old(connection: Connection) -> int:
    """
    Delete the rows of workers that ended a day ago and hold nothing.

    Returns:
        How many.
    """
    old = and_(workers.c.state != "alive", workers.c.heartbeat_at < now() - _FORGOTTEN_AFTER_MICROSECONDS)
    return connection.execute(delete(workers).where(old, ~_holds)).rowcount


def unknown_jobs(connection: Connection, *, older_than: float) -> dict[str, int]:
    """
    Count pending runs that no living worker knows the job of.

    Args:
        older_than: Only those pending for so many seconds.

    Returns:
        The count by job name.
    """
    pending = connection.execute(
        select(runs.c.job_name, func.count())
        .where(has_status("pending"), runs.c.pending_at < now() - int(older_than * 1e6))
        .group_by(runs.c.job_name)
    ).all()
    if not pending:
        return {}
    known: set[str] = set()
    for names in connection.execute(select(workers.c.jobs).where(workers.c.state == "alive")).scalars():
        known.update(json.loads(names))
    return {name: count for name, count in pending if name not in known}
