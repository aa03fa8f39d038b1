"""A worker's slots: which are free, and the claims that fill them. On the worker's event loop only."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from durably.store.intents import Claim
from durably.store.pause import Pause

if TYPE_CHECKING:
    from collections.abc import Callable

    from durably.jobs import Registry
    from durably.settings import Settings
    from durably.store.claims import ClaimedRun, Company
    from durably.store.committer import Committer
    from durably.worker.doorbell import Doorbell


class Claimer:
    """
    Fills the free slots of one worker: when a run ends, when the doorbell rings, and when asked.

    A slot is free, on its way (a claim for it is not answered), or taken.

    Args:
        worker_id: Who claims.
        registry: The jobs it knows.
        settings: Of them concurrency, isolate_after, stale_threshold and polling_interval.
        committer: Writes the claims.
        doorbell: Listened to exactly while a run may be claimed, as each ring is for one idle worker; None only polls.
        budget: Claim at most so many runs in all; None for no bound.
        begin: Called with each claimed run.
        found_nothing: Called when no slot is taken and the last claim brought nothing, or the budget is spent.
        failed: Called with the error of a claim that the database refused.
        looked: Called when a claim was answered, or there was nothing to ask for.
    """

    def __init__(
        self,
        worker_id: str,
        registry: Registry,
        settings: Settings,
        committer: Committer,
        doorbell: Doorbell | None,
        budget: int | None,
        *,
        begin: Callable[[ClaimedRun], None],
        found_nothing: Callable[[], None],
        failed: Callable[[BaseException], None],
        looked: Callable[[], None],
    ) -> None:
        self._worker_id = worker_id
        self._registry = registry
        self._isolate_after: Final = settings.isolate_after
        self._committer = committer
        self._doorbell = doorbell
        self._budget = budget
        self._begin = begin
        self._found_nothing = found_nothing
        self._failed = failed
        self._looked = looked
        self._slots: Final = settings.concurrency
        self._stopped = False
        self._listening = False
        # By which a run that must be alone may come, or by which it is held: no other claim is made meanwhile.
        self._exclusive = False
        # When a run that is held alone gets company all the same: it may wait for runs that only this worker can take.
        self._alone_for: Final = settings.stale_threshold
        self._company_at: asyncio.TimerHandle | None = None
        self._run_waits_to_be_alone = False
        self._pause = Pause(settings.polling_interval / 10, settings.polling_interval * 10)
        self._not_before = 0.0
        # Monotonic seconds; read by any thread.
        self.looked_at = time.monotonic()
        self.free = self._slots
        # Claims that are not answered, and for how many slots each asks.
        self.on_their_way: dict[asyncio.Future[list[ClaimedRun]], int] = {}

    @property
    def is_empty(self) -> bool:
        """Whether every slot is free."""
        return self.free == self._slots

    @property
    def unheld(self) -> int:
        """How many slots hold no run: those that are free, and those that a claim is on its way for."""
        return self.free + sum(self.on_their_way.values())

    @property
    def is_spent(self) -> bool:
        """Whether the budget is used up."""
        return self._budget == 0

    def fill(self) -> None:
        """Claim into all free slots."""
        self.looked_at = time.monotonic()
        if time.monotonic() >= self._not_before:
            self._claim(self.free)
            if self.is_empty and not self.on_their_way:
                self._looked()
                self._found_nothing()  # there was nothing to ask for: no job is known, or the budget is spent
        self._listen()

    def slot_freed(self) -> None:
        """Take a slot back whose run has ended, and claim for it, in the commit in which that end is written."""
        self.free += 1
        self.looked_at = time.monotonic()
        if self.is_empty:
            self._end_exclusion()
        self._claim(1)
        if self.is_empty and self.is_spent:
            self._found_nothing()
        self._listen()

    def slot_taken(self) -> None:
        """Count a slot as taken by what an earlier identity of this worker left running."""
        self.free -= 1

    def run_waits_to_be_alone(self, *, waits: bool) -> None:
        """Let the slots run empty for a run that must be alone, or stop doing so."""
        self._run_waits_to_be_alone = waits
        if waits and self.is_empty:
            self.fill()
        self._listen()

    def stop(self) -> None:
        """Claim nothing more; what is on its way still comes."""
        self._stopped = True
        self._listen()

    def _claim(self, limit: int) -> None:
        if self._budget is not None:
            limit = min(limit, self._budget)
        company, jobs = self._company(), self._registry.names()
        if limit < 1 or company is None or not jobs or self._stopped:
            return
        self._spend(limit)
        self._exclusive = company != "beside"
        answer: asyncio.Future[list[ClaimedRun]] = asyncio.get_running_loop().create_future()
        self.on_their_way[answer] = limit
        answer.add_done_callback(partial(self._take, limit, company))
        intent = Claim(
            worker_id=self._worker_id,
            jobs=jobs,
            limit=limit,
            isolate_after=self._isolate_after,
            company=company,
        )
        self._committer.submit(intent, answer)

    def _company(self) -> Company | None:
        """Decide in what company the next claimed run would be; None if no claim may be made now."""
        if self._exclusive:
            return None
        if self._run_waits_to_be_alone:
            return "isolated" if self.is_empty else None
        return "alone" if self.is_empty else "beside"

    def _take(self, limit: int, company: Company, answer: asyncio.Future[list[ClaimedRun]]) -> None:
        del self.on_their_way[answer]
        error = answer.exception()
        claimed = [] if error is not None else answer.result()
        self._spend(len(claimed) - limit)
        self._exclusive = any(run.interruptions >= self._isolate_after for run in claimed)
        if self._exclusive:
            self._company_at = asyncio.get_running_loop().call_later(self._alone_for, self._give_company)
        if company == "isolated":  # others were on their way already, and did not look for it
            self._run_waits_to_be_alone = False
        for run in claimed:
            self._begin(run)
        if error is not None:
            self._not_before = time.monotonic() + self._pause.next()
            self._failed(error)
        else:
            self._pause.reset()
            self._looked()
            if len(claimed) == limit:
                self._claim(self.free)  # there may be more
            elif self.is_empty and not self.on_their_way:
                if company == "alone":
                    self._found_nothing()
                else:
                    self._claim(self.free)  # which left out a run that must be alone, or all others
        self._listen()

    def _give_company(self) -> None:
        self._end_exclusion()
        self.fill()

    def _end_exclusion(self) -> None:
        self._exclusive = False
        if self._company_at is not None:
            self._company_at.cancel()
            self._company_at = None

    def _spend(self, slots: int) -> None:
        self.free -= slots
        if self._budget is not None:
            self._budget -= slots

    def _listen(self) -> None:
        # A ring is for one worker: none may take it that could not claim now.
        wanted = self.free > 0 and not self._stopped and self._company() is not None
        if self._doorbell is None or wanted == self._listening:
            return
        self._listening = wanted
        if wanted:
            asyncio.get_running_loop().add_reader(self._doorbell.fileno(), self._answer)
        else:
            asyncio.get_running_loop().remove_reader(self._doorbell.fileno())

    def _answer(self) -> None:
        assert self._doorbell is not None
        if self._doorbell.answer():
            self.fill()
