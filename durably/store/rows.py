"""Rows to records."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from durably.model import Disposition, LogEntry, Progress, Run, Step, Worker
from durably.store.tables import to_time, to_time_or_none

if TYPE_CHECKING:
    from sqlalchemy import Row

_NO_LABELS: Final[MappingProxyType[str, str]] = MappingProxyType({})


def to_run(row: Row[Any], *, next_index: int = 0, completed: int = 0, disposition: Disposition | None = None) -> Run:
    """
    Read a row of durably_runs.

    Args:
        row: All columns.
        next_index: The highest index of a checkpoint + 1.
        completed: Checkpoints.
        disposition: How a trigger was answered, on the run that it returns.
    """
    return Run(
        id=row.id,
        job_name=row.job_name,
        status=row.status,
        input=json.loads(row.input),
        output=None if row.output is None else json.loads(row.output),
        error=row.error,
        error_type=row.error_type,
        error_traceback=row.error_traceback,
        labels=to_labels(row.labels),
        idempotency_key=row.idempotency_key,
        concurrency_key=row.concurrency_key,
        attempt=row.attempt,
        generation=row.generation,
        interruptions=row.interruptions,
        progress=None if row.progress is None else Progress(**json.loads(row.progress)),
        current_step_index=next_index,
        completed_step_count=completed,
        worker_id=row.worker_id,
        created_at=to_time(row.created_at),
        started_at=to_time_or_none(row.started_at),
        completed_at=to_time_or_none(row.completed_at),
        updated_at=to_time(row.updated_at),
        disposition=disposition,
    )


def to_labels(text: str) -> MappingProxyType[str, str]:
    """Read stored labels, unchangeable."""
    return _NO_LABELS if text == "{}" else MappingProxyType(json.loads(text))


def to_step(row: Row[Any]) -> Step:
    """Read a row of durably_steps."""
    return Step(
        run_id=row.run_id,
        name=row.name,
        index=row.position,
        attempt=row.attempt,
        status=row.status,
        output=None if row.output is None else json.loads(row.output),
        error=row.error,
        error_type=row.error_type,
        error_traceback=row.error_traceback,
        started_at=to_time(row.started_at),
        completed_at=to_time(row.completed_at),
    )


def to_log_entry(row: Row[Any]) -> LogEntry:
    """Read a row of durably_logs."""
    return LogEntry(
        run_id=row.run_id,
        step_name=row.step_name,
        attempt=row.attempt,
        level=row.level,
        message=row.message,
        data=MappingProxyType(json.loads(row.data)),
        created_at=to_time(row.created_at),
    )


def to_worker(row: Row[Any]) -> Worker:
    """Read a row of durably_workers, with the columns `running` and `age` (microseconds) beside it."""
    return Worker(
        id=row.id,
        state=row.state,
        host=row.host,
        pid=row.pid,
        jobs=tuple(json.loads(row.jobs)),
        concurrency=row.concurrency,
        running=row.running,
        started_at=to_time(row.started_at),
        heartbeat_at=to_time(row.heartbeat_at),
        heartbeat_age_seconds=row.age / 1e6,
        supervisor_id=row.supervisor_id,
        loop_lag_seconds=row.loop_lag,
        oldest_step_seconds=row.oldest_step_age,
    )
