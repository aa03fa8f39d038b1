"""How a job's function ended, as a value: executing a run never raises."""

from __future__ import annotations

import asyncio
import contextvars
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from durably.codec import Encoded, Unfit, check_output
from durably.errors import ValidationError
from durably.forks import end_if_forked
from durably.worker.context import current_execution
from durably.worker.failure import Description, call_plain, describe, has_control_flow
from durably.worker.step import AsyncStep, Step
from durably.worker.threads import run_in_thread
from durably.worker.timeouts import Timed, bounded

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from durably.worker.execution import Execution


@dataclass(frozen=True, slots=True)
class Returned:
    """The function returned, and its output fits."""

    output: Encoded


@dataclass(frozen=True, slots=True)
class Raised:
    """The function raised, or its input or output does not fit; `failed_step` is the step it came from, if any."""

    description: Description
    failed_step: str | None


@dataclass(frozen=True, slots=True)
class Ended:
    """The run was ended from outside: its token has fired, and says why."""


Outcome: TypeAlias = Returned | Raised | Ended


@dataclass(frozen=True, slots=True)
class Executors:
    """
    Where synchronous code runs.

    Args:
        jobs: A thread for each slot.
        steps: Threads for plain functions that asynchronous jobs run as steps.
    """

    jobs: Executor
    steps: Executor


async def call_job(execution: Execution, executors: Executors) -> Outcome:
    """Call the run's function with its step context, on this loop or in a thread."""
    current_execution.set(execution)
    place = _put_on_board(execution)
    try:
        value = await _call(execution, executors)
        execution.time.check()
        # A result that was on its way when the run was lost goes no further than the fence.
        return Returned(check_output(execution.job.output, value, execution.host.max_payload_bytes))
    except BaseException as error:  # noqa: BLE001 - whatever the function raised is the run's outcome
        # One that the job has made itself ends nothing: it is the job's failure as any exception is.
        if execution.token.is_set() and has_control_flow(error):
            return Ended()
        error = execution.time.reason_for(error)
        return Raised(describe(error), execution.failed_step(error))
    finally:
        execution.host.board.leave(place)


def _put_on_board(execution: Execution) -> int | None:
    run, limit, timeout = execution.run, execution.time.limit, execution.job.timeout
    if limit is None or timeout is None:
        return None
    return execution.host.board.enter(Timed(run.id, run.generation, timeout, on_loop=execution.job.is_async), limit.at)


async def _call(execution: Execution, executors: Executors) -> Any:
    job, loop = execution.job, asyncio.get_running_loop()
    value = _decode_input(execution)
    if job.is_async:
        return await _call_async(execution, AsyncStep(execution, loop, executors.steps), value)
    context = contextvars.copy_context()
    step = Step(execution, loop, executors.steps)
    function = run_in_thread(execution, executors.jobs, context.run, call_plain, job.run, step, value)
    try:
        return await function
    except asyncio.CancelledError:
        if function.cancelled():
            # The loop is being ended, and the function may run on: nobody may have the run before this process is gone.
            execution.token.fire("lease_lost")
        raise


async def _call_async(execution: Execution, step: AsyncStep, value: Any) -> Any:
    process = os.getpid()
    with execution.host.board.executing(execution.run.id):
        try:
            returned = await bounded(execution.job.run(step, value), execution.time.limit)
        except Exception as error:
            step.explain(error)
            raise
        finally:
            end_if_forked(process)
    step.check_all_begun()
    return returned


def _decode_input(execution: Execution) -> Any:
    try:
        return execution.job.input.decode(execution.run.input)
    except Unfit as error:
        raise ValidationError(
            "input" + error.path.removeprefix("$"),
            f"{error.message} (the stored input does not fit the job's type any more)",
        ) from error
