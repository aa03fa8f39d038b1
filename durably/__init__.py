"""Durable, resumable jobs in the SQL database you already have."""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from durably.client import Durably, create_durably
    from durably.errors import (
        ApplicationError,
        Cancelled,
        CheckpointError,
        ConflictError,
        CopyUnfinishedError,
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
        RunTimeoutError,
        SchemaOutdatedError,
        SchemaTooNewError,
        StepTimeoutError,
        UsageError,
        ValidationError,
        WaitTimeoutError,
    )
    from durably.events import Event, is_domain_event
    from durably.handle import BatchItem, JobHandle
    from durably.jobs import Job, define_job
    from durably.model import LogEntry, Progress, Run, Step, Worker
    from durably.status import Failure, HeldKey, Queue, SystemStatus
    from durably.supervisor.supervisor import Supervisor
    from durably.worker.step import AsyncStep
    from durably.worker.step import Step as StepContext

__all__ = [
    "ApplicationError",
    "AsyncStep",
    "BatchItem",
    "Cancelled",
    "CheckpointError",
    "ConflictError",
    "CopyUnfinishedError",
    "DatabaseUnavailableError",
    "DuplicateStepError",
    "Durably",
    "DurablyError",
    "EncodingError",
    "Event",
    "Failure",
    "HeldKey",
    "Job",
    "JobHandle",
    "LeaseLost",
    "LogEntry",
    "NotFoundError",
    "PayloadTooLargeError",
    "Progress",
    "Queue",
    "Released",
    "Run",
    "RunCancelledError",
    "RunFailedError",
    "RunTimeoutError",
    "SchemaOutdatedError",
    "SchemaTooNewError",
    "Step",
    "StepContext",
    "StepTimeoutError",
    "Supervisor",
    "SystemStatus",
    "UsageError",
    "ValidationError",
    "WaitTimeoutError",
    "Worker",
    "create_durably",
    "define_job",
    "is_domain_event",
]
_PLACES: Final = {
    "durably.client": ("Durably", "create_durably"),
    "durably.events": ("Event", "is_domain_event"),
    "durably.handle": ("BatchItem", "JobHandle"),
    "durably.jobs": ("Job", "define_job"),
    "durably.model": ("LogEntry", "Progress", "Run", "Step", "Worker"),
    "durably.status": ("Failure", "HeldKey", "Queue", "SystemStatus"),
    "durably.supervisor.supervisor": ("Supervisor",),
    "durably.worker.step": ("AsyncStep", "StepContext"),
}


def __getattr__(name: str) -> Any:
    """
    Import a name for who asks for it.

    An application that only triggers needs no processes and no log, and a command can be interrupted from its
    first moment on.
    """
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = next((place for place, names in _PLACES.items() if name in names), "durably.errors")
    found = getattr(importlib.import_module(place), "Step" if name == "StepContext" else name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """List the names, also those that nobody has asked for yet."""
    return sorted({*globals(), *__all__})
