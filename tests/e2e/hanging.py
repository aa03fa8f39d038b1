"""The application that the tests of hung workers serve."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import deque
from itertools import repeat
from pathlib import Path
from typing import Any

from durably import AsyncStep, Durably, StepContext, StepTimeoutError

durably = Durably(concurrency=3)
JOURNAL = Path(os.environ.get("JOURNAL", os.devnull))
LONG = 600


def note(run_id: str, what: str) -> None:
    with JOURNAL.open("a", encoding="utf-8") as journal:
        journal.write(f"{run_id} {what} {os.getpid()} {time.monotonic()}\n")


def hang(kind: str) -> None:
    """Hang for good in one of five ways."""
    match kind:
        case "spin":
            while True:
                pass
        case "gil":
            deque(repeat(0), maxlen=0)  # a loop in C, which keeps Python's lock
        case "lock":
            lock = threading.Lock()
            lock.acquire()
            lock.acquire()
        case "sleep":
            time.sleep(LONG)
        case "poll":
            while True:
                time.sleep(0.01)


@durably.job("hang-once")
async def hang_once(step: AsyncStep, kind: str) -> str:
    """Hang on the event loop, but only in the first process that executes it."""
    if await step.run("pid", os.getpid) == os.getpid():
        note(step.run_id, "hanging")
        hang(kind)
    return kind


@durably.job("hog-once")
def hog_once(step: StepContext, kind: str) -> str:
    """Hang in a thread, but only in the first process that executes it."""
    if step.run("pid", os.getpid) == os.getpid():
        note(step.run_id, "hanging")
        hang(kind)
    return kind


@durably.job("overrun")
def overrun(step: StepContext, kind: str) -> None:
    """Hang in a step with a timeout."""
    step.run("before", lambda: None)
    note(step.run_id, "overrunning")
    step.run("stuck", hang, kind, timeout=0.3)


@durably.job("overrun-loop")
async def overrun_loop(step: AsyncStep, kind: str) -> None:
    """Hang on the event loop, in a step with a timeout."""

    async def stuck() -> None:
        note(step.run_id, "overrunning")
        hang(kind)

    await step.run("stuck", stuck, timeout=0.3)


@durably.job("overlong", timeout=0.5)
def overlong(step: StepContext, kind: str) -> None:
    """Hang between steps, in a job with a timeout."""
    step.run("before", lambda: None)
    note(step.run_id, "overrunning")
    hang(kind)


@durably.job("await-briefly")
async def await_briefly(step: AsyncStep, seconds: float) -> str:
    """Await in a step with a timeout, which it would keep if the event loop were its own."""
    note(step.run_id, "awaiting")
    await step.run("awaits", asyncio.sleep, seconds, timeout=2 * seconds)
    return "in time"


@durably.job("nap-briefly")
def nap_briefly(step: StepContext, seconds: float) -> str:
    """Sleep in a step with a timeout, which it would keep if Python's lock were its own."""
    note(step.run_id, "napping")
    step.run("naps", time.sleep, seconds, timeout=2 * seconds)
    return "in time"


@durably.job("late")
def late(step: StepContext, seconds: float) -> str:
    """Catch a step's timeout."""
    try:
        step.run("slow", time.sleep, seconds, timeout=0.2)
    except StepTimeoutError as error:
        return step.run("instead", str, error)
    return "in time"


@durably.job("bystander")
def bystander(step: StepContext, seconds: float) -> float:
    """Take a while, in steps, beside whatever hangs."""
    note(step.run_id, "standing-by")
    for n in range(int(seconds * 10)):
        step.run(f"{n}", time.sleep, 0.1)
    return seconds


@durably.job("compute")
def compute(step: StepContext, seconds: float) -> int:
    """Compute in one step, in Python and in C calls that keep Python's lock for a while each."""

    def long() -> int:
        until, total = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            total += sum(range(1_000_000))
            for n in range(100_000):
                total ^= n
        return total % 1000

    return step.run("long", long)


@durably.job("compute-on-loop")
async def compute_on_loop(step: AsyncStep, seconds: float) -> Any:
    """Compute on the event loop for a while at a time."""

    async def long() -> int:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pass
        return 1

    return sum([await step.run(f"{n}", long) for n in range(4)])
