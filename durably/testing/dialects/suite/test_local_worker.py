"""The worker inside a process: start, stop, drain, release, slots, progress and logs, processing by hand."""

import asyncio
import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from durably import (
    AsyncStep,
    Cancelled,
    Durably,
    LeaseLost,
    Progress,
    Released,
    RunFailedError,
    StepContext,
    UsageError,
    ValidationError,
    define_job,
)
from durably.local import LocalWorker
from durably.store import workers
from durably.store.committer import Committer
from durably.supervisor.channel import encode
from durably.testing.dialects.databases import databases
from durably.testing.dialects.suite.support import (
    AppMaker,
    Lock,
    Wrap,
    add_worker,
    eventually,
    hear,
    make_silent,
    read,
    sql,
    types,
)


def give_back(step: StepContext, input: Any) -> Any:
    return input


def states(app: Durably) -> list[str]:
    return [worker.state for worker in app.database.read(workers.get_workers)]


def test_start_and_stop_may_be_called_in_any_number_and_order(app: Durably) -> None:
    # contract 153, 157
    handle = app.register(define_job("job", give_back))
    app.stop()
    for _ in range(2):
        app.start()
        app.start()
        assert states(app).count("alive") == 1
        assert handle.trigger_and_wait(timeout=10).status == "completed"
        app.stop()
        app.stop()
    assert states(app) == ["stopped", "stopped"]
    run = handle.trigger()
    assert read(app, run).status == "pending"


def test_the_awaitable_twins_start_and_stop(app: Durably) -> None:
    # contract 153
    handle = app.register(define_job("job", give_back))

    async def go() -> Any:
        await app.astart()
        try:
            return await handle.atrigger_and_wait(3, timeout=10)
        finally:
            await app.astop()

    assert asyncio.run(go()).output == 3
    assert states(app) == ["stopped"]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_at_most_concurrency_runs_execute_at_once_and_freed_slots_are_refilled(make_app: AppMaker, kind: str) -> None:
    # contract 154
    app = make_app(concurrency=3, polling_interval=30)
    lock, now, most = threading.Lock(), [0], [0]

    def enter() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])

    def leave() -> None:
        with lock:
            now[0] -= 1

    def sync(step: StepContext, input: int) -> None:
        enter()
        time.sleep(0.005)
        leave()

    async def asynchronous(step: AsyncStep, input: int) -> None:
        enter()
        await asyncio.sleep(0.005)
        leave()

    handle = app.register(define_job("job", sync if kind == "sync" else asynchronous))
    runs = handle.batch_trigger(range(40))
    app.start()
    for run in runs:
        app.wait_for_run(run.id, timeout=10)
    assert most == [3]


def test_of_many_calls_that_stop_at_once_none_closes_what_another_has_opened(app: Durably) -> None:
    # contract 157
    def stop() -> int:
        app.stop()
        return os.open(os.devnull, os.O_RDWR)

    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            app.start()
            opened = [f.result(20) for f in [threads.submit(stop) for _ in range(8)]]
            for descriptor in opened:
                os.close(descriptor)  # an error here: somebody else has closed it


def test_a_thread_that_has_the_id_of_one_that_ended_is_none_of_the_workers(app: Durably) -> None:
    # contract 157
    app.start()
    local = app.in_process._started
    assert isinstance(local, LocalWorker)
    worker = local._worker
    assert worker is not None
    ended = worker._thread
    app.stop()
    assert ended is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "get_ident", lambda: ended.ident)
        assert not worker.must_not_block()


def test_stop_waits_for_held_runs_claims_no_more_and_beats_meanwhile(make_app: AppMaker) -> None:
    # contract 54, 157
    app = make_app(heartbeat_interval=0.05, stale_threshold=1)
    go_on, begun = threading.Event(), threading.Event()

    @app.job("job")
    def job(step: StepContext, input: int) -> str:
        begun.set()
        go_on.wait(20)
        return step.run("last", lambda: "done")

    held, waiting = job.trigger(1), job.trigger(2)
    heard = hear(app)
    app.start()
    assert begun.wait(10)
    with ThreadPoolExecutor(2) as threads:
        stops = [threads.submit(app.stop) for _ in range(2)]
        already = types(heard).count("worker:heartbeat")
        eventually(lambda: types(heard).count("worker:heartbeat") > already + 2)
        assert not any(stop.done() for stop in stops)
        go_on.set()
        for stop in stops:
            stop.result(10)
    assert (read(app, held).status, read(app, held).output) == ("completed", "done")
    assert (read(app, waiting).status, read(app, waiting).generation) == ("pending", 0)
    assert types(heard)[-1] == "worker:stop"
    assert (heard[-1].reason, heard[-1].released) == ("stopped", 0)


def test_stop_with_a_timeout_hands_runs_back_at_their_next_step_boundary(make_app: AppMaker, either: Wrap) -> None:
    # contract 37, 139, 158
    app = make_app()
    begun = threading.Event()
    reasons: list[Any] = []

    async def body(step: Any, _input: Any) -> Any:
        def first() -> str:
            begun.set()
            reasons.append(step.cancelled.wait(20) and step.cancelled.reason)
            return "kept"

        kept = await step.run("first", first)
        return [kept, await step.run("second", lambda: "second")]

    run = app.register(define_job("job", either(body))).trigger()
    heard = hear(app)
    app.start()
    assert begun.wait(10)
    app.stop(timeout=0.1)
    released = read(app, run)
    assert reasons == ["released"]
    assert (released.status, released.interruptions, released.generation) == ("pending", 0, 1)
    assert released.worker_id is None
    assert released.started_at is not None
    assert [s.output for s in app.get_steps(run.id)] == ["kept"]
    assert types(heard, "run:", "step:") == ["run:start", "step:start", "step:complete", "run:release"]
    assert (heard[-1].type, heard[-1].released) == ("worker:stop", 1)
    assert app.process_one()
    assert read(app, run).output == ["kept", "second"]
    assert read(app, run).attempt == 1


def test_a_function_without_a_step_left_is_waited_for_and_completes(make_app: AppMaker) -> None:
    # contract 158
    app = make_app()
    begun = threading.Event()

    @app.job("job")
    def job(step: StepContext, input: None) -> str:
        begun.set()
        step.cancelled.wait(20)
        return "done"

    run = job.trigger()
    app.start()
    assert begun.wait(10)
    app.stop(timeout=0)
    assert (read(app, run).status, read(app, run).output) == ("completed", "done")


def test_stop_on_the_workers_own_loop_is_refused(app: Durably) -> None:
    # contract 138, 153
    @app.job("job")
    async def job(step: AsyncStep, input: None) -> str:
        with pytest.raises(UsageError, match="cannot stop the worker that executes it"):
            app.stop()
        return "refused"

    app.start()
    assert job.trigger_and_wait(timeout=10).output == "refused"


def test_process_one_executes_one_and_says_whether_it_did(app: Durably) -> None:
    # contract 159
    handle = app.register(define_job("job", give_back))
    first, second = handle.trigger(1), handle.trigger(2)
    assert app.process_one() is True
    assert (read(app, first).status, read(app, second).status) == ("completed", "pending")
    assert asyncio.run(app.aprocess_one()) is True
    assert app.process_one() is False
    assert set(states(app)) == {"stopped"}


def test_process_one_beats_meanwhile(make_app: AppMaker) -> None:
    # contract 159
    app = make_app(heartbeat_interval=0.05, stale_threshold=1)
    heard = hear(app)

    @app.job("job")
    def job(step: StepContext, input: None) -> None:
        eventually(lambda: types(heard).count("worker:heartbeat") > 2)

    run = job.trigger()
    app.process_one()
    assert read(app, run).status == "completed"


def test_process_until_idle_stops_at_max_runs_and_counts(app: Durably) -> None:
    # contract 160
    handle = app.register(define_job("job", give_back))
    handle.batch_trigger(range(5))
    assert app.process_until_idle(max_runs=0) == 0
    assert app.process_until_idle(max_runs=2) == 2
    assert asyncio.run(app.aprocess_until_idle()) == 3
    assert app.process_until_idle() == 0
    for bad in (-1, True, "3", 1.5):
        with pytest.raises(ValidationError, match="max_runs"):
            app.process_until_idle(max_runs=bad)  # type: ignore[arg-type]


def test_process_until_idle_executes_what_its_runs_trigger(app: Durably) -> None:
    # contract 160
    @app.job("job")
    def job(step: StepContext, input: int) -> None:
        if input:
            job.trigger(input - 1)

    job.trigger(4)
    assert app.process_until_idle() == 5


def test_processing_on_a_loop_is_refused_in_its_blocking_form(app: Durably) -> None:
    # contract 138
    async def go() -> None:
        with pytest.raises(UsageError, match="twin"):
            app.process_one()

    asyncio.run(go())


def test_an_idle_worker_claims_once_per_polling_interval(make_app: AppMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    # contract 156
    app = make_app(polling_interval=0.1, heartbeat_interval=0.1, stale_threshold=5)
    app.register(define_job("job", give_back))
    asked: list[str] = []
    submit = Committer.submit

    def counting(committer: Committer, intent: Any, waiter: Any = None) -> None:
        asked.append(type(intent).__name__)
        submit(committer, intent, waiter)

    monkeypatch.setattr(Committer, "submit", counting)
    app.start()
    began = time.monotonic()
    eventually(lambda: asked.count("Beat") >= 8 and "Claim" in asked)
    app.stop()
    intervals = (time.monotonic() - began) / 0.1
    assert asked.count("Claim") <= intervals + 2
    assert asked.count("Beat") <= intervals + 2
    assert set(asked) <= {"Claim", "Beat"}


def test_the_last_progress_is_stored_readable_and_kept(app: Durably, either: Wrap) -> None:
    # contract 148, 149, 150
    seen: list[Any] = []

    async def body(step: Any, _input: Any) -> Any:
        step.progress(1, 10, "begun")
        seen.append(eventually(lambda: read(app, step.run_id).progress) if either_is_sync(step) else None)
        for n in range(2, 500):
            step.progress(n, total=499)

    def either_is_sync(step: Any) -> bool:
        return not isinstance(step, AsyncStep)

    run = app.register(define_job("job", either(body))).trigger()
    app.process_one()
    assert read(app, run).progress == Progress(current=499, total=499)
    assert seen[0] in (None, Progress(current=1, total=10, message="begun"))


def test_log_entries_are_stored_in_order_with_the_step_that_logged(app: Durably, either: Wrap) -> None:
    # contract 149, 151, 180
    async def body(step: Any, _input: Any) -> Any:
        step.log.info("outside", n=1)
        await step.run("inside", lambda: step.log.warning("within", list=[1]))
        step.log.error("after")
        step.log.debug("last")
        for n in range(200):
            step.log.info(str(n))

    run = app.register(define_job("job", either(body))).trigger()
    app.process_one()
    entries = app.get_logs(run.id)
    assert [(e.level, e.message, e.step_name, dict(e.data)) for e in entries[:4]] == [
        ("info", "outside", None, {"n": 1}),
        ("warning", "within", "inside", {"list": [1]}),
        ("error", "after", None, {}),
        ("debug", "last", None, {}),
    ]
    assert [e.message for e in entries[4:]] == [str(n) for n in range(200)]
    assert {(e.run_id, e.attempt) for e in entries} == {(run.id, 1)}
    assert all(e.created_at.tzinfo is not None for e in entries)


def test_concurrent_steps_log_under_their_own_names(app: Durably) -> None:
    # contract 151
    @app.job("job")
    async def job(step: AsyncStep, input: None) -> None:
        async def one(name: str) -> None:
            for _ in range(3):
                await asyncio.sleep(0)
                step.log.info(name)

        await asyncio.gather(*(step.run(name, one, name) for name in "abc"))

    run = job.trigger()
    app.process_one()
    entries = app.get_logs(run.id)
    assert len(entries) == 9
    assert all(entry.step_name == entry.message for entry in entries)


class UnspeakableRepr:
    def __repr__(self) -> str:
        raise RuntimeError


def test_no_log_entry_and_no_progress_fails_a_job(app: Durably) -> None:
    # contract 148, 152
    @app.job("job")
    def job(step: StepContext, input: None) -> str:
        step.log.info("set", value={1}, nan=float("nan"), broken=UnspeakableRepr(), text="\ud800\0")
        step.log.info("x" * 1_000_000)
        step.log.info("large", **{f"k{n}": "y" * 10_000 for n in range(100)})
        step.log.info(7)  # type: ignore[arg-type]
        step.log.info(UnspeakableRepr(), keys={UnspeakableRepr(): 1}, digits=10**5000)  # type: ignore[arg-type]
        return "done"

    run = job.trigger()
    app.process_one()
    assert read(app, run).status == "completed"
    first, long, large, number, unspeakable = app.get_logs(run.id)
    assert first.data["value"] == "{1}"
    assert first.data["nan"] == "nan"
    assert "UnspeakableRepr" in first.data["broken"] or "no repr" in first.data["broken"]
    assert long.message.endswith("[cut from 1000000 characters]")
    assert len(long.message) < 20_000
    assert large.data["cut"] is True
    assert number.message == "7"
    assert "RuntimeError" in unspeakable.message
    assert "no repr" in unspeakable.data["keys"]
    assert "no repr" in unspeakable.data["digits"]


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), object(), "half", {1}, "\ud800", 10**400, 10**5000, UnspeakableRepr()],
    ids=lambda v: type(v).__name__,
)
def test_progress_that_cannot_be_stored_fails_no_job_and_hides_no_run(app: Durably, value: Any) -> None:
    # contract 148
    @app.job("job")
    def job(step: StepContext, input: None) -> str:
        step.progress(value)
        return step.run("step", lambda: "done")

    run = job.trigger()
    app.process_one()
    assert (read(app, run).status, read(app, run).output) == ("completed", "done")


@pytest.mark.parametrize(
    ("message", "stored"),
    [
        (UnspeakableRepr(), "<no text: __str__ raised RuntimeError>"),
        ("\ud800\0", "\\ud800\\0"),
        (7, "7"),
        ("ä" * 50_000, "[cut from 50000 characters]"),
    ],
    ids=["broken", "surrogate", "number", "long"],
)
def test_a_progress_message_is_stored_and_told_as_text_that_crosses_a_channel(
    app: Durably, message: Any, stored: str
) -> None:
    # contract 147, 148, 150
    @app.job("job")
    def job(step: StepContext, input: None) -> None:
        step.progress(2**70, 2**80, message)

    heard = hear(app, "run:progress")
    run = job.trigger()
    app.process_one()
    found = read(app, run)
    assert found.status == "completed"
    assert found.progress is not None
    assert (found.progress.current, found.progress.total) == (float(2**70), float(2**80))
    assert str(found.progress.message).endswith(stored)
    assert len(str(found.progress.message).encode()) <= 16 * 1024
    assert [event.progress for event in heard] == [found.progress]
    assert len(encode(heard[0])) < 20_000


def test_the_last_progress_is_stored_however_threads_take_turns(app: Durably) -> None:
    # contract 149, 150
    @app.job("job")
    def job(step: StepContext, input: None) -> None:
        for n in range(200):
            step.progress(n)

    sys.setswitchinterval(1e-6)
    try:
        runs = job.batch_trigger([None] * 20)
        app.process_until_idle()
    finally:
        sys.setswitchinterval(0.005)
    assert {read(app, run).progress for run in runs} == {Progress(current=199)}


def test_an_outage_is_told_once_and_ends_no_loop(
    make_app: AppMaker, locked: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 155, 184
    databases().hurry(monkeypatch)
    app = make_app(heartbeat_interval=30, stale_threshold=60)
    go_on = threading.Event()

    @app.job("job")
    def job(step: StepContext, input: None) -> str:
        go_on.wait(20)
        return step.run("step", lambda: "done")

    run = job.trigger()
    heard = hear(app, "worker:error")
    app.start()
    eventually(lambda: read(app, run).status == "running")
    with locked():
        go_on.set()
        eventually(lambda: heard)
        time.sleep(0.3)
    done = app.wait_for_run(run.id, timeout=10)
    assert (done.output, done.interruptions) == ("done", 0)
    assert [(e.context, e.severity) for e in heard if e.context == "database"][:2] == [
        ("database", "error"),
        ("database", "info"),
    ]
    assert job.trigger_and_wait(timeout=10).status == "completed"


def test_process_until_idle_recovers_the_runs_of_a_silent_worker(app: Durably) -> None:
    # contract 160
    handle = app.register(define_job("job", give_back))
    run = handle.trigger()
    lost = add_worker(app, "job")
    sql(app, "UPDATE durably_runs SET status='running', worker_id=:w, generation=1", w=lost)
    assert app.process_until_idle() == 0
    make_silent(app, lost, 31)
    assert app.process_until_idle() == 1
    assert read(app, run).interruptions == 1


@pytest.mark.parametrize("when", ["between two identities", "while it drains"])
def test_a_stop_reaches_a_worker_that_was_declared_dead(make_app: AppMaker, when: str) -> None:
    # contract 59, 157
    app = make_app(heartbeat_interval=0.05, stale_threshold=1)
    go_on, begun, closed = threading.Event(), threading.Event(), threading.Event()

    @app.job("job")
    def job(step: StepContext, input: None) -> None:
        begun.set()
        go_on.wait(20)

    job.trigger()
    app.start()
    local = app.in_process._started
    assert isinstance(local, LocalWorker)
    worker = local._worker
    assert worker is not None
    app.on("worker:stop", lambda _: closed.wait(20))
    assert begun.wait(10)
    stop = threading.Thread(target=app.stop)
    if when == "while it drains":
        stop.start()
        eventually(lambda: worker._mode == "draining")
    sql(app, "UPDATE durably_workers SET state = 'dead'")
    eventually(lambda: worker.was_lost)
    if when == "between two identities":
        stop.start()
        eventually(lambda: local._is_stopping)
    closed.set()
    go_on.set()
    stop.join(10)
    assert not stop.is_alive()
    assert "alive" not in states(app)


def test_a_second_stop_closes_and_writes_to_nothing_that_is_not_its_own(app: Durably) -> None:
    # contract 157
    app.start()
    local = app.in_process._started
    assert isinstance(local, LocalWorker)
    app.stop()
    # These take the descriptors that were freed.
    pipes = [os.pipe() for _ in range(20)]
    local.stop(None)
    for reading, writing in pipes:
        os.set_blocking(reading, False)
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("end", ["returns", "raises"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_slot_of_an_abandoned_function_is_free_when_it_has_ended(make_app: AppMaker, kind: str, end: str) -> None:
    # contract 58, 59, 98
    app = make_app(heartbeat_interval=0.05, stale_threshold=1)
    go_on, begun = threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        assert go_on.wait(20)

    def finish(step: Any) -> int:
        step.log.info("late")
        if end == "raises" and step.cancelled.is_set():
            raise ValueError("late")
        return 1

    def sync(step: StepContext, input: None) -> int:
        block()
        return finish(step)

    async def asynchronous(step: AsyncStep, input: None) -> int:
        await asyncio.to_thread(block)
        return finish(step)

    run = app.register(define_job("job", sync if kind == "sync" else asynchronous)).trigger()
    heard = hear(app)
    app.start()
    assert begun.wait(10)
    sql(app, "UPDATE durably_workers SET state = 'dead'")
    sql(app, "UPDATE durably_runs SET status = 'pending', worker_id = NULL")
    eventually(lambda: types(heard).count("worker:start") == 2)
    assert read(app, run).status == "pending"
    go_on.set()
    assert app.wait_for_run(run.id, timeout=10).generation == 2
    app.stop()  # the row may be seen before its event is told; after this all is told
    assert [e.error_type for e in heard if e.type == "worker:error"] == ["LeaseLost"]
    assert types(heard).count("run:complete") == 1


def test_an_end_that_the_database_refuses_for_a_while_is_written_when_it_does_not(
    app: Durably, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 55, 184
    heard = hear(app, "worker:error")
    dialect: Any = app.database.dialect
    writing, refuse = dialect.writing, threading.Event()

    def refusing(connection: Any, *, timeout: float) -> Any:
        if refuse.is_set():
            raise PermissionError(errno.EACCES, "not now")
        return writing(connection, timeout=timeout)

    monkeypatch.setattr(dialect, "writing", refusing)

    @app.job("job")
    def job(step: StepContext, input: None) -> str:
        refuse.set()
        return "done"

    app.start()
    run = job.trigger(None, concurrency_key="k")
    eventually(lambda: [e for e in heard if e.context == "write"])
    refuse.clear()
    ended = app.wait_for_run(run.id, timeout=20)
    assert (ended.output, ended.generation, ended.interruptions) == ("done", 1, 0)
    assert len([e for e in heard if e.context == "write"]) == 1


def test_a_checkpoint_that_the_database_refuses_for_a_while_fails_neither_step_nor_run(
    app: Durably, either: Wrap
) -> None:
    # contract 184
    heard = hear(app, "worker:error")
    begun, go_on = threading.Event(), threading.Event()

    def block() -> int:
        begun.set()
        assert go_on.wait(10)
        return 3

    async def body(step: Any, input: None) -> Any:
        return await step.run("step", block) + await step.run("next", lambda: 1)

    run = app.register(define_job("job", either(body))).trigger()
    app.start()
    assert begun.wait(10)
    sql(app, "ALTER TABLE durably_steps RENAME TO hidden")
    try:
        go_on.set()
        assert [e.run_id for e in eventually(lambda: [e for e in heard if e.context == "write"])] == [run.id]
        assert sql(app, "SELECT status FROM durably_runs")[0].status == "running"
    finally:
        sql(app, "ALTER TABLE hidden RENAME TO durably_steps")
    ended = app.wait_for_run(run.id, timeout=20)
    assert (ended.output, ended.generation, ended.completed_step_count) == (4, 1, 2)
    assert [(s.name, s.status, s.attempt) for s in app.get_steps(run.id)] == [
        ("step", "completed", 1),
        ("next", "completed", 1),
    ]
    assert len(heard) == 1


@pytest.mark.parametrize("trouble", ["locked", "refusing"])
def test_a_stop_with_a_timeout_does_not_wait_for_a_database_that_takes_nothing(
    url: str, locked: Lock, either: Wrap, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    # contract 56, 158a
    databases().fill(url)
    databases().hurry(monkeypatch)
    app = Durably(url, polling_interval=0.05, database_timeout=0.5, heartbeat_interval=0.2, stale_threshold=1)
    begun, go_on = threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        assert go_on.wait(10)

    async def body(step: Any, input: None) -> None:
        await step.run("first", lambda: None)
        await step.run("second", block)

    run = app.register(define_job("job", either(body))).trigger()
    app.start()
    assert begun.wait(10)
    heard = hear(app)
    with contextlib.ExitStack() as over:
        if trouble == "locked":
            over.enter_context(locked())
        else:
            sql(app, "ALTER TABLE durably_steps RENAME TO hidden")
            over.callback(sql, app, "ALTER TABLE hidden RENAME TO durably_steps")
        go_on.set()
        app.stop(timeout=0.1)
    assert {e.reason for e in heard if e.type == "worker:stop"} == {"database"}
    assert not types(heard, "step:complete", "run:")
    eventually(app.process_until_idle)
    assert (read(app, run).status, read(app, run).generation) == ("completed", 2)
    assert [(s.name, s.attempt) for s in app.get_steps(run.id)] == [("first", 1), ("second", 1)]
    app.database.close()


@pytest.mark.parametrize("raised", [Cancelled, LeaseLost, Released])
@pytest.mark.parametrize("within", ["a step", "the job"])
def test_control_flow_that_a_job_makes_itself_fails_its_run_as_any_exception(
    app: Durably, either: Wrap, raised: type[BaseException], within: str
) -> None:
    # contract 39c
    def throw() -> None:
        raise raised("by myself")

    async def body(step: Any, input: None) -> None:
        if within == "a step":
            await step.run("step", throw)
        throw()

    heard = hear(app)
    run = app.register(define_job("job", either(body))).trigger(concurrency_key="k")
    assert app.process_until_idle(max_runs=3) == 1
    failed = read(app, run)
    assert (failed.status, failed.error_type, failed.error) == ("failed", raised.__name__, "by myself")
    assert not {"run:cancel", "run:release", "worker:error", "step:cancel"} & set(types(heard))


def test_an_application_that_ends_without_a_stop_fails_no_run(
    app: Durably, python: Callable[..., subprocess.Popen[str]]
) -> None:
    # contract 153a
    process = python("""
        import threading, time
        from durably import Durably

        app = Durably(url, concurrency=2)
        begun = threading.Event()

        @app.job("long")
        def long(step, input):
            begun.set()
            time.sleep(0.5)  # a while for the worker to go on claiming in

        @app.job("plain")
        def plain(step, input):
            pass

        @app.job("steps")
        async def steps(step, input):
            await step.run("step", lambda: None)

        long.trigger()
        for _ in range(20):
            plain.trigger()
            steps.trigger()
        app.start()
        begun.wait()
    """)
    assert process.wait(30) == 0
    assert not app.get_runs(status="failed")
    for name in ("long", "plain", "steps"):
        app.register(define_job(name, give_back))
    app.process_until_idle()
    assert {run.status for run in app.get_runs()} == {"completed"}


@pytest.mark.parametrize("kind", ["async def", "def"])
def test_ctrl_c_while_a_script_executes_runs_fails_none(
    app: Durably, python: Callable[..., subprocess.Popen[str]], kind: str
) -> None:
    # contract 160a
    job = app.register(define_job("job", give_back))
    run = job.trigger("resumed")
    process = python(f"""
        import asyncio, sys
        from durably import Durably

        app = Durably(url)

        @app.job("job")
        {kind} job(step, input):
            print("begun", flush=True)
            {"await asyncio.sleep(60)" if kind == "async def" else "sys.stdin.readline()"}

        try:
            app.process_one()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "interrupted\n"
    # A function that runs on in a thread keeps its run, until the process is gone.
    assert read(app, run).status == ("pending" if kind == "async def" else "running")
    process.communicate("\n", timeout=30)
    app.process_until_idle()
    ended = read(app, run)
    assert (ended.status, ended.output) == ("completed", "resumed")
    assert ended.interruptions == (0 if kind == "async def" else 1)


@pytest.mark.parametrize("twin", ["stop", "astop"])
def test_a_job_cannot_stop_the_worker_that_executes_it(app: Durably, twin: str) -> None:
    # contract 8, 138a
    async def stops(step: AsyncStep, input: None) -> None:
        if twin == "astop":
            await app.astop(timeout=0.1)
        else:
            await step.run("stop", app.stop)

    run = app.register(define_job("job", stops)).trigger()
    app.start()
    with pytest.raises(RunFailedError, match=r"UsageError.*cannot stop the worker that executes it"):
        app.wait_for_run(run.id, timeout=10)
    app.stop()


@pytest.mark.parametrize("event_type", ["run:start", "log:write", "run:complete"])
def test_a_handler_that_exits_ends_neither_the_worker_nor_its_writes(app: Durably, event_type: str) -> None:
    # contract 145a, 155
    heard = hear(app, "worker:error")
    app.on(event_type, lambda _event: sys.exit(1))

    @app.job("job")
    def job(step: StepContext, input: int) -> int:
        step.log.info("logged")
        return step.run("step", lambda: input)

    app.start()
    for n in range(3):
        assert job.trigger_and_wait(n, timeout=10).output == n
    app.stop()
    assert [(e.context, e.error_type) for e in heard] == [("handler", "SystemExit")] * 3


def test_a_handler_in_the_thread_that_writes_cannot_wait_for_a_run(app: Durably) -> None:
    # contract 138a
    refused: list[UsageError] = []

    def waits(event: Any) -> None:
        with pytest.raises(UsageError) as caught:
            app.wait_for_run(event.run_id)
        refused.append(caught.value)

    app.on("log:write", waits)

    @app.job("job")
    def job(step: StepContext, input: None) -> None:
        step.log.info("logged")

    app.start()
    assert job.trigger_and_wait(timeout=10).status == "completed"
    app.stop()
    assert len(refused) == 1


def test_a_step_that_looks_at_its_token_all_the_time_leaves_nothing_behind(app: Durably, either: Wrap) -> None:
    # contract 89
    left: list[int] = []

    async def body(step: Any, input: None) -> None:
        def look() -> None:
            for _ in range(100):
                assert not step.cancelled.wait(0.0)
            left.append(len(step.cancelled._watchers))

        await step.run("look", look)

    app.register(define_job("job", either(body))).trigger()
    assert app.process_one()
    assert left == [0]


def test_a_worker_may_know_a_thousand_jobs(app: Durably) -> None:
    # contract 22, 44
    for n in range(1_000):
        handle = app.register(define_job(f"job {n}", give_back))
    run = handle.trigger(1, concurrency_key="k")
    assert app.process_until_idle() == 1
    assert read(app, run).status == "completed"


@pytest.mark.parametrize("then", ["retried", "retried and finished elsewhere", "deleted"])
def test_a_cancellation_is_told_as_one_whatever_became_of_the_run_since(
    make_app: AppMaker, either: Wrap, then: str
) -> None:
    # contract 94, 103
    app, other = make_app(), make_app()
    begun, go_on = threading.Event(), threading.Event()
    caught: list[BaseException] = []

    def block() -> None:
        begun.set()
        assert go_on.wait(10)

    async def body(step: Any, input: None) -> None:
        try:
            await step.run("step", block)
        except BaseException as error:
            caught.append(error)
            raise

    run = app.register(define_job("job", either(body))).trigger()
    heard = hear(app)
    app.start()
    assert begun.wait(10)
    other.cancel(run.id)
    if then == "deleted":
        other.delete_run(run.id)
    else:
        other.retry(run.id)
    if then == "retried and finished elsewhere":
        other.register(define_job("job", give_back))
        assert other.process_one()
    go_on.set()
    eventually(lambda: caught)
    app.stop()
    assert type(caught[0]) is Cancelled
    assert {e.reason for e in heard if e.type == "step:cancel"} == {"cancelled"}
    assert [e.origin for e in heard if e.type == "run:cancel"] == ["worker"]
    assert not types(heard, "worker:error")


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), True, "soon"])
def test_a_timeout_that_is_none_is_refused_before_anything_is_done(app: Durably, timeout: Any) -> None:
    # contract 27, 134, 158
    handle = app.register(define_job("job", give_back))
    app.start()
    for call in (handle.trigger_and_wait, app.stop):
        with pytest.raises(ValidationError) as refused:
            call(timeout=timeout)
        assert refused.value.field == "timeout"
    assert app.get_runs() == []
    assert handle.trigger_and_wait(1, timeout=10).output == 1


def test_a_job_on_the_workers_loop_that_would_wait_creates_no_run(app: Durably) -> None:
    # contract 27, 138
    child = app.register(define_job("child", give_back))

    @app.job("parent")
    async def parent(step: AsyncStep, input: None) -> None:
        with pytest.raises(UsageError):
            child.trigger_and_wait(1)

    app.start()
    assert parent.trigger_and_wait(timeout=10).status == "completed"
    assert child.get_runs() == []


@pytest.mark.wakes
@pytest.mark.skipif(sys.platform != "linux", reason="about inotify")
def test_an_idle_worker_is_woken_as_quickly_after_its_process_has_forked(make_app: AppMaker) -> None:
    # contract 9a, 34
    app, other = make_app(polling_interval=20), make_app()
    app.register(define_job("job", give_back))
    handle = other.register(define_job("job", give_back))
    app.start()
    assert handle.trigger_and_wait(0, timeout=10).output == 0
    for n in range(3):
        if not (pid := os.fork()):
            os._exit(0)
        os.waitpid(pid, 0)
        assert handle.trigger_and_wait(n, timeout=10).output == n


def test_a_handler_of_the_workers_start_may_call_the_instance(app: Durably) -> None:
    # contract 8, 153
    done: list[str] = []
    run = app.register(define_job("job", give_back)).trigger()
    app.on("worker:start", lambda _event: done.append(app.cancel(run.id).status))
    app.start()
    assert done == ["cancelled"]
    app.stop()


def test_a_stop_while_another_thread_starts_ends_the_worker(app: Durably) -> None:
    # contract 153, 157
    starting, go_on = threading.Event(), threading.Event()

    def hold(_event: Any) -> None:
        starting.set()
        assert go_on.wait(10)

    app.on("worker:start", hold)
    with ThreadPoolExecutor(2) as threads:
        started = threads.submit(app.start)
        assert starting.wait(10)
        stopped = threads.submit(app.stop)
        go_on.set()
        started.result(10)
        stopped.result(10)
    assert states(app) == ["stopped"]
