"""The application that the tests of pools serve."""

from __future__ import annotations

import time

from durably import Durably, StepContext

durably = Durably()


@durably.job("quick")
def quick(step: StepContext, n: int) -> int:
    """Take no time."""
    return step.run("quick", lambda: n)


@durably.job("slow", pool="heavy")
def slow(step: StepContext, seconds: float) -> float:
    """Take a while."""
    step.run("slow", time.sleep, seconds)
    return seconds
