"""The runs that a worker holds: those whose functions have not returned, whoever owns their rows by now."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from durably.errors import Reason
    from durably.worker.execution import Execution

_MOST_CANCELLED_EARLY: Final = 256


class Held:
    """
    Executions by run id and generation: after a retry a run may be held twice.

    Changed on the worker's event loop only; the pulse's thread and callers' threads read copies.
    """

    def __init__(self) -> None:
        self._executions: dict[tuple[str, int], Execution] = {}
        # Of runs that this process has cancelled and does not hold, the latest: perhaps a claim is on its way.
        self._cancelled_early: deque[tuple[str, int]] = deque(maxlen=_MOST_CANCELLED_EARLY)
        # What keeps a caller's cancellation and the begin of the same run from missing each other.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._executions)

    def keys(self) -> list[tuple[str, int]]:
        """List run ids and generations."""
        return list(self._executions)

    def add(self, execution: Execution) -> None:
        """Hold a run that was just claimed."""
        key = execution.run.id, execution.run.generation
        with self._lock:
            self._executions[key] = execution
            if key in self._cancelled_early:
                execution.cancelled_here()

    def remove(self, execution: Execution) -> None:
        """Let go of a run whose function has returned."""
        del self._executions[execution.run.id, execution.run.generation]

    def lose(self, lost: Iterable[tuple[str, int, Reason]]) -> None:
        """Let executions know why their runs are no longer theirs; those that have ended need not know."""
        for run_id, generation, reason in lost:
            if (execution := self._executions.get((run_id, generation))) is not None:
                execution.lose(reason)

    def lose_all(self) -> None:
        """Let every execution know that its lease is lost."""
        self.lose([(run_id, generation, "lease_lost") for run_id, generation in self.keys()])

    def release(self) -> None:
        """Let every execution know that it is to end at its next step boundary."""
        for execution in list(self._executions.values()):
            execution.token.fire("released")

    def cancelled_here(self, run_id: str, generation: int) -> bool:
        """Learn, in any thread, that this process has cancelled a run; tell whether that was told already."""
        with self._lock:
            execution = self._executions.get((run_id, generation))
            if execution is None:
                self._cancelled_early.append((run_id, generation))
                return False
        return execution.cancelled_here()

    def oldest_step_age(self, now: float) -> float | None:
        """Tell how long the longest step in flight has been running, in seconds; None without one."""
        ages = (execution.oldest_step_age(now) for execution in list(self._executions.values()))
        return max((age for age in ages if age is not None), default=None)
