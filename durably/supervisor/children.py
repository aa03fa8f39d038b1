"""The supervisor's children: one record for each process, and how one is begun."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import multiprocess

from durably.ids import new_id
from durably.store.pause import Pause
from durably.supervisor.channel import Channel
from durably.supervisor.child import DRAIN_SIGNALS, Plan, run_child
from durably.supervisor.stacks import Stacks

if TYPE_CHECKING:
    from collections.abc import Callable

    from durably.client import Durably
    from durably.worker.upkeep import Ending

State = Literal["starting", "ready", "draining", "suspect"]

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 30.0


@dataclass(slots=True, eq=False)
class Child:
    """
    One child process. Owned by the supervisor's one thread. Times are monotonic seconds.

    Args:
        id: The worker's id; for the keeper an id of its own.
        is_keeper: Whether it is the keeper.
        handle: A descriptor that turns readable when the process ends, and only then.
        orders: To the keeper; None for a worker.
        ending: How its end is to be understood if the supervisor brings it about.
        release_at: When a draining worker is told to release its runs.
        kill_at: When it is killed.
        suspected_at: When it was asked for its stacks because it was silent.
        worked_at: When a worker last held a run, or looked for one, as far as it has told.
        running: Runs that a worker holds, as it told with its last sign of life.
    """

    id: str
    is_keeper: bool
    process: Any
    pid: int
    handle: int
    channel: Channel
    orders: Channel | None
    stacks: Stacks
    began_at: float
    heard_at: float
    state: State = "starting"
    last_sequence: int = 0
    has_finished_a_run: bool = False
    failure: str | None = None
    ending: Ending = "died"
    release_at: float | None = None
    kill_at: float | None = None
    suspected_at: float = 0.0
    worked_at: float | None = None
    running: int = 0

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self, ending: Ending) -> None:
        """Kill it, as *ending*."""
        self.ending = ending
        self.send_signal(signal.SIGKILL)

    def drain(self, now: float, drain_timeout: float, kill_timeout: float) -> None:
        """Tell it to claim nothing more; after *drain_timeout* seconds to release, *kill_timeout* later to die."""
        if self.release_at is None:
            self.state = "draining"
            self.release_at = now + drain_timeout
            self.kill_at = self.release_at + kill_timeout
            self.send_signal(signal.SIGTERM)

    def release(self, now: float, kill_timeout: float) -> None:
        """Tell it to hand its runs back at their next step boundary, and to die *kill_timeout* seconds later."""
        self.drain(now, 0.0, kill_timeout)
        self.release_at = float("inf")
        self.kill_at = now + kill_timeout
        self.send_signal(signal.SIGUSR1)

    def keep_deadlines(self, now: float, kill_timeout: float) -> bool:
        """Do what its drain has come to; True if it had to be killed now."""
        if self.release_at is not None and now >= self.release_at:
            self.release(now, kill_timeout)
        if self.kill_at is not None and now >= self.kill_at:
            self.kill_at = None
            self.kill("drain")
            return True
        return False

    def bury(self) -> tuple[int | None, str | None]:
        """
        Reap it through its own handle and free what belonged to it.

        Returns:
            Its exit code, or the name of the signal that killed it.
        """
        self.process.join()
        code = self.process.exitcode
        self.process.close()
        os.close(self.handle)
        self.channel.close()
        if self.orders is not None:
            self.orders.close()
        self.stacks.close()
        return (code, None) if code >= 0 else (None, _signal_name(-code))


@dataclass(slots=True, eq=False)
class Slot:
    """
    A place for one worker, filled again when its worker is gone.

    Args:
        child: Who fills it.
        successor: Who will, once it is ready (SIGHUP).
        not_before: When it may be filled.
        pause: How the next wait grows while its children die young.
    """

    child: Child | None = None
    successor: Child | None = None
    not_before: float = 0.0
    pause: Pause = field(default_factory=lambda: Pause(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS))


class Nursery:
    """
    Begins children, by fork; by spawn in a process that has other threads, where a fork could copy a held lock.

    Args:
        load: Makes the application's instance in the child.
        overrides: Settings that win over the application's.
        until_idle: Whether the keeper tells when nothing is pending or running.
    """

    def __init__(self, load: Callable[[], Durably], overrides: dict[str, Any], *, until_idle: bool) -> None:
        self.start_method: Final = "fork" if threading.active_count() == 1 and hasattr(os, "fork") else "spawn"
        self._context = multiprocess.get_context(self.start_method)
        self._supervisor_id = new_id()
        self._load = load
        self._overrides = overrides
        self._until_idle = until_idle
        # Connections, because a spawned child cannot be given bare descriptors.
        self._doorbell_pipe = self._context.Pipe(duplex=False)
        self.living: list[Child] = []

    def begin(self, now: float, *, keeper: bool = False) -> Child:
        """
        Begin a child.

        Args:
            now: Monotonic seconds.
            keeper: Whether it is to be the keeper.

        Raises:
            OSError: The system has no room for another process.
        """
        child_id = new_id()
        channel = Channel(self._context)
        orders = Channel(self._context) if keeper else None
        stacks = Stacks()
        plan = Plan(
            load=self._load,
            overrides=self._overrides,
            channel=channel,
            orders=orders,
            inherited=self._channels_of_others(),
            doorbell=self._doorbell_pipe,
            worker_id=None if keeper else child_id,
            supervisor_id=self._supervisor_id,
            supervisor_pid=os.getpid(),
            stacks=stacks.path,
            until_idle=self._until_idle,
        )
        process = self._context.Process(target=run_child, args=(plan,), name="keeper" if keeper else "worker")
        if self.start_method == "fork":
            gc.freeze()  # the collector of a child would copy pages only to mark them
        before = signal.pthread_sigmask(signal.SIG_BLOCK, DRAIN_SIGNALS)
        try:
            process.start()
        except OSError:
            for belonging in (channel, orders, stacks):
                if belonging is not None:
                    belonging.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        channel.keep_reading_end()
        if orders is not None:
            orders.keep_writing_end()
        try:
            handle = _handle_of(process)
        except OSError:  # nobody could tell when it ends
            process.kill()
            process.join()
            raise
        child = Child(
            id=child_id,
            is_keeper=keeper,
            process=process,
            pid=process.pid,
            handle=handle,
            channel=channel,
            orders=orders,
            stacks=stacks,
            began_at=now,
            heard_at=now,
        )
        self.living.append(child)
        return child

    def _channels_of_others(self) -> tuple[Channel, ...]:
        """List what a fork copies; a spawned child inherits nothing."""
        if self.start_method != "fork":
            return ()
        return tuple(c for child in self.living for c in (child.channel, child.orders) if c is not None)

    def close(self) -> None:
        """Free the doorbell."""
        for end in self._doorbell_pipe:
            end.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has a number only
        return f"signal {number}"


def _handle_of(process: Any) -> int:
    """
    Open a handle on a child.

    multiprocess's own sentinel is a pipe, which a grandchild that a job has forked would hold open.
    """
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):
            return os.pidfd_open(process.pid)
    return os.dup(process.sentinel)
