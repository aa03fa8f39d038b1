"""Events: what is told, in which order, to whom, and what handlers can break."""

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from durably import Durably, StepContext, ValidationError, define_job, is_domain_event
from durably.events import CATALOGUE
from durably.local import LocalWorker
from durably.testing.dialects.suite.support import AppMaker, Wrap, eventually, hear, read, types


def nothing(step: StepContext, input: Any) -> None:
    """Do nothing, as a job."""


def test_an_undisturbed_run_tells_its_events_in_order(app: Durably, either: Wrap) -> None:
    # contract 139, 142, 143
    async def body(step: Any, _input: Any) -> Any:
        return [await step.run(name, lambda: 1) for name in ("a", "b")]

    heard = hear(app)
    handle = app.register(define_job("job", either(body)))
    run = handle.trigger({"n": 1}, labels={"org": "x"})
    app.process_one()
    of_run = [e for e in heard if e.type.startswith(("run:", "step:"))]
    assert types(of_run) == [
        "run:trigger",
        "run:start",
        "step:start",
        "step:complete",
        "step:start",
        "step:complete",
        "run:complete",
    ]
    assert [e.sequence for e in heard] == list(range(1, len(heard) + 1))
    assert {(e.run_id, e.job_name, e.labels["org"]) for e in of_run} == {(run.id, "job", "x")}
    start, complete = of_run[1], of_run[-1]
    assert (start.input, start.attempt, start.generation, start.interruptions) == ({"n": 1}, 1, 1, 0)
    assert start.waited >= 0
    assert (complete.output, complete.attempt) == ([1, 1], 1)
    assert [(e.step_name, e.step_index, e.attempt) for e in of_run[2:6:2]] == [("a", 0, 1), ("b", 1, 1)]
    assert all(e.timestamp.tzinfo is not None and e.process.pid for e in heard)


def test_an_event_is_told_after_the_commit_of_its_fact(app: Durably) -> None:
    # contract 139
    seen: list[tuple[str, Any]] = []

    def look(event: Any) -> None:
        run = read(app, event.run_id)
        seen.append((event.type, (run.status, run.completed_step_count)))

    for event_type in ("run:trigger", "run:start", "step:complete", "run:complete"):
        app.on(event_type, look)
    app.register(define_job("job", lambda step, input: step.run("a", lambda: 1))).trigger()
    app.process_one()
    assert seen[0] == ("run:trigger", ("pending", 0))
    assert seen[1] == ("run:start", ("running", 0))
    assert seen[2][1][1] == 1
    assert seen[3] == ("run:complete", ("completed", 1))


def test_the_failed_step_is_the_one_whose_exception_left_the_function(app: Durably, either: Wrap) -> None:
    # contract 146
    def fail() -> None:
        raise ValueError("in a step")

    async def leaves(step: Any, _input: Any) -> Any:
        await step.run("broken", fail)

    async def caught(step: Any, _input: Any) -> Any:
        with contextlib.suppress(ValueError):
            await step.run("broken", fail)
        raise KeyError("elsewhere")

    heard = hear(app, "run:fail")
    for name, body in (("leaves", leaves), ("caught", caught)):
        app.register(define_job(name, either(body))).trigger()
    app.process_until_idle()
    assert [e.failed_step for e in heard] == ["broken", None]
    assert [e.error_type for e in heard] == ["ValueError", "KeyError"]
    assert heard[0].interruptions == 0


def test_every_transition_of_a_caller_tells_one_event(app: Durably) -> None:
    # contract 139, 140
    handle = app.register(define_job("job", nothing))
    heard = hear(app)
    run = handle.trigger()
    app.cancel(run.id)
    app.retry(run.id)
    app.process_one()
    app.delete_run(run.id)
    told = [e for e in heard if e.type.startswith("run:")]
    assert types(told) == [
        "run:trigger",
        "run:cancel",
        "run:retry",
        "run:start",
        "run:complete",
        "run:delete",
    ]
    assert (told[1].previous_status, told[1].origin) == ("pending", "caller")
    assert (told[2].previous_status, told[2].attempt) == ("cancelled", 2)
    assert told[5].reason == "delete"


def test_a_refused_call_tells_nothing(app: Durably) -> None:
    # contract 139
    run = app.register(define_job("job", nothing)).trigger()
    app.process_one()
    heard = hear(app)
    for call in (app.cancel, app.retry):
        with pytest.raises(Exception, match="completed"):
            call(run.id)
    assert heard == []


def test_on_returns_the_unsubscribe_function(app: Durably) -> None:
    # contract 144
    handle = app.register(define_job("job", nothing))
    one: list[Any] = []
    every: list[Any] = []
    unsubscribe = app.on("run:trigger", one.append)
    app.on("*", every.append)
    handle.trigger()
    unsubscribe()
    unsubscribe()
    handle.trigger()
    assert (len(one), len(every)) == (1, 2)


def test_one_handler_subscribed_twice_is_two_subscriptions(app: Durably) -> None:
    # contract 144
    heard: list[Any] = []
    app.on("run:trigger", heard.append)
    app.on("run:trigger", heard.append)()
    app.register(define_job("job", nothing)).trigger()
    assert len(heard) == 1


def test_handlers_are_called_in_the_order_of_their_subscription(app: Durably) -> None:
    # contract 144
    order: list[int] = []

    def note(n: int, _event: Any) -> None:
        order.append(n)

    for n in range(5):
        app.on("*" if n % 2 else "run:trigger", partial(note, n))
    app.register(define_job("job", nothing)).trigger()
    assert order == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("event_type", ["run:unknown", "", "run:*", None])
def test_an_unknown_type_is_refused(app: Durably, event_type: Any) -> None:
    # contract 144
    with pytest.raises(ValidationError, match="event_type"):
        app.on(event_type, print)


def test_a_coroutine_function_is_scheduled_on_the_loop_that_subscribed_it(app: Durably) -> None:
    # contract 144
    handle = app.register(define_job("job", nothing))

    async def go() -> list[str]:
        told: asyncio.Queue[str] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        async def handler(event: Any) -> None:
            assert asyncio.get_running_loop() is loop
            await told.put(event.type)

        unsubscribe = app.on("run:trigger", handler)
        await handle.atrigger()
        await asyncio.to_thread(handle.trigger)
        unsubscribe()
        return [await asyncio.wait_for(told.get(), 10) for _ in range(2)]

    assert asyncio.run(go()) == ["run:trigger"] * 2
    handle.trigger()


def test_a_coroutine_function_without_a_loop_is_refused(app: Durably) -> None:
    # contract 144
    async def handler(event: Any) -> None: ...

    with pytest.raises(ValidationError, match="handler"):
        app.on("*", handler)


def broken(event: Any) -> None:
    raise RuntimeError(f"broken by {event.type}")


def test_a_broken_handler_harms_neither_job_nor_emitter_nor_other_handlers(app: Durably) -> None:
    # contract 145
    before = hear(app)
    app.on("run:complete", broken)
    after = hear(app, "run:complete")
    run = app.register(define_job("job", nothing)).trigger()
    app.process_one()
    assert read(app, run).status == "completed"
    assert len(after) == 1
    (error,) = [e for e in before if e.type == "worker:error"]
    assert (error.context, error.error, error.error_type) == (
        "handler",
        "broken by run:complete",
        "RuntimeError",
    )


def test_on_error_gets_what_handlers_raise(make_app: AppMaker) -> None:
    # contract 145
    taken: list[Any] = []
    app = make_app(on_error=lambda error, event: taken.append((str(error), event.type)))
    heard = hear(app, "worker:error")
    app.on("run:trigger", broken)

    async def go() -> None:
        async def async_broken(event: Any) -> None:
            raise RuntimeError("awaited")

        app.on("run:trigger", async_broken)
        await app.register(define_job("job", nothing)).atrigger()
        await asyncio.to_thread(eventually, lambda: len(taken) == 2)

    asyncio.run(asyncio.wait_for(go(), 10))
    assert sorted(taken) == [("awaited", "run:trigger"), ("broken by run:trigger", "run:trigger")]
    assert heard == []


def test_a_broken_handler_of_worker_error_is_only_logged(app: Durably, caplog: pytest.LogCaptureFixture) -> None:
    # contract 145
    app.on("worker:error", broken)
    app.on("run:trigger", broken)
    app.register(define_job("job", nothing)).trigger()
    assert "broken by worker:error" in caplog.text


def test_a_broken_on_error_is_only_logged(make_app: AppMaker, caplog: pytest.LogCaptureFixture) -> None:
    # contract 145
    def worse(error: BaseException, event: Any) -> None:
        raise ValueError("worse")

    app = make_app(on_error=worse)
    app.on("run:trigger", broken)
    assert app.register(define_job("job", nothing)).trigger().status == "pending"
    assert "worse" in caplog.text


def test_sequence_counts_without_a_listener_and_across_threads(app: Durably) -> None:
    # contract 142
    handle = app.register(define_job("job", nothing))
    for _ in range(3):
        handle.trigger()
    heard = hear(app)
    with ThreadPoolExecutor(4) as threads:
        for _ in range(20):
            threads.submit(handle.trigger)
    assert sorted(e.sequence for e in heard) == list(range(4, 24))


def test_losing_every_event_changes_no_run(app: Durably, monkeypatch: pytest.MonkeyPatch) -> None:
    # contract 141
    def lose(_event: Any) -> None: ...

    monkeypatch.setattr(app.emitter, "pass_on", lose)
    run = app.register(define_job("job", lambda step, input: step.run("a", lambda: 1))).trigger()
    app.process_until_idle()
    assert read(app, run).output == 1


def test_domain_events_are_those_about_what_users_asked_for() -> None:
    # contract 139
    domain = {name for name, cls in CATALOGUE.items() if cls.domain}
    assert domain == {
        "run:trigger",
        "run:coalesced",
        "run:complete",
        "run:fail",
        "run:cancel",
        "run:retry",
        "run:delete",
    }
    assert len(CATALOGUE) == 27


def test_is_domain_event_tells_them_apart(app: Durably) -> None:
    # contract 139
    heard = hear(app)
    app.register(define_job("job", nothing)).trigger()
    app.process_one()
    assert {e.type for e in heard if is_domain_event(e)} == {"run:trigger", "run:complete"}


def test_a_worker_tells_its_life_with_its_identity(make_app: AppMaker) -> None:
    # contract 139
    app = make_app(heartbeat_interval=0.05, stale_threshold=1, concurrency=2)
    app.register(define_job("job", nothing))
    heard = hear(app)
    app.start()
    eventually(lambda: "worker:heartbeat" in types(heard))
    app.stop()
    first, *beats, last = [e for e in heard if e.type.startswith("worker:")]
    assert (first.type, first.jobs, first.concurrency) == ("worker:start", ("job",), 2)
    assert (beats[0].running, beats[0].free, beats[0].events_dropped) == (0, 2, 0)
    assert last.type == "worker:stop"
    assert len({e.process.worker_id for e in (first, *beats, last)}) == 1
    assert threading.active_count() < 60


def test_each_cancellation_of_a_run_that_one_worker_has_twice_is_told(make_app: AppMaker) -> None:
    # contract 103, 139, 140
    app = make_app(concurrency=2)
    go_on, entered = threading.Event(), threading.Semaphore(0)

    def block() -> str:
        entered.release()
        go_on.wait(20)
        return "late"

    @app.job("job")
    def job(step: StepContext, input: None) -> None:
        step.run("block", block)

    heard = hear(app)
    run = job.trigger()
    app.start()
    for attempt in (1, 2):
        assert entered.acquire(timeout=10)
        app.cancel(run.id)
        if attempt == 1:
            app.retry(run.id)
    go_on.set()
    app.stop()
    assert [(e.previous_status, e.origin) for e in heard if e.type == "run:cancel"] == [("running", "caller")] * 2
    assert types(heard).count("step:cancel") == 2
    assert read(app, run).status == "cancelled"
    assert app.get_steps(run.id) == []


def test_a_cancellation_between_the_claim_and_its_answer_is_told_once(app: Durably) -> None:
    # contract 93, 140
    ran: list[str] = []

    @app.job("job")
    def job(step: StepContext, input: None) -> None:
        step.run("never", lambda: ran.append("never"))

    app.start()
    local = app.in_process._started
    assert isinstance(local, LocalWorker)
    worker, loop = local._worker, local._loop
    assert worker is not None
    assert loop is not None
    is_held_up, claim, go_on = threading.Event(), threading.Event(), threading.Event()

    def hold_the_loop_up() -> None:
        is_held_up.set()
        claim.wait(20)
        worker._claimer.fill()
        go_on.wait(20)

    heard = hear(app)
    eventually(lambda: worker._claimer._listening and not worker._claimer.on_their_way)
    loop.call_soon_threadsafe(hold_the_loop_up)
    assert is_held_up.wait(10)
    run = job.trigger()
    claim.set()
    eventually(lambda: read(app, run).status == "running")
    app.cancel(run.id)
    go_on.set()
    app.stop()
    assert [e.origin for e in heard if e.type == "run:cancel"] == ["caller"]
    assert ran == []
    assert not [e for e in heard if e.type == "worker:error"]
