"""What a newcomer writes first and wrongly: each is told with the remedy, where it is made or on its run."""

from __future__ import annotations

import copy
import inspect
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from durably import (
    AsyncStep,
    ConflictError,
    Durably,
    JobHandle,
    StepContext,
    UsageError,
    ValidationError,
    WaitTimeoutError,
    define_job,
)
from durably.testing.dialects.suite.support import read

if TYPE_CHECKING:
    from collections.abc import Callable

    from durably import Run


@pytest.fixture
def order(app: Durably) -> JobHandle:
    @app.job("order")
    def order(step: StepContext, order_id: int) -> int:
        return order_id

    return order


def failed(app: Durably, run: Callable[[Any, Any], Any], input: Any = None) -> Run:
    """Execute a job that fails, and warns of nothing."""
    triggered = app.register(define_job("job", run)).trigger(input)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert app.process_one()
    ended = read(app, triggered)
    assert ended.status == "failed"
    return ended


# contract 185
def test_a_job_that_is_called_says_that_it_is_triggered(app: Durably, order: JobHandle) -> None:
    with pytest.raises(UsageError, match=r"triggered, not called: \.trigger\(input\)"):
        order(1)  # type: ignore[operator]
    with pytest.raises(UsageError, match=r"durably\.register\(job\)\.trigger\(input\)"):
        order.job(1)  # type: ignore[operator]
    assert app.get_runs() == []


# contract 185
@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("delay", r"created by \.trigger\(input\)"),
        ("apply_async", r"created by \.trigger\(input\)"),
        ("wait", r"\.trigger_and_wait\(input\)"),
        ("cancel", r"durably\.cancel\(run\.id\)"),
    ],
)
def test_what_a_handle_has_not_is_told_with_what_it_has(order: JobHandle, name: str, remedy: str) -> None:
    with pytest.raises(AttributeError, match=f"'JobHandle' object has no attribute '{name}'; .*{remedy}"):
        getattr(order, name)


# contract 185
@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("wait", r"durably\.wait_for_run\(run\.id\)"),
        ("result", r"durably\.wait_for_run\(run\.id\) waits .* has the output"),
        ("refresh", r"durably\.get_run\(run\.id\) looks again"),
        ("cancel", r"durably\.cancel\(run\.id\)"),
        ("state", "it is called status"),
    ],
)
def test_what_a_run_has_not_is_told_with_what_has_it(order: JobHandle, name: str, remedy: str) -> None:
    with pytest.raises(AttributeError, match=f"'Run' object has no attribute '{name}'; .*{remedy}"):
        getattr(order.trigger(1), name)


def test_other_attributes_are_missing_as_ever_and_records_are_copied_as_ever(app: Durably, order: JobHandle) -> None:
    # contract 182
    run = order.trigger(1)
    assert not hasattr(run, "nothing")
    assert not hasattr(order, "nothing")
    assert not hasattr(app, "nothing")
    with pytest.raises(AttributeError, match=r"'Run' object has no attribute 'nothing'$"):
        run.nothing  # type: ignore[attr-defined] # noqa: B018
    assert copy.copy(run) == replace(run) == run


# contract 185
@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("trigger", r'durably\.get_job\("name"\)\.trigger\(input\)'),
        ("run", r"durably\.start\(\)"),
        ("task", r'@durably\.job\("name"\)'),
        ("define_job", r"\.register\(job\)"),
        ("await_wait_for_run", r"durably\.await_run\(run\.id\)"),
    ],
)
def test_what_an_instance_has_not_is_told_with_what_it_has(app: Durably, name: str, remedy: str) -> None:
    with pytest.raises(AttributeError, match=f"'Durably' object has no attribute '{name}'; .*{remedy}"):
        getattr(app, name)


# contract 185
def test_a_job_that_is_not_registered_says_that_it_must_be() -> None:
    job = define_job("job", lambda step, input: input)
    with pytest.raises(AttributeError, match=r"durably\.register\(job\) gives the handle"):
        job.trigger(1)  # type: ignore[attr-defined]


# contract 185
@pytest.mark.parametrize(
    ("use", "remedy"),
    [
        (lambda step: step("a", print), r"UsageError: a step is step\.run"),
        (lambda step: step.do("a", print), r"AttributeError: .*a step is step\.run"),
        (lambda step: step.sleep(1), r"AttributeError: .*time\.sleep"),
        (lambda step: step.log("loaded"), r"UsageError: a level is called: step\.log\.info"),
        (lambda step: step.info("loaded"), r"AttributeError: .*step\.log\.info"),
    ],
)
def test_what_a_step_context_has_not_is_told_with_what_it_has(
    app: Durably, use: Callable[[Any], Any], remedy: str
) -> None:
    import re

    run = failed(app, lambda step, input: use(step))
    assert re.match(remedy, f"{run.error_type}: {run.error}")


# contract 185
def test_a_step_of_a_value_says_to_pass_the_function(app: Durably) -> None:
    run = failed(app, lambda step, input: step.run("charge", str(input)), 42)
    assert run.error_type == "ValidationError"
    assert run.error == (
        "fn: '42' is no function; the step calls it, so pass it and its arguments apart: "
        "step.run('charge', function, argument), not step.run('charge', function(argument))"
    )


# contract 185
def test_a_step_of_a_coroutine_says_to_pass_the_function(app: Durably) -> None:
    async def fetch(page: int) -> int:
        return page

    async def job(step: AsyncStep, input: int) -> int:
        return await step.run("fetch", fetch(input))  # type: ignore[call-overload, no-any-return]

    run = failed(app, job, 1)
    assert (run.error or "").startswith("fn: <coroutine object ")
    assert "not step.run('fetch', function(argument))" in (run.error or "")


# contract 185
def test_a_function_that_returns_a_coroutine_says_to_pass_what_it_calls(app: Durably) -> None:
    async def fetch() -> int:
        return 1

    async def job(step: AsyncStep, input: None) -> Any:
        return await step.run("fetch", lambda: fetch())  # noqa: PLW0108 - the mistake

    run = failed(app, job)
    assert run.error_type == "EncodingError"
    assert "a coroutine, which nobody has awaited: give the `async def` function itself" in (run.error or "")


# contract 185
def test_a_result_that_is_used_without_await_is_told_with_the_step(app: Durably) -> None:
    async def job(step: AsyncStep, input: None) -> Any:
        return step.run("count", lambda: 1) + 1  # type: ignore[operator]

    run = failed(app, job)
    assert (run.error or "").startswith("unsupported operand type")
    assert "step 'count' did not run: write `await step.run('count', ...)`" in (run.error_traceback or "")


# contract 21, 185
def test_a_name_that_is_taken_is_told_with_both_places(app: Durably, order: JobHandle) -> None:
    def another(step: StepContext, input: int) -> int:
        return input

    with pytest.raises(ConflictError) as refused:
        app.job("order")(another)
    line = inspect.getsourcelines(another)[1]
    assert f"another in {__file__}:{line}; give each a name of its own" in str(refused.value).replace(
        "test_a_name_that_is_taken_is_told_with_both_places.<locals>.", ""
    )
    assert f"order in {__file__}:" in str(refused.value).replace("order.<locals>.", "")


# contract 18, 185
def test_a_job_of_several_inputs_says_what_to_give_in_their_place() -> None:
    def add(step: StepContext, a: int, b: int) -> int:
        return a + b

    with pytest.raises(ValidationError, match=r"missing a required argument: 'b'; a job has one input, .* dataclass"):
        define_job("add", add)  # type: ignore[arg-type]


# contract 185
def test_a_run_in_the_place_of_its_id_is_told_so(app: Durably, order: JobHandle) -> None:
    run = order.trigger(1)
    calls: list[Callable[[Any], Any]] = [
        app.get_run, app.get_steps, app.get_logs, app.cancel, app.retry, app.retrigger, app.delete_run,
        app.wait_for_run, order.get_run,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ValidationError, match=rf"^run_id: a Run, .* pass run\.id, '{run.id}'"):
            call(run)
    with pytest.raises(ValidationError, match=r"^before: 7 is no str"):
        app.get_runs(before=7)  # type: ignore[arg-type]


# contract 185
def test_what_is_no_job_is_not_registered(app: Durably, order: JobHandle) -> None:
    for wrong in (order, lambda step, input: input):
        with pytest.raises(ValidationError, match=r"^job: .* is no Job: make one with define_job\(name, function\)"):
            app.register(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=r"^run: <JobHandle 'order'> is no function"):
        define_job("again", order)  # type: ignore[arg-type]
    assert failed(app, lambda step, input: step.run("order", order, 1)).error_type == "ValidationError"


# contract 185
def test_a_wait_for_a_run_that_nobody_executes_says_so_once(
    app: Durably, order: JobHandle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durably.waiting._PATIENCE_SECONDS", 0.0)
    run = order.trigger(1)
    with pytest.raises(WaitTimeoutError):
        app.wait_for_run(run.id, timeout=0.5)
    (told,) = caplog.messages
    assert told.startswith(f"run {run.id} of job 'order' is still pending, and no worker is alive: durably.start()")
    app.process_until_idle()
    assert app.wait_for_run(run.id).output == 1
    assert len(caplog.messages) == 1


# contract 185
def test_a_job_that_waits_for_a_run_without_a_free_slot_is_told_so(
    app: Durably, order: JobHandle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durably.waiting._PATIENCE_SECONDS", 0.0)
    run = failed(app, lambda step, input: order.trigger_and_wait(1, timeout=0.5))
    assert run.error_type == "WaitTimeoutError"
    (told,) = caplog.messages
    assert told.endswith(
        "the job that waits for it keeps a slot of a worker meanwhile; `concurrency` gives workers more slots"
    )


# contract 6, 185
@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("jobs.db", "'sqlite:///file.db'"),
        ("sqlite://jobs.db", "with three slashes, jobs.db is one: 'sqlite:///jobs.db'"),
        ("sqlite:jobs.db", "'sqlite:///file.db'"),
        ("postgresql://host:port/db", "'postgresql://user@host/name'"),
        ("libsql://shop.turso.io", "'sqlite+libsql://host/?secure=true&authToken=...'"),
        ("sqlite+aiosqlite:///jobs.db", "leave the driver to durably, as in 'sqlite://...'"),
        ("postgresql+asyncpg://host/db", "leave the driver to durably, as in 'postgresql://...'"),
    ],
)
def test_a_url_of_another_form_is_told_with_the_right_one(url: str, remedy: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Durably(url)
    assert refused.value.field == "dialect_url"
    assert remedy in refused.value.message
