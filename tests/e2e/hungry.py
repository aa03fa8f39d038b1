"""The application that the tests of recycling and of want of memory serve."""

from __future__ import annotations

import os

from durably import Durably, StepContext

durably = Durably()
MEBIBYTE = 1 << 20
hoard: list[bytearray] = []


def take(mebibytes: int) -> int:
    hoard.append(bytearray(os.urandom(MEBIBYTE)) * mebibytes)  # a page that is written to is resident
    return os.getpid()


@durably.job("take")
def keep(step: StepContext, mebibytes: int) -> int:
    """Take memory and keep it."""
    return step.run("take", take, mebibytes)


@durably.job("devour")
def devour(step: StepContext, mebibytes: int) -> int:
    """Take more memory than there is, but only in the first process that executes it."""
    if step.run("pid", os.getpid) == os.getpid():
        for _ in range(mebibytes):
            take(1)
    return mebibytes
