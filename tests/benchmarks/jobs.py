"""The jobs that are measured, for the process that triggers and for those that execute."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

from durably import AsyncStep, Durably, Job, StepContext, define_job

RELAY_BATCH = 250


def _work(n: int) -> int:
    return n + 1


async def _awork(n: int) -> int:
    return n + 1


def _sync_job(steps: int) -> Job:
    def run(step: StepContext, n: int) -> int:
        for index in range(steps):
            n = step.run(f"step-{index}", _work, n)
        return n

    return define_job(f"sync-{steps}", run, input=int, output=int)


def _async_job(steps: int) -> Job:
    async def run(step: AsyncStep, n: int) -> int:
        for index in range(steps):
            n = await step.run(f"step-{index}", _awork, n)
        return n

    return define_job(f"async-{steps}", run, input=int, output=int)


async def _stamp(_step: AsyncStep, _input: None) -> int:
    return time.monotonic_ns()


async def _victim(step: AsyncStep, _input: None) -> int:
    """Wait to be killed in the second step; where it runs again, tell when that step began."""
    first = await step.run("pid", os.getpid)

    async def next_step() -> int:
        began = time.monotonic_ns()
        if os.getpid() == first:
            await asyncio.sleep(600)
        return began

    return await step.run("next", next_step)


def _cancellee(step: StepContext, stamp: str) -> None:
    """Wait in a step until its token fires, and leave the time in the file *stamp*, which is there from the start."""

    def until_fired() -> None:
        Path(stamp).touch()
        step.cancelled.wait()
        Path(stamp).write_text(str(time.monotonic_ns()), encoding="ascii")

    step.run("wait", until_fired)


async def _filler(_step: AsyncStep, _input: None) -> None:
    await asyncio.sleep(0.05)


async def _chatter(_step: AsyncStep, seconds: float) -> int:
    """Log as much as the channel takes and more, and tell how many lines it was."""
    logger, said, until = logging.getLogger("chatter"), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        for _ in range(RELAY_BATCH):
            logger.info("line %d of a job that says a lot", said)
            said += 1
        await asyncio.sleep(0.001)
    return said


JOBS = (
    _sync_job(1),
    _sync_job(10),
    _async_job(1),
    _async_job(10),
    define_job("stamp", _stamp, output=int),
    define_job("victim", _victim, output=int),
    define_job("cancellee", _cancellee, input=str),
    define_job("filler", _filler),
    define_job("chatter", _chatter, input=float, output=int),
)


def make_app(dialect_url: str | None = None) -> Durably:
    """Make an instance that knows the jobs; without a URL, of the environment."""
    app = Durably(dialect_url)
    for job in JOBS:
        app.register(job)
    return app
