"""What dead workers held and nobody has recovered yet: the orders that the keeper has not confirmed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from durably.events import Ending
    from durably.supervisor.children import Child
    from durably.worker.timeouts import Timed

_LATE_SECONDS: Final = 1.0
"""What contract 61 allows until a dead worker's run is running again."""


@dataclass(slots=True)
class _Order:
    worker_id: str
    pid: int
    reason: Ending
    exit_code: int | None
    signal: str | None
    culprit: str | None
    overdue: list[dict[str, Any]]
    died_at: float
    overdue_sent: int = 0
    sent_to: Child | None = None
    is_sent: bool = False
    is_told: bool = False
    is_given_up: bool = False

    def how(self) -> str:
        """Say who died and of what."""
        end = f"was killed by {self.signal}" if self.signal else f"exited with code {self.exit_code}"
        return f"worker {self.worker_id} (pid {self.pid}) {end}"


class Recoveries:
    """
    Orders to the keeper to recover what a dead child held. One counts until the keeper has confirmed it.

    The keeper tells a death with the recovery. One that it cannot carry out, because the database is away, is told
    from here: an operator learns of each death within a second or so, whatever the database does.
    """

    def __init__(self) -> None:
        # By worker id; owned by the supervisor's thread.
        self._orders: dict[str, _Order] = {}

    def __bool__(self) -> bool:
        """Whether there is any to wait for."""
        return any(not order.is_given_up for order in self._orders.values())

    def add(self, child: Child, reason: Ending, exit_code: int | None, signal: str | None, now: float) -> None:
        """
        Note that a worker has died.

        Args:
            child: The worker; it has been reaped.
            reason: Decides whether its runs count an interruption.
            exit_code: None if a signal killed it.
            signal: The signal's name.
            now: Monotonic seconds.
        """
        is_blamed = reason == "timeout"
        self._orders[child.id] = _Order(
            child.id,
            child.pid,
            reason,
            exit_code,
            signal,
            culprit=child.stuck_in if reason == "hung" else None,
            overdue=[_failure(child.id, since, work, now) for since, work in child.blamed if is_blamed],
            died_at=now,
        )

    def confirm(self, worker_id: str) -> None:
        """Cross an order off."""
        self._orders.pop(worker_id, None)

    def give_up(self, worker_id: str) -> None:
        """Wait no longer for one that the keeper cannot carry out; the next keeper is sent it all the same."""
        if (order := self._orders.get(worker_id)) is not None:
            order.is_given_up = order.is_told = True

    def send_again(self, keeper: Child) -> None:
        """Begin anew with those that a keeper had, which is gone."""
        for order in self._orders.values():
            if order.sent_to is keeper:
                order.sent_to, order.overdue_sent, order.is_sent = None, 0, False

    def send(self, keeper: Child) -> None:
        """Send what was not sent yet; never waits."""
        assert keeper.orders is not None
        for order in self._orders.values():
            if order.sent_to not in {None, keeper}:
                continue  # its predecessor is about to end, and may be at it
            order.sent_to = keeper
            # What has overrun fails before the rest is recovered; one that is sent twice is refused by the fence.
            while order.overdue_sent < len(order.overdue):
                if not keeper.orders.try_send(order.overdue[order.overdue_sent]):
                    return
                order.overdue_sent += 1
            if not order.is_sent:
                order.is_sent = keeper.orders.try_send(_message(order))

    def overdue(self, now: float) -> list[str]:
        """Say of each death that waits for its recovery for too long, once, how it was."""
        late = [o for o in self._orders.values() if not o.is_told and now - o.died_at >= _LATE_SECONDS]
        for order in late:
            order.is_told = True
        return [f"{order.how()}; its runs are not recovered yet, because the keeper has not done it" for order in late]

    def left(self) -> list[str]:
        """Say of each death whose recovery is left to others how it was."""
        return [f"{order.how()}; recovering its runs is left to the next supervisor" for order in self._orders.values()]


def _message(order: _Order) -> dict[str, Any]:
    """Give what the keeper is told (`durably.worker.orders.Orders`)."""
    return {
        "worker_id": order.worker_id,
        "reason": order.reason,
        "exit_code": order.exit_code,
        "signal": order.signal,
        "culprit": order.culprit,
    }


def _failure(worker_id: str, overdue_for: float, work: Timed, now: float) -> dict[str, Any]:
    """Give the order to fail what has overrun."""
    return {"worker_id": worker_id, "work": asdict(work), "began": now - overdue_for - work.timeout}
