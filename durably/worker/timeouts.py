"""
How long a step or a run may take.

What awaits is cancelled when its time is up, by `bounded`. What does not await can be ended by nobody in its own
process: for the eyes of a supervisor, which can kill, each timeout stands on a board for as long as it is running.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from durably.errors import RunTimeoutError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager

    from durably.errors import DurablyError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limit:
    """
    When the time of a step or a run is up.

    Args:
        at: By the monotonic clock.
        error: Makes what is raised then.
    """

    at: float
    error: Callable[[], DurablyError]

    def is_reached(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.at


def earlier(one: Limit | None, other: Limit | None) -> Limit | None:
    """Give the limit that is reached first."""
    if one is None or other is None:
        return one or other
    return one if one.at <= other.at else other


async def bounded(what: Awaitable[T], limit: Limit | None) -> T:
    """
    Await *what*, and cancel it when its time is up.

    Raises:
        DurablyError: The limit's own; also if the cancelled code raised a TimeoutError itself.
    """
    if limit is None:
        return await what
    scope = asyncio.timeout(limit.at - time.monotonic())
    try:
        async with scope:
            return await what
    except TimeoutError as error:
        if scope.expired():
            raise limit.error() from error
        raise


class RunTime:
    """
    The time of one execution of a run; without a timeout it is never up.

    Args:
        job_name: The run's job.
        timeout: Seconds; None for ever.
        began: When it began, by the monotonic clock.
    """

    def __init__(self, job_name: str, timeout: float | None, began: float) -> None:
        self.limit: Final = None if timeout is None else Limit(began + timeout, self.error)
        self._job_name = job_name
        self._timeout = timeout
        self._error: RunTimeoutError | None = None

    def is_up(self) -> bool:
        """Whether there is none left."""
        return self.limit is not None and self.limit.is_reached()

    def check(self) -> None:
        """
        Make sure that there is some left.

        Raises:
            RunTimeoutError: There is none.
        """
        if self.is_up():
            raise self.error()

    def error(self) -> RunTimeoutError:
        """Give the one error of all that ends when it is up, so that the run's failure can be told to be a step's."""
        if self._error is None:
            assert self._timeout is not None
            self._error = RunTimeoutError(self._job_name, self._timeout)
        return self._error

    def reason_for(self, error: BaseException) -> BaseException:
        """Give what a run failed of that ended with *error*: what is raised when the time is up comes of that."""
        if not self.is_up():
            return error
        reason = self.error()
        if reason is not error and reason.__cause__ is None:
            reason.__cause__ = error
        return reason


@dataclass(frozen=True, slots=True)
class Timed:
    """
    A step's attempt, or a whole execution of a run, that has a timeout.

    Args:
        timeout: Seconds.
        step_name: None for the run; then so are its index and attempt.
        on_loop: Whether it is a coroutine, which may be late because something else keeps the event loop.
    """

    run_id: str
    generation: int
    timeout: float
    step_name: str | None = None
    step_index: int | None = None
    attempt: int | None = None
    on_loop: bool = False


class Board(Protocol):
    """Where a worker says what has a timeout, and which thread is in whose code. Safe for threads; never waits."""

    def enter(self, work: Timed, at: float) -> int | None:
        """
        Put *work* on it, whose time is up *at*, by the monotonic clock.

        Returns:
            Its place, for `leave`; None if there is none left.
        """

    def leave(self, place: int | None) -> None:
        """Take off what stands at *place*."""

    def executing(self, run_id: str) -> AbstractContextManager[None]:
        """Say, for as long as it lasts, that this thread executes a run's code, perhaps among that of others."""


class NoBoard:
    """For a worker that nobody can kill: nobody looks."""

    def enter(self, _work: Timed, _at: float) -> int | None:
        """Do nothing."""
        return None

    def leave(self, place: int | None) -> None:
        """Do nothing."""

    def executing(self, _run_id: str) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()
