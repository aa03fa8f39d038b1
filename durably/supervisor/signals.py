"""Signals as facts: a handler only records, and a byte in a pipe ends the supervisor's wait."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from types import FrameType

WATCHED: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


class SignalPipe:
    """
    The signals that arrived, in order.

    In a thread that is not the main one no handler can be set; then only `wake` and `put` are of use.
    """

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)
        # Appended by handlers and by other threads, taken by the supervisor's thread; a deque needs no lock.
        self._arrived: deque[int] = deque()
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Begin to record, where handlers can be set."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._record) for number in WATCHED}

    def restore(self) -> None:
        """Give back the handlers that were there."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def fileno(self) -> int:
        """Give the descriptor that turns readable with a signal."""
        return self._reading

    def put(self, number: int) -> None:
        """Record a signal that nobody sent; safe from any thread and handler."""
        self._arrived.append(number)
        with contextlib.suppress(OSError):  # full: the supervisor has been woken already
            os.write(self._writing, b".")

    def take(self) -> list[int]:
        """Give the signals that arrived since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._reading, 4096)
        taken = []
        while self._arrived:
            taken.append(self._arrived.popleft())
        return taken

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._reading)
        os.close(self._writing)

    def _record(self, number: int, _frame: FrameType | None) -> None:
        self.put(number)
