"""What an object does when its process forks, for as long as it lives: the hooks themselves are never unregistered."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def before_fork(method: Callable[[], None]) -> None:
    """Call *method*, which is bound, in the parent before each fork."""
    os.register_at_fork(before=_weakly(method))


def after_fork_in_child(method: Callable[[], None]) -> None:
    """Call *method*, which is bound, in each forked child before anything else."""
    os.register_at_fork(after_in_child=_weakly(method))


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    reference = weakref.WeakMethod(method)

    def call() -> None:
        if (alive := reference()) is not None:
            alive()

    return call
