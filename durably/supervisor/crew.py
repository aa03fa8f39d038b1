"""The workers that a supervisor keeps: a slot for each, filled, replaced, added and removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from durably import events
from durably.supervisor.children import Child, Slot
from durably.supervisor.recycling import draw_bounds, reason_to_replace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from durably.settings import Settings
    from durably.supervisor.nursery import Nursery
    from durably.supervisor.respawn import Respawn
    from durably.supervisor.voice import Voice

_NEVER: Final = float("inf")
_SECONDS_BETWEEN_LOOKS: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Replacement:
    """
    Somebody who is to be replaced: *child*, while it fills *slot*.

    Args:
        why: "reload" takes the next only when the last predecessor is gone, and kills what does not drain in time; from
            "recycle" no run is ever killed.
    """

    slot: Slot
    child: Child
    why: Literal["reload", "recycle"]


class Crew:
    """
    One supervisor's workers. Owned by its thread.

    Args:
        nursery: Begins them.
        voice: Tells.
        settings: Gives the settings of now.
        respawn: Decides when those that died are followed.
    """

    def __init__(self, nursery: Nursery, voice: Voice, settings: Callable[[], Settings], respawn: Respawn) -> None:
        self._nursery = nursery
        self._voice = voice
        self._settings = settings
        self._respawn = respawn
        self.slots: list[Slot] = []
        self._is_open = False
        self._due: list[_Replacement] = []
        self._under_way: _Replacement | None = None
        # Predecessors that a reload waits for.
        self._leaving: list[Child] = []
        self._looked_at = 0.0

    # --- as many as are wanted ------------------------------------------------------------------------------

    def open(self, pools: Mapping[str, int]) -> None:
        """Make a slot for each worker."""
        self._is_open = True
        self.slots = [Slot(pool) for pool, count in pools.items() for _ in range(count)]

    def close(self) -> None:
        """Begin nobody any more."""
        self._is_open = False

    def add(self, pool: str, now: float) -> int:
        """Add a slot; give how many there are."""
        self.slots.append(Slot(pool, not_before=now))
        return len(self.slots)

    def remove(self, pool: str, now: float) -> int | None:
        """
        Remove a slot of a pool, the one that is missed the least, and drain who fills it.

        Returns:
            How many there are then; None if the pool has but one.
        """
        mine = [slot for slot in self.slots if slot.pool == pool]
        if len(mine) < 2:  # noqa: PLR2004 - the last one stays
            return None
        least = min(reversed(mine), key=_use_of)
        self.slots.remove(least)
        for child in (least.child, least.successor):
            if child is not None:
                self._drain(child, now)
        return len(self.slots)

    def fill(self, now: float) -> None:
        """Begin a worker in each empty slot that may be filled."""
        if not self._is_open:
            return
        for slot in self.slots:
            if slot.child is None and now >= slot.not_before:
                slot.child = self._begin(slot, now)

    def deadlines(self) -> list[float]:
        """List when empty slots may be filled, by the monotonic clock."""
        return [slot.not_before for slot in self.slots if slot.child is None] if self._is_open else []

    def _begin(self, slot: Slot, now: float) -> Child | None:
        try:
            child = self._nursery.begin(now, pool=slot.pool)
        except OSError as error:
            slot.not_before = now + slot.pause.next()
            self._voice.report("fork", "error", f"no process could be begun: {error}")
            return None
        child.bounds = draw_bounds(self._settings())
        self.tell_state(child)
        return child

    # --- their lives ----------------------------------------------------------------------------------------

    def workers(self) -> list[Child]:
        """List those that live, also those that leave."""
        return [child for child in self._nursery.living if not child.is_keeper]

    def tell_state(self, child: Child, state: events.WorkerState | None = None) -> None:
        """Tell a worker's state, if it is another than before."""
        state = state or child.state
        if state == child.told_state:
            return
        previous, child.told_state = child.told_state, state
        self._voice.emit(
            events.WorkerChange(worker=child.id, worker_pid=child.pid, pool=child.pool, state=state, previous=previous)
        )

    def was_ready(self, child: Child, now: float) -> None:
        """Learn that a worker has looked for runs; a successor takes its predecessor's place."""
        self._respawn.was_ready()
        self.tell_state(child)
        for slot in self.slots:
            if slot.successor is not child:
                continue
            predecessor, slot.child, slot.successor = slot.child, child, None
            replacement, self._under_way = self._under_way, None
            if predecessor is None:
                continue
            if replacement is not None and replacement.why == "recycle":
                slot.recycled = predecessor
                predecessor.drain(now, self._settings().drain_timeout, _NEVER)
            else:
                self._leaving.append(predecessor)
                self._drain(predecessor, now)

    def ended(self, child: Child, now: float) -> None:
        """Learn that a worker is gone, and decide when another takes its place."""
        for slot in self.slots:
            if slot.successor is child:
                slot.successor = None  # its predecessor goes on
                self._tell_backoff(slot, self._respawn.reschedule(slot, child, now))
                self._give_up_replacing(child)
            elif slot.child is child:
                slot.child, slot.successor = slot.successor, None
                self._tell_backoff(slot, self._respawn.reschedule(slot, child, now))

    def is_hopeless(self) -> bool:
        """Whether no worker comes to work any more."""
        works = any(child.has_begun and child.release_at is None for child in self.workers())
        return self._is_open and self._respawn.is_hopeless(any_works=works)

    def _tell_backoff(self, slot: Slot, pause: float) -> None:
        if pause and self._is_open:
            self._voice.emit(events.WorkerBackoff(pool=slot.pool, deaths=slot.deaths, pause=pause))

    # --- one after the other --------------------------------------------------------------------------------

    def reload(self) -> None:
        """Replace all, one after the other, also those that are just beginning: they may be of the old application."""
        present = [(slot, slot.successor or slot.child) for slot in self.slots]
        self._due = [_Replacement(slot, child, "reload") for slot, child in present if child is not None]

    @property
    def is_reloading(self) -> bool:
        """Whether somebody is still to be replaced by a reload, or to leave."""
        expected = list(self._due)
        if (begun := self._under_way) is not None and begun.slot in self.slots and begun.slot.successor is not None:
            expected.append(begun)
        is_expected = any(replacement.why == "reload" for replacement in expected)
        return is_expected or any(child in self._nursery.living for child in self._leaving)

    def recycle(self, now: float) -> None:
        """Have those replaced that have done enough."""
        if not self._is_open or now < self._looked_at + _SECONDS_BETWEEN_LOOKS:
            return
        self._looked_at = now
        due = {replacement.child for replacement in self._due}
        for slot in self.slots:
            child = slot.child
            if child is None or slot.successor is not None or child in due or child.state != "ready":
                continue
            if slot.recycled in self._nursery.living:
                continue  # runs that take longer than a worker's life would gather more and more of them
            if reason := reason_to_replace(child, now):
                self._voice.note(f"worker {child.id} (pid {child.pid}) is replaced: {reason}")
                self._due.append(_Replacement(slot, child, "recycle"))

    def replace_one(self, now: float) -> None:
        """Begin the next successor, if the last one is ready."""
        if not self._is_open or any(slot.successor is not None for slot in self.slots):
            return
        self._leaving = [child for child in self._leaving if child in self._nursery.living]
        # Who died, or was removed, meanwhile, needs no successor.
        self._due = [r for r in self._due if r.slot in self.slots and r.slot.child is r.child]
        if not self._due or now < self._due[0].slot.not_before:
            return
        if self._leaving and self._due[0].why == "reload":
            return
        self._under_way = self._due[0]
        self._under_way.slot.successor = self._begin(self._under_way.slot, now)
        if self._under_way.slot.successor is not None:
            self._due.pop(0)

    def _give_up_replacing(self, child: Child) -> None:
        """Keep the workers that are left when a successor dies before it is ready: so would the others."""
        replacement, self._under_way = self._under_way, None
        if child.has_begun or not self._is_open or replacement is None:
            return
        self._due.clear()
        self._voice.report(
            replacement.why,
            "error",
            f"worker {child.id} died before it was ready; the workers that it was to follow stay",
        )

    # --- their end ------------------------------------------------------------------------------------------

    def drain(self, now: float) -> None:
        """Have all end their runs and go."""
        for child in self.workers():
            self._drain(child, now)

    def release(self, now: float) -> None:
        """Have all hand their runs back at the next step boundary and go."""
        for child in self.workers():
            child.release(now, self._settings().kill_timeout)

    def kill(self, now: float) -> None:
        """End all at once."""
        for child in self.workers():
            child.kill("drain", now)

    def _drain(self, child: Child, now: float) -> None:
        child.drain(now, self._settings().drain_timeout, self._settings().kill_timeout)


def _use_of(slot: Slot) -> int:
    """Rank a slot: nobody fills it, as in a backoff; somebody who does not work yet, or not any more; who works."""
    if slot.child is None:
        return 0
    return 2 if slot.child.state == "ready" else 1
