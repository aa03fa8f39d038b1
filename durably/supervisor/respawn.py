"""When a slot whose worker died is filled again, and when the supervisor gives up: decisions, no deeds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from durably.supervisor.children import Child, Slot

_YOUNG_SECONDS: Final = 10.0
_STILLBORN_BEFORE_GIVING_UP: Final = 5
_STILLBORN_AFTER_SOME_WERE_READY: Final = 10


class Respawn:
    """
    Remembers how the children died.

    A worker that cannot begin because the database is away says nothing against the application: it is tried again for
    as long as that takes.
    """

    def __init__(self) -> None:
        # In a row, since a worker was last ready.
        self._stillborn = 0
        self._any_was_ready = False
        self._failure: str | None = None

    def was_ready(self) -> None:
        """Learn that a worker has looked for runs."""
        self._any_was_ready = True
        self._stillborn = 0

    def is_hopeless(self, *, any_works: bool) -> bool:
        """
        Tell whether to give up: no worker comes so far any more.

        Args:
            any_works: Whether there is one that has come so far, and lives.
        """
        most = _STILLBORN_AFTER_SOME_WERE_READY if self._any_was_ready else _STILLBORN_BEFORE_GIVING_UP
        return not any_works and self._stillborn >= most

    def verdict(self) -> str:
        """Say how many died before one was ready, and of what the last."""
        why = "" if self._failure is None else f": {self._failure}"
        return f"{self._stillborn} workers in a row died before any was ready{why}"

    def reschedule(self, slot: Slot, dead: Child, now: float) -> float:
        """
        Decide when *slot* may be filled again.

        At once if the child had finished a run, lived for ten seconds or did what it was told; else after a pause that
        doubles from 0.1 s to 30 s.

        Args:
            slot: Whose child died.
            dead: That child.
            now: Monotonic seconds.

        Returns:
            The pause, in seconds.
        """
        if not dead.has_begun and not dead.waits_for_database:
            self._stillborn += 1
            self._failure = dead.failure or self._failure
        return pause_after(slot, dead, now)


def pause_after(slot: Slot, dead: Child, now: float) -> float:
    """As `Respawn.reschedule`, for a child that is no worker."""
    if dead.runs_ended or now - dead.began_at >= _YOUNG_SECONDS or (dead.has_begun and dead.release_at is not None):
        slot.pause.reset()
        slot.deaths = 0
        slot.not_before = now
        return 0.0
    slot.deaths += 1
    pause = slot.pause.next()
    slot.not_before = now + pause
    return pause
