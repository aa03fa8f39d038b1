"""Waiting for runs: outcomes, time-outs, news on the way, and where a wait is refused."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import pytest

from durably import (
    AsyncStep,
    Durably,
    LogEntry,
    NotFoundError,
    Progress,
    RunCancelledError,
    RunFailedError,
    StepContext,
    UsageError,
    ValidationError,
    WaitTimeoutError,
    define_job,
)
from durably.testing.dialects.databases import only_polls
from durably.testing.dialects.suite.support import AppMaker, eventually, hear, read


@pytest.fixture(params=["blocking", "awaited"])
def wait(request: pytest.FixtureRequest, app: Durably) -> Callable[..., Any]:
    """Wait in one form, then in the other."""
    if request.param == "blocking":
        return app.wait_for_run
    return lambda *args, **options: asyncio.run(app.await_run(*args, **options))


def give_back(step: StepContext, input: Any) -> Any:
    return input


def fail(step: StepContext, input: None) -> None:
    raise ValueError("on purpose")


def test_a_completed_run_is_returned_at_once_with_its_output_decoded(app: Durably, wait: Callable[..., Any]) -> None:
    # contract 132
    handle = app.register(define_job("job", give_back, input=date, output=date))
    run = handle.trigger(date(2024, 2, 29))
    app.process_one()
    done = wait(run.id, timeout=0)
    assert (done.status, done.output) == ("completed", date(2024, 2, 29))


def test_where_the_job_is_unknown_the_output_is_json(app: Durably, make_app: AppMaker) -> None:
    # contract 132
    run = app.register(define_job("job", give_back, input=date, output=date)).trigger(date(2024, 2, 29))
    app.process_one()
    assert make_app().wait_for_run(run.id).output == "2024-02-29"


def test_each_other_end_is_an_error_of_its_own_from_the_start(app: Durably, wait: Callable[..., Any]) -> None:
    # contract 133
    failed = app.register(define_job("fail", fail)).trigger()
    app.process_one()
    with pytest.raises(RunFailedError, match="ValueError: on purpose") as told:
        wait(failed.id)
    assert told.value.run == read(app, failed)
    cancelled = app.register(define_job("job", give_back)).trigger()
    app.cancel(cancelled.id)
    with pytest.raises(RunCancelledError) as told_cancel:
        wait(cancelled.id)
    assert told_cancel.value.run.status == "cancelled"
    with pytest.raises(NotFoundError):
        wait("01ARZ3NDEKTSV4RRFFQ69G5FAV")


@pytest.mark.parametrize(
    ("end", "error"), [("cancel", RunCancelledError), ("delete", NotFoundError), ("fail", RunFailedError)]
)
def test_an_end_that_comes_while_waiting_is_told_likewise(
    app: Durably, wait: Callable[..., Any], end: str, error: type[Exception]
) -> None:
    # contract 133, 135
    run = app.register(define_job("fail", fail)).trigger()

    def bring_about() -> None:
        if end == "fail":
            app.process_one()
        else:
            app.cancel(run.id)
        if end == "delete":
            app.delete_run(run.id)

    timer = threading.Timer(0.1, bring_about)
    timer.start()
    # A deleted run was cancelled a moment before, which the wait may have seen.
    with pytest.raises((error, RunCancelledError) if end == "delete" else error):
        wait(run.id, timeout=10)
    timer.join()


def test_a_timeout_leaves_the_run_alone(app: Durably, wait: Callable[..., Any]) -> None:
    # contract 134
    run = app.register(define_job("job", give_back)).trigger()
    began = time.monotonic()
    with pytest.raises(TimeoutError) as told:
        wait(run.id, timeout=0)
    assert isinstance(told.value, WaitTimeoutError)
    with pytest.raises(WaitTimeoutError):
        wait(run.id, timeout=0.2)
    assert 0.2 <= time.monotonic() - began < 5
    assert read(app, run).status == "pending"


@pytest.mark.parametrize("timeout", [-1, float("nan"), True, "5"])
def test_a_timeout_that_is_none_is_refused(app: Durably, wait: Callable[..., Any], timeout: Any) -> None:
    # contract 185
    with pytest.raises(ValidationError, match="timeout"):
        wait("x", timeout=timeout)


@pytest.mark.wakes
def test_an_end_in_the_same_process_is_seen_at_once(make_app: AppMaker) -> None:
    # contract 135
    app = make_app(polling_interval=30)
    handle = app.register(define_job("job", give_back))
    app.start()
    began = time.monotonic()
    assert handle.trigger_and_wait(1, timeout=10).output == 1
    assert asyncio.run(handle.atrigger_and_wait(2, timeout=10)).output == 2
    assert time.monotonic() - began < 8


ELSEWHERE = """
import sys
from durably import Durably
app = Durably(url)
@app.job("job")
def job(step, input):
    for n in range(3):
        step.log.info(f"line {n}", n=n)
        step.progress(n, 3)
        step.run(f"step {n}", lambda: None)
    return input
print("ready", flush=True)
sys.stdin.readline()
app.process_until_idle()
app.database.close()
"""


def test_an_end_and_the_news_of_a_run_in_another_process_arrive(
    make_app: AppMaker, python: Callable[..., subprocess.Popen[str]], url: str
) -> None:
    # contract 135, 136
    app = make_app(polling_interval=1 if only_polls(url) else 30)
    run = app.register(define_job("job", give_back)).trigger("x")
    process = python(ELSEWHERE)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()
    entries: list[LogEntry] = []
    progress: list[Progress] = []
    done = app.wait_for_run(run.id, timeout=20, on_log=entries.append, on_progress=progress.append)
    assert done.output == "x"
    assert [entry.message for entry in entries] == ["line 0", "line 1", "line 2"]
    assert progress[-1] == Progress(current=2, total=3)
    assert [p.current for p in progress] == sorted(p.current for p in progress)


def test_only_entries_committed_since_the_call_are_given(app: Durably, wait: Callable[..., Any]) -> None:
    # contract 136
    @app.job("job")
    def job(step: StepContext, input: None) -> None:
        step.log.info("before")

    run = job.trigger()
    app.process_one()
    entries: list[Any] = []
    wait(run.id, on_log=entries.append)
    assert entries == []


def test_an_exception_in_a_callback_ends_no_wait(app: Durably) -> None:
    # contract 136, 145
    @app.job("job")
    def job(step: StepContext, input: None) -> str:
        step.progress(1)
        step.run("step", lambda: None)
        return "done"

    def broken(_: Any) -> None:
        raise RuntimeError("in a callback")

    heard = hear(app, "worker:error")
    app.start()
    assert job.trigger_and_wait(timeout=10, on_progress=broken).output == "done"
    assert [(e.context, e.error) for e in heard] == [("handler", "in a callback")]


@pytest.mark.parametrize("name", ["on_progress", "on_log"])
def test_a_callback_that_nobody_would_await_is_refused(app: Durably, name: str) -> None:
    # contract 136
    async def callback(_: Any) -> None:
        """Do nothing."""

    run = app.register(define_job("job", give_back)).trigger()
    with pytest.raises(ValidationError) as refused:
        app.wait_for_run(run.id, timeout=0, **{name: callback})
    assert refused.value.field == name


def test_trigger_and_wait_waits_for_the_existing_run(app: Durably) -> None:
    # contract 137
    handle = app.register(define_job("job", give_back))
    first = handle.trigger(1, idempotency_key="k", concurrency_key="c")
    app.process_one()
    again = handle.trigger_and_wait(2, timeout=1, idempotency_key="k")
    assert (again.id, again.output) == (first.id, 1)
    pending = handle.trigger(3, concurrency_key="c")
    app.start()
    coalesced = handle.trigger_and_wait(4, timeout=10, concurrency_key="c", coalesce="skip")
    assert coalesced.id == pending.id or coalesced.output == 4


def test_a_blocking_wait_on_the_workers_loop_is_refused_at_once(app: Durably) -> None:
    # contract 138
    child = app.register(define_job("child", give_back)).trigger()

    @app.job("parent")
    async def parent(step: AsyncStep, input: None) -> str:
        try:
            app.wait_for_run(child.id, timeout=5)
        except UsageError as error:
            return str(error)
        return "waited"

    app.start()
    assert "await" in parent.trigger_and_wait(timeout=10).output


def test_cancelling_an_awaited_wait_leaves_the_run_alone(app: Durably) -> None:
    # contract 138
    run = app.register(define_job("job", give_back)).trigger()

    async def give_up() -> None:
        async with asyncio.timeout(0.1):
            await app.await_run(run.id)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    assert read(app, run).status == "pending"
    app.start()
    assert eventually(lambda: read(app, run).status == "completed")


@pytest.mark.parametrize("kind", ["threads", "tasks"])
def test_any_number_of_waits_at_once_see_their_ends_and_hold_nobody_up(make_app: AppMaker, kind: str) -> None:
    # contract 8, 132, 135
    app = make_app(polling_interval=30, concurrency=10)
    handle = app.register(define_job("job", give_back))
    runs = handle.batch_trigger(range(150))

    def wait_in_threads() -> list[Any]:
        with ThreadPoolExecutor(len(runs)) as threads:
            waits = [threads.submit(app.wait_for_run, run.id, timeout=60) for run in runs]
            eventually(lambda: len(app._ends._wakes) == len(runs))
            app.start()
            return [wait.result().output for wait in waits]

    async def wait_in_tasks() -> list[Any]:
        waits = [asyncio.ensure_future(app.await_run(run.id, timeout=60)) for run in runs]
        async with asyncio.timeout(30):
            while len(app._ends._wakes) < len(runs):  # noqa: ASYNC110 - a condition, not a pause
                await asyncio.sleep(0.01)
        await app.astart()
        return [run.output for run in await asyncio.gather(*waits)]

    began = time.monotonic()
    assert (wait_in_threads() if kind == "threads" else asyncio.run(wait_in_tasks())) == list(range(150))
    assert time.monotonic() - began < 25
    assert app._ends._wakes == {}


@pytest.mark.wakes
def test_a_wait_that_is_given_up_while_it_begins_leaves_nothing_open(app: Durably) -> None:
    # contract 138
    run = app.register(define_job("job", give_back)).trigger()

    async def give_up(after: float) -> None:
        wait = asyncio.ensure_future(app.await_run(run.id))
        await asyncio.sleep(after)
        wait.cancel()

    for n in range(40):
        asyncio.run(give_up(n / 10_000))
    watches = [app.database.open_watch() for _ in range(8)]
    assert None not in watches or sys.platform != "linux"
    for watch in watches:
        if watch is not None:
            app.database.close_watch(watch)
