"""What may pass happens at every point of every call: it is tried again, and done once."""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError

from durably import DatabaseUnavailableError, Durably, JobHandle, Run, StepContext, define_job
from durably.testing.dialects.cable import Cable
from durably.testing.dialects.databases import databases
from durably.testing.dialects.suite.support import AppMaker, eventually, hear, read

MOST_POINTS = 100


class Act(NamedTuple):
    """
    A call, and what it must have left.

    Args:
        before: The status that the run is brought to first.
        call: Takes the instance, the job and the run.
        after: The status of the run; None if it is gone.
    """

    before: str
    call: Callable[[Durably, JobHandle, Run], Any]
    after: str | None


ACTS = {
    "trigger": Act("pending", lambda app, job, run: job.trigger(1, labels={"new": "yes"}), "pending"),
    "batch_trigger": Act("pending", lambda app, job, run: job.batch_trigger([1]), "pending"),
    "retrigger": Act("failed", lambda app, job, run: app.retrigger(run.id), "failed"),
    "cancel": Act("pending", lambda app, job, run: app.cancel(run.id), "cancelled"),
    "retry": Act("failed", lambda app, job, run: app.retry(run.id), "pending"),
    "delete_run": Act("failed", lambda app, job, run: app.delete_run(run.id), None),
    "purge_runs": Act("failed", lambda app, job, run: app.purge_runs(0.000001), None),
    "process_one": Act("pending", lambda app, job, run: app.process_one(), "completed"),
    "get_run": Act("pending", lambda app, job, run: app.get_run(run.id), "pending"),
}
BIRTHS = {"trigger", "batch_trigger", "retrigger"}


def run_in(app: Durably, job: JobHandle, status: str) -> Run:
    """Make a run of that status, and no other."""
    for run in app.get_runs():
        app.cancel(run.id) if run.is_active else None
        app.delete_run(run.id)
    run = job.trigger("fail" if status == "failed" else 0)
    if status == "failed":
        assert app.process_one()
    return read(app, run)


def job_of(app: Durably) -> JobHandle:
    def work(step: StepContext, input: Any) -> Any:
        if input == "fail":
            raise ValueError(input)
        return step.run("step", lambda: input)

    return app.register(define_job("job", work))


def check(app: Durably, name: str, run: Run, heard: list[Any]) -> None:
    """Find done what the call does, and no more than once."""
    act = ACTS[name]
    found = app.get_run(run.id)
    assert (found and found.status) == act.after
    assert len(app.get_runs()) == (name in BIRTHS) + (act.after is not None)
    if name == "retry":
        assert found is not None
        assert found.attempt == 2
    if name == "process_one":
        assert found is not None
        assert (found.generation, found.interruptions, found.completed_step_count) == (1, 0, 1)
    told = [e.type for e in heard if e.type.startswith("run:")]
    assert len(told) == len(set(told)), told


def an_error_that_may_pass(make_app: AppMaker, url: str, monkeypatch: pytest.MonkeyPatch) -> DBAPIError:
    """Provoke one: of a write, while a stranger keeps everybody from writing."""
    with monkeypatch.context() as patch:
        databases().hurry(patch)
        app = make_app(database_timeout=0.3)
        job = job_of(app)
        with databases().locked(url), pytest.raises(DatabaseUnavailableError) as refused:
            job.trigger()
    cause = refused.value.__cause__
    if not isinstance(cause, DBAPIError):
        pytest.skip(f"no statement fails while a stranger writes, but {type(cause).__name__} is raised before it")
    assert app.database.dialect.is_transient(cause)
    return cause


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ACTS)
def test_an_error_that_may_pass_at_any_statement_of_a_call_is_tried_again(
    make_app: AppMaker, url: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # contract 183, 184
    error = an_error_that_may_pass(make_app, url, monkeypatch)
    app = make_app()
    job = job_of(app)
    left = 0

    def fail(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise error.with_traceback(None)

    engine = app.database.engine()
    event.listen(engine, "before_cursor_execute", fail)
    for point in range(1, MOST_POINTS):
        run = run_in(app, job, ACTS[name].before)
        heard = hear(app)
        left = point
        ACTS[name].call(app, job, run)
        has_failed, left = left <= 0, 0
        check(app, name, run, heard)
        if not has_failed:
            break
    assert not has_failed
    assert point > 1


@pytest.mark.timeout(300)
def test_a_worker_whose_statements_fail_now_and_then_goes_on_as_if_nothing_had_been(
    make_app: AppMaker, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 51, 155, 184
    error = an_error_that_may_pass(make_app, url, monkeypatch)
    app = make_app(concurrency=4)
    called: list[tuple[int, int]] = []

    @app.job("steps")
    def job(step: StepContext, input: int) -> int:
        for n in range(3):
            step.run(f"step {n}", lambda n=n: called.append((input, n)))
            step.log.info("logged")
        return input

    ids = [run.id for run in job.batch_trigger(range(20))]
    chance = random.Random(1)

    def fail(*_: Any) -> None:
        if chance.random() < 0.1:
            raise error.with_traceback(None)

    event.listen(app.database.engine(), "before_cursor_execute", fail)
    app.start()
    eventually(lambda: all(read(app, run_id).is_terminal for run_id in ids), timeout=60)
    event.remove(app.database.engine(), "before_cursor_execute", fail)
    done = [read(app, run_id) for run_id in ids]
    assert {(run.generation, run.interruptions, run.completed_step_count) for run in done} == {(1, 0, 3)}
    assert len(called) == len(set(called)) == 60
    assert [len(app.get_logs(run_id)) for run_id in ids] == [3] * 20


@pytest.mark.timeout(300)
@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize(
    "name", ["trigger", "cancel", "process_one", "get_run"]
)  # each point may cost a server's patience
def test_a_call_whose_connection_is_cut_at_any_message_is_done_once(
    cable: tuple[Cable, str], make_app: AppMaker, name: str, where: str
) -> None:
    # contract 35, 184
    way, near = cable
    app, beside = make_app(dialect_url=near, migrated=False), make_app()
    job, theirs = job_of(app), job_of(beside)
    for point in range(1, MOST_POINTS):
        run = run_in(beside, theirs, ACTS[name].before)
        app.get_runs()  # a connection is there
        heard = hear(app)
        way.cut_next(point, where)
        ACTS[name].call(app, job, run)
        was_cut = not way.forget_cut()
        check(beside, name, run, heard)
        if not was_cut:
            break
    assert not was_cut
    assert point > 1


@pytest.mark.parametrize("cuts", [["before"], ["after"], ["before", "before", "after"]], ids=str)
def test_a_commit_whose_answer_was_lost_is_made_once(
    cable: tuple[Cable, str], make_app: AppMaker, cuts: list[str]
) -> None:
    # contract 35, 51, 184
    way, near = cable
    app = make_app(dialect_url=near, migrated=False)
    job = job_of(app)
    app.get_runs()
    way.cuts += cuts
    run = job.trigger(1)
    assert way.cuts == []
    assert run.disposition == "created"
    assert [found.id for found in app.get_runs()] == [run.id]
    way.cuts += cuts
    assert app.cancel(run.id).status == "cancelled"
    way.cuts += cuts
    assert app.retry(run.id).attempt == 2
    assert way.cuts == []


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_worker_whose_commits_are_cut_off_goes_on_as_if_nothing_had_been(
    cable: tuple[Cable, str], make_app: AppMaker, cut: str
) -> None:
    # contract 51, 139, 184
    way, near = cable
    app = make_app(dialect_url=near, migrated=False, concurrency=4)
    called: list[tuple[int, int]] = []

    @app.job("job")
    def job(step: StepContext, input: int) -> int:
        for n in range(3):
            step.run(f"step {n}", lambda n=n: called.append((input, n)))
            step.log.info("logged")
            if n == 1:
                way.cuts.append(cut)
        return input

    heard = hear(app)
    ids = [run.id for run in job.batch_trigger(range(20))]
    app.start()
    done = [app.wait_for_run(run_id, timeout=30) for run_id in ids]
    assert {(run.generation, run.interruptions, run.completed_step_count) for run in done} == {(1, 0, 3)}
    assert len(called) == len(set(called)) == 60
    assert [len(app.get_logs(run_id)) for run_id in ids] == [3] * 20
    eventually(lambda: len([e for e in heard if e.type == "run:complete"]) == 20)
    assert not [e for e in heard if e.type == "worker:error" and e.context == "lease-lost"]
