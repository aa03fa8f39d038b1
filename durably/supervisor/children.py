"""The supervisor's children, one record for each process, and the places that workers fill."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from durably.jobs import DEFAULT_POOL
from durably.store.pause import Pause
from durably.supervisor.lockwait import LOCKED_SECONDS, LockWait, is_held_up
from durably.supervisor.stacks import STACKS_SIGNAL
from durably.supervisor.suspicion import STACKS_SECONDS

if TYPE_CHECKING:
    from durably.events import Ending, WorkerState
    from durably.supervisor.board import Board
    from durably.supervisor.channel import Channel
    from durably.supervisor.recycling import Bounds
    from durably.supervisor.stacks import Stacks
    from durably.supervisor.suspicion import Suspicion
    from durably.worker.timeouts import Timed

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 30.0
_NEVER: Final = float("inf")


@dataclass(slots=True, eq=False)
class Child:
    """
    One child process. Owned by the supervisor's one thread. Times are monotonic seconds.

    Args:
        id: The worker's id; for the keeper an id of its own.
        is_keeper: Whether it is the keeper.
        pool: Whose jobs a worker takes.
        handle: A descriptor that turns readable when the process ends, and only then.
        orders: To the keeper; None for a worker.
        board: What a worker has timeouts for; None for the keeper.
        has_begun: Whether it is ready, or was: a worker has looked for runs, the keeper has recovered.
        has_row: Whether a worker has told that its row stands.
        runs_ended: Runs that a worker has completed or failed.
        failure: Why it could not begin, as it told.
        is_refused: Whether that is because something that was given is wrong.
        waits_for_database: Whether it could not begin because the database is away.
        stuck_for: For how long its event loop had not come round when it gave its last sign of life.
        stuck_in: The run whose code the loop was in, if that showed.
        overdue: What was past its deadline when its board was last read, and for how long.
        lock_wait: Which of its threads only wait for Python's lock.
        excused: What of *overdue* would have gone on, had other code not kept the lock.
        ending: How its end is to be understood if the supervisor brings it about.
        ending_if_killed: What *ending* becomes if it does not end in time.
        release_at: When a draining worker is told to release its runs.
        is_released: Whether it was told so.
        kill_at: When it is killed.
        kill_timeout: How long after the release that is.
        worked_at: When a worker last held a run, or looked for one, as far as it has told.
        running: Runs that a worker holds, as it told with its last sign of life.
        bounds: When a worker has done enough; None if it never has.
        told_state: The state that was told last.
        is_buried: Whether it was reaped.
    """

    id: str
    is_keeper: bool
    pool: str
    process: Any
    pid: int
    handle: int
    channel: Channel
    orders: Channel | None
    stacks: Stacks
    board: Board | None
    began_at: float
    heard_at: float
    has_begun: bool = False
    has_row: bool = False
    last_sequence: int = 0
    runs_ended: int = 0
    failure: str | None = None
    is_refused: bool = False
    waits_for_database: bool = False
    suspicion: Suspicion | None = None
    stuck_for: float = 0.0
    stuck_in: str | None = None
    overdue: list[tuple[float, Timed]] = field(default_factory=list)
    board_read_at: float = 0.0
    lock_wait: LockWait = field(default_factory=LockWait)
    excused: frozenset[Timed] = frozenset()
    ending: Ending = "died"
    ending_if_killed: Ending = "drain"
    release_at: float | None = None
    is_released: bool = False
    kill_at: float = _NEVER
    kill_timeout: float = _NEVER
    worked_at: float | None = None
    running: int = 0
    bounds: Bounds | None = None
    told_state: WorkerState | None = None
    is_buried: bool = False

    @property
    def state(self) -> WorkerState:
        """Its state, in a word; "exited" is told when it has been reaped."""
        if self.suspicion is not None:
            return "suspect"
        if self.release_at is not None:
            return "draining"
        return "ready" if self.has_begun else "starting"

    @property
    def is_booting(self) -> bool:
        """Whether it has not come so far that it gives signs of life."""
        return not (self.has_begun or self.has_row)

    def deadlines(self) -> list[float]:
        """List when something will be due with it."""
        times = [self.kill_at, _NEVER if self.release_at is None else self.release_at]
        if self.suspicion is not None and not self.suspicion.is_told:
            times.append(self.suspicion.since + STACKS_SECONDS)
        return times

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def ask_for_stacks(self) -> None:
        """Have it write its stacks, whatever its interpreter is doing."""
        self.stacks.skip()
        self.send_signal(STACKS_SIGNAL)

    def kill(self, ending: Ending, now: float) -> None:
        """Kill it, as *ending*."""
        self.ending = ending
        self.release_at = self.kill_at = _NEVER
        self.look_at_board(now)
        self.send_signal(signal.SIGKILL)

    def drain(self, now: float, drain_timeout: float, kill_timeout: float) -> None:
        """
        Tell it to claim nothing more; after *drain_timeout* seconds to release, *kill_timeout* later to die.

        Told again, what is due sooner holds.
        """
        is_first = self.release_at is None
        if not self.is_released:
            self.release_at = min(self.release_at or _NEVER, now + drain_timeout)
        self.kill_timeout = min(self.kill_timeout, kill_timeout)
        self.kill_at = min(self.kill_at, now + drain_timeout + kill_timeout)
        if is_first:
            self.send_signal(signal.SIGTERM)

    def release(self, now: float, kill_timeout: float) -> None:
        """Tell it to hand its runs back at their next step boundary, and to die *kill_timeout* seconds later."""
        self.drain(now, 0.0, kill_timeout)
        self.is_released, self.release_at = True, _NEVER
        self.send_signal(signal.SIGUSR1)

    def keep_deadlines(self, now: float) -> bool:
        """Do what its drain has come to; True if it had to be killed now."""
        if self.release_at is not None and now >= self.release_at:
            self.release(now, self.kill_timeout)
        if now < self.kill_at:
            return False
        self.kill(self.ending_if_killed, now)
        return True

    def look_at_board(self, now: float) -> None:
        """Read what is past its deadline, and see what of it is held up by others."""
        if self.board is None:
            return
        self.board_read_at, self.overdue = now, self.board.overdue(now)
        self.excused = frozenset()
        if not self.overdue:
            return
        self.lock_wait.look(self.pid, now)
        if now - self.board.alive_at() > LOCKED_SECONDS:
            waiting, executing = self.lock_wait.waiting, self.board.executing()
            late = [work for _, work in self.overdue]
            self.excused = frozenset(w for w in late if is_held_up(w, executing, waiting, loop=self.pid))

    def confirm_overdue(self) -> None:
        """Leave out, after its death, what it has still ended between the last look at its board and the kill."""
        if self.board is not None:
            unended = {work for _, work in self.board.overdue(_NEVER)}
            self.overdue = [entry for entry in self.overdue if entry[1] in unended]

    @property
    def blamed(self) -> list[tuple[float, Timed]]:
        """What is overdue by its own doing: not what another run's code keeps from its lock or its event loop."""
        return [
            (late_for, work)
            for late_for, work in self.overdue
            if work not in self.excused and (not work.on_loop or self.stuck_in in (None, work.run_id))
        ]

    def lost_events(self) -> int:
        """Count what it has told and what has not arrived, after its death."""
        return 0 if self.board is None else max(0, self.board.last_sequence() - self.last_sequence)

    def forget(self) -> None:
        """Close what a fork has copied of it into another child."""
        os.close(self.handle)
        self.channel.close()
        if self.orders is not None:
            self.orders.close()
        self.stacks.forget()
        if self.board is not None:
            self.board.forget()

    def bury(self) -> tuple[int | None, str | None]:
        """
        Reap it through its own handle and free what belonged to it.

        Returns:
            Its exit code, or the name of the signal that killed it.
        """
        self.is_buried = True
        self.process.join()
        code = self.process.exitcode
        self.process.close()
        os.close(self.handle)
        self.channel.close()
        if self.orders is not None:
            self.orders.close()
        self.stacks.close()
        self.confirm_overdue()
        if self.board is not None:
            self.board.close()
        return (code, None) if code >= 0 else (None, _signal_name(-code))


@dataclass(slots=True, eq=False)
class Slot:
    """
    A place for one worker, filled again when its worker is gone.

    Args:
        pool: Whose jobs its workers take.
        child: Who fills it.
        successor: Who will, once it is ready.
        recycled: Who filled it before, and ends what it runs without hurry.
        deaths: Children in a row that died young.
        not_before: When it may be filled.
        pause: How the next wait grows while its children die young.
    """

    pool: str = DEFAULT_POOL
    child: Child | None = None
    successor: Child | None = None
    recycled: Child | None = None
    not_before: float = 0.0
    deaths: int = 0
    pause: Pause = field(default_factory=lambda: Pause(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has a number only
        return f"signal {number}"
