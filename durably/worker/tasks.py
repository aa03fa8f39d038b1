"""The tasks that jobs make: what asyncio would let end the whole loop, and with it the worker, ends the task alone."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, Final, TypeVar
from weakref import WeakKeyDictionary

from durably.worker.context import current_execution

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from durably.worker.execution import Execution

T = TypeVar("T")
# Tasks that were made within a job; a task's own context can be read from Python 3.12 on.
_of_jobs: Final[WeakKeyDictionary[asyncio.Task[Any], Execution]] = WeakKeyDictionary()


def make_task(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
    """Make a task, as a loop's task factory; one that is made within a job is contained."""
    execution = current_execution.get()
    if execution is None or not inspect.iscoroutine(coroutine):
        return asyncio.Task(coroutine, loop=loop, **options)
    task = asyncio.Task(_contain(coroutine), loop=loop, **options)
    _of_jobs[task] = execution
    task.add_done_callback(lambda _task: coroutine.close())  # one that was cancelled before it began, too
    return task


def belongs_to(task: asyncio.Task[Any]) -> Execution | None:
    """Tell within which execution a task was made, in any thread; None if within none."""
    return _of_jobs.get(task)


async def _contain(coroutine: Coroutine[Any, Any, T]) -> T:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"a task of the job raised {type(error).__name__}: {error}") from error
