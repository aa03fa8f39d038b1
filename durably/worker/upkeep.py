"""
What keeps a database healthy whoever executes: recovery of stale runs, retention, reports, the dialect's own upkeep.

Done by each keeper on a clock of its own, busy or idle. Any number of them at once do no harm: each part is one
transaction whose condition is in the write.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

from durably import events
from durably.store import runs, workers
from durably.worker.identity import is_gone, machine_key
from durably.worker.recovery import Recovery

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from durably.emitter import Emitter
    from durably.events import Ending
    from durably.settings import Settings
    from durably.store.database import Database

_HOUSEKEEPING_SECONDS: Final = 60.0
_PURGE_CHUNK: Final = 500
# At a time, for the keeper has more to do; while more is due, it purges half of the time.
_PURGE_SECONDS: Final = 0.5


class Upkeep:
    """
    One process's share of it.

    Args:
        database: Of this process.
        settings: Checked.
        emitter: Tells what was done.
        report: Called after each part with its name, and why it failed or None; the other parts go on.
        supervisor_id: Whose children are left to their supervisor, which kills a silent one before it is recovered.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        emitter: Emitter,
        report: Callable[[str, BaseException | None], None],
        supervisor_id: str | None = None,
    ) -> None:
        self._database = database
        self._settings = settings
        self._emitter = emitter
        self._report = report
        self._supervisor_id = supervisor_id
        self._machine = machine_key()
        self.recovery: Final = Recovery(database, settings, emitter)
        # When this process began to reach the database without a gap, by its monotonic clock; None in a gap.
        self._reached_since: float | None = None
        self._reached_at = 0.0
        self._clock_ahead = 0.0
        self._next_recovery = 0.0
        self._next_housekeeping = time.monotonic() + _HOUSEKEEPING_SECONDS
        self._next_purge = math.inf
        self._next_report = time.monotonic() + settings.unknown_job_interval

    def next_due(self) -> float:
        """Tell when the next round is due, by the monotonic clock."""
        return min(self._next_recovery, self._next_housekeeping, self._next_purge, self._next_report)

    def round(self, now: float) -> None:
        """
        Do what is due.

        Args:
            now: Monotonic seconds.
        """
        if now >= self._next_recovery:
            self._next_recovery = now + self._settings.heartbeat_interval
            self._try("upkeep", self._database.upkeep)  # first, for it says best what is wrong with a database
            self._try("recovery", lambda: self.recover_stale(now))
        if now >= self._next_housekeeping:
            self._next_housekeeping = now + _HOUSEKEEPING_SECONDS
            self._next_purge = now
            self._try("workers", lambda: self._database.write(workers.forget_old))
        if now >= self._next_purge:
            self._next_purge = math.inf
            self._try("retention", self._purge)
        if now >= self._next_report:
            self._next_report = now + self._settings.unknown_job_interval
            self._try("unknown-jobs", self._report_unknown_jobs)

    def _try(self, part: str, do: Callable[[], object]) -> None:
        try:
            do()
        except Exception as error:  # noqa: BLE001 - one failing part must not keep the others from their turn
            self._report(part, error)
        else:
            self._report(part, None)

    def recover_stale(self, now: float, *, at_start: bool = False) -> int:
        """
        Recover the runs of workers that are gone or silent.

        Args:
            now: Monotonic seconds.
            at_start: Judge by silence at once. Else only after stale_threshold of undisturbed access of our own:
                after an outage of the database everybody was silent.

        Returns:
            How many runs were recovered.
        """
        dead: dict[str, Ending] = dict.fromkeys(self._gone_from_this_machine(), "died")
        # In a write transaction, with locks: who can only read has not reached the database as a heartbeat must.
        began = time.monotonic()

        def look(connection: Connection) -> tuple[list[str], float]:
            found = workers.find_silent(connection, self._settings.stale_threshold, except_of=self._supervisor_id)
            return found, runs.read_clock(connection) / 1e6 - time.monotonic()

        silent, clock_ahead = self._database.write(look)
        if self._has_judgement(now + time.monotonic() - began, clock_ahead) or at_start:
            dead = {worker_id: dead.get(worker_id, "silent") for worker_id in (*silent, *dead)}
        return sum(self.recovery.recover(worker_id, reason=reason) for worker_id, reason in dead.items())

    def _has_judgement(self, now: float, clock_ahead: float) -> bool:
        """
        Tell whether this process has reached the database without a gap for stale_threshold.

        Args:
            now: Monotonic seconds.
            clock_ahead: By how many seconds the database's clock is ahead of this process's monotonic one. Where that
                has changed, the clock was set, or stood while the host was suspended: everybody seems silent.
        """
        # Rounds come every heartbeat interval; a gap is what an outage, or a suspended host, leaves between them.
        # One too short to be told from a late round must not make a worker silent either.
        beat, silence = self._settings.heartbeat_interval, self._settings.stale_threshold
        gap = max(1.5 * beat, min(2 * beat + 1, silence - beat))
        step = abs(clock_ahead - self._clock_ahead)
        if self._reached_since is None or now - self._reached_at > gap or step > (silence - beat) / 2:
            self._reached_since = now
        self._reached_at, self._clock_ahead = now, clock_ahead
        return now - self._reached_since >= self._settings.stale_threshold

    def _gone_from_this_machine(self) -> list[str]:
        if self._machine is None:
            return []
        machine = self._machine
        living = self._database.read(lambda c: workers.find_on_machine(c, machine, except_of=self._supervisor_id))
        return [worker_id for worker_id, key in living if is_gone(key)]

    def _purge(self) -> None:
        """Delete what is older than retain_runs, in small transactions, some at a time until none is due."""
        if self._settings.retain_runs is None:
            return
        age = int(self._settings.retain_runs * 1e6)
        deadline = time.monotonic() + _PURGE_SECONDS
        while time.monotonic() < deadline:
            purged = self._database.write(
                lambda c: runs.purge_runs(c, before=runs.read_clock(c) - age, limit=_PURGE_CHUNK)
            )
            for run_id, job_name, labels in purged:
                self._emitter.emit(events.RunDelete(run_id=run_id, job_name=job_name, labels=labels, reason="purge"))
            if len(purged) < _PURGE_CHUNK:
                return
        self._next_purge = time.monotonic() + _PURGE_SECONDS

    def _report_unknown_jobs(self) -> None:
        unknown = self._database.read(lambda c: workers.unknown_jobs(c, older_than=self._settings.unknown_job_interval))
        if unknown:
            counts = ", ".join(f"{name!r} ({count})" for name, count in sorted(unknown.items()))
            self._emitter.emit(
                events.WorkerError(
                    context="unknown-jobs",
                    severity="warning",
                    error=f"pending runs whose job no living worker knows: {counts}; register the job, or cancel them",
                    error_type="UnknownJobs",
                )
            )
