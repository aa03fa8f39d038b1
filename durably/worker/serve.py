"""One process's worker over its whole life: its threads for synchronous code, and one identity after another."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from durably.errors import DatabaseUnavailableError
from durably.store.pause import Pause
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


async def serve(
    make: Callable[[Executors], Worker],
    settings: Settings,
    current: Callable[[Worker], None],
    *,
    is_over: Callable[[], bool] = lambda: False,
) -> int:
    """
    Run a worker until it is stopped; one that was declared dead goes on under a new identity.

    Args:
        make: Makes a worker, which is a new identity each time.
        settings: Of the worker.
        current: Called with each worker before it runs.
        is_over: Asked before a new identity begins; True ends instead.

    Returns:
        The number of runs executed.

    Raises:
        DurablyError: The first identity's row could not be written; a later one's is tried again.
    """
    executed = 0
    left_running: set[asyncio.Task[Any]] = set()
    pause = Pause(settings.polling_interval / 10, 10 * settings.polling_interval)
    has_worked = is_told = False
    with executors(settings) as threads:
        while not (has_worked and is_over()):
            worker = make(threads)
            current(worker)
            try:
                executed += await worker.run(left_running)
            except DatabaseUnavailableError as error:
                if not has_worked:
                    raise
                if not is_told:
                    is_told = True
                    worker.tell_outage(error)
                await asyncio.sleep(pause.next())
                continue
            has_worked, is_told = True, False
            left_running = {task for task in left_running | worker.abandoned if not task.done()}
            if not worker.was_lost:
                break
        if left_running:
            await asyncio.wait(left_running)
    return executed
