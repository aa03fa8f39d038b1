"""Durable, resumable jobs in the SQL database you already have."""

from typing import TYPE_CHECKING, Any

from durably.client import Durably, create_durably
from durably.errors import (
    Cancelled,
    CheckpointError,
    ConflictError,
    DatabaseUnavailableError,
    DuplicateStepError,
    DurablyError,
    EncodingError,
    LeaseLost,
    NotFoundError,
    PayloadTooLargeError,
    Released,
    RunCancelledError,
    RunFailedError,
    SchemaOutdatedError,
    SchemaTooNewError,
    UsageError,
    ValidationError,
    WaitTimeoutError,
)
from durably.events import Event, is_domain_event
from durably.handle import BatchItem, JobHandle
from durably.jobs import Job, define_job
from durably.model import LogEntry, Progress, Run, Step, Worker
from durably.worker.step import AsyncStep
from durably.worker.step import Step as StepContext

if TYPE_CHECKING:
    from durably.supervisor.supervisor import Supervisor

__all__ = [
    "AsyncStep",
    "BatchItem",
    "Cancelled",
    "CheckpointError",
    "ConflictError",
    "DatabaseUnavailableError",
    "DuplicateStepError",
    "Durably",
    "DurablyError",
    "EncodingError",
    "Event",
    "Job",
    "JobHandle",
    "LeaseLost",
    "LogEntry",
    "NotFoundError",
    "PayloadTooLargeError",
    "Progress",
    "Released",
    "Run",
    "RunCancelledError",
    "RunFailedError",
    "SchemaOutdatedError",
    "SchemaTooNewError",
    "Step",
    "StepContext",
    "Supervisor",
    "UsageError",
    "ValidationError",
    "WaitTimeoutError",
    "Worker",
    "create_durably",
    "define_job",
    "is_domain_event",
]


def __getattr__(name: str) -> Any:
    """Import the supervisor for who asks for it: an application that only triggers needs no processes and no log."""
    if name == "Supervisor":
        from durably.supervisor.supervisor import Supervisor

        return Supervisor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
