"""A worker inside an application's process: a thread with an event loop of its own, and a keeper beside it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

from durably.worker.doorbell import Doorbell
from durably.worker.keeper import Keeper
from durably.worker.loop import Worker
from durably.worker.serve import serve

if TYPE_CHECKING:
    from collections.abc import Callable

    from durably.emitter import Emitter
    from durably.jobs import Registry
    from durably.settings import Settings
    from durably.store.database import Database
    from durably.worker.outcome import Executors


class LocalWorker:
    """
    The worker that `Durably.start` begins.

    Args:
        database: Of this process, its schema checked.
        registry: The instance's jobs.
        settings: The instance's settings.
        emitter: The instance's events.
    """

    def __init__(self, database: Database, registry: Registry, settings: Settings, emitter: Emitter) -> None:
        self._database = database
        self._registry = registry
        self._settings = settings
        self._emitter = emitter
        self._doorbell = Doorbell()
        self._keeper = Keeper(database, settings, emitter, self._doorbell, on_cancellation=self._check_held)
        self._keeping = threading.Thread(target=self._keep, name="durably-keeper", daemon=True)
        self._working = threading.Thread(target=self._work, name="durably-worker", daemon=True)
        # Written by the worker's thread before `_began` is resolved, and at each new identity.
        self._worker: Worker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Changed on the worker's loop only: whether to end, and to release. A new identity finds them.
        self._is_stopping = self._is_releasing = False
        self._began: Future[None] = Future()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        # Under the lock: whether the keeper was told to stop.
        self._is_keeper_told = False

    def start(self) -> None:
        """
        Begin, and return when the worker is about to claim.

        Raises:
            DurablyError: Its row could not be written.
        """
        self._working.start()
        try:
            self._began.result()
        except BaseException:
            self._stop_keeper()
            self._keep()
            raise
        self._keeping.start()

    def stop(self, timeout: float | None) -> None:
        """
        Drain, and return when no job function is executing.

        Args:
            timeout: Seconds after which held runs are released at their next step boundary; None waits for their end.
        """
        wait([self._began])  # who is still starting it would not hear
        self._tell_worker(release=False)
        if not self._ended.wait(timeout):
            self._tell_worker(release=True)
            while not self._ended.wait(self._settings.database_timeout):
                # A function without a boundary is waited for, a database that takes nothing is not.
                self._on_loop(lambda worker: worker.give_up_what_is_refused())
        self._stop_keeper()
        for thread in (self._working, self._keeping):
            if thread is not threading.current_thread() and thread.is_alive():
                thread.join()

    def _stop_keeper(self) -> None:
        with self._lock:  # several may be stopping it, and the keeper's end closes what its stop writes to
            if not self._is_keeper_told:
                self._is_keeper_told = True
                self._keeper.stop()

    @property
    def has_ended(self) -> bool:
        """Whether its worker is no more."""
        return self._ended.is_set()

    def must_not_block(self) -> bool:
        """Whether this thread is the worker's event loop, or the one that writes for it."""
        return threading.current_thread() is self._working or (
            self._worker is not None and self._worker.must_not_block()
        )

    def cancelled_here(self, run_id: str, generation: int) -> bool:
        """Fire the token of a run that this process has cancelled; tell whether the worker has told it already."""
        return self._worker is not None and self._worker.cancelled_here(run_id, generation)

    def _check_held(self) -> None:
        """Have the worker find out which of its runs were cancelled. In the keeper's thread."""
        self._on_loop(lambda worker: worker.check_held())

    def _tell_worker(self, *, release: bool) -> None:
        self._on_loop(lambda _worker: self._stop_worker(release))

    def _on_loop(self, do: Callable[[Worker], None]) -> None:
        """Have something done to the worker on its loop, if it has not ended."""
        worker, loop = self._worker, self._loop
        if worker is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended in this moment
                loop.call_soon_threadsafe(do, worker)

    def _stop_worker(self, release: bool) -> None:  # noqa: FBT001 - as call_soon_threadsafe passes it
        self._is_stopping, self._is_releasing = True, self._is_releasing or release
        if self._worker is not None:
            self._worker.stop(release=release)

    def _keep(self) -> None:
        """Keep until told to stop, which is after the worker's end: then nobody listens to the doorbell any more."""
        self._keeper.run()
        self._doorbell.close()

    def _work(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            if not self._began.done():
                self._began.set_exception(error)
            else:
                raise
        finally:
            self._ended.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        unsubscribe = self._emitter.on("worker:start", self._has_begun)
        try:
            await serve(self._make, self._settings, self._now_current, is_over=lambda: self._is_stopping)
        finally:
            unsubscribe()

    def _has_begun(self, _event: object) -> None:
        if not self._began.done():
            self._began.set_result(None)

    def _now_current(self, worker: Worker) -> None:
        self._worker = worker
        if self._is_stopping:  # asked before this identity was there to hear it
            worker.stop(release=self._is_releasing)

    def _make(self, threads: Executors) -> Worker:
        return Worker(self._database, self._registry, self._settings, self._emitter, threads, doorbell=self._doorbell)
