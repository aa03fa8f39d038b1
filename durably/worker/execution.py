"""
One execution of a run: which steps it has, and what each becomes.

The body of a step is a generator that asks its driver to call a function or to have an intent written, so that
sync and async jobs share every decision; the drivers in `durably.worker.step` know how to wait, and nothing else.

If the process dies before a checkpoint's commit, the step runs again; after it, it is replayed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from durably import events
from durably.codec import Encoded, Unfit, codec_for, encode_step
from durably.errors import (
    CheckpointError,
    ControlFlow,
    DuplicateStepError,
    RunTimeoutError,
    StepTimeoutError,
    UsageError,
)
from durably.jobs import Job, check_function, check_name, is_async_callable, result_codec
from durably.settings import parse_timeout
from durably.store.intents import Checkpoint, Fenced, StepFailure, Verdict
from durably.worker.failure import describe
from durably.worker.notes import Notes
from durably.worker.timeouts import Limit, RunTime, Timed
from durably.worker.token import Token

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from durably.codec import Codec
    from durably.emitter import Emitter
    from durably.errors import DatabaseUnavailableError, Reason
    from durably.store.claims import ClaimedRun
    from durably.store.committer import Committer
    from durably.worker.timeouts import Board


@dataclass(frozen=True, slots=True)
class Call:
    """A step asks its driver to call its function within a limit, and to send the result or throw the exception in."""

    step_name: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    limit: Limit | None


@dataclass(frozen=True, slots=True)
class Write:
    """A step asks its driver to have an intent written, and to send its verdict in."""

    intent: Fenced


@dataclass(frozen=True, slots=True)
class Hold:
    """A step asks its driver to wait until the worker reaches the database again."""


Request: TypeAlias = Call | Write | Hold


@dataclass(slots=True)
class Attempt:
    """One attempt at a step, in flight; `began` by the monotonic clock."""

    name: str
    index: int
    number: int
    began: float


class Host(Protocol):
    """What an execution needs of the worker that it runs in."""

    @property
    def committer(self) -> Committer:
        """Who writes."""

    @property
    def emitter(self) -> Emitter:
        """Who tells."""

    @property
    def board(self) -> Board:
        """Where timeouts stand."""

    @property
    def max_payload_bytes(self) -> int:
        """The setting."""

    @property
    def is_cut_off(self) -> bool:
        """Whether no heartbeat was accepted for stale_threshold."""

    def stop(self, *, release: bool, reason: str) -> None:
        """Claim nothing more, and hand back what is held. On the worker's loop."""

    async def keep_writing(self, intent: Fenced, refusal: DatabaseUnavailableError) -> Verdict:
        """Try what the database has refused to write again. On the worker's loop."""


class Execution:
    """
    The state of one claimed run while its function executes.

    Shared by the loop and the job's threads: `_attempts`, `_done`, `_failed` and `_next_index` change under `_lock`.

    Args:
        run: As claimed.
        job: Its job.
        host: The worker.
    """

    def __init__(self, run: ClaimedRun, job: Job, host: Host) -> None:
        self.run: Final = run
        self.job: Final = job
        self.host: Final = host
        self.token: Final = Token()
        self.notes: Final = Notes(self)
        self.began: Final = time.monotonic()
        self.time: Final = RunTime(job.name, job.timeout, self.began)
        # Set by the worker when the function has returned: no step begins after that.
        self.is_over = False
        # Set by whoever tells the run's cancellation first in this process, under the lock.
        self._told_cancel = False
        self._lock = threading.Lock()
        self._attempts: dict[str, Attempt] = {}
        self._done: set[str] = set()
        self._tried: dict[str, tuple[int, int]] = {n: (s.index, s.attempts) for n, s in run.steps.items()}
        self._failed: list[tuple[str, BaseException]] = []
        self._next_index = 1 + max((s.index for s in run.steps.values()), default=-1)

    def step(
        self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], output: Any, timeout: object
    ) -> Generator[Request, Any, Any]:
        """Run one step, asking the driver for what waits; returns the checkpoint's value."""
        check_name(name, "name")
        check_function(fn, name)
        seconds = None if timeout is None else parse_timeout(timeout)
        codec = result_codec(fn) if output is None else codec_for(output)
        self._check_boundary()
        if self.host.is_cut_off:
            yield Hold()
            self._check_boundary()
        attempt = self._begin(name)
        if attempt is None:
            return self._replay(name, codec)
        self.host.emitter.emit(events.StepStart(**self._facts(attempt)))
        try:
            if seconds is None:
                value = yield Call(name, fn, args, None)
            else:
                value = yield from self._call_within(seconds, attempt, fn, args)
            encoded = encode_step(codec, value, name, self.host.max_payload_bytes)
        except ControlFlow:
            if self.token.is_set():
                self._abandon(attempt)
            else:  # the job's own: see `durably.worker.outcome.call_job`
                self._end(attempt)
            raise
        except Exception as error:
            yield from self._fail(attempt, error)
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and self.time.is_up():
                yield from self._fail(attempt, self.time.error())
            else:
                self._end(attempt)
            raise
        return (yield from self._complete(attempt, encoded, codec))

    def _call_within(
        self, seconds: float, attempt: Attempt, fn: Callable[..., Any], args: tuple[Any, ...]
    ) -> Generator[Request, Any, Any]:
        """Have the step's function called; what it returns when its time is up comes too late."""
        limit = Limit(attempt.began + seconds, partial(StepTimeoutError, attempt.name, seconds))
        timed = Timed(
            self.run.id,
            self.run.generation,
            seconds,
            attempt.name,
            attempt.index,
            attempt.number,
            on_loop=is_async_callable(fn),
        )
        place = self.host.board.enter(timed, limit.at)
        try:
            value = yield Call(attempt.name, fn, args, limit)
        except Exception as error:
            if limit.is_reached() and not isinstance(error, (StepTimeoutError, RunTimeoutError)):
                raise limit.error() from error
            raise
        finally:
            self.host.board.leave(place)
        if limit.is_reached():
            raise limit.error()
        return value

    def _check_boundary(self) -> None:
        self.token.raise_if_set()
        self.time.check()
        if self.is_over:
            raise UsageError(f"run {self.run.id} has ended in this worker; no step of it can begin")

    def _begin(self, name: str) -> Attempt | None:
        """Open an attempt; None if the step has a checkpoint, which then counts as used."""
        with self._lock:
            if name in self._done or name in self._attempts:
                raise DuplicateStepError(name)
            stored = self.run.steps.get(name)
            if stored is not None and stored.output is not None:
                self._done.add(name)
                return None
            if name not in self._tried:
                self._tried[name] = (self._next_index, 0)
                self._next_index += 1
            index, attempts = self._tried[name]
            self._tried[name] = (index, attempts + 1)
            attempt = self._attempts[name] = Attempt(name, index, attempts + 1, time.monotonic())
            return attempt

    def _replay(self, name: str, codec: Codec) -> Any:
        stored = self.run.steps[name].output
        assert stored is not None
        try:
            return codec.decode(stored)
        except Unfit as error:
            raise CheckpointError(name, str(error)) from error

    def _complete(self, attempt: Attempt, encoded: Encoded, codec: Codec) -> Generator[Request, Any, Any]:
        self._check_still_mine(attempt)
        duration = time.monotonic() - attempt.began
        intent = Checkpoint(
            run_id=self.run.id,
            generation=self.run.generation,
            name=attempt.name,
            index=attempt.index,
            attempt=attempt.number,
            output=encoded.text,
            duration=duration,
        )
        try:
            verdict: Verdict = yield Write(intent)
        except BaseException:
            # The job's own time-out, say: the checkpoint is on its way all the same, so the name is used.
            self._end(attempt, done=True)
            raise
        self._obey(attempt, verdict)
        self._end(attempt, done=True)
        self.host.emitter.emit(events.StepComplete(**self._facts(attempt), output=encoded.data, duration=duration))
        self.token.raise_if_set()
        # Decoded from the stored form, so that the live value cannot differ from a replayed one.
        return codec.decode(encoded.text)

    def _fail(self, attempt: Attempt, error: Exception) -> Generator[Request, Any, None]:
        self._check_still_mine(attempt)
        duration = time.monotonic() - attempt.began
        described = describe(error)
        intent = StepFailure(
            run_id=self.run.id,
            generation=self.run.generation,
            name=attempt.name,
            index=attempt.index,
            attempt=attempt.number,
            duration=duration,
            **described._asdict(),
        )
        try:
            verdict: Verdict = yield Write(intent)
        except BaseException:
            self._end(attempt)
            raise
        self._obey(attempt, verdict)
        self._end(attempt)
        with self._lock:
            self._failed.append((attempt.name, error))
        self.host.emitter.emit(
            events.StepFail(
                **self._facts(attempt),
                error=described.error,
                error_type=described.error_type,
                duration=duration,
            )
        )

    def _check_still_mine(self, attempt: Attempt) -> None:
        """Discard a result that nobody would take. A released run's step still counts, so its result is kept."""
        if self.token.reason in ("cancelled", "lease_lost"):
            self._abandon(attempt)
            self.token.raise_if_set()

    def _obey(self, attempt: Attempt, verdict: Verdict) -> None:
        if verdict is not None:
            self.lose(verdict)
            self._abandon(attempt)
            self.token.raise_if_set()

    def _abandon(self, attempt: Attempt) -> None:
        self._end(attempt)
        self.host.emitter.emit(events.StepCancel(**self._facts(attempt), reason=self.token.reason or "cancelled"))

    def _end(self, attempt: Attempt, *, done: bool = False) -> None:
        with self._lock:
            del self._attempts[attempt.name]
            if done:
                self._done.add(attempt.name)

    def lose(self, reason: Reason) -> None:
        """Learn that the run is no longer this worker's, and tell it once."""
        self.token.fire(reason)
        with self._lock:
            told, self._told_cancel = self._told_cancel, True
        if told:
            return
        if self.token.reason == "cancelled":
            self.host.emitter.emit(events.RunCancel(**self.facts(), previous_status="running", origin="worker"))
        elif self.token.reason == "lease_lost":
            self.host.emitter.emit(
                events.WorkerError(
                    context="lease-lost",
                    severity="warning",
                    error="the run is no longer this worker's; nothing more is written to it",
                    error_type="LeaseLost",
                    run_id=self.run.id,
                )
            )

    def cancelled_here(self) -> bool:
        """Learn of a cancellation that this very process has made, and tells; return whether it was told already."""
        with self._lock:
            told, self._told_cancel = self._told_cancel, True
        self.token.fire("cancelled")
        return told and self.token.reason == "cancelled"

    def failed_step(self, error: BaseException) -> str | None:
        """Name the step whose exception *error* is, or None."""
        return next((name for name, known in self._failed if known is error), None)

    def oldest_step_age(self, now: float) -> float | None:
        """Tell how long the longest step in flight has been running, in seconds; None without one."""
        with self._lock:
            return max((now - attempt.began for attempt in self._attempts.values()), default=None)

    def facts(self) -> dict[str, Any]:
        """Give what every event about this run carries."""
        return {"run_id": self.run.id, "job_name": self.run.job_name, "labels": self.run.labels}

    def _facts(self, attempt: Attempt) -> dict[str, Any]:
        return self.facts() | {
            "step_name": attempt.name,
            "step_index": attempt.index,
            "attempt": attempt.number,
        }
