"""Timeouts of steps and of runs, in a worker that nobody supervises."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from durably import RunFailedError, RunTimeoutError, StepTimeoutError, ValidationError, define_job
from durably.testing.dialects.suite.support import eventually, hear, read, types

if TYPE_CHECKING:
    from durably import Durably
    from durably.testing.dialects.suite.support import AppMaker, Lock, Wrap


async def forever() -> None:
    """Await what does not come."""
    await asyncio.Event().wait()


def execute(app: Durably, job: Any) -> Any:
    """Run a job once, to its end."""
    run = app.register(job).trigger(None)
    app.process_one()
    return read(app, run)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), "soon", True])
def test_a_timeout_that_is_no_duration_is_refused(app: Durably, wrong: Any) -> None:
    # contract 89a, 89b
    def run(step: Any, _: None) -> None:
        step.run("a", lambda: None, timeout=wrong)

    with pytest.raises(ValidationError) as refused:
        define_job("job", run, timeout=wrong)
    assert refused.value.field == "timeout"
    ended = execute(app, define_job("job", run))
    assert (ended.error_type, str(ended.error).partition(":")[0]) == ("ValidationError", "timeout")
    assert app.get_steps(ended.id) == []


@pytest.mark.parametrize("timeout", [0.05, timedelta(milliseconds=50), "0.05s"])
def test_an_awaiting_step_is_cancelled_when_its_time_is_up(app: Durably, timeout: Any) -> None:
    # contract 89a
    heard = hear(app)
    cleaned = []

    async def cleans_up() -> None:
        try:
            await forever()
        finally:
            cleaned.append(True)

    async def run(step: Any, _: None) -> str:
        with pytest.raises(StepTimeoutError) as caught:
            await step.run("slow", cleans_up, timeout=timeout)
        assert (caught.value.step_name, caught.value.timeout) == ("slow", 0.05)
        return str(await step.run("slow", lambda: "second attempt", timeout=5))

    ended = execute(app, define_job("job", run))
    assert (ended.output, cleaned) == ("second attempt", [True])
    assert [(s.attempt, s.status, s.error_type) for s in app.get_steps(ended.id)] == [
        (1, "failed", "StepTimeoutError"),
        (2, "completed", None),
    ]
    (failure,) = [event for event in heard if event.type == "step:fail"]
    assert failure.duration < 2


def test_a_synchronous_job_bounds_its_coroutine_steps_too(app: Durably) -> None:
    # contract 89a
    def run(step: Any, _: None) -> None:
        step.run("slow", forever, timeout=0.05)

    ended = execute(app, define_job("job", run))
    assert (ended.status, ended.error_type) == ("failed", "StepTimeoutError")


def test_what_a_plain_function_returns_after_its_time_is_discarded(app: Durably) -> None:
    # contract 89a, 89c
    returned = []

    def slow() -> str:
        time.sleep(0.15)
        returned.append(True)
        return "late"

    async def of_async(step: Any, _: None) -> Any:
        await step.run("slow", slow, timeout=0.05)

    def of_sync(step: Any, _: None) -> Any:
        step.run("slow", slow, timeout=0.05)

    for name, run in (("async", of_async), ("sync", of_sync)):
        ended = execute(app, define_job(name, run))
        assert (ended.error_type, ended.status) == ("StepTimeoutError", "failed")
    assert returned == [True, True], "nobody ended it before it returned"


def test_what_a_step_raises_after_its_time_is_the_cause_of_its_timeouts_error(app: Durably) -> None:
    # contract 89a
    def slow() -> None:
        time.sleep(0.1)
        raise LookupError("late")

    async def stubborn() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            raise LookupError("late") from None

    async def run(step: Any, _: None) -> list[str]:
        causes = []
        for fn in (slow, stubborn):
            with pytest.raises(StepTimeoutError) as caught:
                await step.run(fn.__name__, fn, timeout=0.05)
            causes.append(repr(caught.value.__cause__))
        return causes

    ended = execute(app, define_job("job", run))
    assert ended.output == ["LookupError('late')"] * 2
    assert {step.error_type for step in app.get_steps(ended.id)} == {"StepTimeoutError"}


def test_a_timeout_error_of_the_steps_own_is_not_taken_for_ours(app: Durably) -> None:
    # contract 81, 89a
    async def own() -> None:
        raise TimeoutError("a socket's")

    async def run(step: Any, _: None) -> None:
        await step.run("own", own, timeout=5)

    ended = execute(app, define_job("job", run))
    assert (ended.error_type, ended.error) == ("TimeoutError", "a socket's")


def test_a_run_whose_job_awaits_too_long_fails_with_the_step_that_was_in_flight(app: Durably) -> None:
    # contract 89b, 146
    heard = hear(app)

    async def run(step: Any, _: None) -> None:
        await step.run("first", lambda: 1)
        await step.run("second", forever)

    ended = execute(app, define_job("job", run, timeout=0.2))
    assert ended.error_type == "RunTimeoutError"
    assert ended.error == "the run took longer than the timeout of 0.2 s of its job 'job'"
    assert [(s.name, s.status) for s in app.get_steps(ended.id)] == [("first", "completed"), ("second", "failed")]
    (failure,) = [event for event in heard if event.type == "run:fail"]
    assert failure.failed_step == "second"


def test_concurrent_steps_of_a_run_whose_time_is_up_all_fail(app: Durably) -> None:
    # contract 84, 89b
    async def run(step: Any, _: None) -> None:
        async with asyncio.TaskGroup() as group:
            for n in range(3):
                group.create_task(step.run(f"{n}", forever))

    ended = execute(app, define_job("job", run, timeout=0.2))
    assert ended.error_type == "RunTimeoutError"
    assert {(s.status, s.error_type) for s in app.get_steps(ended.id)} == {("failed", "RunTimeoutError")}


def test_a_job_cannot_outlive_its_timeout_by_catching(app: Durably) -> None:
    # contract 89b
    begun = []

    def sync(step: Any, _: None) -> str:
        for n in range(100):
            try:
                step.run(f"{n}", lambda: time.sleep(0.02))
                begun.append(n)
            except RunTimeoutError:
                continue
        return "done"

    async def swallows(step: Any, _: None) -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await forever()
        return "done"

    for name, run in (("sync", sync), ("swallows", swallows)):
        ended = execute(app, define_job(name, run, timeout=0.1))
        assert (ended.error_type, ended.output) == ("RunTimeoutError", None)
    assert 1 <= len(begun) < 20


def test_what_a_function_raises_when_its_time_is_up_is_the_cause(app: Durably) -> None:
    # contract 89b
    def run(step: Any, _: None) -> None:
        time.sleep(0.1)
        raise KeyError("much later")

    ended = execute(app, define_job("job", run, timeout=0.05))
    assert ended.error_type == "RunTimeoutError"
    assert "much later" in str(ended.error_traceback)


def test_the_checkpoint_of_a_step_that_ends_after_the_runs_time_stays_and_retry_resumes(app: Durably) -> None:
    # contract 89b, 101
    executed = []

    def slow() -> None:
        time.sleep(0.15)
        executed.append("slow")

    def run(step: Any, _: None) -> str:
        step.run("slow", slow)
        return step.run("after", lambda: "done")  # type: ignore[no-any-return]

    ended = execute(app, define_job("job", run, timeout=0.1))
    assert (ended.error_type, [s.name for s in app.get_steps(ended.id)]) == ("RunTimeoutError", ["slow"])
    app.retry(ended.id)
    app.process_one()
    assert (read(app, ended.id).output, executed) == ("done", ["slow"])


def test_each_execution_has_the_whole_time(make_app: AppMaker) -> None:
    # contract 89b
    app = make_app()
    release = threading.Event()

    def run(step: Any, _: None) -> str:
        step.run("first", lambda: time.sleep(0.3))
        release.wait(0.3)
        return step.run("second", lambda: "done")  # type: ignore[no-any-return]

    handle = app.register(define_job("job", run, timeout=0.8))
    run_ = handle.trigger(None)
    app.start()
    eventually(lambda: app.get_steps(run_.id))
    app.stop(timeout=0.01)
    release.set()
    assert read(app, run_).status == "pending"
    app.process_one()
    assert read(app, run_).output == "done"


def test_a_cancellation_counts_more_than_a_timeout(app: Durably) -> None:
    # contract 92, 89b
    heard = hear(app)
    begun = threading.Event()

    async def run(step: Any, _: None) -> None:
        begun.set()
        await step.cancelled.fired()
        await asyncio.sleep(0.2)

    handle = app.register(define_job("job", run, timeout=0.3))
    app.start()
    ended = handle.trigger(None)
    begun.wait()
    app.cancel(ended.id)
    app.stop()
    assert read(app, ended).status == "cancelled"
    assert "run:fail" not in types(heard)


def test_the_errors_cross_processes_whole() -> None:
    step, run = StepTimeoutError("fetch", 2.5), RunTimeoutError("job", 90.0)
    assert isinstance(step, TimeoutError)
    assert isinstance(run, TimeoutError)
    assert vars(pickle.loads(pickle.dumps(step))) == {"step_name": "fetch", "timeout": 2.5}  # noqa: S301 - our own
    assert vars(pickle.loads(pickle.dumps(run))) == {"job_name": "job", "timeout": 90.0}  # noqa: S301 - our own


def test_a_run_whose_time_is_up_while_it_waits_for_its_database_ends_its_function(
    make_app: AppMaker, either: Wrap, locked: Lock
) -> None:
    # contract 60, 89b
    app = make_app(heartbeat_interval=0.1, stale_threshold=0.4, polling_interval=0.05)
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    async def body(step: Any, _input: Any) -> Any:
        begun.set()
        go_on.wait(20)
        try:
            await step.run("held", lambda: None)
        finally:
            ended.set()

    run = app.register(define_job("job", either(body), timeout=2)).trigger()
    app.start()
    assert begun.wait(10)
    with locked():
        worker: Any = app.in_process._started
        eventually(lambda: worker._worker.is_cut_off)
        go_on.set()
        assert ended.wait(10)
    with pytest.raises(RunFailedError, match="RunTimeoutError"):
        app.wait_for_run(run.id, timeout=10)
    assert app.get_steps(run.id) == []
