"""How a child ended, in a word; and whether the kernel killed it because there was no memory left."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from durably.events import Ending
    from durably.supervisor.children import Child

_OOM_KILLS: Final = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_CGROUPS: Final = Path("/sys/fs/cgroup")
_MINE: Final = Path("/proc/self/cgroup")
_OF_ALL: Final = Path("/proc/vmstat")
_SECONDS_BETWEEN_LOOKS: Final = 1.0
_SECONDS_TO_DIE: Final = 5.0
"""It counts as it sends the signal, and a process with much memory takes a while to give it back."""


class OutOfMemory:
    """
    The kernel's count of processes that it killed for want of memory: in this control group, else in the system.

    A kill explains a death that shows soon after it, and none of later: it may have been that of a program that a job
    has started, or of anything else on the host.

    Args:
        books: Where the count may stand; the first that has it counts. By default the control group's file of version 2
            or 1, as seen from the host or from within a container, and then the system's.
    """

    def __init__(self, *books: Path) -> None:
        self._books = books or _find_books()
        self._seen = self._count()
        self._looked_at = 0.0
        # Kills of late that no death was put down to, and when the last was seen.
        self._unexplained = 0
        self._struck_at = 0.0

    def watch(self, now: float) -> None:
        """Look whether it has killed, once a second; *now* is monotonic seconds."""
        if now >= self._looked_at + _SECONDS_BETWEEN_LOOKS:
            self._look(now)

    def has_struck(self, now: float) -> bool:
        """Whether it has killed one of late that no other death was put down to; *now* is monotonic seconds."""
        self._look(now)
        if not self._unexplained:
            return False
        self._unexplained -= 1
        return True

    def _look(self, now: float) -> None:
        count, self._looked_at = self._count(), now
        if count > self._seen:
            self._unexplained += count - self._seen
            self._struck_at = now
        elif now > self._struck_at + _SECONDS_TO_DIE:
            self._unexplained = 0
        self._seen = count

    def _count(self) -> int:
        for book in self._books:
            try:
                found = _OOM_KILLS.search(book.read_text(encoding="ascii"))
            except (OSError, UnicodeDecodeError):
                continue
            if found:
                return int(found[1])
        return 0


def _find_books() -> tuple[Path, ...]:
    """See cgroups(7): "0::PATH" is version 2's line, "N:memory:PATH" version 1's."""
    books: list[Path] = []
    try:
        lines = _MINE.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):  # noqa: PLR2004 - three fields
        if controllers == "memory":
            books += [_CGROUPS / "memory" / p / "memory.oom_control" for p in (path.lstrip("/"), "")]
        elif not controllers:
            books += [_CGROUPS / p / "memory.events" for p in (path.lstrip("/"), "")]
    return (*books, _OF_ALL)


def ending_of(child: Child, exit_code: int | None, signal_name: str | None, memory: OutOfMemory, now: float) -> Ending:
    """
    Decide how a worker's end is to be understood.

    Args:
        child: The worker; how its supervisor has meant to end it is its `ending`.
        exit_code: None if a signal killed it.
        signal_name: Of the signal that killed it.
        memory: Asked if somebody else has sent a SIGKILL.
        now: Monotonic seconds.
    """
    if child.ending == "silent" and child.blamed:
        return "timeout"  # silent, because what has overrun holds Python's lock: the others are not to blame
    if child.ending == "timeout" and child.overdue and not child.blamed:
        return "hung"  # what has overrun awaits on an event loop that another run's code keeps
    if child.ending != "died":
        return child.ending
    if exit_code == 0:
        return "stopped"
    return "out_of_memory" if signal_name == "SIGKILL" and memory.has_struck(now) else "died"
