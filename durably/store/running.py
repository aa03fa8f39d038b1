"""What is being executed at this moment, and how many runs end a second."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select

from durably.model import Progress
from durably.store.tables import has_status, now, runs, steps

if TYPE_CHECKING:
    from sqlalchemy import Connection

RATE_SECONDS: Final = 60
_MOST_RUNS: Final = 100
_MOST_ENDED: Final = 100_000
_SECOND: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningRun:
    """
    A running run, in short.

    Args:
        running_seconds: Since it was first begun.
        last_step: The name of its last checkpoint; None before the first. What is under way comes after it.
        last_position: That step's place in the run, from 0; None before the first.
    """

    run_id: str
    job_name: str
    worker_id: str
    running_seconds: float
    progress: Progress | None
    last_step: str | None
    last_position: int | None


_last_position: Final = (
    select(func.max(steps.c.position))
    .where(steps.c.run_id == runs.c.id, has_status("completed", steps))
    .scalar_subquery()
)
_last_step: Final = (
    select(steps.c.name)
    .where(steps.c.run_id == runs.c.id, has_status("completed", steps))
    .order_by(steps.c.position.desc())
    .limit(1)
    .scalar_subquery()
)
_running: Final = (
    select(
        runs.c.id,
        runs.c.job_name,
        runs.c.worker_id,
        (now() - runs.c.started_at).label("age"),
        runs.c.progress,
        _last_step.label("last_step"),
        _last_position.label("last_position"),
    )
    .where(has_status("running"))
    .order_by(runs.c.started_at, runs.c.id)
    .limit(_MOST_RUNS)
)
_age: Final = (now() - runs.c.completed_at) // _SECOND
_ended: Final = (
    select(_age.label("second"))
    .where(runs.c.completed_at > now() - RATE_SECONDS * _SECOND)
    .order_by(runs.c.completed_at.desc())
    .limit(_MOST_ENDED)
    .subquery()
)
_rate: Final = select(_ended.c.second, func.count().label("number")).group_by(_ended.c.second)


def read_running(connection: Connection) -> list[RunningRun]:
    """List running runs, those that began first first; at most 100."""
    return [
        RunningRun(
            run_id=row.id,
            job_name=row.job_name,
            worker_id=row.worker_id,
            running_seconds=max(0, row.age) / 1e6,
            progress=None if row.progress is None else Progress(**json.loads(row.progress)),
            last_step=row.last_step,
            last_position=row.last_position,
        )
        for row in connection.execute(_running)
    ]


def read_rate(connection: Connection) -> list[int]:
    """Count the runs that ended in each of the last 60 seconds, the oldest second first; at most 100,000 in all."""
    counted = {int(row.second): row.number for row in connection.execute(_rate)}
    return [counted.get(age, 0) for age in reversed(range(RATE_SECONDS))]
