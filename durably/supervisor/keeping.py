"""The keeper's place: begun, followed when it dies or in a reload, told what to recover, and let go at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from durably.supervisor.children import Slot
from durably.supervisor.recoveries import Recoveries
from durably.supervisor.respawn import pause_after

if TYPE_CHECKING:
    from durably.settings import Settings
    from durably.supervisor.children import Child
    from durably.supervisor.nursery import Nursery
    from durably.supervisor.voice import Voice

_LAST_ORDERS_SECONDS: Final = 5.0


class Keeping:
    """
    One supervisor's keeper, and what it has been ordered and has not confirmed.

    Args:
        nursery: Begins it.
        voice: Tells.
    """

    def __init__(self, nursery: Nursery, voice: Voice) -> None:
        self._nursery = nursery
        self._voice = voice
        self.slot: Final = Slot()
        self.unrecovered: Final = Recoveries()
        self._any_was_ready = False
        # When the last worker was gone; from then on the keeper has a bounded time for what is left.
        self._gone_at: float | None = None

    def begin(self, now: float) -> None:
        """
        Begin one.

        Raises:
            OSError: The system has no room for another process.
        """
        self.slot.child = self._begin(now)

    def _begin(self, now: float) -> Child:
        # Only a start may judge by silence at once: who begins another after an outage would blame all for it.
        return self._nursery.begin(now, keeper=True, at_start=not self._any_was_ready)

    def fill(self, now: float) -> None:
        """Begin another, if there is none and it may begin."""
        if self.slot.child is not None or self.slot.successor is not None or now < self.slot.not_before:
            return
        try:
            self.begin(now)
        except OSError as error:
            self.slot.not_before = now + self.slot.pause.next()
            self._voice.report("fork", "error", f"no process could be begun: {error}")

    def deadlines(self) -> list[float]:
        """List when another may be begun, by the monotonic clock."""
        return [self.slot.not_before] if self.slot.child is None and self.slot.successor is None else []

    def reload(self, now: float) -> None:
        """
        Begin a successor, which has the application as it is on the disk now.

        One that was not ready yet, and may have the old application, is ended. If none can be begun, that is told.
        """
        if self.slot.successor is not None:
            self.slot.successor.kill("drain", now)
            self.slot.successor = None
        try:
            self.slot.successor = self._begin(now)
        except OSError as error:
            self._voice.report("fork", "error", f"no process could be begun: {error}; {self.what_stays()}")

    def what_stays(self) -> str:
        """Say what follows from a reload that failed."""
        if self.slot.child is None:
            return "the workers stay, and another keeper is begun"
        return "the keeper and the workers stay"

    @property
    def is_reloading(self) -> bool:
        """Whether a successor is not ready yet."""
        return self.slot.successor is not None

    def was_ready(self, keeper: Child, now: float, settings: Settings) -> bool:
        """
        Learn that a keeper has migrated and recovered; a successor takes its place, and its predecessor goes.

        Args:
            keeper: Who.
            now: Monotonic seconds.
            settings: Of them the time that the predecessor has for what it is at.

        Returns:
            Whether it is a successor.
        """
        self._any_was_ready = True
        if keeper is not self.slot.successor:
            return False
        predecessor, self.slot.child, self.slot.successor = self.slot.child, keeper, None
        if predecessor is not None:
            _let_go(predecessor)
            predecessor.drain(now, 2 * settings.database_timeout, settings.kill_timeout)
        return True

    def ended(self, keeper: Child) -> bool:
        """
        Learn that one is gone; what it has not confirmed the next one gets.

        Returns:
            Whether it was the one that counts: neither a successor nor a predecessor.
        """
        self.unrecovered.send_again(keeper)
        if keeper is self.slot.successor:
            self.slot.successor = None
        if keeper is not self.slot.child:
            return False
        self.slot.child = None
        return True

    def follow(self, keeper: Child, how: str, now: float) -> None:
        """Have another take its place."""
        why = "" if keeper.failure is None else f" ({keeper.failure})"
        self._voice.report("keeper", "warning", f"the keeper {how}{why}; another takes its place")
        pause_after(self.slot, keeper, now)

    def order(self, now: float) -> None:
        """Have it recover what dead workers held, and tell what it has not done in time."""
        keeper = self.slot.child
        if keeper is not None and keeper.has_begun:
            self.unrecovered.send(keeper)
        for death in self.unrecovered.overdue(now):
            self._voice.report("recovery", "warning", death)

    def let_go(self, now: float, *, has_begun: bool) -> tuple[bool, Child | None]:
        """
        Let it go when the last worker is gone and recovered; after five seconds in any case.

        Args:
            now: Monotonic seconds.
            has_begun: Whether there ever were workers.

        Returns:
            Whether it is gone, and nothing is left to do; and itself, if it had to be killed now.
        """
        self._gone_at = self._gone_at or now
        is_late = now >= self._gone_at + _LAST_ORDERS_SECONDS
        if self.slot.successor is not None:
            self.slot.successor.kill("drain", now)
            self.slot.successor = None
        keeper = self.slot.child
        if keeper is None:
            return not self.unrecovered or is_late, None
        if not self.unrecovered or is_late or not has_begun:
            _let_go(keeper)
        if is_late and keeper.ending != "drain":
            keeper.kill("drain", now)
            return False, keeper
        return False, None


def _let_go(keeper: Child) -> None:
    """Have a keeper end what it is at, and go."""
    assert keeper.orders is not None
    keeper.orders.close()  # its end of file
