"""The doorbell: a pipe that wakes one idle worker for each byte, shared by all workers of a host."""

from __future__ import annotations

import contextlib
import os
import select
from typing import Final

_MOST_RINGS: Final = 64


class Doorbell:
    """
    A pipe with both ends non-blocking.

    The keeper rings; a worker that is idle listens, and takes one byte for itself. A byte that nobody takes says
    that nobody is idle. A ring that dies with the worker that took it costs one polling interval, no run.

    Args:
        ends: Reading and writing descriptor; by default a new pipe.
    """

    def __init__(self, ends: tuple[int, int] | None = None) -> None:
        self._reading, self._writing = ends or os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)

    def fileno(self) -> int:
        """Give the descriptor that turns readable when somebody rings."""
        return self._reading

    def ends(self) -> tuple[int, int]:
        """Give both descriptors, for a process that inherits them."""
        return self._reading, self._writing

    def ring(self, times: int) -> None:
        """Wake up to *times* idle workers, 64 at most; never waits."""
        if times and self._writing >= 0:
            with contextlib.suppress(BlockingIOError):
                os.write(self._writing, b"." * min(times, _MOST_RINGS))

    def answer(self) -> bool:
        """Take one ring; False if another worker was quicker."""
        try:
            return bool(os.read(self._reading, 1))
        except BlockingIOError:
            return False

    def is_unanswered(self) -> bool:
        """Tell whether a ring waits: then no worker is idle."""
        return bool(select.select([self._reading], [], [], 0)[0])

    def close(self) -> None:
        """Close both ends in this process."""
        ends = self._reading, self._writing
        # A number that was closed may be a database's file by the time somebody rings.
        self._reading = self._writing = -1
        for end in ends:
            with contextlib.suppress(OSError):
                os.close(end)
