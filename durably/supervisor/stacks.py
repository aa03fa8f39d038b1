"""Where a child writes the stacks of its threads when its supervisor asks for them."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from durably.supervisor.suspicion import STACKS_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from durably.supervisor.children import Child
    from durably.supervisor.voice import Voice

STACKS_SIGNAL: Final = signal.SIGUSR2
"""From the supervisor to a child: write your stacks, whatever your interpreter is doing."""
_MOST_BYTES: Final = 1 << 20
_NEVER: Final = float("inf")
_kept_open: list[Any] = []


class Stacks:
    """
    One child's file, held by its supervisor.

    The child opens it by its name and removes the name, so that nothing stays behind when all are killed.
    """

    def __init__(self) -> None:
        self._descriptor, self.path = tempfile.mkstemp(prefix="durably-stacks-")
        self._skipped = 0

    def skip(self) -> None:
        """Leave out, from now on, what the child has written so far."""
        self._skipped = os.fstat(self._descriptor).st_size

    def read(self) -> str:
        """Read what the child has written since, a megabyte at most; empty if nothing."""
        return os.pread(self._descriptor, _MOST_BYTES, self._skipped).decode(errors="replace")

    def forget(self) -> None:
        """Close a forked child's copy."""
        os.close(self._descriptor)

    def close(self) -> None:
        """Close it, and remove the name if the child did not live to do it."""
        os.close(self._descriptor)
        with contextlib.suppress(OSError):
            Path(self.path).unlink()


class StacksOfAll:
    """
    The stacks of a supervisor and all its children, on request.

    Args:
        voice: Logs them, a line for each process.
    """

    def __init__(self, voice: Voice) -> None:
        self._voice = voice
        self._asked: list[Child] = []
        self._due = _NEVER

    def ask(self, children: Iterable[Child], now: float) -> None:
        """Log the supervisor's own stack, and have the children write theirs."""
        self._asked = list(children)
        self._due = now + STACKS_SECONDS
        self._voice.note("stack of the supervisor", "".join(traceback.format_stack()))
        for child in self._asked:
            child.ask_for_stacks()

    def deadlines(self) -> list[float]:
        """List when `tell` has something to do, by the monotonic clock."""
        return [self._due] if self._asked else []

    def tell(self, now: float) -> None:
        """Log what the children have written, when they have had their time."""
        if now < self._due:
            return
        for child in self._asked:
            name = "keeper" if child.is_keeper else f"worker {child.id}"
            if not child.is_buried:
                written = child.stacks.read() or "it could not write them"
                self._voice.note(f"stacks of the {name} (pid {child.pid})", written)
        self._asked, self._due = [], _NEVER


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
