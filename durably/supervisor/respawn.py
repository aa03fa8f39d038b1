"""When a slot whose worker died is filled again, and when the supervisor gives up: decisions, no deeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from durably.supervisor.children import Child, Slot

_YOUNG_SECONDS: Final = 10.0
_STILLBORN_BEFORE_GIVING_UP: Final = 5


class Respawn:
    """Remembers how the children died; `is_hopeless` when five in a row died before any was ever ready."""

    def __init__(self) -> None:
        self._stillborn = 0
        self._any_was_ready = False

    def was_ready(self) -> None:
        """Learn that a worker reached its first claim."""
        self._any_was_ready = True

    @property
    def is_hopeless(self) -> bool:
        """Whether to give up."""
        return not self._any_was_ready and self._stillborn >= _STILLBORN_BEFORE_GIVING_UP

    def reschedule(self, slot: Slot, dead: Child, now: float) -> None:
        """
        Decide when *slot* may be filled again.

        At once if the child had finished a run or lived for ten seconds; else after a pause that doubles from
        0.1 s to 30 s.

        Args:
            slot: Whose child died.
            dead: That child.
            now: Monotonic seconds.
        """
        if dead.state == "starting":
            self._stillborn += 1
        if dead.has_finished_a_run or now - dead.began_at >= _YOUNG_SECONDS:
            slot.pause.reset()
            slot.not_before = now
        else:
            slot.not_before = now + slot.pause.next()
