"""The records that callers hold: a run, a step, a log entry, a worker; frozen copies of what is stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from durably.hints import hints

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

Status = Literal["pending", "running", "completed", "failed", "cancelled"]
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
ACTIVE: Final[tuple[Status, ...]] = ("pending", "running")
TERMINAL: Final[tuple[Status, ...]] = ("completed", "failed", "cancelled")

Disposition = Literal["created", "idempotent", "coalesced"]
StepStatus = Literal["completed", "failed"]
WorkerState = Literal["alive", "stopped", "dead"]
LogLevel = Literal["debug", "info", "warning", "error"]
LOG_LEVELS: Final[tuple[LogLevel, ...]] = get_args(LogLevel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """
    How far a run has come, as its job last told.

    Args:
        current: Units done.
        total: Units in all, or None if unknown.
        message: What is being done, or None.
    """

    current: float
    total: float | None = None
    message: str | None = None


@hints({
    "wait join": "wait for its end with durably.wait_for_run(run.id), or await durably.await_run(run.id)",
    "result get value": "durably.wait_for_run(run.id) waits for its end, and the run that it returns has the output",
    "refresh reload update": "a run is a record of one moment; durably.get_run(run.id) looks again",
    "cancel retry retrigger": "the instance does it: durably.cancel(run.id), .retry(run.id), .retrigger(run.id)",
    "delete": "durably.delete_run(run.id)",
    "steps": "durably.get_steps(run.id)",
    "logs log": "durably.get_logs(run.id)",
    "state": "it is called status",
    "name job": "it is called job_name",
    "run_id": "it is called id",
    "is_done done finished is_completed": "is_terminal tells whether it has ended, status how",
})  # fmt: skip
@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """
    One durable execution of a job for one input.

    `input` and `output` are JSON data; the output of a run that was waited for is decoded to the job's
    declared type where the job is registered. Times are aware UTC datetimes by the database's clock.

    Args:
        id: Sorts by time.
        attempt: 1 + the number of retries.
        generation: The number of claims; the fence of every write.
        interruptions: Workers lost while they held the run, since the trigger or the last retry.
        current_step_index: The highest index of a checkpoint + 1; 0 without one.
        completed_step_count: Checkpoints.
        worker_id: Who holds the run; set exactly while it is running.
        completed_at: Set exactly while the run is terminal.
        disposition: On a run that `trigger` returned: how the trigger was answered. Else None.
    """

    id: str
    job_name: str
    status: Status
    input: Any
    output: Any
    error: str | None
    error_type: str | None
    error_traceback: str | None
    labels: Mapping[str, str] = field(default_factory=dict)
    idempotency_key: str | None
    concurrency_key: str | None
    attempt: int
    generation: int
    interruptions: int
    progress: Progress | None
    current_step_index: int
    completed_step_count: int
    worker_id: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    updated_at: datetime
    disposition: Disposition | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether the run has ended: completed, failed or cancelled."""
        return self.status in TERMINAL

    @property
    def is_active(self) -> bool:
        """Whether the run is pending or running."""
        return self.status in ACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """
    One attempt at a step: the checkpoint, or a failure.

    Args:
        index: Position by first start within the run, from 0.
        attempt: From 1, counted per run and name across retries and recoveries.
        output: JSON data; None for a failure.
    """

    run_id: str
    name: str
    index: int
    attempt: int
    status: StepStatus
    output: Any
    error: str | None
    error_type: str | None
    error_traceback: str | None
    started_at: datetime
    completed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """
    One line that a job logged.

    Args:
        step_name: The step that logged, or None between steps.
        attempt: The run's attempt.
        data: JSON data.
    """

    run_id: str
    step_name: str | None
    attempt: int
    level: LogLevel
    message: str
    data: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """
    A process that claims and executes, as its row tells.

    Args:
        state: alive, stopped (closed its row) or dead (declared so by another process).
        jobs: Names of the jobs it knows.
        running: Runs it holds now.
        heartbeat_age_seconds: Time since its last heartbeat, by the database's clock.
        supervisor_id: Whose child it is; None without a supervisor.
        loop_lag_seconds: How late its event loop ran at its last heartbeat; None before the first.
        oldest_step_seconds: For how long the step that it had been executing longest had run then; None without one.
    """

    id: str
    state: WorkerState
    host: str
    pid: int
    jobs: tuple[str, ...]
    concurrency: int
    running: int
    started_at: datetime
    heartbeat_at: datetime
    heartbeat_age_seconds: float
    supervisor_id: str | None
    loop_lag_seconds: float | None
    oldest_step_seconds: float | None
