"""
The supervisor: one thread that forks, watches, relays and ends its children, and nothing that may wait.

It never opens the database and never imports the application: its keeper, a child, does both on its behalf. What it
knows of a child it knows from the kernel (the handle), from the child's channel, and from its own clock.
"""

from __future__ import annotations

import contextlib
import signal
import time
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from multiprocess.connection import wait

from durably import events
from durably.apps import load_app
from durably.client import Durably, make_app
from durably.emitter import Emitter
from durably.errors import ValidationError
from durably.settings import change_settings, load_settings
from durably.supervisor.child import CHECK_SIGNAL
from durably.supervisor.children import Child, Nursery, Slot
from durably.supervisor.health import Health
from durably.supervisor.hearing import hear
from durably.supervisor.recoveries import Recoveries
from durably.supervisor.respawn import Respawn
from durably.supervisor.signals import SignalPipe
from durably.supervisor.stacks import STACKS_SIGNAL
from durably.supervisor.systemd import Systemd
from durably.telemetry import LogRelay, ensure_log
from durably.usable import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Unpack

    from durably.client import Options
    from durably.emitter import Handler, OnError
    from durably.jobs import Job
    from durably.worker.upkeep import Ending

EXIT_CLEAN: Final = 0
EXIT_FAILED: Final = 1
"""The start failed, or the supervisor gave up."""
EXIT_KILLED: Final = 3
"""All children are gone, but some had to be killed."""

_LONGEST_WAIT_SECONDS: Final = 1.0
_FEWEST_BOOT_SECONDS: Final = 60.0
_STACKS_SECONDS: Final = 0.5
_LAST_ORDERS_SECONDS: Final = 5.0


class Supervisor:
    """
    Migrates, recovers, then runs worker processes until it is told to stop.

    Args:
        app: A Durably instance, or where it is found: "module:attribute", a module, or a path to a file; None to
            make one of *dialect_url* and *jobs*.
        dialect_url: The database; wins over the application's.
        jobs: With no *app*: the jobs that workers execute.
        until_idle: Stop when no run is pending or running.
        on_error: Called with (error, event) when a handler raises.
        options: Settings by name; they win over the application's. `workers` is by default one for each usable core.

    Raises:
        ValidationError: A setting is wrong; `field` names it.
    """

    def __init__(
        self,
        app: Durably | str | None = None,
        *,
        dialect_url: str | None = None,
        jobs: Iterable[Job] = (),
        until_idle: bool = False,
        on_error: OnError | None = None,
        **options: Unpack[Options],
    ) -> None:
        given: dict[str, Any] = {"dialect_url": dialect_url, **options}
        overrides = {name: value for name, value in given.items() if value is not None}
        self._settings = load_settings(**overrides)
        self._load: Callable[[], Durably]
        if isinstance(app, str):
            self._load = partial(load_app, app)
        else:
            instance = app if app is not None else make_app(overrides, jobs)
            self._load = partial(_give, instance)
            self._settings = change_settings(instance.settings, **overrides)
        self._overrides: Final = overrides
        self._until_idle: Final = until_idle
        self._emitter: Final = Emitter("supervisor", on_error)
        self._signals: Final = SignalPipe()
        self._respawn: Final = Respawn()
        # All below are owned by the thread that calls `run`.
        self._relay: LogRelay
        self._nursery: Nursery
        self._keeper = Slot()
        self._slots: list[Slot] = []
        self._to_replace: list[Slot] = []
        self._unrecovered: Final = Recoveries()
        self._health: Health | None = None
        self._systemd: Systemd
        self._has_begun = False
        self._stopping: str | None = None
        # When the last worker was gone; from then on the keeper has a bounded time for what is left.
        self._gone_at: float | None = None
        self._exit_code = EXIT_CLEAN
        self._is_over = False

    def on(self, event_type: str, handler: Handler) -> Callable[[], None]:
        """
        Call *handler* in this process with each event of a type, from any child or from the supervisor itself.

        Returns:
            A function that unsubscribes.
        """
        return self._emitter.on(event_type, handler)

    def stop(self) -> None:
        """Drain and end, as one SIGTERM does; from any thread or handler."""
        self._signals.put(signal.SIGTERM)

    def run(self) -> int:
        """
        Supervise until stopped.

        Returns:
            The exit code: 0 after a clean drain, 1 if the start failed or the supervisor gave up, 3 if children
            had to be killed.
        """
        self.begin()
        try:
            while not self._is_over:
                self._wait()
                self.tick(time.monotonic())
        except BaseException:
            self._exit_code = EXIT_FAILED
            raise
        finally:
            self._end()
        return self._exit_code

    def begin(self) -> None:
        """Take signals, and begin the keeper, which migrates and recovers; the workers follow when it is ready."""
        ensure_log()
        self._relay = LogRelay(role="supervisor")
        self._emitter.become("supervisor")
        self._emitter.sink = lambda event: self._relay(events.as_record(event))
        self._nursery = Nursery(self._load, self._overrides, until_idle=self._until_idle)
        self._begin_health()
        self._systemd = Systemd(self.report)
        self._signals.install()
        self._keeper.child = self._nursery.begin(time.monotonic(), keeper=True)

    @property
    def is_over(self) -> bool:
        """Whether all children are gone and nothing is left to do."""
        return self._is_over

    def tick(self, now: float) -> None:
        """
        Do one round, without waiting.

        Args:
            now: Monotonic seconds.
        """
        self._heed_signals(now)
        for child in list(self._nursery.living):
            hear(child, now, self)
        self._reap(now)
        self._order_recoveries(now)
        self._fill_slots(now)
        self._replace_one(now)
        for child in self._nursery.living:
            self._look_at(child, now)
        self._tell_health(now)
        self._tell_systemd(now)
        self._finish(now)

    def _wait(self) -> None:
        """Wait for a child, a message, a signal or a deadline."""
        now = time.monotonic()
        living = self._nursery.living
        deadlines = [now + _LONGEST_WAIT_SECONDS, *self._systemd.deadlines()]
        for child in living:
            deadlines += [t for t in (child.release_at, child.kill_at) if t is not None]
        deadlines += [slot.not_before for slot in (self._keeper, *self._slots) if slot.child is None]
        channels = [child.channel for child in living if not child.channel.is_at_end]
        wait([self._signals, *channels, *(child.handle for child in living)], max(0.0, min(deadlines) - now))

    # --- signals --------------------------------------------------------------------------------------------

    def _heed_signals(self, now: float) -> None:
        for number in self._signals.take():
            name = signal.Signals(number).name
            match number:
                case signal.SIGTERM | signal.SIGINT if self._stopping is None:
                    self._drain(name, now)
                case signal.SIGTERM | signal.SIGINT:
                    self._release(f"{name} again", now)
                case signal.SIGQUIT:
                    self._kill_workers(name, now)
                case signal.SIGHUP if self._is_working:
                    self._note(f"{name}: the {len(self._slots)} workers are replaced, one after the other")
                    self._to_replace = list(self._slots)
                case signal.SIGTTIN if self._is_working:
                    self._slots.append(Slot(not_before=now))
                    self._note(f"{name}: one worker more makes {len(self._slots)}")
                case signal.SIGTTOU if self._is_working and len(self._slots) > 1:
                    self._retire(self._slots.pop(), now)
                    self._note(f"{name}: one worker less makes {len(self._slots)}")
                case _:
                    self._note(f"{name} changes nothing now")

    @property
    def _is_working(self) -> bool:
        return self._has_begun and self._stopping is None

    def _drain(self, reason: str, now: float) -> None:
        if self._stopping is not None:
            return
        self._stopping = reason
        self._note(
            f"{reason}: {len(self._workers())} workers drain; runs that have not ended in "
            f"{self._settings.drain_timeout:g} s go back at their next step boundary"
        )
        for child in self._workers():
            self._drain_child(child, now)

    def _release(self, reason: str, now: float) -> None:
        self._note(
            f"{reason}: runs go back at their next step boundary; what still runs in "
            f"{self._settings.kill_timeout:g} s is killed"
        )
        for child in self._workers():
            child.release(now, self._settings.kill_timeout)

    def _kill_workers(self, reason: str, now: float) -> None:
        self._drain(reason, now)
        self._note(f"{reason}: {len(self._workers())} workers are killed")
        for child in self._workers():
            self._kill(child, "drain")

    def _drain_child(self, child: Child, now: float) -> None:
        child.drain(now, self._settings.drain_timeout, self._settings.kill_timeout)

    def _retire(self, slot: Slot, now: float) -> None:
        for child in (slot.child, slot.successor):
            if child is not None:
                self._drain_child(child, now)

    def _workers(self) -> list[Child]:
        return [child for child in self._nursery.living if not child.is_keeper]

    def _kill(self, child: Child, ending: Ending) -> None:
        child.kill(ending)
        if ending == "drain":
            self._exit_code = self._exit_code or EXIT_KILLED

    # --- what children tell (see hearing.Listener) -----------------------------------------------------------

    def tell(self, record: dict[str, Any]) -> None:
        """Tell an event or a log line on, to the log and to who subscribed."""
        self._relay(record)
        if self._health is not None:
            self._health.take(record)
        if self._emitter.is_heard(record["type"]) and record["type"] in events.CATALOGUE:
            with contextlib.suppress(KeyError, TypeError, ValueError):  # the log has said what is wrong with it
                self._emitter.pass_on(events.from_record(record))

    def report(self, context: str, severity: events.Severity, error: str) -> None:
        """Tell of something that went wrong here."""
        self._emitter.emit(events.SupervisorError(context=context, severity=severity, error=error, error_type=context))

    def _note(self, message: str) -> None:
        """Log what was asked of the supervisor: a line, and no event."""
        line = {"level": "info", "logger": "durably.supervisor", "message": message}
        self._relay({"type": "log", "timestamp": datetime.now(UTC), "process": self._emitter.process, **line})

    def keeper_is_ready(self, record: dict[str, Any]) -> None:
        """Take the application's settings, and begin the workers."""
        if self._has_begun:
            return
        self._has_begun = True
        self._settings = change_settings(self._settings, **record["settings"])
        try:
            self._begin_health()
        except ValidationError as error:
            self._give_up(f"the start failed: {error}", None)
        workers = self._settings.workers or usable_cores()
        self._emitter.emit(
            events.SupervisorStart(workers=workers, dialect=record["dialect"], version=version("durably"))
        )
        if not record["jobs"]:
            self.report("no-jobs", "warning", "the application registers no job, so nothing will be claimed")
        if self._stopping is None:
            self._slots = [Slot() for _ in range(workers)]

    def events_were_lost(self, number: int) -> None:
        """
        Count events that never came.

        Args:
            number: How many.
        """
        if self._health is not None:
            self._health.events_lost(number)

    def nothing_is_active(self) -> None:
        """Drain, if that was asked for."""
        if self._stopping is None and self._has_begun:
            self._drain("idle", time.monotonic())

    def runs_were_cancelled(self) -> None:
        """Have each worker look whether it executes one of them; no row says who did."""
        for child in self._workers():
            child.send_signal(CHECK_SIGNAL)

    def worker_is_ready(self, child: Child) -> None:
        """Note that workers can begin; drain the predecessor of a successor."""
        self._respawn.was_ready()
        for slot in self._slots:
            if slot.successor is child and slot.child is not None:
                self._drain_child(slot.child, time.monotonic())

    def was_recovered(self, worker_id: str) -> None:
        """Cross an order off."""
        self._unrecovered.confirm(worker_id)

    # --- the lives of children ------------------------------------------------------------------------------

    def _reap(self, now: float) -> None:
        ended = set(wait([child.handle for child in self._nursery.living], 0))
        for child in [child for child in self._nursery.living if child.handle in ended]:
            self._nursery.living.remove(child)
            hear(child, now, self)  # what it sent before it died; its pipe holds less than one read takes
            exit_code, signal_name = child.bury()
            if child.is_keeper:
                self._keeper_ended(child, exit_code, signal_name, now)
            else:
                self._worker_ended(child, exit_code, signal_name, now)

    def _worker_ended(self, child: Child, exit_code: int | None, signal_name: str | None, now: float) -> None:
        ending: Ending = "stopped" if exit_code == 0 and child.ending == "died" else child.ending
        if self._health is not None and self._stopping is None:
            self._health.worker_ended(ending)
        self._unrecovered.add(child, ending, exit_code, signal_name, now)
        if child.failure is not None:
            self.report("boot", "error", f"worker {child.id} could not begin: {child.failure}")
        for slot in self._slots:
            if slot.successor is child:
                slot.successor = None  # its predecessor goes on
                self._respawn.reschedule(slot, child, now)
                self._give_up_replacing(child)
            elif slot.child is child:
                slot.child, slot.successor = slot.successor, None
                self._respawn.reschedule(slot, child, now)
        if self._respawn.is_hopeless and self._stopping is None:
            self._give_up("five workers in a row died before any was ready", child.failure)

    def _keeper_ended(self, child: Child, exit_code: int | None, signal_name: str | None, now: float) -> None:
        self._keeper.child = None
        how = f"was killed by {signal_name}" if signal_name else f"exited with code {exit_code}"
        if not self._has_begun:
            self._give_up(f"the start failed: {child.failure or how}", None)
        elif self._stopping is None or self._unrecovered:
            why = "" if child.failure is None else f" ({child.failure})"
            self.report("keeper", "warning", f"the keeper {how}{why}; another takes its place")
            self._respawn.reschedule(self._keeper, child, now)
            self._unrecovered.send_again()

    def _give_up_replacing(self, child: Child) -> None:
        """Keep the workers that are left when a successor dies before it is ready: so would the others."""
        if child.state == "starting" and self._is_working:
            self._to_replace.clear()
            self.report(
                "reload", "error", f"worker {child.id} died before it was ready; the workers that it was to follow stay"
            )

    def _give_up(self, reason: str, detail: str | None) -> None:
        self.report("gave-up", "error", reason if detail is None else f"{reason}: {detail}")
        self._exit_code = EXIT_FAILED
        self._drain("gave up", time.monotonic())

    def _fill_slots(self, now: float) -> None:
        """Begin what is due: the keeper, and a worker in each empty slot."""
        keeper_is_needed = self._stopping is None or (self._unrecovered and self._has_begun)
        if keeper_is_needed and self._keeper.child is None and now >= self._keeper.not_before:
            self._keeper.child = self._begin_child(self._keeper, now, keeper=True)
        if self._stopping is not None:
            return
        for slot in self._slots:
            if slot.child is None and now >= slot.not_before:
                slot.child = self._begin_child(slot, now)

    def _begin_child(self, slot: Slot, now: float, *, keeper: bool = False) -> Child | None:
        try:
            return self._nursery.begin(now, keeper=keeper)
        except OSError as error:
            slot.not_before = now + slot.pause.next()
            self.report("fork", "error", f"no process could be begun: {error}")
            return None

    def _replace_one(self, now: float) -> None:
        """Go on with replacing the workers, one at a time: the next begins when the last predecessor is gone."""
        if not self._to_replace or self._stopping is not None:
            return
        if any(slot.successor is not None for slot in self._slots):
            return
        slot = self._to_replace[0]
        if slot not in self._slots or slot.child is None:
            self._to_replace.pop(0)
        elif now >= slot.not_before:
            slot.successor = self._begin_child(slot, now)
            if slot.successor is not None:
                self._to_replace.pop(0)

    def _look_at(self, child: Child, now: float) -> None:
        """Keep the deadlines of a child's drain, and end one that has been silent for too long."""
        if child.keep_deadlines(now, self._settings.kill_timeout):
            self._tell_killed(child)
        silent_for = now - child.heard_at
        patience = self._patience_with(child)
        if silent_for < patience:
            if child.state == "suspect":
                child.state = "ready"
        elif child.state != "suspect":
            child.state = "suspect"
            child.send_signal(STACKS_SIGNAL)
            child.kill_at = None
            child.suspected_at = now
        elif now >= child.suspected_at + _STACKS_SECONDS:
            self.report(
                "silent",
                "error",
                f"child {child.id} (pid {child.pid}) was silent for {silent_for:.1f} s and is killed; its stacks:\n"
                + (child.stacks.read() or "it could not even write them"),
            )
            child.suspected_at = float("inf")
            self._kill(child, "silent")

    def _patience_with(self, child: Child) -> float:
        """Give the seconds that a child may be silent."""
        patience = self._settings.stale_threshold
        if child.state == "starting":
            patience = max(patience, _FEWEST_BOOT_SECONDS)
        if child.is_keeper or child.state == "starting":
            # Between its beats it asks the database, and that may take its time, and the last try as long again.
            patience += 2 * self._settings.database_timeout
        return patience

    def _tell_killed(self, child: Child) -> None:
        self._exit_code = self._exit_code or EXIT_KILLED
        self.report("drain", "warning", f"child {child.id} (pid {child.pid}) did not end in time and is killed")

    def _order_recoveries(self, now: float) -> None:
        """Have the keeper recover what dead workers held, and tell what it has not done in time."""
        keeper = self._keeper.child
        if keeper is not None and keeper.state != "starting":
            self._unrecovered.send(keeper)
        for death in self._unrecovered.overdue(now):
            self.report("recovery", "warning", death)

    # --- health ---------------------------------------------------------------------------------------------

    def _begin_health(self) -> None:
        """Listen, if that is asked for; it may be the application that does so."""
        if self._health is not None or self._settings.health_port is None:
            return
        self._health = Health(
            self._settings.health_host,
            self._settings.health_port,
            load=self._load,
            overrides=self._overrides,
            start_method=self._nursery.start_method,
            tell=self._relay,
            report=self.report,
        )
        self._note(f"health is answered at {self._health.url}")

    def _tell_health(self, now: float) -> None:
        if self._health is not None:
            self._health.tick(
                now,
                self._workers(),
                self._settings,
                has_begun=self._has_begun,
                stopping=self._stopping,
                inherited=lambda: [c for child in self._nursery.living for c in (child.channel, child.orders) if c],
            )

    def _tell_systemd(self, now: float) -> None:
        slots = self._slots
        self._systemd.tick(
            now,
            ready=sum(slot.child is not None and slot.child.state == "ready" for slot in slots),
            workers=len(slots),
            reloading=bool(self._to_replace) or any(slot.successor is not None for slot in slots),
            stopping=self._stopping,
        )

    # --- the end --------------------------------------------------------------------------------------------

    def _finish(self, now: float) -> None:
        """When the last worker is gone and recovered, let the keeper go, and then end."""
        if self._stopping is None or self._workers():
            return
        keeper = self._keeper.child
        is_late = now >= self._last_worker_gone(now) + _LAST_ORDERS_SECONDS
        if keeper is not None and (not self._unrecovered or is_late or not self._has_begun):
            assert keeper.orders is not None
            keeper.orders.close()  # the keeper's end of file
            if is_late and keeper.ending != "drain":
                self._tell_killed(keeper)
                keeper.kill("drain")
        if keeper is None and (not self._unrecovered or is_late):
            self._is_over = True

    def _last_worker_gone(self, now: float) -> float:
        if self._gone_at is None:
            self._gone_at = now
        return self._gone_at

    def _end(self) -> None:
        """Leave nothing behind, however the loop ended."""
        for child in list(self._nursery.living):
            child.kill("drain")
            child.bury()
        self._nursery.living.clear()
        self._nursery.close()
        if self._health is not None:
            self._health.close()
        self._signals.restore()
        for death in self._unrecovered.left():
            self.report("recovery", "warning", death)
        self._emitter.emit(events.SupervisorStop(reason=self._stopping or "error", exit_code=self._exit_code))


def _give(app: Durably) -> Durably:
    return app
