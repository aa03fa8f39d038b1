"""
Who waits for Python's lock and does not get it, as the system's books tell; and whose fault a passed timeout is then.

A worker in which some code keeps the lock can say nothing. But each thread that wants it looks again after every
sys.getswitchinterval(), 5 ms, which the kernel counts as a voluntary switch, and uses next to no processor. Whoever
computes, sleeps or waits for good does not look so; whoever sleeps for moments does, and is told from it by the pulse.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from durably.worker.timeouts import Timed

LOCKED_SECONDS: Final = 1.0
"""Without a pulse, which comes twice a second, for longer: somebody keeps the lock."""
_SHORTEST_SECONDS: Final = 0.4
_LONGEST_SECONDS: Final = 2.0
_FEWEST_LOOKS_A_SECOND: Final = 20.0
"""A tenth of what Python does, for a busy host, and for those who have made its interval longer."""
_LARGEST_SHARE: Final = 0.02
"""Of a processor: 200 looks a second took 0.2 % to 0.4 % of one; who shares the lock with 20 others has 5 %."""
_SWITCHES: Final = "\nvoluntary_ctxt_switches:"


@dataclass(frozen=True, slots=True)
class _Books:
    """What the system has counted of a thread: its processor time in seconds, and its voluntary switches."""

    seconds: float
    switches: int


class LockWait:
    """One process's threads, looked at from outside while there is something to find out. Linux only."""

    def __init__(self) -> None:
        self._looked_at = float("-inf")
        self._before: dict[int, _Books] = {}
        self.waiting: frozenset[int] = frozenset()
        """The system's ids of those that did nothing but wait for the lock between the last two looks."""

    def look(self, pid: int, now: float) -> None:
        """
        Look, but no more often than tells something.

        Args:
            pid: The process.
            now: Monotonic seconds.
        """
        seconds = now - self._looked_at
        if seconds < _SHORTEST_SECONDS:
            return
        before, self._before, self._looked_at = self._before, _read(pid), now
        if seconds > _LONGEST_SECONDS:  # what they did meanwhile says nothing of now
            before = {}
        self.waiting = frozenset(
            thread
            for thread, books in self._before.items()
            if (was := before.get(thread)) is not None
            and books.switches - was.switches >= _FEWEST_LOOKS_A_SECOND * seconds
            and books.seconds - was.seconds <= _LARGEST_SHARE * seconds
        )


def is_held_up(work: Timed, executing: Iterable[tuple[int, str]], waiting: Collection[int], *, loop: int) -> bool:
    """
    Tell whether what is past its time would have gone on, had code of others not kept the lock.

    Args:
        work: What is past its time.
        executing: Which threads are in whose code.
        waiting: Threads that only wait for the lock.
        loop: The thread of the event loop.

    Returns:
        False also where nothing is known. Where the lock is kept on the event loop, and several runs have code there,
        nobody knows whose it is: then none is to fail for it.
    """
    places = [(thread, run_id) for thread, run_id in executing if work.on_loop or thread != loop]
    mine = {thread for thread, run_id in places if run_id == work.run_id}
    if not mine or not waiting:
        return False
    not_waiting = mine.difference(waiting)
    others_are_there = any(thread == loop and run_id != work.run_id for thread, run_id in places)
    return not not_waiting or (not_waiting == {loop} and others_are_there)


def _read(pid: int) -> dict[int, _Books]:
    """Read the books of each thread (proc(5), and the kernel's sched-stats); empty where there are none."""
    found: dict[int, _Books] = {}
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return found
    for thread in threads:
        try:
            nanoseconds = int((thread / "schedstat").read_text(encoding="ascii").split(maxsplit=1)[0])
            _, switches, line = (thread / "status").read_text(encoding="utf-8", errors="replace").partition(_SWITCHES)
        except (OSError, ValueError, IndexError):
            continue  # it has ended, or the system keeps no such books
        if switches:
            found[int(thread.name)] = _Books(nanoseconds / 1e9, int(line.split(maxsplit=1)[0]))
    return found
