"""Which run and step the code that is running now belongs to."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from durably.worker.execution import Execution

# Tasks and executor threads begin with a copy, so concurrent steps each see their own.
current_execution: Final[ContextVar[Execution | None]] = ContextVar("durably_execution", default=None)
current_step: Final[ContextVar[str | None]] = ContextVar("durably_step", default=None)


def log_context() -> Mapping[str, str]:
    """Give the ids that a log line of the code running now is bound to; empty outside a job."""
    execution = current_execution.get()
    if execution is None:
        return {}
    bound = {"run_id": execution.run.id, "job_name": execution.run.job_name}
    if (step := current_step.get()) is not None:
        bound["step_name"] = step
    return bound
