"""What a checker finds."""

from __future__ import annotations

from typing import NamedTuple


class Violation(NamedTuple):
    """
    A promise that was not kept.

    Args:
        promise: "lost", "outcome", "checkpoint", "doubled", "fence", "overlap", "key", "count", "transition",
            "sequence", "suspect", "supervisor", "orphan", "calm".
        subject: The run; or the family, the process.
    """

    promise: str
    subject: str
    detail: str
