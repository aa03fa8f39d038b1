"""Where a child writes the stacks of its threads when its supervisor asks for them."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import tempfile
from pathlib import Path
from typing import Any, Final

STACKS_SIGNAL: Final = signal.SIGUSR2
"""From the supervisor to a child: write your stacks, whatever your interpreter is doing."""
_MOST_BYTES: Final = 1 << 20
_kept_open: list[Any] = []


class Stacks:
    """
    One child's file, held by its supervisor.

    The child opens it by its name and removes the name, so that nothing stays behind when all are killed.
    """

    def __init__(self) -> None:
        self._descriptor, self.path = tempfile.mkstemp(prefix="durably-stacks-")

    def read(self) -> str:
        """Read what the child has written, a megabyte at most; empty if nothing."""
        return os.pread(self._descriptor, _MOST_BYTES, 0).decode(errors="replace")

    def close(self) -> None:
        """Close it, and remove the name if the child did not live to do it."""
        os.close(self._descriptor)
        with contextlib.suppress(OSError):
            Path(self.path).unlink()


def write_stacks_on_signal(path: str) -> None:
    """
    Write this process's stacks to a file whenever STACKS_SIGNAL arrives, from now on.

    Args:
        path: Of the supervisor's `Stacks`; it has no name afterwards.
    """
    file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
    _kept_open.append(file)  # faulthandler holds only its descriptor
    Path(path).unlink()
    faulthandler.register(STACKS_SIGNAL, file=file, all_threads=True)
