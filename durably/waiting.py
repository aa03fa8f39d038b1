"""Waiting for a run's end, from whichever process it comes: by looking, sooner by a wake-up."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import select
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from durably import events
from durably.codec import Unfit
from durably.errors import (
    CheckpointError,
    NotFoundError,
    RunCancelledError,
    RunFailedError,
    ValidationError,
    WaitTimeoutError,
)
from durably.settings import check_timeout
from durably.store import runs
from durably.store.workers import get_workers
from durably.worker.context import current_execution

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from durably.emitter import Emitter
    from durably.jobs import Registry
    from durably.model import LogEntry, Progress, Run
    from durably.store.database import Database
    from durably.store.dialects import Watch

T = TypeVar("T")
LOGGER: Final = "durably.waiting"
_PATIENCE_SECONDS: Final = 2.0
_LOOKS_AFTER_A_SIGN: Final = (0.0, 0.001, 0.002, 0.004, 0.008)
_ENDS: Final = ("run:complete", "run:fail", "run:cancel", "run:delete")


class Ends:
    """
    Tells waits of ends that this very process brings about. Safe for threads.

    One for all waits of an instance, so that an event costs the same however many wait.

    Args:
        emitter: The instance's.
    """

    def __init__(self, emitter: Emitter) -> None:
        self._emitter = emitter
        self._lock = threading.Lock()
        # Both change under the lock; a wake is called outside it.
        self._wakes: dict[str, list[Callable[[], object]]] = {}
        self._is_subscribed = False

    @contextmanager
    def waking(self, run_id: str, wake: Callable[[], object]) -> Iterator[None]:
        """Call *wake*, from whichever thread, when this process has told the end of a run."""
        with self._lock:
            if not self._is_subscribed:
                for event_type in _ENDS:
                    self._emitter.on(event_type, self._has_ended)
                self._is_subscribed = True
            self._wakes[run_id] = [*self._wakes.get(run_id, ()), wake]
        try:
            yield
        finally:
            with self._lock:
                self._wakes[run_id] = [other for other in self._wakes[run_id] if other is not wake]
                if not self._wakes[run_id]:
                    del self._wakes[run_id]

    def _has_ended(self, event: events.RunEvent) -> None:
        for wake in self._wakes.get(event.run_id, ()):
            wake()


class Wait:
    """
    One wait for one run.

    Args:
        run_id: The run.
        database: Where it is.
        registry: Decodes the output where its job is known.
        emitter: Takes what a callback raises.
        ends: Of the same instance.
        polling_interval: Seconds between looks without a wake-up.
        timeout: Seconds; 0 looks once; None waits for ever.
        on_progress: Called with the newest progress; values may be skipped.
        on_log: Called with each log entry committed since the wait began, once, in order.
    """

    def __init__(
        self,
        run_id: str,
        database: Database,
        registry: Registry,
        emitter: Emitter,
        ends: Ends,
        *,
        polling_interval: float,
        timeout: float | None,
        on_progress: Callable[[Progress], object] | None,
        on_log: Callable[[LogEntry], object] | None,
    ) -> None:
        check_timeout(timeout)
        for name, callback in (("on_progress", on_progress), ("on_log", on_log)):
            if callback is not None and inspect.iscoroutinefunction(callback):
                raise ValidationError(name, "a coroutine function, which nobody would await; pass a plain one")
        self._run_id = run_id
        self._database = database
        self._registry = registry
        self._emitter = emitter
        self._ends = ends
        self._polling_interval = polling_interval
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._timeout = timeout
        self._on_progress = on_progress
        self._on_log = on_log
        # When to look whether anybody is there who could execute the run; None once that was done.
        self._patient_until: float | None = time.monotonic() + _PATIENCE_SECONDS
        self._progress: Progress | None = None
        self._log_position: int | None = None
        # Both under the lock: an awaited wait may be cancelled while a thread opens its watch.
        self._lock = threading.Lock()
        self._watch: Watch | None = None
        self._is_over = False

    def block(self) -> Run:
        """Wait in this thread."""
        ended = threading.Event()
        try:
            watch = self._open_watch()
            with self._ends.waking(self._run_id, ended.set):
                while (run := self._look()) is None:
                    pause = self._pause()
                    if watch is None:
                        ended.wait(pause)
                        ended.clear()
                    elif select.select([watch], [], [], pause)[0]:
                        self._settle(watch)
        finally:
            self._close_watch()
        return self._result(run)

    async def loop(self) -> Run:
        """Wait on this event loop; its thread never waits for the database."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        try:
            watch = await asyncio.to_thread(self._open_watch)
            with self._ends.waking(self._run_id, partial(_set_on, loop, ended)):
                while (run := await asyncio.to_thread(self._look)) is None:
                    pause = self._pause()
                    if watch is None:
                        await _is_set(ended, pause)
                        ended.clear()
                    elif await _readable(watch, pause):
                        await asyncio.to_thread(self._settle, watch)
        finally:
            self._close_watch()
        return self._result(run)

    def _open_watch(self) -> Watch | None:
        watch = self._database.open_watch()
        with self._lock:
            if not self._is_over:
                self._watch = watch
                return watch
        if watch is not None:
            self._database.close_watch(watch)
        return None

    def _close_watch(self) -> None:
        with self._lock:
            watch, self._watch = self._watch, None
            self._is_over = True
        if watch is not None:
            self._database.close_watch(watch)

    def _settle(self, watch: Watch) -> None:
        """Give the commit whose sign came time to be seen; one that comes meanwhile is seen with it."""
        with contextlib.suppress(Exception):  # the next look tells what is wrong with the database
            for seconds in _LOOKS_AFTER_A_SIGN:
                time.sleep(seconds)
                if self._database.has_changed(watch):
                    return

    def _pause(self) -> float:
        if self._deadline is None:
            return self._polling_interval
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeoutError(f"run {self._run_id} had not ended after {self._timeout:g} s; it goes on")
        return min(self._polling_interval, left)

    def _look(self) -> Run | None:
        """Read the run, tell what is new, and return it if it has ended."""
        run, entries = self._database.read(self._read)
        if run is None:
            raise NotFoundError(f"there is no run {self._run_id!r}")
        if run.progress is not None and run.progress != self._progress:
            self._progress = run.progress
            self._tell(self._on_progress, run.progress)
        for entry in entries:
            self._tell(self._on_log, entry)
        return run if run.is_terminal else None

    def _read(self, connection: Any) -> tuple[Run | None, list[LogEntry]]:
        run = runs.get_run(connection, self._run_id)
        if self._patient_until is not None and time.monotonic() >= self._patient_until and run is not None:
            self._patient_until = None
            self._warn_if_nobody_comes(connection, run)
        if self._on_log is None or run is None:
            return run, []
        if self._log_position is None:
            self._log_position = runs.last_log_position(connection, self._run_id)
        entries, self._log_position = runs.get_logs(connection, self._run_id, after=self._log_position)
        return run, entries

    def _warn_if_nobody_comes(self, connection: Any, run: Run) -> None:
        """Log, once, what a run that is waited for waits for itself, where it may well be for ever."""
        if run.status != "pending":
            return
        if not get_workers(connection, alive_only=True):
            why = "no worker is alive: durably.start() runs one in this process, `durably supervise` worker processes"
        elif current_execution.get() is not None:
            why = "the job that waits for it keeps a slot of a worker meanwhile; `concurrency` gives workers more slots"
        else:
            return
        logging.getLogger(LOGGER).warning("run %s of job %r is still pending, and %s", run.id, run.job_name, why)

    def _tell(self, callback: Callable[[T], object] | None, news: T) -> None:
        if callback is None:
            return
        try:
            callback(news)
        except Exception as error:  # noqa: BLE001 - a callback must not end the wait
            event = events.WorkerError(
                context="handler", severity="error", error=str(error), error_type=type(error).__qualname__
            )
            if self._emitter.on_error is None:
                self._emitter.emit(event)
            else:
                self._emitter.report(error, event)

    def _result(self, run: Run) -> Run:
        if run.status == "failed":
            raise RunFailedError(run)
        if run.status == "cancelled":
            raise RunCancelledError(run)
        job = self._registry.get(run.job_name)
        if job is None:
            return run
        try:
            return replace(run, output=job.output.decode(_as_text(run.output)))
        except Unfit as error:
            raise CheckpointError("output", f"run {run.id}: {error}") from error


def _as_text(data: object) -> str:
    import json

    return json.dumps(data)


async def _readable(watch: Watch, timeout: float) -> bool:
    """Wait until the watch's descriptor is readable, at most *timeout* seconds."""
    loop = asyncio.get_running_loop()
    sign = asyncio.Event()
    loop.add_reader(watch.fileno(), sign.set)
    try:
        return await _is_set(sign, timeout)
    finally:
        loop.remove_reader(watch.fileno())


async def _is_set(event: asyncio.Event, timeout: float) -> bool:
    """Wait until *event* is set, at most *timeout* seconds."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout)
    return event.is_set()


def _set_on(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed, and who waited there is gone
        loop.call_soon_threadsafe(event.set)
