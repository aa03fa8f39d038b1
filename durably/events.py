"""
The catalogue of events: a frozen record each, told after the commit of its fact.

Durations are seconds, ages too. `timestamp` is the teller's own clock, aware and UTC; what is judged by time is
judged by the database's. docs/events.md lists who tells each event and when.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from durably.model import Progress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from durably.model import LogLevel, Status

Role = Literal["client", "worker", "keeper", "supervisor"]
Severity = Literal["info", "warning", "error"]
WorkerState = Literal["starting", "ready", "draining", "suspect", "exited"]
Suspect = Literal["silent", "hung", "timeout"]
Loss = Literal["died", "silent", "hung", "timeout", "out_of_memory", "drain"]
Ending = Literal[Loss, "stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """
    Who tells an event.

    Args:
        role: What the process is to durably.
        worker_id: The worker that tells it, or None.
    """

    host: str
    pid: int
    role: Role
    worker_id: str | None = None


_NOBODY: Final = Process(host="", pid=0, role="client")
_NEVER: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """
    What every event carries. The emitter fills the three fields in before anybody sees the record.

    Args:
        timestamp: When it was told.
        sequence: 1, 2, 3... per process; a gap shows a loss.
        process: Who told it.
    """

    type: ClassVar[str] = ""
    domain: ClassVar[bool] = False

    timestamp: datetime = _NEVER
    sequence: int = 0
    process: Process = _NOBODY


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent(Event):
    """What every event about a run carries."""

    run_id: str
    job_name: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent(RunEvent):
    """What every event about a step carries."""

    step_name: str
    step_index: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTrigger(RunEvent):
    """A run was created."""

    type: ClassVar[str] = "run:trigger"
    domain: ClassVar[bool] = True
    input: Any
    concurrency_key: str | None
    idempotency_key: str | None
    retriggered_from: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCoalesced(RunEvent):
    """A trigger was answered with an existing run."""

    type: ClassVar[str] = "run:coalesced"
    domain: ClassVar[bool] = True
    status: Status
    skipped_input: Any
    skipped_labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart(RunEvent):
    """A worker claimed a run; `waited` is the time since it was created, or returned to pending."""

    type: ClassVar[str] = "run:start"
    input: Any
    attempt: int
    generation: int
    interruptions: int
    waited: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunProgress(RunEvent):
    """Progress was committed."""

    type: ClassVar[str] = "run:progress"
    progress: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class RunComplete(RunEvent):
    """A run completed; `duration` is that of this execution."""

    type: ClassVar[str] = "run:complete"
    domain: ClassVar[bool] = True
    output: Any
    duration: float
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFail(RunEvent):
    """A run failed, by its function or as poison; `failed_step` is the step whose exception ended it, or None."""

    type: ClassVar[str] = "run:fail"
    domain: ClassVar[bool] = True
    error: str
    error_type: str
    failed_step: str | None
    duration: float | None
    attempt: int
    interruptions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCancel(RunEvent):
    """A run was cancelled; told by the canceller, and by the worker that was executing it elsewhere."""

    type: ClassVar[str] = "run:cancel"
    domain: ClassVar[bool] = True
    previous_status: Status
    origin: Literal["caller", "worker"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRetry(RunEvent):
    """A failed or cancelled run was put back to pending; `attempt` is the new one."""

    type: ClassVar[str] = "run:retry"
    domain: ClassVar[bool] = True
    previous_status: Status
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecover(RunEvent):
    """A running run was put back to pending because its worker is gone."""

    type: ClassVar[str] = "run:recover"
    lost_worker: str
    reason: Loss
    interruptions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRelease(RunEvent):
    """A stopping worker handed a run back."""

    type: ClassVar[str] = "run:release"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDelete(RunEvent):
    """A run was deleted with all its rows."""

    type: ClassVar[str] = "run:delete"
    domain: ClassVar[bool] = True
    reason: Literal["delete", "purge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStart(StepEvent):
    """A step's function is about to be called."""

    type: ClassVar[str] = "step:start"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepComplete(StepEvent):
    """A checkpoint was committed."""

    type: ClassVar[str] = "step:complete"
    output: Any
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFail(StepEvent):
    """A failed attempt was committed."""

    type: ClassVar[str] = "step:fail"
    error: str
    error_type: str
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCancel(StepEvent):
    """A step in flight was abandoned; its result is discarded."""

    type: ClassVar[str] = "step:cancel"
    reason: Literal["cancelled", "lease_lost", "released"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogWrite(RunEvent):
    """A job's log entry was committed; `step_name` is None between steps."""

    type: ClassVar[str] = "log:write"
    step_name: str | None
    level: LogLevel
    message: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStart(Event):
    """A worker's row is inserted and it is ready to claim."""

    type: ClassVar[str] = "worker:start"
    jobs: tuple[str, ...]
    concurrency: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHeartbeat(Event):
    """A heartbeat was accepted; `loop_lag` is how late the worker's event loop runs."""

    type: ClassVar[str] = "worker:heartbeat"
    running: int
    free: int
    oldest_step_age: float | None
    loop_lag: float
    events_dropped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStop(Event):
    """A worker closed its row and holds nothing; `released` counts the runs that it handed back."""

    type: ClassVar[str] = "worker:stop"
    reason: str
    released: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerChange(Event):
    """A worker came into another state, as its supervisor sees it."""

    type: ClassVar[str] = "worker:state"
    worker: str
    worker_pid: int
    pool: str
    state: WorkerState
    previous: WorkerState | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSuspect(Event):
    """A worker is silent, hangs, or has not ended what has a timeout, for `seconds`; it is about to be replaced."""

    type: ClassVar[str] = "worker:suspect"
    worker: str
    worker_pid: int
    reason: Suspect
    seconds: float
    run_id: str | None
    step_name: str | None
    stacks: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerBackoff(Event):
    """A worker died young; the next in its place begins after `pause`. `deaths` counts those in a row."""

    type: ClassVar[str] = "worker:backoff"
    pool: str
    deaths: int
    pause: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerExit(Event):
    """A worker is gone: reaped by its supervisor, or declared dead; `recovered` counts its runs."""

    type: ClassVar[str] = "worker:exit"
    lost_worker: str
    exit_code: int | None
    signal: str | None
    reason: Ending
    recovered: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerError(Event):
    """Something went wrong in a worker or caller that fails no run."""

    type: ClassVar[str] = "worker:error"
    context: str
    severity: Severity
    error: str
    error_type: str
    run_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStart(Event):
    """The supervisor has migrated and recovered and is about to fork its workers."""

    type: ClassVar[str] = "supervisor:start"
    workers: int
    dialect: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorStop(Event):
    """All children of the supervisor are gone."""

    type: ClassVar[str] = "supervisor:stop"
    reason: str
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorError(Event):
    """Something went wrong in the supervisor or its keeper."""

    type: ClassVar[str] = "supervisor:error"
    context: str
    severity: Severity
    error: str
    error_type: str


CATALOGUE: Final[dict[str, type[Event]]] = {
    cls.type: cls
    for cls in (
        RunTrigger, RunCoalesced, RunStart, RunProgress, RunComplete, RunFail, RunCancel, RunRetry, RunRecover,
        RunRelease, RunDelete, StepStart, StepComplete, StepFail, StepCancel, LogWrite, WorkerStart, WorkerHeartbeat,
        WorkerChange, WorkerSuspect, WorkerBackoff, WorkerStop, WorkerExit, WorkerError,
        SupervisorStart, SupervisorStop, SupervisorError,
    )
}  # fmt: skip

_FIELDS: Final = {cls: tuple(f.name for f in fields(cls)) for cls in CATALOGUE.values()}


def is_domain_event(event: Event) -> bool:
    """Tell whether the event is about what users asked for, rather than about how it is being executed."""
    return event.domain


def as_record(event: Event) -> dict[str, Any]:
    """
    Flatten an event for the channel and the log.

    Returns:
        `type` and the record's fields by name, in the order of declaration; values are shared, not copied.
    """
    record = {"type": event.type}
    for name in _FIELDS[type(event)]:
        record[name] = getattr(event, name)
    return record


def from_record(record: Mapping[str, Any]) -> Event:
    """
    Build an event from its record, as it came through a channel.

    Raises:
        KeyError, TypeError, ValueError: It is none.
    """
    values = dict(record)
    cls = CATALOGUE[values.pop("type")]
    values["timestamp"] = datetime.fromisoformat(values["timestamp"])
    values["process"] = Process(**values["process"])
    if cls is RunProgress:
        values["progress"] = Progress(**values["progress"])
    return cls(**values)
