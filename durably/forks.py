"""What objects do when their process forks, for as long as they live: the hooks themselves are never unregistered."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def after_fork_in_child(method: Callable[[], None]) -> None:
    """Call *method*, which is bound, in each forked child before anything else."""
    os.register_at_fork(after_in_child=_weakly(method))


def around_forks(before: Callable[[], None], in_parent: Callable[[], None], in_child: Callable[[], None]) -> None:
    """Call *before* in the parent before each fork, then *in_parent* there and *in_child* in the child; all bound."""
    os.register_at_fork(before=_weakly(before), after_in_parent=_weakly(in_parent), after_in_child=_weakly(in_child))


def end_if_forked(process: int) -> None:
    """
    End this process if it is a child of *process*, in the `finally` of a call that may have forked it.

    What follows the call is the parent's to do: the child has a copy of its event loop and of its connections, but
    none of its threads, and would wait for ever. Its exit code is 1 if an exception is on its way, else 0.
    """
    if os.getpid() == process:
        return
    error = sys.exc_info()[1]
    with contextlib.suppress(Exception):
        if error is not None:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0 if error is None else 1)


class ForkGate:
    """Lets a fork wait until nobody is in the middle of something that a copy of the process could not go on with."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        # Both under the condition's lock: how deep each thread is inside, by its id; how many forks are under way,
        # for several threads may fork at once, and the first that is done must not open for the others.
        self._inside: dict[int, int] = {}
        self._forks = 0

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Be in the middle of something. Waits for a fork that is under way, unless this thread is inside already."""
        me = threading.get_ident()
        with self._changed:
            while self._forks and me not in self._inside:
                self._changed.wait()
            self._inside[me] = self._inside.get(me, 0) + 1
        try:
            yield
        finally:
            with self._changed:
                self._inside[me] -= 1
                if not self._inside[me]:
                    del self._inside[me]
                    if self._forks:
                        self._changed.notify_all()

    def shut(self, timeout: float) -> bool:
        """
        Let nobody else in, and wait until all are out. Follow it by `open`, whatever it returns.

        Args:
            timeout: Seconds.

        Returns:
            Whether all are out, this thread included.
        """
        deadline = time.monotonic() + timeout
        me = threading.get_ident()
        with self._changed:
            self._forks += 1
            while (others := set(self._inside) - {me}) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)
            return not others and me not in self._inside

    def open(self) -> None:
        """End what `shut` began; when no fork is under way any more, let everybody in again."""
        with self._changed:
            self._forks -= 1
            if not self._forks:
                self._changed.notify_all()


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    reference = weakref.WeakMethod(method)

    def call() -> None:
        if (alive := reference()) is not None:
            alive()

    return call
