"""Jobs: definition, names, types, registration; what a job's value and exception become."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import pytest

from durably import AsyncStep, ConflictError, Durably, JobHandle, StepContext, ValidationError, define_job
from durably.testing.dialects.suite.support import AppMaker, Wrap, hear, read, spelled, types


def plain(step: StepContext, input: Any) -> Any:
    """Give the input back."""
    return input


@dataclass
class Report:
    lines: list[str]
    ratio: float = 0.5


def test_a_job_is_immutable_and_needs_no_instance(make_app: AppMaker) -> None:
    # contract 16
    job = define_job("job", plain)
    with pytest.raises(FrozenInstanceError):
        job.name = "other"  # type: ignore[misc]
    one, two = make_app().register(job), make_app().register(job)
    assert (one.name, two.name) == ("job", "job")
    assert one is not two


def test_the_decorator_defines_and_registers_and_yields_the_handle(app: Durably) -> None:
    # contract 16, 22
    @app.job("decorated")
    def decorated(step: StepContext, input: int) -> int:
        return input

    assert isinstance(decorated, JobHandle)
    assert app.get_job("decorated") is decorated
    assert app.get_job("another") is None


@pytest.mark.parametrize(
    "name",
    ["", " ", "a ", " a", "a\tb", "a\nb", "\x7f", "a\u2028b", "\ud800", "x" * 256, None, 7, b"job"],
    ids=spelled,
)
def test_a_name_that_is_none_is_refused(name: Any) -> None:
    # contract 17
    with pytest.raises(ValidationError) as refused:
        define_job(name, plain)
    assert refused.value.field == "name"


@pytest.mark.parametrize("name", ["x", "x" * 255, "Größe/1: ok?", "日本語", "a b"])
def test_any_other_name_is_taken(app: Durably, name: str) -> None:
    # contract 17
    assert app.register(define_job(name, plain)).trigger(1).job_name == name


def no_parameter() -> None: ...
def one_parameter(step: Any) -> None: ...
def three_parameters(step: Any, input: Any, more: Any) -> None: ...
def keyword_only(step: Any, *, input: Any) -> None: ...
def generates(step: Any, input: Any) -> Iterator[int]:
    yield 1


async def generates_async(step: Any, input: Any) -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    "run",
    [no_parameter, one_parameter, three_parameters, keyword_only, generates, generates_async, "text", None],
    ids=spelled,
)
def test_a_function_of_another_shape_is_refused_at_definition(run: Any) -> None:
    # contract 18
    with pytest.raises(ValidationError) as refused:
        define_job("job", run)
    assert refused.value.field == "run"


class Callables:
    """Every kind of callable that takes (step, input)."""

    async def method(self, _step: Any, input: int) -> int:
        return input + 1

    def __call__(self, _step: Any, input: int) -> int:
        return input + 1


def with_more(step: Any, input: int, more: int = 1) -> int:
    return input + more


async def async_with_more(step: Any, input: int, *, more: int) -> int:
    return input + more


@pytest.mark.parametrize(
    "run",
    [
        Callables().method,
        Callables(),
        with_more,
        functools.partial(async_with_more, more=1),
        lambda step, input: input + 1,
        lambda *both: both[1] + 1,
    ],
    ids=["bound coroutine", "object", "default", "partial", "lambda", "star"],
)
def test_a_job_is_anything_that_takes_step_and_input(app: Durably, run: Callable[[Any, Any], Any]) -> None:
    # contract 18
    triggered = app.register(define_job("job", run)).trigger(1)
    app.process_one()
    assert read(app, triggered).output == 2


def test_the_argument_goes_before_the_annotation(app: Durably) -> None:
    # contract 19
    def annotated(step: StepContext, input: int) -> str:
        return repr(input)

    job = define_job("job", annotated, input=tuple[int, ...], output=list[str])
    run = app.register(job).trigger([1, 2])
    app.process_one()
    done = read(app, run)
    assert (done.status, done.error_type) == ("failed", "ValidationError")
    assert (done.error or "").startswith("output")
    other = app.register(define_job("other", annotated)).trigger("7")
    app.process_one()
    assert read(app, other).output == "7"


@pytest.mark.parametrize("place", ["input", "output"])
@pytest.mark.parametrize(
    "declared",
    [
        range,
        type,
        Callable[[], int],
        list[type[int]],
    ],
)
def test_a_type_that_cannot_be_coded_is_refused_at_definition(place: str, declared: Any) -> None:
    # contract 20
    with pytest.raises(ValidationError) as refused:
        define_job("job", plain, **{place: declared})
    assert refused.value.field == place


def test_an_annotation_that_cannot_be_resolved_is_refused_at_definition() -> None:
    # contract 20
    def job(step: Any, input: "Nowhere") -> None:  # type: ignore[name-defined]  # noqa: F821
        ...

    with pytest.raises(ValidationError, match="Nowhere"):
        define_job("job", job)


def test_registering_the_same_job_again_gives_the_identical_handle(app: Durably) -> None:
    # contract 21
    job = define_job("job", plain)
    handle = app.register(job)
    assert app.register(job) is handle
    with pytest.raises(ConflictError, match="'job'"):
        app.register(define_job("job", plain))
    assert app.get_job("job") is handle


def test_the_value_is_stored_in_its_checked_form(app: Durably) -> None:
    # contract 24, 132
    @app.job("job")
    def job(step: StepContext, input: None) -> Report:
        return {"lines": ("a", "b")}  # type: ignore[return-value]

    run = job.trigger()
    app.process_one()
    assert read(app, run).output == {"lines": ["a", "b"], "ratio": 0.5}
    assert app.wait_for_run(run.id).output == Report(["a", "b"])


def test_a_value_that_does_not_fit_fails_the_run_on_output(app: Durably, either: Wrap) -> None:
    # contract 24
    async def body(step: Any, _input: Any) -> Any:
        return {"lines": [1, object()]}

    run = app.register(define_job("job", either(body), output=Report)).trigger()
    app.process_one()
    failed = read(app, run)
    assert (failed.status, failed.error_type, failed.output) == ("failed", "ValidationError", None)
    assert (failed.error or "").startswith("output.lines[0]")


def test_an_untyped_value_that_is_no_json_fails_the_run_with_its_path(app: Durably) -> None:
    # contract 25
    run = app.register(define_job("job", lambda step, input: {"a": [float("nan")]})).trigger()
    app.process_one()
    assert (read(app, run).error or "").startswith("output.a[0]: nan")


def test_a_value_over_max_payload_bytes_fails_the_run(make_app: AppMaker) -> None:
    # contract 76
    app = make_app(max_payload_bytes=1024)
    run = app.register(define_job("job", lambda step, input: "x" * 2000)).trigger()
    app.process_one()
    assert read(app, run).error_type == "PayloadTooLargeError"


def test_tuples_come_back_as_lists_without_a_declared_type(app: Durably) -> None:
    # contract 25
    run = app.register(define_job("job", lambda step, input: (1, [2.5, None], {"a": True}))).trigger()
    app.process_one()
    assert app.wait_for_run(run.id).output == [1, [2.5, None], {"a": True}]


class OutOfPaperError(Exception):
    """An exception of an application."""


def test_an_exception_fails_the_run_with_its_message_class_and_chain(app: Durably, either: Wrap) -> None:
    # contract 38
    async def body(step: Any, _input: Any) -> Any:
        try:
            raise KeyError("tray")
        except KeyError as error:
            raise OutOfPaperError("no paper") from error

    run = app.register(define_job("job", either(body))).trigger()
    app.process_one()
    failed = read(app, run)
    assert (failed.status, failed.error, failed.output) == ("failed", "no paper", None)
    assert (failed.error_type or "").endswith("test_jobs.OutOfPaperError")
    trace = failed.error_traceback or ""
    assert "KeyError: 'tray'" in trace
    assert "direct cause" in trace
    assert "in body" in trace
    assert failed.completed_at is not None


class UnspeakableError(Exception):
    """An exception whose message cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError


class InterruptingError(Exception):
    """An exception whose message cannot be had, for a graver reason."""

    def __str__(self) -> str:
        raise KeyboardInterrupt


class StrangeText(str):
    """A text that cannot be written."""

    __slots__ = ()

    def encode(self, *_: Any) -> bytes:
        raise RuntimeError


class StrangeError(Exception):
    """An exception whose message is a strange text."""

    def __str__(self) -> str:
        return StrangeText("strange")


def nested(depth: int) -> BaseException:
    """Make groups within groups."""
    error: Exception = ValueError("innermost")
    for _ in range(depth):
        error = ExceptionGroup("group", [error])
    return error


@pytest.mark.parametrize(
    "error",
    [
        UnspeakableError(),
        InterruptingError(),
        StrangeError(),
        type("NowhereError", (Exception,), {"__module__": None})("from nowhere"),
        nested(2_000),
        ValueError("\ud800 \0"),
        ValueError("x" * 1_000_000),
        ExceptionGroup("several", [ValueError("one"), KeyError("two")]),
        StopIteration(3),
        StopAsyncIteration(),
        asyncio.CancelledError(),
        GeneratorExit(),
        TimeoutError(),
        RecursionError(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_whatever_a_job_raises_fails_its_run_and_nothing_else(app: Durably, either: Wrap, error: BaseException) -> None:
    # contract 38, 184
    async def body(step: Any, _input: Any) -> Any:
        raise error

    run = app.register(define_job("job", either(body))).trigger()
    after = app.register(define_job("after", plain)).trigger(1)
    assert app.process_until_idle() == 2
    assert (read(app, run).status, read(app, after).status) == ("failed", "completed")
    assert len(read(app, run).error or "") <= 70_000


@pytest.mark.parametrize("ending", [SystemExit(3), KeyboardInterrupt()], ids=spelled)
@pytest.mark.parametrize("place", ["job", "step"])
def test_an_exit_out_of_a_job_fails_it_and_not_the_worker(
    app: Durably, either: Wrap, ending: BaseException, place: str
) -> None:
    # contract 39
    def leave() -> None:
        raise ending

    async def body(step: Any, _input: Any) -> Any:
        if place == "job":
            leave()
        await step.run("leave", leave)

    heard = hear(app)
    run = app.register(define_job("job", either(body))).trigger()
    after = app.register(define_job("after", plain)).trigger(1)
    assert app.process_until_idle() == 2
    failed = read(app, run)
    assert (failed.status, failed.error_type) == ("failed", type(ending).__name__)
    assert read(app, after).status == "completed"
    assert types(heard).count("run:fail") == 1


def test_an_exit_out_of_a_task_of_a_job_does_not_end_the_worker(app: Durably) -> None:
    # contract 39, 39a
    @app.job("job")
    async def job(step: AsyncStep, input: None) -> None:
        async def leave() -> None:
            raise SystemExit(3)

        await asyncio.gather(step.run("leave", leave), step.run("stay", asyncio.sleep, 0))

    run = job.trigger()
    assert app.process_until_idle() == 1
    assert read(app, run).status == "failed"


def test_a_decorator_without_its_parentheses_is_refused_at_once(app: Durably) -> None:
    # contract 17
    with pytest.raises(ValidationError) as refused:

        @app.job  # type: ignore[arg-type]
        def job(step: StepContext, input: None) -> None:
            """Never registered."""

    assert refused.value.field == "name"
    assert app.registry.names() == ()


def test_a_context_variable_of_one_run_is_not_in_the_next(app: Durably) -> None:
    # contract 39b
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    found: list[str] = []

    @app.job("job")
    async def job(step: AsyncStep, input: None) -> None:
        found.append(variable.get())
        variable.set("of an earlier run")
        await step.run("only", asyncio.sleep, 0)

    job.batch_trigger([None] * 5)
    assert app.process_until_idle() == 5
    assert found == ["unset"] * 5


def test_an_input_that_no_longer_fits_fails_the_run_and_says_so(make_app: AppMaker) -> None:
    # contract 24
    old, new = make_app(), make_app()
    run = old.register(define_job("job", plain)).trigger({"n": "many"})
    new.register(define_job("job", plain, input=dict[str, int]))
    new.process_one()
    failed = read(new, run)
    assert failed.error_type == "ValidationError"
    assert (failed.error or "").startswith("input.n: ")


# contract 185
def test_a_function_in_a_names_place_is_told_where_the_name_goes(app: Durably) -> None:
    def work() -> None: ...

    with pytest.raises(
        ValidationError, match=r'^name: <function .*; the name comes first: define_job\("name", function'
    ):
        define_job(work, work)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=r'the name comes first: @durably\.job\("name"\)'):
        app.job(work)  # type: ignore[arg-type]
    app.register(define_job("forgetful", lambda step, value: step.run(work, value)))
    run = app.get_job("forgetful").trigger()  # type: ignore[union-attr]
    app.process_until_idle()
    ended = app.get_run(run.id)
    assert ended is not None
    assert 'the name comes first: step.run("name", function, ...)' in str(ended.error)
