"""Where the writers of one SQLite file queue, so that none waits long."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# SQLite's busy handler sleeps up to 100 ms between looks and starves the unlucky; looks this close together
# brought the worst of 4 writers' waits from 834 ms to 111 to 249 ms, as good as a blocking flock(), which has no
# timeout (docs/adr/0003).
_FIRST_PAUSE_SECONDS: Final = 0.00005
_LONGEST_PAUSE_SECONDS: Final = 0.0005


@contextmanager
def gate(path: str, timeout: float) -> Iterator[None]:
    """
    Hold the advisory lock on *path* that writers take before they begin.

    The kernel frees it when its holder dies. It only orders writers: SQLite's own lock keeps them apart, so a
    gate that somebody deletes costs fairness and nothing else.

    Args:
        path: A side file of the database; made if missing.
        timeout: Seconds to queue.

    Raises:
        TimeoutError: The gate stayed shut for *timeout*.
        OSError: The file cannot be opened.
    """
    # Opened anew each time: a lock belongs to an open file, so each thread has its own.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _wait_for(descriptor, path, timeout)
        yield
    finally:
        # Closing alone would not do it while a process that was forked meanwhile has a copy of the open file.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _wait_for(descriptor: int, path: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"other writers have held {path} for {timeout:g} s") from None
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
