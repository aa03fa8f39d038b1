"""The token by which a long step learns that its run is no longer its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from durably.errors import CONTROL_FLOW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from durably.errors import ControlFlow, Reason


class Token:
    """
    Fires once, with a reason. Safe for threads and loops.

    The worker fires it; job code watches it.
    """

    __slots__ = ("_lock", "_watchers", "reason")

    def __init__(self) -> None:
        self.reason: Reason | None = None
        self._lock = threading.Lock()
        # Written under the lock; emptied by the one that fires.
        self._watchers: list[Callable[[], None]] = []

    def is_set(self) -> bool:
        """Tell whether the run was cancelled, lost or released."""
        return self.reason is not None

    def wait(self, timeout: float | None = None) -> bool:
        """
        Wait, in a thread, until it fires.

        Args:
            timeout: Seconds; None waits for ever.

        Returns:
            Whether it has fired.
        """
        fired = threading.Event()
        with self._watched_by(fired.set):
            return fired.wait(timeout)

    async def fired(self) -> Reason:
        """Await its firing; give the reason."""
        loop = asyncio.get_running_loop()
        fired = asyncio.Event()
        with self._watched_by(partial(_set_on, loop, fired)):
            await fired.wait()
        assert self.reason is not None
        return self.reason

    def raise_if_set(self) -> None:
        """
        Raise what ends the step, if it has fired.

        Raises:
            Cancelled, LeaseLost, Released: By the reason.
        """
        if (error := self.control_flow()) is not None:
            raise error

    def control_flow(self) -> ControlFlow | None:
        """Give what a step boundary raises now; None while the run is its own."""
        return (
            None if self.reason is None else CONTROL_FLOW[self.reason](f"the run was {self.reason.replace('_', ' ')}")
        )

    def fire(self, reason: Reason) -> bool:
        """
        Fire with *reason*. A release may still turn into a cancellation or a loss; else the first reason stays.

        Returns:
            Whether the reason is new.
        """
        with self._lock:
            if self.reason == reason or self.reason in ("cancelled", "lease_lost"):
                return False
            self.reason = reason
            watchers, self._watchers = self._watchers, []
        for tell in watchers:
            tell()
        return True

    @contextmanager
    def _watched_by(self, tell: Callable[[], None]) -> Iterator[None]:
        """Call *tell* when it fires, at once if it has; no longer than who watches: a step may look for hours."""
        with self._lock:
            has_fired = self.reason is not None
            if not has_fired:
                self._watchers.append(tell)
        if has_fired:
            tell()
        try:
            yield
        finally:
            with self._lock, contextlib.suppress(ValueError):  # it has fired meanwhile
                self._watchers.remove(tell)


def _set_on(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed, and who waited there is gone
        loop.call_soon_threadsafe(event.set)
