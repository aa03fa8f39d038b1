"""Tells one process's events: numbers them, hands them to the channel, calls whoever subscribed."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from durably.errors import ValidationError
from durably.events import CATALOGUE, Event, Process, Role, SupervisorError, WorkerError
from durably.forks import after_fork_in_child

Handler: TypeAlias = Callable[[Any], Any]
OnError: TypeAlias = Callable[[BaseException, Event], None]

_logger: Final = logging.getLogger("durably")


class Emitter:
    """
    The events of one process. Safe for threads; a forked child counts from 1 again.

    Args:
        role: What the process is to durably.
        on_error: Called with what a handler raised and the event; without it the failure becomes a
            `worker:error` with context "handler".
    """

    def __init__(self, role: Role = "client", on_error: OnError | None = None) -> None:
        self.on_error = on_error
        # Hears each event in order, under the lock: it must be quick. Set once, by the worker or keeper that begins.
        self.sink: Callable[[Event], None] | None = None
        # Replaced whole on each change, under the lock; read without it.
        self._handlers: tuple[tuple[str, Callable[[Any], None], object], ...] = ()
        self._start_counting(role)
        after_fork_in_child(self._start_counting_after_fork)

    def _start_counting(self, role: Role, worker_id: str | None = None) -> None:
        self._lock = threading.Lock()
        self._sequence = 0
        self.process = Process(host=socket.gethostname(), pid=os.getpid(), role=role, worker_id=worker_id)

    def _start_counting_after_fork(self) -> None:
        self.sink = None
        self._start_counting("client")

    def become(self, role: Role, worker_id: str | None = None) -> None:
        """Tell events from now on as *role*; the count goes on."""
        with self._lock:
            self.process = Process(host=self.process.host, pid=self.process.pid, role=role, worker_id=worker_id)

    def on(self, event_type: str, handler: Handler) -> Callable[[], None]:
        """
        Call *handler* with each event of *event_type*, or of every type for "*".

        A coroutine function is scheduled on the loop that subscribes it, and not waited for.

        Returns:
            A function that unsubscribes; it may be called more than once.

        Raises:
            ValidationError: There is no such type, or a coroutine function is subscribed without a running loop.
        """
        if event_type != "*" and event_type not in CATALOGUE:
            raise ValidationError("event_type", f"{event_type!r} is none of '*', {', '.join(map(repr, CATALOGUE))}")
        entry = (event_type, self._caller(handler), object())
        with self._lock:
            self._handlers = (*self._handlers, entry)

        def unsubscribe() -> None:
            with self._lock:
                self._handlers = tuple(known for known in self._handlers if known is not entry)

        return unsubscribe

    def _caller(self, handler: Handler) -> Callable[[Any], None]:
        if not callable(handler):
            raise ValidationError("handler", f"{handler!r} is not callable")
        if not inspect.iscoroutinefunction(handler):
            return handler
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ValidationError(
                "handler",
                "a coroutine function needs a running event loop to be scheduled on; pass a plain function",
            ) from None

        async def guarded(event: Event) -> None:
            try:
                await handler(event)
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a handler raises stops here
                self.report(error, event)

        def schedule(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its handlers with it
                asyncio.run_coroutine_threadsafe(guarded(event), loop)

        return schedule

    def emit(self, event: Event) -> None:
        """Stamp *event*, whose fact is committed, and tell it; never raises."""
        with self._lock:
            self._sequence += 1
            object.__setattr__(event, "sequence", self._sequence)
            object.__setattr__(event, "process", self.process)
            object.__setattr__(event, "timestamp", datetime.now(UTC))
            if self.sink is not None:
                self.sink(event)
        self.pass_on(event)

    def is_heard(self, event_type: str) -> bool:
        """Tell whether anybody has subscribed to events of this type."""
        return any(wanted in ("*", event_type) for wanted, _, _ in self._handlers)

    def pass_on(self, event: Event) -> None:
        """Call the handlers with an event as it is: one that another process has told."""
        for event_type, handler, _ in self._handlers:
            if event_type in ("*", event.type):
                try:
                    handler(event)
                except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a handler raises stops here
                    self.report(error, event)

    def report(self, error: BaseException, event: Event) -> None:
        """Take what a handler of *event* raised: to on_error, else as an event of its own; never raises."""
        if self.on_error is not None:
            try:
                self.on_error(error, event)
            except (Exception, SystemExit):
                _logger.exception("on_error raised for %s", event.type)
        elif isinstance(event, (WorkerError, SupervisorError)):
            _logger.error("a handler of %s raised", event.type, exc_info=error)
        else:
            self.emit(
                WorkerError(context="handler", severity="error", error=str(error), error_type=type(error).__qualname__)
            )
