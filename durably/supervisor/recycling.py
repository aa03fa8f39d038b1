"""When a worker has done enough and is replaced: decisions, no deeds."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from durably.settings import Settings
    from durably.supervisor.children import Child

_EARLIEST: Final = 0.9
_NEVER: Final = float("inf")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Bounds:
    """
    What one worker may do before it is replaced; infinite where there is no bound.

    Args:
        runs: That it has completed or failed.
        memory: That is resident, in bytes.
        age: Seconds.
    """

    runs: float
    memory: float
    age: float

    def reached(self, *, runs: int, memory: int, age: float) -> str | None:
        """
        Tell which bound is reached, in words; None if none is.

        One of memory only after a run: a worker that is too large to begin with would be replaced for ever.
        """
        if runs >= self.runs:
            return f"it has ended {runs} runs"
        if age >= self.age:
            return f"it is {age:.0f} s old"
        if memory >= self.memory and runs:
            return f"it holds {memory / 2**20:.0f} MiB"
        return None


def draw_bounds(settings: Settings) -> Bounds | None:
    """
    Draw a worker's bounds from the upper tenth of each setting, so that workers begun together do not end together.

    Returns:
        None if nothing is bounded.
    """
    limits = settings.max_runs_per_worker, settings.max_memory_per_worker, settings.max_worker_age
    if not any(limits):
        return None
    runs, memory, age = (
        _NEVER if limit is None else limit * random.uniform(_EARLIEST, 1.0)  # noqa: S311 - no secret
        for limit in limits
    )
    return Bounds(runs, memory, age)


def reason_to_replace(child: Child, now: float) -> str | None:
    """Tell why a worker has done enough, in words; None if it has not."""
    if child.bounds is None:
        return None
    memory = resident_memory(child.pid) if child.bounds.memory < _NEVER else 0
    return child.bounds.reached(runs=child.runs_ended, memory=memory, age=now - child.began_at)


def resident_memory(pid: int) -> int:
    """Read how much of a process's memory is resident, in bytes (proc(5)); 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0
