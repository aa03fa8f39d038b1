"""One instance used from threads, loops and jobs at once, and while the database is busy."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from durably import AsyncStep, DatabaseUnavailableError, Durably, StepContext, define_job
from durably.testing.dialects.databases import databases
from durably.testing.dialects.suite.support import AppMaker, Lock, Wrap, eventually, read


def test_threads_and_loops_use_one_instance_at_once(app: Durably) -> None:
    # contract 8
    handle = app.register(define_job("job", lambda step, value: value))

    def on_a_thread(n: int) -> list[str]:
        return [handle.trigger(n).id for _ in range(5)]

    def on_a_loop(n: int) -> list[str]:
        async def go() -> list[str]:
            return [run.id for run in await asyncio.gather(*(handle.atrigger(n) for _ in range(5)))]

        return asyncio.run(go())

    with ThreadPoolExecutor(8) as threads:
        futures = [threads.submit(f, n) for n in range(4) for f in (on_a_thread, on_a_loop)]
    made = [run_id for future in futures for run_id in future.result()]
    assert len(set(made)) == len(app.get_runs()) == 40


def test_job_code_may_call_the_instance_in_either_form(make_app: AppMaker, either: Wrap) -> None:
    # contract 8
    app = make_app(concurrency=2)
    child = app.register(define_job("child", lambda step, value: value))

    async def body(step: Any, _input: Any) -> Any:
        def inside() -> list[Any]:
            run = child.trigger(1)
            return [len(app.get_runs(job_name="child")), app.wait_for_run(run.id, timeout=10).output]

        return await step.run("inside", inside)

    parent = app.register(define_job("parent", either(body)))
    app.start()
    assert parent.trigger_and_wait(timeout=20).output == [1, 1]


def test_an_async_job_may_await_a_child_on_the_workers_loop(make_app: AppMaker) -> None:
    # contract 8, 138
    app = make_app(concurrency=2)
    child = app.register(define_job("child", lambda step, value: value))

    @app.job("parent")
    async def parent(step: AsyncStep, input: None) -> int:
        run = await child.atrigger_and_wait(5, timeout=10)
        app.get_run(run.id)
        return int(run.output)

    app.start()
    assert parent.trigger_and_wait(timeout=20).output == 5


def test_a_call_gives_up_on_a_busy_database_after_its_timeout(
    make_app: AppMaker, locked: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 183
    databases().hurry(monkeypatch)
    app = make_app(database_timeout=0.3)
    handle = app.register(define_job("job", lambda step, value: value))
    with locked():
        # A libSQL server lets a writer wait for its turn and does not say so.
        with pytest.raises(DatabaseUnavailableError, match=r"(?i)lock|timed out") as refused:
            handle.trigger()
        assert refused.value.__cause__ is not None
        assert app.get_runs() == []
    assert handle.trigger().status == "pending"


def test_a_job_that_was_registered_after_the_start_is_executed(app: Durably) -> None:
    # contract 22
    app.register(define_job("early", lambda step, value: value))
    app.start()

    @app.job("late")
    def late(step: StepContext, input: None) -> str:
        return "done"

    run = late.trigger()
    assert eventually(lambda: read(app, run).output) == "done"
