"""
What workers want written: an intent is one wish of one run or worker. Those with a generation are fenced.

Nobody changes one after it was made; they are not frozen because three are made for each step, and a frozen
dataclass takes three times as long to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durably.errors import Reason
    from durably.store.claims import Company

Verdict: TypeAlias = "Reason | None"
"""The answer to a fenced intent: None if it was written, else why the run is no longer the worker's."""


@dataclass(slots=True, kw_only=True, eq=False)
class Fenced:
    """
    A write to one run by the worker that holds it.

    Args:
        generation: The claim that the writer acts for.
    """

    run_id: str
    generation: int


@dataclass(slots=True, kw_only=True, eq=False)
class Checkpoint(Fenced):
    """
    A step completed.

    Args:
        attempt: From 1, per run and name.
        output: JSON.
        duration: Seconds.
    """

    name: str
    index: int
    attempt: int
    output: str
    duration: float


@dataclass(slots=True, kw_only=True, eq=False)
class StepFailure(Fenced):
    """A step's attempt failed; `duration` in seconds."""

    name: str
    index: int
    attempt: int
    error: str
    error_type: str
    error_traceback: str
    duration: float


@dataclass(slots=True, kw_only=True, eq=False)
class ProgressNote(Fenced):
    """A run has come so far; `progress` is JSON."""

    progress: str


@dataclass(slots=True, kw_only=True, eq=False)
class LogLine(Fenced):
    """A run's job logged; `data` is JSON."""

    step_name: str | None
    attempt: int
    level: str
    message: str
    data: str


@dataclass(slots=True, kw_only=True, eq=False)
class Completion(Fenced):
    """A run's function returned; with *drop_outputs* the outputs of its steps go in the same write."""

    output: str
    drop_outputs: bool = False


@dataclass(slots=True, kw_only=True, eq=False)
class Failure(Fenced):
    """A run's function raised."""

    error: str
    error_type: str
    error_traceback: str


@dataclass(slots=True, kw_only=True, eq=False)
class Release(Fenced):
    """A stopping worker hands a run back."""


@dataclass(slots=True, kw_only=True, eq=False)
class Claim:
    """A worker has free slots; answered with a list of `ClaimedRun`."""

    worker_id: str
    jobs: Sequence[str]
    limit: int
    isolate_after: int
    company: Company


@dataclass(slots=True, kw_only=True, eq=False)
class Beat:
    """
    A worker is alive; answered with a `BeatAnswer`.

    Args:
        held: Run ids and generations that the worker executes.
        loop_lag: How late its event loop runs, seconds.
        oldest_step_age: Seconds, None without a step.
        isolate_after: The setting.
        patience: Seconds after which a run that has to be alone is waited for.
    """

    worker_id: str
    jobs: Sequence[str]
    held: Sequence[tuple[str, int]]
    loop_lag: float
    oldest_step_age: float | None
    isolate_after: int
    patience: float


@dataclass(slots=True, kw_only=True, eq=False)
class BeatAnswer:
    """
    What a worker learns from its heartbeat.

    Args:
        accepted: False if the worker was declared dead.
        lost: The runs of *held* that it holds no longer, and why.
        run_waits_to_be_alone: Whether it must let its slots run empty.
    """

    accepted: bool
    lost: Sequence[tuple[str, int, Reason]]
    run_waits_to_be_alone: bool


Intent: TypeAlias = Fenced | Claim | Beat
