"""The thread that gives a worker's signs of life, whatever its event loop and its jobs are doing."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final, Protocol

from durably.errors import DurablyError

if TYPE_CHECKING:
    from collections.abc import Callable

    from durably.store.committer import Committer
    from durably.store.intents import Beat, BeatAnswer

_LONGEST_TICK_SECONDS: Final = 0.5  # half of what an orphan may take to notice


class Heart(Protocol):
    """What the pulse asks of its worker, and tells it. Called from the pulse's thread."""

    def describe_beat(self) -> Beat:
        """Put the worker's state into a heartbeat."""

    def heard(self, answer: BeatAnswer) -> None:
        """Take the database's answer to a heartbeat."""


class Pulse:
    """
    One heartbeat per interval, through the committer, and a look around twice a second.

    Args:
        heart: The worker.
        committer: Writes the heartbeat.
        interval: Seconds between heartbeats.
        patience: Seconds without an accepted heartbeat after which the worker counts itself as cut off.
        look_around: Called at each tick; the orphan guard, and the sign of life to the supervisor.
    """

    def __init__(
        self,
        heart: Heart,
        committer: Committer,
        *,
        interval: float,
        patience: float,
        look_around: Callable[[float], None],
    ) -> None:
        self._heart = heart
        self._committer = committer
        self._interval = interval
        self._patience = patience
        self._look_around = look_around
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="durably-pulse", daemon=True)
        # Written by the thread, read by any.
        self._accepted_at = time.monotonic()

    def start(self) -> None:
        """Begin; the worker's row has just been written, which counts as a heartbeat."""
        self._accepted_at = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for the thread, at most for one tick."""
        self._stopped.set()
        self._thread.join(2 * _LONGEST_TICK_SECONDS)

    @property
    def is_cut_off(self) -> bool:
        """Whether no heartbeat was accepted for *patience* seconds of this process's own clock."""
        return time.monotonic() - self._accepted_at > self._patience

    def _run(self) -> None:
        due = time.monotonic() + self._interval
        answer: Future[Any] | None = None
        while not self._stopped.wait(min(self._interval, _LONGEST_TICK_SECONDS)):
            now = time.monotonic()
            self._look_around(now)
            if answer is not None and answer.done():
                self._take(answer)
                answer = None
            if answer is None and now >= due:
                due = now + self._interval
                answer = Future()
                self._committer.submit(self._heart.describe_beat(), answer)

    def _take(self, answer: Future[Any]) -> None:
        try:
            told: BeatAnswer = answer.result()
        except DurablyError:
            return  # not accepted; the next beat tries again, and the worker counts itself as cut off in time
        if told.accepted:
            self._accepted_at = time.monotonic()
        self._heart.heard(told)
