"""
The keeper: asks the database on behalf of those who should not wait for it.

It does the upkeep, carries out its supervisor's orders to recover a dead child's runs, and watches for commits by
others to wake idle workers. Under a supervisor it is a child process of its own, so that the supervisor never opens
a connection; beside a worker in an application it is a thread. It holds no state that its successor would miss.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from durably import events
from durably.store import runs
from durably.store.pause import Pause
from durably.worker.failure import type_name
from durably.worker.orders import Undone
from durably.worker.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from durably.emitter import Emitter
    from durably.settings import Settings
    from durably.store.database import Database
    from durably.store.dialects import Watch
    from durably.worker.doorbell import Doorbell
    from durably.worker.orders import Orders

# A commit's sign comes before the commit is seen: with these looks, in seconds, it was seen after 0.96 ms in the
# median, without them one commit late.
_LOOKS: Final = (0.0, 0.0005, 0.001, 0.002, 0.004, 0.008)
# Bounds what watching costs while others commit a thousand times a second.
_SECONDS_BETWEEN_LOOKS: Final = 0.004
_FIRST_SECONDS_WHILE_NOBODY_IS_IDLE: Final = 0.01
_MOST_SECONDS_WHILE_NOBODY_IS_IDLE: Final = 0.1
_SECONDS_BETWEEN_IDLE_LOOKS: Final = 0.05
_MOST_NEWS: Final = 64
# For runs that are pending still: few, because each ring costs a worker a look, and they may be of no worker's jobs.
_RINGS_A_POLL: Final = 4


class Keeper:
    """
    One process's keeper.

    Args:
        database: Of this process.
        settings: Checked.
        emitter: Tells what was done.
        doorbell: Rung when a run becomes pending.
        orders: The supervisor's; None without a supervisor.
        supervisor_id: The supervisor's.
        on_idle: Called when no run is pending or running; None if nobody wants to know.
        on_cancellation: Called when somebody has cancelled runs, which workers here may be executing.
        pool_of: Names the pool of a job whose workers listen to another doorbell; None for one of this.
        ring_pools: Called with how many runs became pending for each such pool.
        on_give_up: Called with the id of a dead worker that cannot be recovered.
        on_tick: Called before each round and after each of its parts, with the monotonic time: the sign of life.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        emitter: Emitter,
        doorbell: Doorbell,
        *,
        orders: Orders | None = None,
        supervisor_id: str | None = None,
        on_idle: Callable[[], None] | None = None,
        on_cancellation: Callable[[], None] = lambda: None,
        pool_of: Callable[[str], str | None] = lambda _job_name: None,
        ring_pools: Callable[[Mapping[str, int]], None] = lambda _pools: None,
        on_give_up: Callable[[str], None] = lambda _worker_id: None,
        on_tick: Callable[[float], None] = lambda _now: None,
    ) -> None:
        self.upkeep: Final = Upkeep(database, settings, emitter, self.report, supervisor_id)
        self._database = database
        self._polling_interval = settings.polling_interval
        self._emitter = emitter
        self._doorbell = doorbell
        self._orders: Undone | None = None
        if orders is not None:
            self._orders = Undone(
                orders,
                self.upkeep.recovery,
                first_pause=settings.polling_interval / 10,
                on_done=self._order_done,
                on_give_up=on_give_up,
                tell=lambda message, error: self._tell("recovery", "error", message, type_name(error)),
            )
        self._on_idle = on_idle
        self._on_cancellation = on_cancellation
        self._pool_of = pool_of
        self._ring_pools = ring_pools
        self._on_tick = on_tick
        self._stopped = threading.Event()
        self._stop_reading, self._stop_writing = os.pipe()
        self._pause = Pause(0.05, 10 * settings.polling_interval)
        self._busy_pause = Pause(_FIRST_SECONDS_WHILE_NOBODY_IS_IDLE, _MOST_SECONDS_WHILE_NOBODY_IS_IDLE)
        self._watch: Watch | None = None
        self._look_after = 0.0
        self._idle_look_after = 0.0
        self._poll_after = 0.0
        # Runs that the doorbell was rung for: id, time and job; and whose cancellation was passed on: id and time.
        self._rung_for: set[tuple[str, int, str]] = set()
        self._seen_cancelled: set[tuple[str, int]] | None = None
        self._failing: set[str] = set()

    def stop(self) -> None:
        """End soon; from any thread or a signal handler."""
        # In this order, because the keeper closes the pipe once it knows: a byte must not reach who opens next.
        with contextlib.suppress(OSError):
            os.write(self._stop_writing, b".")
        self._stopped.set()

    def run(self) -> None:
        """Keep until stopped, or until the supervisor is gone."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._stop_reading, selectors.EVENT_READ)
            if self._orders is not None:
                selector.register(self._orders, selectors.EVENT_READ)
            while not self._stopped.is_set() and not (self._orders is not None and self._orders.is_at_end):
                self._on_tick(time.monotonic())
                try:
                    self._round(selector)
                except Exception as error:  # noqa: BLE001 - the keeper outlives whatever the database does
                    self.report("keeper", error)
                    self._close_watch(selector)
                    self._stopped.wait(self._pause.next())
                else:
                    self._pause.reset()
                    self.report("keeper", None)
            self._close_watch(selector)
        os.close(self._stop_reading)
        os.close(self._stop_writing)

    def _round(self, selector: selectors.BaseSelector) -> None:
        """Wait for a sign or a deadline, and do what it asks for."""
        now = time.monotonic()
        watching = self._watch_if_possible(selector, now)
        pause = self._polling_interval if self._on_idle is None else _SECONDS_BETWEEN_IDLE_LOOKS
        due = min(self.upkeep.next_due(), self._poll_after, now + pause)
        if self._orders is not None:
            due = min(due, self._orders.next_due())
        if not watching:
            due = min(due, self._look_after)
        ready = {key.fileobj for key, _ in selector.select(max(0.0, due - now))}
        if self._orders is not None:
            self._orders.carry_out()
        now = time.monotonic()
        self.upkeep.round(now)
        if self._watch is not None and self._watch in ready:
            self._see_commit()
        self._poll(now)
        self._look_for_idleness(now)

    def _look_for_idleness(self, now: float) -> None:
        if self._on_idle is None or now < self._idle_look_after:
            return
        self._idle_look_after = now + _SECONDS_BETWEEN_IDLE_LOOKS
        if not self._database.read(runs.is_any_active):
            self._on_idle()

    def _watch_if_possible(self, selector: selectors.BaseSelector, now: float) -> bool:
        """Listen to the watch, but not before the next look is allowed."""
        if self._watch is None:
            self._watch = self._database.watch()
            if self._watch is None:
                self._look_after = now + self._polling_interval
                return False
        registered = self._watch.fileno() in selector.get_map()
        wanted = now >= self._look_after
        if wanted and not registered:
            selector.register(self._watch, selectors.EVENT_READ)
        elif registered and not wanted:
            selector.unregister(self._watch)
        return wanted

    def _see_commit(self) -> None:
        """Find out what was committed, if it can be seen yet."""
        assert self._watch is not None
        is_anybody_idle = not self._doorbell.is_unanswered()
        if is_anybody_idle:
            self._busy_pause.reset()
        pause = _SECONDS_BETWEEN_LOOKS if is_anybody_idle else self._busy_pause.next()
        self._look_after = time.monotonic() + pause
        for seconds in _LOOKS:
            time.sleep(seconds)
            if self._database.has_changed(self._watch):
                self._look_for_news()
                return

    def _poll(self, now: float) -> None:
        """Look once per polling interval without a sign: workers count on it, and a ring may have been lost."""
        if now < self._poll_after:
            return
        self._poll_after = now + self._polling_interval
        self._look_for_news()
        self._ring_for(self._rung_for, _RINGS_A_POLL)

    def _look_for_news(self) -> None:
        """Wake idle workers if new runs are pending, and let workers know of cancellations."""
        pending = self._database.read(lambda connection: runs.newest_pending(connection, _MOST_NEWS))
        new, self._rung_for = pending - self._rung_for, pending
        self._ring_for(new, _MOST_NEWS)
        cancelled = self._database.read(lambda connection: runs.newest_cancelled(connection, _MOST_NEWS))
        known, self._seen_cancelled = self._seen_cancelled, cancelled
        if known is not None and cancelled - known:
            self._on_cancellation()

    def _ring_for(self, pending: set[tuple[str, int, str]], most: int) -> None:
        """Wake as many idle workers of each pool as there are runs for them, *most* at most."""
        pools = Counter(self._pool_of(job_name) for _, _, job_name in pending)
        here = pools.pop(None, 0)
        if here and not self._doorbell.is_unanswered():
            self._doorbell.ring(min(here, most))
        if pools:
            self._ring_pools({pool: min(count, most) for pool, count in pools.items() if pool is not None})

    def _order_done(self, recovered: int) -> None:
        self._on_tick(time.monotonic())
        if recovered:
            self._doorbell.ring(recovered)
            self._poll_after = 0.0  # they may be of other pools

    def report(self, part: str, error: BaseException | None) -> None:
        """
        Tell that a part failed, once until it is well again, and then that it is.

        Args:
            part: What was being done.
            error: Why it failed, or None if it did not.
        """
        self._on_tick(time.monotonic())
        if (error is None) != (part in self._failing):
            return
        if error is None:
            self._failing.discard(part)
            self._tell(part, "info", f"{part} works again", "Recovered")
        else:
            self._failing.add(part)
            self._tell(part, "error", str(error), type_name(error))

    def _tell(self, part: str, severity: events.Severity, error: str, error_type: str) -> None:
        record = events.SupervisorError if self._emitter.process.role == "keeper" else events.WorkerError
        self._emitter.emit(record(context=part, severity=severity, error=error, error_type=error_type))

    def _close_watch(self, selector: selectors.BaseSelector) -> None:
        if self._watch is not None:
            with contextlib.suppress(Exception):  # it is being thrown away
                selector.unregister(self._watch)
            with contextlib.suppress(Exception):
                self._watch.close()
            self._watch = None
