"""The workers that one instance runs in this process: the one that it started, and those of scripts and tests."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING

from durably.errors import UsageError
from durably.local import LocalWorker
from durably.settings import check_timeout
from durably.worker.context import current_execution
from durably.worker.loop import Worker
from durably.worker.serve import serve

if TYPE_CHECKING:
    from durably.client import Durably
    from durably.worker.outcome import Executors


class InProcessWorkers:
    """
    One instance's workers in one process; a forked child has none. Safe for threads.

    Args:
        durably: The instance, whose settings and database are those of the moment a worker begins.
    """

    def __init__(self, durably: Durably) -> None:
        self._durably = durably
        self._lock = threading.Lock()
        # All under the lock; they count in the process of this id only.
        self._pid = os.getpid()
        self._started: LocalWorker | None = None
        # The worker that this whole process is (a supervisor's child), and those that `process` runs. Replaced whole.
        self._executing: tuple[Worker, ...] = ()

    def start(self) -> None:
        """
        Begin one worker in a thread with an event loop of its own; do nothing if one runs.

        Raises:
            SchemaOutdatedError, SchemaTooNewError: Nothing is migrated by itself.
        """
        self._forget_the_parents()
        app = self._durably
        app.database.read(lambda _connection: None)
        with self._lock:
            if self._started is not None and not self._started.has_ended:
                return
            local = self._started = LocalWorker(app.database, app.registry, app.settings, app.emitter)
        try:
            # Not under the lock: a handler of worker:start may call what takes it.
            local.start()
        except BaseException:
            self._forget(local)
            raise

    def stop(self, timeout: float | None) -> None:
        """
        Drain the worker that was started, and return when no job function is executing.

        Args:
            timeout: Seconds after which held runs are handed back at their next step boundary; None waits.

        Raises:
            ValidationError: On `timeout`.
            UsageError: Called by a job of the worker, or in one of its own threads.
        """
        check_timeout(timeout)
        self._forget_the_parents()
        if (local := self._started) is None:
            return
        executing = current_execution.get()
        if executing is not None and executing.host.emitter is self._durably.emitter:
            raise UsageError("a job cannot stop the worker that executes it: each would wait for the other's end")
        if local.must_not_block():
            raise UsageError("stop() would wait for itself in the worker's own threads; call it in another")
        local.stop(timeout)
        self._forget(local)

    def _forget(self, local: LocalWorker) -> None:
        with self._lock:
            if self._started is local:
                self._started = None

    def process(self, most_runs: int | None) -> int:
        """
        Execute runs in this thread until nothing is claimable.

        Args:
            most_runs: At most so many; None for no bound.

        Returns:
            How many were executed.

        Raises:
            UsageError: This thread runs an event loop.
        """
        if _is_on_a_loop():
            raise UsageError(
                "this thread runs an event loop, as a notebook's does, which would stand still; use the awaitable "
                "twin: `await durably.aprocess_until_idle()`, `await durably.aprocess_one()`"
            )
        app = self._durably
        mine: list[Worker] = []

        def make(threads: Executors) -> Worker:
            worker = Worker(
                app.database,
                app.registry,
                app.settings,
                app.emitter,
                threads,
                most_runs=most_runs,
                until_idle=True,
            )
            mine.append(worker)
            return worker

        try:
            return asyncio.run(serve(make, app.settings, self.executes))
        finally:
            with self._lock:
                self._executing = tuple(worker for worker in self._executing if worker not in mine)

    def executes(self, worker: Worker) -> None:
        """Learn that *worker* executes in this process: `cancel` reaches its runs at once, its loop must not wait."""
        self._forget_the_parents()
        with self._lock:
            self._executing = (*self._executing, worker)

    def cancelled_here(self, run_id: str, generation: int) -> bool:
        """
        Let this process's workers know of a run that it has cancelled.

        Args:
            generation: The run's as it was cancelled, which tells executions of one run apart.

        Returns:
            Whether a worker has told the cancellation already.
        """
        told = [worker.cancelled_here(run_id, generation) for worker in self._all()]
        return any(told)

    def must_not_block(self) -> bool:
        """Whether this is a worker's own thread, which would stand still."""
        return any(worker.must_not_block() for worker in self._all())

    def _all(self) -> list[LocalWorker | Worker]:
        self._forget_the_parents()
        with self._lock:
            return [*self._executing] if self._started is None else [self._started, *self._executing]

    def _forget_the_parents(self) -> None:
        """Begin without workers in a forked child, whose copies of threads and locks mean nothing."""
        if self._pid != os.getpid():
            self._lock = threading.Lock()
            self._pid = os.getpid()
            self._started = None
            self._executing = ()


def _is_on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
