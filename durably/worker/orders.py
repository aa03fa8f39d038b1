"""What a supervisor orders of its keeper: to recover its dead workers; carried out in turn, and tried with a bound."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from durably.store.database import is_outage
from durably.store.pause import Pause
from durably.worker.timeouts import Timed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from durably.worker.recovery import Recovery

_MOST_TRIES: Final = 10
_LONGEST_PAUSE_BETWEEN_TRIES: Final = 10.0


class Orders(Protocol):
    """
    Where a supervisor's orders arrive, a dict each.

    One with "work" is to fail what was overdue when its worker was killed ("worker_id", "began"). Any other is to
    recover a worker's runs: "worker_id", "reason", "exit_code", "signal" and "culprit".
    """

    def fileno(self) -> int:
        """Give the descriptor that turns readable when there is an order, or the supervisor is gone."""

    def drain(self) -> Sequence[dict[str, Any]]:
        """Take the orders that have arrived; never waits."""

    @property
    def is_at_end(self) -> bool:
        """Whether the supervisor is gone."""


@dataclass(slots=True, eq=False)
class _Order:
    """
    An order that is still to be carried out.

    Args:
        tries: How often the database has refused it.
        pause: How the wait between two tries grows.
        not_before: When it is tried again, monotonic seconds.
    """

    order: dict[str, Any]
    pause: Pause
    tries: int = 0
    not_before: float = 0.0


class Undone:
    """
    The orders that one keeper has not carried out yet.

    Args:
        orders: Where they arrive.
        recovery: Carries them out.
        first_pause: Seconds before an order that was refused is tried again; they double.
        on_done: Called after each order with how many runs were recovered.
        on_give_up: Called with the id of a dead worker that cannot be recovered.
        tell: Called with what cannot be done, and why.
    """

    def __init__(
        self,
        orders: Orders,
        recovery: Recovery,
        *,
        first_pause: float,
        on_done: Callable[[int], None],
        on_give_up: Callable[[str], None],
        tell: Callable[[str, BaseException], None],
    ) -> None:
        self._orders = orders
        self._recovery = recovery
        self._first_pause = first_pause
        self._on_done = on_done
        self._on_give_up = on_give_up
        self._tell = tell
        self._undone: list[_Order] = []

    def fileno(self) -> int:
        """Give the descriptor that turns readable when there is an order, or the supervisor is gone."""
        return self._orders.fileno()

    @property
    def is_at_end(self) -> bool:
        """Whether the supervisor is gone."""
        return self._orders.is_at_end

    def next_due(self) -> float:
        """Tell when one is to be tried again, by the monotonic clock."""
        return min((undone.not_before for undone in self._undone), default=float("inf"))

    def carry_out(self) -> None:
        """
        Do what is left of the supervisor's dead children.

        While the database is away all of it waits, however long that takes. An order that the database refuses holds up
        only those of the same worker, is tried ten times, and then given up.
        """
        self._undone += [
            _Order(order, Pause(self._first_pause, _LONGEST_PAUSE_BETWEEN_TRIES)) for order in self._orders.drain()
        ]
        held_up: dict[str, float] = {}
        for undone in list(self._undone):
            worker_id = undone.order["worker_id"]
            undone.not_before = max(undone.not_before, held_up.get(worker_id, 0.0))
            if time.monotonic() < undone.not_before:
                held_up[worker_id] = undone.not_before
                continue
            try:
                recovered = self._do(undone.order)
            except Exception as error:
                if is_outage(error):
                    raise
                if not self._was_last_try(undone, error):
                    held_up[worker_id] = undone.not_before
                    continue
                recovered = 0
            self._undone.remove(undone)
            self._on_done(recovered)

    def _was_last_try(self, undone: _Order, error: Exception) -> bool:
        """Have an order wait that was refused, or tell that it is given up."""
        undone.tries += 1
        if undone.tries < _MOST_TRIES:
            undone.not_before = time.monotonic() + undone.pause.next()
            return False
        worker_id = undone.order["worker_id"]
        if "work" in undone.order:
            what = f"the run {undone.order['work']['run_id']} of worker {worker_id} cannot be failed for its timeout"
        else:
            what = f"what worker {worker_id} held cannot be recovered, and is left to the next keeper"
            self._on_give_up(worker_id)
        self._tell(f"{what}: {error}", error)
        return True

    def _do(self, order: dict[str, Any]) -> int:
        if "work" in order:
            self._recovery.fail_overdue(order["worker_id"], Timed(**order["work"]), order["began"])
            return 0
        return self._recovery.recover(
            order["worker_id"],
            reason=order["reason"],
            exit_code=order["exit_code"],
            signal=order["signal"],
            culprit=order["culprit"],
        )
