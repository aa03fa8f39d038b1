"""What a newcomer writes first and wrongly: each is told with the remedy, where it is made or on its run."""

from __future__ import annotations

import copy
import inspect
import pickle
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
    assert copy.deepcopy(run) == pickle.loads(pickle.dumps(run)) == replace(run) == run  # noqa: S301 - our own


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
    with pytest.raises(ValidationError, match=r"missing a required argument: 'b'; a job has one input, .* dataclass"):
        define_job("add", lambda step, a, b: a + b)


# contract 6, 185
@pytest.mark.parametrize(
    ("url", "remedy"),
    [
        ("jobs.db", "'sqlite:///file.db'"),
        ("sqlite://jobs.db", "with three slashes, jobs.db is one: 'sqlite:///jobs.db'"),
        ("sqlite:jobs.db", "'sqlite:///file.db'"),
        ("sqlite+aiosqlite:///jobs.db", "leave the driver to durably, as in 'sqlite://...'"),
        ("postgresql+asyncpg://host/db", "leave the driver to durably, as in 'postgresql://...'"),
    ],
)
def test_a_url_of_another_form_is_told_with_the_right_one(url: str, remedy: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Durably(url)
    assert refused.value.field == "dialect_url"
    assert remedy in refused.value.message
