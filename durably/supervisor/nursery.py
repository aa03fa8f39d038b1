"""How a child is begun: by fork, with nothing of its siblings in its hands; or by spawn."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import multiprocess

from durably.ids import new_id
from durably.jobs import DEFAULT_POOL
from durably.supervisor.board import Board
from durably.supervisor.channel import Channel
from durably.supervisor.child import BLOCKED_SIGNALS, Plan, run_child
from durably.supervisor.children import Child
from durably.supervisor.stacks import Stacks
from durably.worker.doorbell import Doorbell

if TYPE_CHECKING:
    from collections.abc import Callable

    from durably.client import Durably


class _Closable(Protocol):
    def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)


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
        # For each pool. Connections, because a spawned child cannot be given bare descriptors.
        self._doorbells: dict[str, Any] = {}
        self.living: list[Child] = []

    def ring(self, pool: str, times: int) -> None:
        """Wake idle workers of a pool, whose doorbell a keeper cannot have that began before the pool was known."""
        reading, writing = self._pipe(pool)
        doorbell = Doorbell((reading.fileno(), writing.fileno()))
        if not doorbell.is_unanswered():
            doorbell.ring(times)

    def _pipe(self, pool: str) -> Any:
        if pool not in self._doorbells:
            self._doorbells[pool] = self._context.Pipe(duplex=False)
        return self._doorbells[pool]

    def begin(self, now: float, *, pool: str = DEFAULT_POOL, keeper: bool = False, at_start: bool = False) -> Child:
        """
        Begin a child.

        Args:
            now: Monotonic seconds.
            pool: Whose jobs a worker is to take.
            keeper: Whether it is to be the keeper.
            at_start: Whether no keeper was ready before it.

        Raises:
            OSError: The system has no room for another process.
        """
        with contextlib.ExitStack() as if_it_fails:
            child = self._begin(now, pool, keeper, at_start, if_it_fails)
            if_it_fails.pop_all()
        self.living.append(child)
        return child

    def _begin(self, now: float, pool: str, keeper: bool, at_start: bool, if_it_fails: contextlib.ExitStack) -> Child:  # noqa: FBT001 - begin's
        """Begin a child; what is made for it and has to be freed if it cannot begin goes to *if_it_fails*."""

        def made(belonging: T) -> T:
            if_it_fails.callback(belonging.close)
            return belonging

        child_id = new_id()
        channel = made(Channel(self._context))
        orders = made(Channel(self._context)) if keeper else None
        stacks = made(Stacks())
        board = None if keeper else made(Board())
        mine = (stacks.forget, *(() if board is None else (board.forget,)))
        plan = Plan(
            load=self._load,
            overrides=self._overrides,
            channel=channel,
            orders=orders,
            inherited=(*self.inherited(), *mine) if self.start_method == "fork" else (),
            doorbell=self._pipe(pool),
            worker_id=None if keeper else child_id,
            pool=pool,
            supervisor_id=self._supervisor_id,
            supervisor_pid=os.getpid(),
            stacks=stacks.path,
            board=None if board is None else board.path,
            until_idle=self._until_idle,
            at_start=at_start,
        )
        process = self._context.Process(target=run_child, args=(plan,), name="keeper" if keeper else "worker")
        if self.start_method == "fork":
            gc.freeze()  # the collector of a child would copy pages only to mark them
        before = signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_SIGNALS)
        try:
            process.start()
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
        return Child(
            id=child_id,
            is_keeper=keeper,
            pool=pool,
            process=process,
            pid=process.pid,
            handle=handle,
            channel=channel,
            orders=orders,
            stacks=stacks,
            board=board,
            began_at=now,
            heard_at=now,
        )

    def inherited(self) -> tuple[Callable[[], None], ...]:
        """List what closes the copies that a fork makes of what the supervisor has of each child."""
        return tuple(child.forget for child in self.living)

    def close(self) -> None:
        """Free the doorbells."""
        for pipe in self._doorbells.values():
            for end in pipe:
                end.close()


def _handle_of(process: Any) -> int:
    """
    Open a handle on a child.

    multiprocess's own sentinel is a pipe, which a grandchild that a job has forked would hold open.
    """
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):
            return os.pidfd_open(process.pid)
    return os.dup(process.sentinel)
