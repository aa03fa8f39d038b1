"""Steps: checkpoints, replay, types, names, attempts, concurrency, control flow."""

import ast
import asyncio
import enum
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pydantic
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from typing_extensions import TypedDict

import durably
from durably import (
    AsyncStep,
    Cancelled,
    CheckpointError,
    DuplicateStepError,
    Durably,
    EncodingError,
    LeaseLost,
    PayloadTooLargeError,
    Released,
    Run,
    StepContext,
    UsageError,
    define_job,
)
from durably.testing.dialects.suite.support import (
    AppMaker,
    Wrap,
    add_worker,
    claim,
    eventually,
    hear,
    read,
    recover,
    spelled,
    sql,
    types,
)


def run_job(app: Durably, run: Callable[[Any, Any], Any], input: Any = None, **options: Any) -> Run:
    """Trigger a job named "job", made of *run*, and execute it to its end in this thread."""
    triggered = app.register(define_job("job", run, **options)).trigger(input)
    assert app.process_one()
    return read(app, triggered)


def resume(app: Durably, run: Run) -> Run:
    """Execute a failed run once more."""
    app.retry(run.id)
    assert app.process_one()
    return read(app, run)


def test_a_checkpoint_is_committed_before_the_step_returns(app: Durably, either: Wrap) -> None:
    # contract 70
    async def body(step: Any, _input: Any) -> Any:
        value = await step.run("double", lambda a, b: a * b, 21, 2)
        stored = app.get_steps(step.run_id)
        return [value, [(s.name, s.status, s.output, s.index, s.attempt) for s in stored]]

    run = run_job(app, either(body))
    assert run.output == [42, [["double", "completed", 42, 0, 1]]]


def test_a_step_may_be_a_coroutine_function_in_either_kind_of_job(app: Durably, either: Wrap) -> None:
    # contract 70
    async def fetch(n: int) -> int:
        await asyncio.sleep(0)
        return n + 1

    async def body(step: Any, _input: Any) -> Any:
        return await step.run("fetch", fetch, 1)

    assert run_job(app, either(body)).output == 2


def test_a_completed_step_is_neither_called_nor_told_again(app: Durably, either: Wrap) -> None:
    # contract 64, 71, 101
    calls: list[str] = []

    def note(name: str) -> int:
        calls.append(name)
        return len(calls)

    async def body(step: Any, _input: Any) -> Any:
        calls.append("job")
        first = await step.run("first", lambda: note("first"))
        second = await step.run("second", lambda: note("second"))
        if step.attempt == 1:
            raise RuntimeError("after two steps")
        return [first, second, await step.run("third", lambda: calls.append("third"))]

    failed = run_job(app, either(body))
    heard = hear(app)
    resumed = resume(app, failed)
    assert resumed.output == [2, 3, None]
    assert calls == ["job", "first", "second", "job", "third"]
    assert types(heard, "step:") == ["step:start", "step:complete"]
    assert {e.step_name for e in heard if e.type.startswith("step:")} == {"third"}


def test_a_job_whose_steps_were_reordered_added_and_removed_resumes_by_name(make_app: AppMaker) -> None:
    # contract 72
    def before(step: StepContext, input: None) -> list[str]:
        for name in ("a", "b", "c"):
            step.run(name, lambda name=name: f"old {name}")
        raise RuntimeError

    def after(step: StepContext, input: None) -> list[str]:
        return [step.run(name, lambda name=name: f"new {name}") for name in ("c", "x", "a")]

    old, new = make_app(), make_app()
    failed = run_job(old, before)
    new.register(define_job("job", after))
    assert resume(new, failed).output == ["old c", "new x", "old a"]


def test_the_schema_refuses_a_second_checkpoint_of_one_name(app: Durably) -> None:
    # contract 73
    run = run_job(app, as_def(lambda step: step.run("once", lambda: 1)))
    with (
        pytest.raises(IntegrityError, match=r"(?i)unique|duplicate"),
        app.database.writing() as connection,
    ):
        connection.execute(
            text(
                "INSERT INTO durably_steps (run_id, name, attempt, position, status, output, started_at, completed_at) "
                "VALUES (:id, 'once', 2, 1, 'completed', '2', 0, 0)"
            ),
            {"id": run.id},
        )
    assert [s.output for s in app.get_steps(run.id)] == [1]


def as_def(body: Callable[[StepContext], Any]) -> Callable[[Any, Any], Any]:
    """Make a job function of an expression over its step."""

    def run(step: StepContext, input: None) -> Any:
        return body(step)

    return run


class Colour(enum.Enum):
    RED = "red"


class Part(pydantic.BaseModel):
    when: datetime
    amount: Decimal


@dataclass
class Whole:
    parts: list[Part]
    pair: tuple[int, str]


class Options(TypedDict):
    colour: Colour
    lasts: timedelta


PART = Part(when=datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=UTC), amount=Decimal("1.10"))
TYPED_VALUES: list[tuple[Any, Any]] = [
    (tuple[int, str], (1, "one")),
    (set[int], {1, 2, 3}),
    (frozenset[str], frozenset({"a"})),
    (datetime, PART.when),
    (datetime, datetime(2024, 1, 1)),  # noqa: DTZ001 - a naive one stays naive
    (date, date(2024, 2, 29)),
    (timedelta, timedelta(days=3, microseconds=1)),
    (Decimal, Decimal("0.10")),
    (UUID, UUID(int=7)),
    (Colour, Colour.RED),
    (Part, PART),
    (Whole, Whole([PART], (1, "x"))),
    (Options, Options(colour=Colour.RED, lasts=timedelta(seconds=90))),
    (dict[int, Part], {7: PART}),
    (dict[UUID, tuple[date, ...]], {UUID(int=7): (date(2024, 1, 1),)}),
    (Part | None, None),
    (Part | Whole, Whole([], (2, "y"))),
    (int | str, "1"),
    (float, 3),
    (list[float], [1.5, 1e308, -0.0]),
    (Any, {"a": [1, 2.5, None, True, "ü\u2028\U0001f600"]}),
    (int, 2**70),
]


@pytest.mark.parametrize(("declared", "value"), TYPED_VALUES, ids=spelled)
def test_a_step_returns_the_first_time_what_its_replay_returns_to_the_type(
    app: Durably, declared: Any, value: Any
) -> None:
    # contract 20, 74, 75
    seen: list[Any] = []

    def job(step: StepContext, input: None) -> None:
        seen.append(step.run("make", lambda: value, output=declared))
        if step.attempt == 1:
            raise RuntimeError

    resume(app, run_job(app, job))
    live, replayed = seen
    assert repr(live) == repr(replayed)
    assert type(live) is type(replayed)
    assert live == replayed == value


def test_the_return_annotation_is_the_steps_type_and_output_goes_before_it(app: Durably, either: Wrap) -> None:
    # contract 75
    def annotated() -> tuple[int, ...]:
        return (1, 2)

    async def body(step: Any, _input: Any) -> Any:
        by_annotation = await step.run("annotated", annotated)
        by_argument = await step.run("given", annotated, output=list[str | int])
        plain = await step.run("plain", lambda: (1, 2))
        return [repr(value) for value in (by_annotation, by_argument, plain)]

    assert run_job(app, either(body)).output == ["(1, 2)", "[1, 2]", "[1, 2]"]


def test_functions_of_one_source_have_the_types_that_each_was_made_with(app: Durably, either: Wrap) -> None:
    # contract 75
    def loader(kind: Any, value: Any) -> Any:
        def load() -> kind:
            return value

        load.__annotations__["return"] = kind  # as it is without `from __future__ import annotations`
        return load

    async def body(step: Any, _input: Any) -> Any:
        pair = await step.run("pair", loader(tuple[int, int], (1, 2)))
        number = await step.run("number", loader(Decimal, Decimal("1.5")))
        return [repr(value) for value in (pair, number)]

    assert run_job(app, either(body)).output == ["(1, 2)", "Decimal('1.5')"]


def test_a_result_that_cannot_be_encoded_fails_the_step_with_the_path_inside_the_value(
    app: Durably, either: Wrap
) -> None:
    # contract 76
    caught: list[Any] = []

    async def body(step: Any, _input: Any) -> Any:
        try:
            await step.run("load rows", lambda: {"rows": [1, {"when": object()}]})
        except TypeError as error:
            caught.append(error)
        return "went on"

    run = run_job(app, either(body))
    (error,) = caught
    assert isinstance(error, EncodingError)
    assert error.path == "$.rows[1].when"
    assert "'load rows'" in str(error)
    assert "dict" in str(error)
    assert "object" in str(error)
    assert (run.status, run.output) == ("completed", "went on")
    (step,) = app.get_steps(run.id)
    assert (step.status, step.error_type) == ("failed", "EncodingError")


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), {1: "x"}, {None: 1}, b"bytes", {1, 2}, "\ud800", {"\udfff": 1}],
    ids=spelled,
)
def test_what_json_cannot_give_back_is_refused_without_a_declared_type(app: Durably, value: Any) -> None:
    # contract 25, 76
    run = run_job(app, as_def(lambda step: step.run("make", lambda: value)))
    assert (run.status, run.error_type) == ("failed", "EncodingError")


def test_a_value_that_contains_itself_is_refused(app: Durably) -> None:
    # contract 76
    def make() -> list[Any]:
        value: list[Any] = []
        value.append(value)
        return value

    run = run_job(app, as_def(lambda step: step.run("make", make, output=Any)))
    assert run.error_type == "EncodingError"


def test_a_value_unlike_the_declared_type_fails_the_step(app: Durably) -> None:
    # contract 76
    run = run_job(app, as_def(lambda step: step.run("make", lambda: {"a": "x"}, output=dict[str, int])))
    assert run.error_type == "EncodingError"
    assert "$.a" in (run.error or "")


def test_a_result_over_max_payload_bytes_fails_the_step_with_its_size_and_the_limit(make_app: AppMaker) -> None:
    # contract 76
    app = make_app(max_payload_bytes=2000)
    fits = run_job(app, as_def(lambda step: len(step.run("fits", lambda: "x" * 1998))))
    assert fits.output == 1998
    caught: list[PayloadTooLargeError] = []

    def job(step: StepContext, input: None) -> None:
        try:
            step.run("large", lambda: "ü" * 1000)
        except PayloadTooLargeError as error:
            caught.append(error)
            raise

    run = app.register(define_job("other", job)).trigger()
    app.process_one()
    assert (caught[0].size, caught[0].limit) == (2002, 2000)
    assert read(app, run).error_type == "PayloadTooLargeError"


def test_a_checkpoint_that_no_longer_fits_its_type_raises_without_calling_the_step(make_app: AppMaker) -> None:
    # contract 77
    def before(step: StepContext, input: None) -> None:
        step.run("load", lambda: "text")
        raise RuntimeError

    called: list[str] = []
    caught: list[CheckpointError] = []

    def load() -> int:
        called.append("load")
        return 1

    def after(step: StepContext, input: None) -> int:
        try:
            return step.run("load", load)
        except CheckpointError as error:
            caught.append(error)
            raise

    old, new = make_app(), make_app()
    failed = run_job(old, before)
    new.register(define_job("job", after))
    resumed = resume(new, failed)
    assert (resumed.status, resumed.error_type) == ("failed", "CheckpointError")
    assert caught[0].step_name == "load"
    assert not called
    assert [s.output for s in new.get_steps(failed.id) if s.status == "completed"] == ["text"]


def test_nothing_that_reads_the_database_can_unpickle_or_evaluate() -> None:
    # contract 78
    package = Path(durably.__file__).parent
    readers = [*package.glob("*.py"), *package.glob("store/**/*.py"), *package.glob("worker/*.py")]
    forbidden = {"pickle", "dill", "marshal", "shelve", "eval", "exec", "__import__"}
    for path in readers:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {getattr(node, "id", None), getattr(node, "module", None)}
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            assert not names & forbidden, f"{path.name}:{getattr(node, 'lineno', 0)}"
    assert len(readers) > 30


def test_a_second_step_of_the_same_name_is_refused_before_its_function_is_called(app: Durably, either: Wrap) -> None:
    # contract 79
    calls: list[int] = []

    async def body(step: Any, _input: Any) -> Any:
        await step.run("same", calls.append, 1)
        with pytest.raises(DuplicateStepError, match="'same'") as refused:
            await step.run("same", calls.append, 2)
        return refused.value.step_name

    assert run_job(app, either(body)).output == "same"
    assert calls == [1]


def test_a_replayed_name_counts_as_used(app: Durably, either: Wrap) -> None:
    # contract 79
    async def body(step: Any, _input: Any) -> Any:
        value = await step.run("same", lambda: "value")
        if step.attempt == 1:
            raise RuntimeError
        with pytest.raises(DuplicateStepError):
            await step.run("same", lambda: "another")
        return value

    assert resume(app, run_job(app, either(body))).output == "value"


def test_a_name_in_flight_is_refused_to_a_concurrent_step(app: Durably) -> None:
    # contract 79
    calls: list[str] = []

    async def slow(name: str) -> str:
        calls.append(name)
        await asyncio.sleep(0.01)
        return name

    async def job(step: AsyncStep, input: None) -> list[str]:
        outcomes = await asyncio.gather(
            step.run("same", slow, "one"), step.run("same", slow, "two"), return_exceptions=True
        )
        return [str(o) if isinstance(o, str) else type(o).__name__ for o in outcomes]

    assert run_job(app, job).output == ["one", "DuplicateStepError"]
    assert calls == ["one"]


def test_a_name_in_flight_in_another_thread_of_the_job_is_refused(app: Durably) -> None:
    # contract 79
    def job(step: StepContext, input: None) -> str:
        begun, go_on = threading.Event(), threading.Event()

        def slow() -> str:
            begun.set()
            go_on.wait(10)
            return "first"

        with ThreadPoolExecutor() as threads:
            first = threads.submit(step.run, "same", slow)
            begun.wait(10)
            with pytest.raises(DuplicateStepError):
                step.run("same", lambda: "second")
            go_on.set()
            return str(first.result())

    assert run_job(app, job).output == "first"


def test_a_name_may_run_again_after_it_failed_in_the_same_execution(app: Durably, either: Wrap) -> None:
    # contract 80, 82
    async def body(step: Any, _input: Any) -> Any:
        tries = []

        def flaky() -> int:
            tries.append(1)
            if len(tries) < 3:
                raise ConnectionError(f"try {len(tries)}")
            return len(tries)

        while True:
            try:
                return await step.run("flaky", flaky)
            except ConnectionError:
                pass

    run = run_job(app, either(body))
    assert run.output == 3
    stored = [(s.attempt, s.status, s.error, s.index) for s in app.get_steps(run.id)]
    assert stored == [
        (1, "failed", "try 1", 0),
        (2, "failed", "try 2", 0),
        (3, "completed", None, 0),
    ]


class OutOfPaperError(Exception):
    """An exception of an application."""

    __module__ = "printing"


def test_an_exception_of_a_step_is_stored_told_and_raised_unchanged(app: Durably, either: Wrap) -> None:
    # contract 81, 143, 146
    original = OutOfPaperError("tray 2")
    caught: list[BaseException] = []

    def fail() -> None:
        raise original from KeyError("the cause")

    async def body(step: Any, _input: Any) -> Any:
        try:
            await step.run("print", fail)
        except OutOfPaperError as error:
            caught.append(error)
        return await step.run("go on", lambda: "went on")

    heard = hear(app)
    run = run_job(app, either(body))
    assert run.output == "went on"
    assert caught[0] is original
    failed = app.get_steps(run.id)[0]
    assert (failed.name, failed.attempt, failed.status, failed.error) == ("print", 1, "failed", "tray 2")
    assert failed.error_type is not None
    assert failed.error_type == "printing.OutOfPaperError"
    assert failed.error_traceback is not None
    assert "KeyError: 'the cause'" in failed.error_traceback
    assert "in fail" in failed.error_traceback
    assert failed.output is None
    assert run.created_at <= failed.started_at <= failed.completed_at
    (event,) = [e for e in heard if e.type == "step:fail"]
    assert (event.error, event.error_type, event.attempt) == ("tray 2", failed.error_type, 1)
    assert types(heard, "step:") == ["step:start", "step:fail", "step:start", "step:complete"]


def test_failed_attempts_are_numbered_across_retries_and_recoveries(app: Durably) -> None:
    # contract 82
    def job(step: StepContext, input: None) -> str:
        def flaky() -> str:
            if step.attempt < 3:
                raise ConnectionError(str(step.attempt))
            return "at last"

        step.run("before", lambda: None)
        return step.run("flaky", flaky)

    run = run_job(app, job)
    run = resume(app, run)
    app.retry(run.id)
    lost = add_worker(app, "job")
    claim(app, lost)
    recover(app, lost)
    app.process_one()
    assert read(app, run).output == "at last"
    assert [(s.name, s.attempt, s.status, s.index) for s in app.get_steps(run.id)] == [
        ("before", 1, "completed", 0),
        ("flaky", 1, "failed", 1),
        ("flaky", 2, "failed", 1),
        ("flaky", 3, "completed", 1),
    ]


def test_replay_keeps_each_index_and_resuming_never_inflates_them(app: Durably, either: Wrap) -> None:
    # contract 83
    async def body(step: Any, _input: Any) -> Any:
        for n in range(step.attempt):
            await step.run(f"step {n}", lambda: None)
        if step.attempt < 4:
            raise RuntimeError

    run = run_job(app, either(body))
    for _ in range(3):
        run = resume(app, run)
    assert [(s.name, s.index) for s in app.get_steps(run.id)] == [(f"step {n}", n) for n in range(4)]
    assert (run.current_step_index, run.completed_step_count) == (4, 4)


def test_concurrent_steps_have_different_indexes_and_checkpoints_of_their_own(app: Durably) -> None:
    # contract 83, 84
    async def one(n: int) -> int:
        await asyncio.sleep(0.001 * (5 - n))
        if n == 3:
            raise RuntimeError("the sibling")
        return n * n

    async def job(step: AsyncStep, input: None) -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(step.run(f"square {n}", one, n)) for n in range(5)]
        return [task.result() for task in tasks]

    run = run_job(app, job)
    assert run.status == "failed"
    stored = app.get_steps(run.id)
    done = {s.name: s.output for s in stored if s.status == "completed"}
    assert done["square 4"] == 16
    assert len({s.index for s in stored}) == len({s.name for s in stored})
    assert [s.name for s in stored if s.status == "failed"] == ["square 3"]


def test_gathered_steps_all_complete_and_replay(app: Durably) -> None:
    # contract 84
    calls: list[int] = []

    async def square(n: int) -> int:
        calls.append(n)
        return n * n

    async def job(step: AsyncStep, input: None) -> list[int]:
        values = await asyncio.gather(*(step.run(f"square {n}", square, n) for n in range(20)))
        if step.attempt == 1:
            raise RuntimeError
        return values

    assert resume(app, run_job(app, job)).output == [n * n for n in range(20)]
    assert sorted(calls) == list(range(20))


def test_steps_may_run_in_threads_of_a_synchronous_job(app: Durably) -> None:
    # contract 84
    def job(step: StepContext, input: None) -> list[int]:
        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(lambda n: step.run(f"square {n}", lambda: n * n), range(20)))

    run = run_job(app, job)
    assert run.output == [n * n for n in range(20)]
    assert sorted(s.index for s in app.get_steps(run.id)) == list(range(20))


@pytest.mark.parametrize("ending", [Cancelled, LeaseLost, Released])
def test_control_flow_inside_a_group_outweighs_ordinary_errors(app: Durably, either: Wrap, ending: type[Any]) -> None:
    # contract 85
    stopping = threading.Thread(target=app.stop, args=(0.0,))
    caught: list[type[BaseException]] = []

    async def body(step: Any, _input: Any) -> Any:
        def end() -> None:
            if ending is Cancelled:
                app.cancel(step.run_id)
            elif ending is LeaseLost:
                sql(app, "UPDATE durably_runs SET generation = generation + 1")
                sql(app, "UPDATE durably_workers SET state = 'dead'")
            else:
                stopping.start()
                assert step.cancelled.wait(10)

        try:
            await step.run("end", end)
        except BaseException as error:
            caught.append(type(error))
            nested = BaseExceptionGroup("inner", [error, KeyError("x")])
            raise BaseExceptionGroup("outer", [ValueError("ordinary"), nested]) from None

    run = app.register(define_job("job", either(body))).trigger()
    app.start()
    eventually(lambda: caught)
    app.stop()
    assert caught == [ending]
    ended = read(app, run)
    assert ended.status == {Cancelled: "cancelled", LeaseLost: "running", Released: "pending"}[ending]
    assert ended.error is None
    if stopping.ident is not None:
        stopping.join()


def test_a_blocking_step_of_an_async_job_holds_up_no_other_run(make_app: AppMaker) -> None:
    # contract 86
    app = make_app(concurrency=2)
    go_on = threading.Event()

    @app.job("blocks")
    async def blocks(step: AsyncStep, input: None) -> bool:
        return await step.run("wait", lambda: go_on.wait(10))

    @app.job("quick")
    async def quick(step: AsyncStep, input: None) -> str:
        return await step.run("quick", lambda: "done")

    blocked = blocks.trigger()
    app.start()
    eventually(lambda: read(app, blocked).status == "running")
    assert quick.trigger_and_wait(timeout=10).output == "done"
    assert read(app, blocked).status == "running"
    go_on.set()
    assert app.wait_for_run(blocked.id, timeout=10).output is True


def test_a_blocking_synchronous_job_holds_up_no_other_run(make_app: AppMaker) -> None:
    # contract 86
    app = make_app(concurrency=2)
    go_on = threading.Event()

    @app.job("blocks")
    def blocks(step: StepContext, input: None) -> bool:
        return go_on.wait(10)

    @app.job("quick")
    async def quick(step: AsyncStep, input: None) -> str:
        return "done"

    blocked = blocks.trigger()
    app.start()
    eventually(lambda: read(app, blocked).status == "running")
    assert quick.trigger_and_wait(timeout=10).output == "done"
    go_on.set()
    assert app.wait_for_run(blocked.id, timeout=10).output is True


def test_a_step_after_the_end_of_its_run_raises_and_writes_nothing(app: Durably) -> None:
    # contract 87
    kept: list[StepContext] = []
    called: list[str] = []
    run = run_job(app, as_def(kept.append))
    with pytest.raises(UsageError, match=run.id):
        kept[0].run("late", called.append, "late")
    assert not called
    assert app.get_steps(run.id) == []


def test_a_step_after_a_cancellation_raises_it_again_and_writes_nothing(app: Durably, either: Wrap) -> None:
    # contract 87, 92, 97
    called: list[str] = []
    raised: list[str] = []

    async def body(step: Any, _input: Any) -> Any:
        await step.run("first", lambda: None)
        app.cancel(step.run_id)
        for name in ("second", "third", "first"):
            try:
                await step.run(name, called.append, name)
            except Cancelled:
                raised.append(name)
        return "swallowed it"

    run = run_job(app, either(body))
    assert raised == ["second", "third", "first"]
    assert not called
    assert (run.status, run.output) == ("cancelled", None)
    assert [s.name for s in app.get_steps(run.id)] == ["first"]


def test_steps_and_logs_stay_after_the_run(app: Durably) -> None:
    # contract 88
    def job(step: StepContext, input: None) -> None:
        step.run("kept", lambda: {"value": 1})
        step.log.info("kept")

    run = run_job(app, job)
    assert [s.output for s in app.get_steps(run.id)] == [{"value": 1}]
    assert [entry.message for entry in app.get_logs(run.id)] == ["kept"]


def test_without_preserve_steps_the_outputs_go_with_the_completion_and_stay_with_a_failure(
    make_app: AppMaker,
) -> None:
    # contract 88
    app = make_app(preserve_steps=False)

    def job(step: StepContext, input: None) -> int:
        value = step.run("load", lambda: 7)
        if step.attempt == 1:
            raise RuntimeError
        return value

    failed = run_job(app, job)
    assert [s.output for s in app.get_steps(failed.id)] == [7]
    assert resume(app, failed).output == 7
    (step,) = app.get_steps(failed.id)
    assert (step.name, step.attempt, step.status, step.output) == ("load", 1, "completed", None)


def test_without_preserve_steps_the_outputs_stay_with_a_cancellation(make_app: AppMaker) -> None:
    # contract 88, 99
    app = make_app(preserve_steps=False)

    def job(step: StepContext, input: None) -> None:
        step.run("load", lambda: 7)
        app.cancel(step.run_id)

    run = run_job(app, job)
    assert run.status == "cancelled"
    assert [s.output for s in app.get_steps(run.id)] == [7]


def test_the_token_tells_a_long_step_of_the_cancellation(app: Durably, either: Wrap) -> None:
    # contract 89, 95
    seen: list[Any] = []

    async def body(step: Any, _input: Any) -> Any:
        seen.append((step.run_id, step.attempt, step.cancelled.is_set(), step.cancelled.reason))

        def long() -> None:
            seen.append(step.cancelled.wait(0))
            step.cancelled.raise_if_set()
            app.cancel(step.run_id)
            seen.append((step.cancelled.wait(10), step.cancelled.is_set(), step.cancelled.reason))
            step.cancelled.raise_if_set()
            seen.append("not reached")

        try:
            await step.run("long", long)
        except Cancelled:
            seen.append("Cancelled")
            raise

    heard = hear(app)
    run = run_job(app, either(body))
    assert seen == [(run.id, 1, False, None), False, (True, True, "cancelled"), "Cancelled"]
    assert types(heard, "step:") == ["step:start", "step:cancel"]
    assert run.status == "cancelled"
    assert app.get_steps(run.id) == []


def test_the_token_can_be_awaited(app: Durably) -> None:
    # contract 89
    async def job(step: AsyncStep, input: None) -> None:
        async def long() -> None:
            task = asyncio.create_task(step.cancelled.fired())
            await app.acancel(step.run_id)
            reasons.append(await asyncio.wait_for(task, 10))

        await step.run("long", long)

    reasons: list[str] = []
    assert run_job(app, job).status == "cancelled"
    assert reasons == ["cancelled"]


def test_a_result_that_comes_after_the_cancellation_is_discarded(app: Durably, either: Wrap) -> None:
    # contract 92, 95
    async def body(step: Any, _input: Any) -> Any:
        await step.run("late", lambda: app.cancel(step.run_id) and None)

    heard = hear(app)
    run = run_job(app, either(body))
    assert run.status == "cancelled"
    assert app.get_steps(run.id) == []
    assert types(heard, "step:") == ["step:start", "step:cancel"]
    assert types(heard, "run:").count("run:cancel") == 1


@pytest.mark.parametrize("name", ["", " x", "x ", "a\nb", "a\0b", "x" * 256, 7, None], ids=spelled)
def test_a_step_name_that_is_none_is_refused_before_its_function_is_called(
    app: Durably, either: Wrap, name: Any
) -> None:
    # contract 17
    called: list[int] = []

    async def body(step: Any, _input: Any) -> Any:
        await step.run(name, called.append, 1)

    run = run_job(app, either(body))
    assert (run.status, run.error_type) == ("failed", "ValidationError")
    assert (run.error or "").startswith("name: ")
    assert not called


def test_a_step_that_raises_stop_iteration_fails_like_any_other(app: Durably, either: Wrap) -> None:
    # contract 81: `next()` on an exhausted iterator is what it comes from, and generators make it special
    async def body(step: Any, _input: Any) -> Any:
        try:
            await step.run("next", lambda: next(iter(())))
        except (StopIteration, RuntimeError):
            return "caught"

    run = run_job(app, either(body))
    assert (run.status, run.output) == ("completed", "caught")
    assert [s.status for s in app.get_steps(run.id)] == ["failed"]


def test_a_step_whose_argument_has_the_name_of_an_option_takes_it_by_partial(app: Durably) -> None:
    # contract 70
    from functools import partial

    def greet(name: str, *, output: str) -> str:
        return f"{output} {name}"

    run = run_job(app, as_def(lambda step: step.run("greet", partial(greet, output="Hello"), "you")))
    assert run.output == "Hello you"


def test_a_step_cut_off_by_the_jobs_own_time_out_can_be_run_again(app: Durably) -> None:
    # contract 79, 80
    async def job(step: AsyncStep, input: None) -> str:
        try:
            async with asyncio.timeout(0.02):
                await step.run("slow", asyncio.sleep, 10)
        except TimeoutError:
            return await step.run("slow", lambda: "quicker")
        return "not cut off"

    run = run_job(app, job)
    assert (run.output, run.error) == ("quicker", None)


@pytest.mark.parametrize("returns", [False, True])
def test_a_step_that_nobody_awaits_fails_the_run_and_is_named(app: Durably, *, returns: bool) -> None:
    # contract 70a, 185
    async def forgetful(step: AsyncStep, input: Any) -> Any:
        await step.run("first", lambda: 1)
        forgotten = step.run("second", lambda: 2)
        return forgotten if returns else None

    run = run_job(app, forgetful)
    assert (run.status, run.error_type) == ("failed", "UsageError")
    assert run.error is not None
    assert "await step.run('second'" in run.error
    assert [step.name for step in app.get_steps(run.id)] == ["first"]


def test_a_step_that_was_cancelled_before_it_began_is_none_that_was_forgotten(app: Durably) -> None:
    # contract 70a
    async def changing_its_mind(step: AsyncStep, input: Any) -> int:
        task = asyncio.create_task(step.run("never", lambda: 1))
        task.cancel()
        await asyncio.wait([task])
        return await step.run("instead", lambda: 2)

    assert run_job(app, changing_its_mind).output == 2


def test_the_duration_of_a_step_is_its_own(app: Durably) -> None:
    # contract 81
    heard = hear(app, "step:complete")
    run = run_job(app, as_def(lambda step: step.run("wait", time.sleep, 0.05)))
    (step,) = app.get_steps(run.id)
    assert 0.05 <= heard[0].duration < 5
    assert timedelta(seconds=0.04) <= step.completed_at - step.started_at < timedelta(seconds=5)


def test_a_checkpoint_survives_whatever_the_job_does_to_the_value(app: Durably, either: Wrap) -> None:
    # contract 74, 182
    async def body(step: Any, _input: Any) -> Any:
        value = await step.run("list", lambda: [1])
        value.append(2)
        if step.attempt == 1:
            raise RuntimeError
        return value

    assert resume(app, run_job(app, either(body))).output == [1, 2]
    assert sql(app, "SELECT output FROM durably_steps")[0].output == "[1]"
