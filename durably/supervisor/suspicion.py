"""When a child is suspected, and of what: decisions on evidence, no deeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from durably.events import Suspect

GRACE_SECONDS: Final = 1.0
"""How long something may be past its deadline: what its own process can end, it has ended by then."""
STACKS_SECONDS: Final = 0.5
"""How long a suspect has to write its stacks, and to show that the suspicion was wrong."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """
    What speaks against a child; seconds.

    Args:
        silent_for: Since anything was heard of it.
        stuck_for: Its event loop had not come round, when it gave its last sign of life.
        overdue_for: The step or run that is longest past its deadline; 0 without one.
    """

    silent_for: float
    stuck_for: float
    overdue_for: float


@dataclass(frozen=True, slots=True)
class Patience:
    """
    What is borne of a child; seconds.

    Args:
        silence: Without any sign of life.
        hang: With an event loop that stands still.
    """

    silence: float
    hang: float


def suspect(evidence: Evidence, patience: Patience) -> tuple[Suspect, float] | None:
    """
    Decide whether a child is suspected.

    Use of the processor is no evidence, and nor is how long a step takes that has no timeout: who computes for hours
    and gives its signs of life is left alone.

    Returns:
        Of what, and for how many seconds it has been so; None if of nothing. A timeout first: it names a culprit.
    """
    if evidence.overdue_for >= GRACE_SECONDS:
        return "timeout", evidence.overdue_for
    if evidence.silent_for >= patience.silence:
        return "silent", evidence.silent_for
    if evidence.stuck_for >= patience.hang:
        return "hung", evidence.stuck_for
    return None


@dataclass(slots=True)
class Suspicion:
    """
    One that is held against a child.

    Args:
        reason: Of what.
        since: When it arose, monotonic seconds.
        is_told: Whether it has been told, and the child's end begun.
    """

    reason: Suspect
    since: float
    is_told: bool = False

    def is_ripe(self, now: float) -> bool:
        """Whether the child has had its time, and nothing has been done yet."""
        return not self.is_told and now >= self.since + STACKS_SECONDS
