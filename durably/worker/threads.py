"""Calling a plain function in a thread, on behalf of a run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from durably.worker.execution import Execution


def run_in_thread(execution: Execution, executor: Executor, fn: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
    """
    Call *fn* in a thread of *executor*. On the worker's loop.

    Raises:
        Released: The application has ended without stopping its worker, which hands back what it holds.
        RuntimeError: The system has no room for another thread.
    """
    try:
        return asyncio.get_running_loop().run_in_executor(executor, _call, execution, fn, *args)
    except RuntimeError as error:
        # Executors say so from the main thread's end on, while the interpreter waits for their threads. No public
        # flag is up by then.
        if "cannot schedule new futures" in str(error):
            execution.host.stop(release=True, reason="interpreter-exit")
            execution.token.raise_if_set()
        raise


def _call(execution: Execution, fn: Callable[..., Any], *args: Any) -> Any:
    with execution.host.board.executing(execution.run.id):
        return fn(*args)
