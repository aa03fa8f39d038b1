"""The application that the tests of the supervisor serve. A step leaves a line in the journal each time it runs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from durably import AsyncStep, Durably, StepContext

durably = Durably(concurrency=2)
JOURNAL = Path(os.environ.get("JOURNAL", os.devnull))


def note(run_id: str, step: str) -> None:
    """Write one line at once: O_APPEND keeps lines of several processes whole."""
    with JOURNAL.open("a", encoding="utf-8") as journal:
        journal.write(f"{run_id} {step} {os.getpid()} {time.monotonic()}\n")


@durably.job("count")
def count(step: StepContext, steps: int) -> int:
    """Run so many short steps."""

    def one(name: str) -> int:
        time.sleep(0.01)
        note(step.run_id, name)
        return 1

    return sum(step.run(f"step {n}", one, f"{n}") for n in range(steps))


@durably.job("wait")
def wait(step: StepContext, seconds: float) -> float:
    """Run one quick step, then one that waits."""
    step.run("pid", os.getpid)
    note(step.run_id, "waiting")
    step.run("wait", time.sleep, seconds)
    step.run("after", lambda: None)
    return seconds


@durably.job("heed")
def heed(step: StepContext, _: Any) -> None:
    """Run a step that waits for the token, then one that must not run."""

    def until_fired() -> None:
        note(step.run_id, "heeding")
        if step.cancelled.wait(60):
            note(step.run_id, "fired")

    step.run("heed", until_fired)
    step.run("after", note, step.run_id, "after")


@durably.job("stubborn")
def stubborn(step: StepContext, seconds: float) -> None:
    """Run without a step boundary."""
    note(step.run_id, "waiting")
    time.sleep(seconds)


@durably.job("deadly")
def deadly(step: StepContext, _: Any) -> None:
    """Kill the worker."""
    step.run("before", lambda: None)
    note(step.run_id, "deadly")
    os.kill(os.getpid(), signal.SIGKILL)


@durably.job("stopped")
def stopped(step: StepContext, _: Any) -> int:
    """Stop the worker's process when it runs for the first time."""
    pid = step.run("pid", os.getpid)
    if pid == os.getpid():
        note(step.run_id, "stopping")
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.5)
    return step.run("after", os.getpid)


@durably.job("talk")
async def talk(step: AsyncStep, word: str) -> str:
    """Print and log, within a step and outside."""

    async def inside() -> None:
        await asyncio.sleep(0)
        print("printed inside")
        logging.getLogger("talk").warning("logged inside %s", word)

    print("printed outside")
    await step.run("inside", inside)
    step.log.info("stored", word=word)
    step.progress(1, 2, word)
    return word


@durably.job("fork")
def fork(step: StepContext, code: int) -> int:
    """Fork a child that returns as its parent does, or raises; give its exit code."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print("printed by a forked child", flush=True)
    if code:
        raise ValueError
    return 0


@durably.job("program")
def program(step: StepContext, _: Any) -> None:
    """Run a program that prints."""
    step.run("program", lambda: subprocess.run(["echo", "printed by a program"], check=True).returncode)


@durably.job("flood")
async def flood(step: AsyncStep, count: int) -> int:
    """Tell large events for as long as it lives."""
    for n in range(count):
        await step.run(f"{n}", lambda: "x" * 8000)
    return count


@durably.job("long")
def long(step: StepContext, length: int) -> str:
    """Return a text so long."""
    return "x" * length
