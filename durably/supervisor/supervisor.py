"""
The supervisor: one thread that forks, watches, relays and ends its children, and nothing that may wait.

It never opens the database and never imports the application: its keeper, a child, does both on its behalf. What it
knows of a child it knows from the kernel (the handle), from the child's channel and board, and from its own clock.
"""

from __future__ import annotations

import signal
import time
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from multiprocess.connection import wait

from durably import events
from durably.apps import load_app
from durably.client import Durably, make_app
from durably.errors import ValidationError
from durably.jobs import DEFAULT_POOL
from durably.settings import change_settings, load_settings
from durably.supervisor.child import CHECK_SIGNAL
from durably.supervisor.crew import Crew
from durably.supervisor.deaths import OutOfMemory, ending_of
from durably.supervisor.guard import Guard
from durably.supervisor.health import Health
from durably.supervisor.hearing import hear
from durably.supervisor.keeping import Keeping
from durably.supervisor.nursery import Nursery
from durably.supervisor.outage import Outage
from durably.supervisor.pools import pools_of, warnings_about
from durably.supervisor.respawn import Respawn
from durably.supervisor.signals import SignalPipe
from durably.supervisor.stacks import StacksOfAll
from durably.supervisor.systemd import Systemd
from durably.supervisor.voice import Voice
from durably.telemetry import reopen_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Unpack

    from durably.client import Options
    from durably.emitter import Handler, OnError
    from durably.jobs import Job
    from durably.supervisor.children import Child

EXIT_CLEAN: Final = 0
EXIT_FAILED: Final = 1
"""The start failed, or the supervisor gave up."""
EXIT_USAGE: Final = 2
"""The start failed because something that was given is wrong; to start again does not help."""
EXIT_KILLED: Final = 3
"""All children are gone, but some had to be killed."""

_LONGEST_WAIT_SECONDS: Final = 1.0
# As many as workers of which none was ever ready, but for the last one.
_FIRST_KEEPERS_LOST: Final = 4


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
        elif app is not None and not isinstance(app, Durably):
            raise ValidationError("app", f"{app!r:.80} is neither a Durably instance nor where one is found, as text")
        else:
            instance = app if app is not None else make_app(overrides, jobs)
            self._load = partial(_give, instance)
            self._settings = change_settings(instance.settings, **overrides)
        self._overrides: Final = overrides
        self._until_idle: Final = until_idle
        self._voice: Final = Voice(on_error)
        self._signals: Final = SignalPipe()
        self._respawn: Final = Respawn()
        self._outage: Final = Outage(self.report)
        self._guard: Final = Guard(self._voice, lambda: self._settings, self._had_to_kill)
        # All below are owned by the thread that calls `run`.
        self._nursery: Nursery
        self._crew: Crew
        self._stacks: StacksOfAll
        self._memory: OutOfMemory
        self._keeping: Keeping
        self._health: Health | None = None
        self._systemd: Systemd
        self._has_begun = False
        self._stopping: str | None = None
        self._exit_code = EXIT_CLEAN
        self._is_over = False

    def on(self, event_type: str, handler: Handler) -> Callable[[], None]:
        """
        Call *handler* in this process with each event of a type, from any child or from the supervisor itself.

        Returns:
            A function that unsubscribes.
        """
        return self._voice.emitter.on(event_type, handler)

    def stop(self) -> None:
        """Drain and end, as one SIGTERM does; from any thread or handler."""
        self._signals.put(signal.SIGTERM)

    def run(self) -> int:
        """
        Supervise until stopped.

        Returns:
            The exit code: 0 after a clean drain, 1 if the start failed or the supervisor gave up, 2 if it failed
            because of what was given (the application has no such name, a setting is wrong), 3 if children had to
            be killed.
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
        self._voice.begin()
        self._nursery = Nursery(self._load, self._overrides, until_idle=self._until_idle)
        self._crew = Crew(self._nursery, self._voice, lambda: self._settings, self._respawn)
        self._keeping = Keeping(self._nursery, self._voice)
        self._stacks = StacksOfAll(self._voice)
        self._memory = OutOfMemory()
        self._begin_health()
        self._systemd = Systemd(self.report)
        self._signals.install()
        self._keeping.begin(time.monotonic())

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
        self._keeping.order(now)
        if self._needs_keeper:
            self._keeping.fill(now)
        self._crew.fill(now)
        self._crew.recycle(now)
        self._crew.replace_one(now)
        for child in self._nursery.living:
            self._guard.look_at(child, now)
        for child in self._crew.workers():
            self._crew.tell_state(child)
        self._stacks.tell(now)
        self._outage.tell(now)
        self._memory.watch(now)
        self._tell_health(now)
        self._tell_systemd(now)
        self._finish(now)

    @property
    def _needs_keeper(self) -> bool:
        return self._stopping is None or (bool(self._keeping.unrecovered) and self._has_begun)

    def _wait(self) -> None:
        """Wait for a child, a message, a signal or a deadline."""
        now = time.monotonic()
        living = self._nursery.living
        deadlines = [now + _LONGEST_WAIT_SECONDS, *self._stacks.deadlines(), *self._systemd.deadlines()]
        for child in living:
            deadlines += child.deadlines()
        deadlines += self._crew.deadlines()
        if self._needs_keeper:
            deadlines += self._keeping.deadlines()
        channels = [child.channel for child in living if not child.channel.is_at_end]
        wait([self._signals, *channels, *(child.handle for child in living)], max(0.0, min(deadlines) - now))

    # --- signals (the table in docs/supervisor.md and in `durably supervise --help`) ---------------------------

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
                    self._voice.note(
                        f"{name}: the keeper and the {len(self._crew.slots)} workers are replaced, one after the other"
                    )
                    self._keeping.reload(now)
                case signal.SIGTTIN if self._is_working:
                    self._voice.note(f"{name}: one worker more makes {self._crew.add(self._main_pool, now)}")
                case signal.SIGTTOU if self._is_working and (left := self._crew.remove(self._main_pool, now)):
                    self._voice.note(f"{name}: one worker less makes {left}")
                case signal.SIGUSR1:
                    self._reopen_log(name)
                case signal.SIGUSR2:
                    self._voice.note(f"{name}: the stacks of all processes follow")
                    self._stacks.ask(self._nursery.living, now)
                case _:
                    self._voice.note(f"{name} changes nothing now")

    @property
    def _is_working(self) -> bool:
        return self._has_begun and self._stopping is None

    @property
    def _main_pool(self) -> str:
        """Which pool SIGTTIN and SIGTTOU change."""
        pools = pools_of(self._settings)
        return DEFAULT_POOL if DEFAULT_POOL in pools else next(iter(pools))

    def _reopen_log(self, name: str) -> None:
        try:
            path = reopen_log()
        except OSError as error:
            self._voice.report("log", "error", f"the log's file cannot be opened anew, the old one is kept: {error}")
        else:
            self._voice.note(
                f"{name}: " + ("there is no log file to reopen" if path is None else f"{path} is reopened")
            )

    def _drain(self, reason: str, now: float) -> None:
        if self._stopping is not None:
            return
        if workers := self._crew.workers():
            self._voice.note(
                f"{reason}: {len(workers)} workers drain; runs that have not ended in "
                f"{self._settings.drain_timeout:g} s go back at their next step boundary"
            )
        self._begin_stopping(reason, now)

    def _begin_stopping(self, reason: str, now: float) -> None:
        self._stopping = reason
        self._crew.close()
        self._crew.drain(now)

    def _release(self, reason: str, now: float) -> None:
        self._voice.note(
            f"{reason}: runs go back at their next step boundary; what still runs in "
            f"{self._settings.kill_timeout:g} s is killed"
        )
        self._crew.release(now)

    def _kill_workers(self, reason: str, now: float) -> None:
        if self._stopping is None:
            self._begin_stopping(reason, now)
        workers = self._crew.workers()
        self._voice.note(f"{reason}: {len(workers)} workers are killed")
        self._crew.kill(now)
        if workers:
            self._had_to_kill()

    def _had_to_kill(self) -> None:
        if self._stopping is not None:  # in a reload or a replacement it says nothing about the end
            self._exit_code = self._exit_code or EXIT_KILLED

    # --- what children tell (see hearing.Listener) -----------------------------------------------------------

    def tell(self, record: dict[str, Any]) -> None:
        """Tell an event or a log line on, to the log and to who subscribed."""
        self._voice.pass_on(record)
        self._outage.take(record, time.monotonic())
        if self._health is not None:
            self._health.take(record)

    def report(self, context: str, severity: events.Severity, error: str) -> None:
        """Tell of something that went wrong here."""
        self._voice.report(context, severity, error)

    def keeper_is_ready(self, keeper: Child, record: dict[str, Any]) -> None:
        """Take the application's settings, and begin the workers; in a reload, replace them."""
        if self._keeping.was_ready(keeper, time.monotonic(), self._settings):
            self._tell_warnings(record["jobs"])
            if self._is_working:
                self._crew.reload()
        if self._has_begun:
            return
        self._has_begun = True
        self._settings = change_settings(self._settings, **record["settings"])
        try:
            self._begin_health()
        except ValidationError as error:
            self._give_up(f"the start failed: {error}")
        pools = pools_of(self._settings)
        self._voice.emit(
            events.SupervisorStart(workers=sum(pools.values()), dialect=record["dialect"], version=version("durably"))
        )
        self._tell_warnings(record["jobs"])
        if self._stopping is None:
            self._crew.open(pools)

    def _tell_warnings(self, jobs: dict[str, str]) -> None:
        for context, warning in warnings_about(jobs, pools_of(self._settings)):
            self.report(context, "warning", warning)

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

    def runs_are_pending(self, pools: dict[str, int]) -> None:
        """Wake idle workers of pools whose doorbell the keeper does not have."""
        if self._is_working:
            for pool in pools.keys() & pools_of(self._settings).keys():
                self._nursery.ring(pool, pools[pool])

    def runs_were_cancelled(self) -> None:
        """Have each worker look whether it executes one of them; no row says who did."""
        for child in self._crew.workers():
            child.send_signal(CHECK_SIGNAL)

    def worker_is_ready(self, child: Child) -> None:
        """Have it take the place that it was begun for."""
        self._crew.was_ready(child, time.monotonic())

    def was_recovered(self, worker_id: str) -> None:
        """Cross an order off."""
        self._keeping.unrecovered.confirm(worker_id)

    def cannot_be_recovered(self, worker_id: str) -> None:
        """Wait no longer for it."""
        self._keeping.unrecovered.give_up(worker_id)

    # --- the ends of children -------------------------------------------------------------------------------

    def _reap(self, now: float) -> None:
        ended = set(wait([child.handle for child in self._nursery.living], 0))
        for child in [child for child in self._nursery.living if child.handle in ended]:
            self._nursery.living.remove(child)
            hear(child, now, self)  # what it sent before it died; its pipe holds less than one read takes
            if lost := child.lost_events():
                self.events_were_lost(lost)
                self.report("events-lost", "warning", f"the last {lost} events of worker {child.id} were lost with it")
            exit_code, signal_name = child.bury()
            self._outage.forget(child.pid)
            if child.is_keeper:
                self._keeper_ended(child, exit_code, signal_name, now)
            else:
                self._worker_ended(child, exit_code, signal_name, now)

    def _worker_ended(self, child: Child, exit_code: int | None, signal_name: str | None, now: float) -> None:
        ending = ending_of(child, exit_code, signal_name, self._memory, now)
        if self._health is not None and self._stopping is None:
            self._health.worker_ended(ending)
        self._crew.tell_state(child, "exited")
        self._keeping.unrecovered.add(child, ending, exit_code, signal_name, now)
        if child.failure is not None:
            self.report("boot", "error", f"worker {child.id} could not begin: {child.failure}")
        self._crew.ended(child, now)
        if self._crew.is_hopeless():
            self._give_up(self._respawn.verdict())

    def _keeper_ended(self, child: Child, exit_code: int | None, signal_name: str | None, now: float) -> None:
        is_successor = child is self._keeping.slot.successor
        counts = self._keeping.ended(child)
        how = f"was killed by {signal_name}" if signal_name else f"exited with code {exit_code}"
        if signal_name == "SIGKILL" and child.ending == "died" and self._memory.has_struck(now):
            how += ", probably because there was no memory left"
        if is_successor and self._stopping is None:
            if child.failure is not None:
                self.report("boot", "error", f"the new keeper could not begin: {child.failure}")
            stays = self._keeping.what_stays()
            self.report("reload", "error", f"the new keeper {how} before it was ready; {stays}")
        if not counts:
            return
        # What a signal ends may have been about to begin, if that does not happen again and again.
        is_lost = child.failure is None and signal_name is not None
        may_follow = is_lost and self._stopping is None and self._keeping.slot.deaths < _FIRST_KEEPERS_LOST
        if not self._has_begun and not may_follow:
            self._give_up(f"the start failed: {child.failure or how}", EXIT_USAGE if child.is_refused else EXIT_FAILED)
        elif self._stopping is None or self._keeping.unrecovered:
            self._keeping.follow(child, how, now)

    def _give_up(self, reason: str, exit_code: int = EXIT_FAILED) -> None:
        self.report("gave-up", "error", reason)
        self._exit_code = exit_code
        self._drain("gave up", time.monotonic())

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
            tell=self._voice.pass_on,
            report=self.report,
        )
        self._voice.note(f"health is answered at {self._health.url}")

    def _tell_health(self, now: float) -> None:
        if self._health is not None:
            self._health.tick(
                now,
                self._crew.workers(),
                self._settings,
                has_begun=self._has_begun,
                stopping=self._stopping,
                inherited=self._nursery.inherited,
            )

    def _tell_systemd(self, now: float) -> None:
        slots = self._crew.slots
        self._systemd.tick(
            now,
            ready=sum(slot.child is not None and slot.child.state == "ready" for slot in slots),
            workers=len(slots),
            reloading=self._keeping.is_reloading or self._crew.is_reloading,
            stopping=self._stopping,
        )

    # --- the end --------------------------------------------------------------------------------------------

    def _finish(self, now: float) -> None:
        """When the last worker is gone and recovered, let the keeper go, and then end."""
        if self._stopping is None or self._crew.workers():
            return
        self._is_over, killed = self._keeping.let_go(now, has_begun=self._has_begun)
        if killed is not None:
            self._guard.tell_killed(killed)

    def _end(self) -> None:
        """Leave nothing behind, however the loop ended."""
        for child in list(self._nursery.living):
            child.kill("drain", time.monotonic())
            child.bury()
        self._nursery.living.clear()
        self._nursery.close()
        if self._health is not None:
            self._health.close()
        self._signals.restore()
        for death in self._keeping.unrecovered.left():
            self.report("recovery", "warning", death)
        self._voice.emit(events.SupervisorStop(reason=self._stopping or "error", exit_code=self._exit_code))


def _give(app: Durably) -> Durably:
    return app
