"""How late an event loop runs: a probe that another thread sends to it is on its way for just as long."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


class Lag:
    """
    One loop's lag.

    Args:
        loop: Probed by any thread but its own.
        longest: Seconds between two probes that count at most. Where there were more the prober stood still itself, as
            in a container that was paused, and can say nothing of the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, longest: float) -> None:
        self._loop = loop
        self._longest = longest
        self._lock = threading.Lock()
        # When the probe was sent that has not arrived; set under the lock, reset by the loop.
        self._sent: float | None = None
        # Both under the lock: when it was looked for last, and for how long it has been on its way by then.
        self._looked_at = 0.0
        self._waited = 0.0
        self.last = 0.0

    def probe(self, now: float) -> float:
        """
        Send a probe, unless one is on its way.

        Args:
            now: Monotonic seconds.

        Returns:
            For how long one has been on its way: a loop that stands still now shows by that.
        """
        with self._lock:
            if self._sent is not None:
                self._waited += min(now - self._looked_at, self._longest)
                self._looked_at = now
                return self._waited
            self._sent = self._looked_at = now
            self._waited = 0.0
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._arrived)
        return 0.0

    def _arrived(self) -> None:
        if self._sent is not None:
            self.last = time.monotonic() - self._sent
            self._sent = None
