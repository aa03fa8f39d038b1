"""What becomes of the runs of a worker that is gone: pending again, or failed as poison, or of a timeout."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from durably import events
from durably.errors import RunTimeoutError, StepTimeoutError
from durably.store import runs, workers
from durably.store.batch import write_batch
from durably.store.intents import Failure, Fenced, StepFailure
from durably.worker.failure import type_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    from durably.emitter import Emitter
    from durably.events import Ending
    from durably.model import Run
    from durably.settings import Settings
    from durably.store.database import Database
    from durably.worker.timeouts import Timed

_WORDS: Final[Mapping[Ending, str]] = {
    "died": "is gone",
    "silent": "fell silent",
    "hung": "hung: its event loop stood still",
    "timeout": "was killed because of a timeout",
    "out_of_memory": "was killed by SIGKILL, probably because there was no memory left",
    "drain": "was killed in a drain",
    "stopped": "stopped",
}
# What a run may have brought about, so that it counts as an interruption of those that the worker held.
_INTERRUPTS: Final[frozenset[Ending]] = frozenset({"died", "silent", "hung", "out_of_memory"})
_NO_TRACEBACK = "its worker had to be killed; where it was, the stacks in the log's worker:suspect tell\n"


class Recovery:
    """
    Recovers for one process. Any number of them at once do no harm: the conditions are in the writes.

    Args:
        database: Of this process.
        settings: Checked; of them max_interruptions and stale_threshold.
        emitter: Tells what was done.
    """

    def __init__(self, database: Database, settings: Settings, emitter: Emitter) -> None:
        self._database = database
        self._settings = settings
        self._emitter = emitter

    def recover(
        self,
        worker_id: str,
        *,
        reason: Ending,
        exit_code: int | None = None,
        signal: str | None = None,
        culprit: str | None = None,
    ) -> int:
        """
        Declare a worker dead and recover its runs, in one transaction, and tell it.

        Args:
            reason: "died", "silent", "hung" and "out_of_memory" cost each run an interruption; "timeout", "drain" and
                "stopped" do not.
            exit_code: Of a child that was reaped by its supervisor.
            signal: Name of the signal that killed the child.
            culprit: Id of the run that brought it about, which alone counts an interruption; None if any may have.

        Returns:
            How many runs were recovered.
        """
        was_reaped = exit_code is not None or signal is not None
        declared, recovered = self._database.write(
            lambda c: workers.recover(
                c,
                worker_id,
                ending=_words(reason, exit_code, signal),
                max_interruptions=self._settings.max_interruptions,
                interrupts=reason in _INTERRUPTS,
                culprit=culprit,
                silent_for=self._settings.stale_threshold if reason == "silent" else None,
            ),
            rings=True,
        )
        for run in recovered:
            self._emitter.emit(_event_of(run, worker_id, reason))
        if declared or was_reaped:
            self._emitter.emit(
                events.WorkerExit(
                    lost_worker=worker_id,
                    exit_code=exit_code,
                    signal=signal,
                    reason=reason,
                    recovered=len(recovered),
                )
            )
        return len(recovered)

    def fail_overdue(self, worker_id: str, work: Timed, began: float) -> bool:
        """
        Fail a run whose time was up when its worker was killed, and the step that took it, as the worker could not.

        Args:
            worker_id: Who held it, and is dead.
            work: What had the timeout.
            began: When that began, by the monotonic clock of this machine.

        Returns:
            Whether it was still the worker's to fail.
        """
        duration = time.monotonic() - began
        refused, run = self._database.write(lambda c: _fail(c, worker_id, work, duration), rings=True)
        if refused or run is None:
            return False
        facts: dict[str, Any] = {"run_id": run.id, "job_name": run.job_name, "labels": run.labels}
        failure: dict[str, Any] = {"error": run.error or "", "error_type": run.error_type or "", "duration": duration}
        if work.step_name is not None:
            step: dict[str, Any] = {
                "step_name": work.step_name,
                "step_index": work.step_index or 0,
                "attempt": work.attempt or 1,
            }
            self._emitter.emit(events.StepFail(**facts, **failure, **step))
        self._emitter.emit(
            events.RunFail(
                **facts, **failure, failed_step=work.step_name, attempt=run.attempt, interruptions=run.interruptions
            )
        )
        return True


def _fail(connection: Connection, worker_id: str, work: Timed, duration: float) -> tuple[bool, Run | None]:
    """
    Fail the run, and the step's attempt if it was a step's time; behind the fence, as the worker's own writes are.

    Args:
        connection: In a write transaction.
        worker_id: Who held it.
        work: What had the timeout.
        duration: How long it took, seconds.

    Returns:
        Whether the fence refused it, and the run as it is then; None if there is none any more.
    """
    run = runs.get_run(connection, work.run_id)
    if run is None:
        return True, None
    error = (
        RunTimeoutError(run.job_name, work.timeout)
        if work.step_name is None
        else StepTimeoutError(work.step_name, work.timeout)
    )
    fence: dict[str, Any] = {"run_id": work.run_id, "generation": work.generation}
    described: dict[str, Any] = {"error": str(error), "error_type": type_name(error), "error_traceback": _NO_TRACEBACK}
    ends: list[Fenced] = [Failure(**fence, **described)]
    if work.step_name is not None:
        step: dict[str, Any] = {"name": work.step_name, "index": work.step_index or 0, "attempt": work.attempt or 1}
        ends.insert(0, StepFailure(**fence, **step, **described, duration=duration))
    refused = any(verdict is not None for verdict in write_batch(connection, ends, worker_id))
    return refused, runs.get_run(connection, work.run_id)


def _event_of(run: workers.RecoveredRun, worker_id: str, reason: Ending) -> events.Event:
    """Describe a recovered run as its event: pending again, or failed as poison."""
    if run.failed:
        return events.RunFail(
            run_id=run.id,
            job_name=run.job_name,
            labels=run.labels,
            error=run.error or "",
            error_type=workers.POISON,
            failed_step=None,
            duration=None,
            attempt=run.attempt,
            interruptions=run.interruptions,
        )
    return events.RunRecover(
        run_id=run.id,
        job_name=run.job_name,
        labels=run.labels,
        lost_worker=worker_id,
        reason="drain" if reason == "stopped" else reason,
        interruptions=run.interruptions,
    )


def _words(reason: Ending, exit_code: int | None, signal: str | None) -> str:
    """Say how a worker ended, in words that follow "the last worker"."""
    if reason != "died":
        return _WORDS[reason]
    if signal is not None:
        return f"was killed by {signal}"
    return _WORDS[reason] if exit_code is None else f"exited with code {exit_code}"
