"""One process's worker over its whole life: its threads for synchronous code, and one identity after another."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from durably.worker.outcome import Executors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from durably.settings import Settings
    from durably.worker.loop import Worker

_STEP_THREADS_PER_SLOT: Final = 4
_FEWEST_STEP_THREADS: Final = 32


@contextmanager
def executors(settings: Settings) -> Iterator[Executors]:
    """
    Hold the threads for synchronous jobs, one a slot, and for plain functions that asynchronous jobs run as steps.

    Leaving it waits for the functions that run, unless leaving by an exception.
    """
    slots = settings.concurrency
    jobs = ThreadPoolExecutor(slots, "durably-job")
    steps = ThreadPoolExecutor(max(_FEWEST_STEP_THREADS, _STEP_THREADS_PER_SLOT * slots), "durably-step")
    try:
        yield Executors(jobs, steps)
    except BaseException:
        jobs.shutdown(wait=False, cancel_futures=True)
        steps.shutdown(wait=False, cancel_futures=True)
        raise
    jobs.shutdown()
    steps.shutdown()


async def serve(make: Callable[[Executors], Worker], settings: Settings, current: Callable[[Worker], None]) -> int:
    """
    Run a worker until it is stopped; one that was declared dead goes on under a new identity.

    Args:
        make: Makes a worker, which is a new identity each time.
        settings: Of the worker.
        current: Called with each worker before it runs.

    Returns:
        The number of runs executed.
    """
    executed = 0
    left_running: set[asyncio.Task[Any]] = set()
    with executors(settings) as threads:
        while True:
            worker = make(threads)
            current(worker)
            executed += await worker.run(left_running)
            left_running = {task for task in left_running | worker.abandoned if not task.done()}
            if not worker.was_lost or worker.was_told_to_stop:
                break
        if left_running:
            await asyncio.wait(left_running)
    return executed
