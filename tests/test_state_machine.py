"""The statuses of a run: each legal transition, each that is refused, and what races leave."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from durably import ConflictError, Durably, NotFoundError, Run, StepContext, define_job
from durably.store.intents import Completion, Failure, Release
from tests.support import add_worker, claim, read, recover, write


def behave(step: StepContext, input: str) -> str:
    """Do as told."""
    if input == "fail":
        raise ValueError("told to")
    return input


def make(app: Durably, status: str) -> Run:
    """Bring a run into *status* by its own way."""
    handle = app.get_job("job") or app.register(define_job("job", behave))
    run = handle.trigger("fail" if status == "failed" else "return")
    if status == "running":
        claim(app, add_worker(app))
    elif status == "cancelled":
        app.cancel(run.id)
    elif status != "pending":
        app.process_one()
    found = read(app, run)
    assert found.status == status
    return found


STATUSES = ["pending", "running", "completed", "failed", "cancelled"]


@pytest.mark.parametrize("status", STATUSES)
def test_who_holds_it_and_when_it_ended_follow_from_the_status(app: Durably, status: str) -> None:
    # contract 36
    run = make(app, status)
    assert (run.worker_id is not None) == (status == "running")
    assert (run.completed_at is not None) == (status in ("completed", "failed", "cancelled")) == run.is_terminal
    assert run.is_active != run.is_terminal


CALLS: list[tuple[str, tuple[str, ...]]] = [
    ("cancel", ("pending", "running")),
    ("retry", ("failed", "cancelled")),
    ("delete_run", ("completed", "failed", "cancelled")),
]


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize(("call", "allowed"), CALLS, ids=[c for c, _ in CALLS])
def test_each_call_is_allowed_in_its_statuses_and_a_conflict_in_the_others(
    app: Durably, call: str, allowed: tuple[str, ...], status: str
) -> None:
    # contract 35, 91, 102, 127
    run = make(app, status)
    if status in allowed:
        getattr(app, call)(run.id)
        return
    with pytest.raises(ConflictError, match=status) as refused:
        getattr(app, call)(run.id)
    assert refused.value.status == status
    assert read(app, run) == run


@pytest.mark.parametrize("call", [c for c, _ in CALLS])
def test_a_missing_run_is_not_found(app: Durably, call: str) -> None:
    # contract 91, 102, 127
    with pytest.raises(NotFoundError):
        getattr(app, call)("01ARZ3NDEKTSV4RRFFQ69G5FAV")


def test_times_and_counters_move_as_the_table_says(app: Durably) -> None:
    # contract 35, 36, 37, 40
    pending = make(app, "pending")
    first_worker = add_worker(app)
    claim(app, first_worker)
    running = read(app, pending)
    assert (running.generation, running.attempt, running.interruptions) == (1, 1, 0)
    assert running.started_at is not None
    recover(app, first_worker)
    recovered = read(app, pending)
    assert (recovered.status, recovered.generation, recovered.interruptions) == ("pending", 1, 1)
    worker = add_worker(app)
    claim(app, worker)
    write(app, Release(run_id=pending.id, generation=2))
    released = read(app, pending)
    assert (released.status, released.generation, released.interruptions) == ("pending", 2, 1)
    claim(app, worker)
    write(
        app,
        Failure(run_id=pending.id, generation=3, error="e", error_type="E", error_traceback="t"),
    )
    failed = read(app, pending)
    assert (failed.status, failed.error, failed.error_type, failed.error_traceback) == ("failed", "e", "E", "t")
    retried = app.retry(pending.id)
    assert (retried.status, retried.attempt, retried.interruptions, retried.generation) == ("pending", 2, 0, 3)
    assert (retried.error, retried.error_type, retried.error_traceback) == (None, None, None)
    assert retried.completed_at is None
    claim(app, worker)
    write(app, Completion(run_id=pending.id, generation=4, output="7"))
    done = read(app, pending)
    assert (done.status, done.output, done.attempt, done.generation) == ("completed", 7, 2, 4)
    life = [pending, running, recovered, released, failed, retried, done]
    assert {run.created_at for run in life} == {pending.created_at}
    assert {run.started_at for run in life[1:]} == {running.started_at}
    assert [run.updated_at for run in life] == sorted(run.updated_at for run in life)


def race(*calls: Callable[[], Any]) -> list[Any]:
    """Make calls at the same moment; give their results or errors."""
    start = threading.Barrier(len(calls))

    def go(call: Callable[[], Any]) -> Any:
        start.wait()
        try:
            return call()
        except ConflictError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return [f.result() for f in [threads.submit(go, call) for call in calls]]


@pytest.mark.parametrize(("call", "status"), [("cancel", "running"), ("retry", "failed")])
def test_of_racing_calls_exactly_one_succeeds(app: Durably, call: str, status: str) -> None:
    # contract 35, 91, 102
    run = make(app, status)
    outcomes = race(*[lambda: getattr(app, call)(run.id)] * 4)
    assert sum(isinstance(outcome, Run) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == 3


def test_of_a_cancel_and_a_finish_that_race_exactly_one_happens(app: Durably) -> None:
    # contract 35, 91, 92
    for _ in range(10):
        run = make(app, "running")
        end = Completion(run_id=run.id, generation=1, output="1")
        cancelled, ((verdict,)) = race(lambda r=run: app.cancel(r.id), lambda e=end: write(app, e))  # type: ignore[misc]
        now = read(app, run)
        if verdict is None:
            assert isinstance(cancelled, ConflictError)
            assert cancelled.status == now.status == "completed"
        else:
            assert verdict == "cancelled"
            assert now.status == "cancelled"
            assert now.output is None


def test_a_cancelled_pending_run_is_never_executed(app: Durably) -> None:
    # contract 90
    run = make(app, "cancelled")
    assert app.process_until_idle() == 0
    assert (read(app, run).generation, read(app, run).started_at) == (0, None)
