"""Runs whose worker was killed because of a timeout or a hang: what is stored and told of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from durably.testing.dialects.suite.support import add_worker, claim, hear, read, sql, types
from durably.worker.recovery import Recovery
from durably.worker.timeouts import Timed

if TYPE_CHECKING:
    from durably import Durably
    from durably.store.claims import ClaimedRun


@pytest.fixture
def recovery(app: Durably) -> Recovery:
    return Recovery(app.database, app.settings, app.emitter)


def held(app: Durably, count: int = 1) -> tuple[str, list[ClaimedRun]]:
    """Have a worker hold runs."""
    handle = app.get_job("job") or app.job("job")(lambda step, _: None)
    worker = add_worker(app, "job")
    handle.batch_trigger([None] * count)
    return worker, claim(app, worker, limit=count)


def timed(run: ClaimedRun, **step: Any) -> Timed:
    return Timed(run.id, run.generation, 2.5, **step)


def test_the_run_and_the_steps_attempt_fail_with_the_steps_error(app: Durably, recovery: Recovery) -> None:
    # contract 89d
    worker, (run,) = held(app)
    heard = hear(app)
    assert recovery.fail_overdue(worker, timed(run, step_name="fetch", step_index=3, attempt=2), began=0.0)
    stored = read(app, run.id)
    assert (stored.status, stored.error_type, stored.interruptions) == ("failed", "StepTimeoutError", 0)
    assert stored.error == "step 'fetch' took longer than its timeout of 2.5 s"
    assert "worker:suspect" in str(stored.error_traceback)
    (step,) = app.get_steps(run.id)
    assert (step.name, step.index, step.attempt, step.status, step.error_type) == (
        "fetch", 3, 2, "failed", "StepTimeoutError",
    )  # fmt: skip
    assert types(heard) == ["step:fail", "run:fail"]
    assert (heard[1].failed_step, heard[1].job_name, heard[1].attempt) == ("fetch", "job", 1)


def test_a_runs_own_timeout_fails_it_without_a_step(app: Durably, recovery: Recovery) -> None:
    # contract 89d
    worker, (run,) = held(app)
    heard = hear(app)
    assert recovery.fail_overdue(worker, timed(run), began=0.0)
    stored = read(app, run.id)
    assert (stored.error_type, app.get_steps(run.id)) == ("RunTimeoutError", [])
    assert "of its job 'job'" in str(stored.error)
    assert [(event.type, event.failed_step) for event in heard] == [("run:fail", None)]


def test_an_order_that_is_carried_out_twice_or_too_late_changes_and_tells_nothing(
    app: Durably, recovery: Recovery
) -> None:
    # contract 50, 89d
    worker, (twice, cancelled, resumed, deleted) = held(app, 4)
    assert recovery.fail_overdue(worker, timed(twice, step_name="a", step_index=0, attempt=1), began=0.0)
    app.cancel(cancelled.id)
    app.cancel(deleted.id)
    app.delete_run(deleted.id)
    recovery.recover(worker, reason="timeout", signal="SIGKILL")
    claim(app, add_worker(app, "job"))
    heard = hear(app)
    for run in (twice, cancelled, resumed, deleted):
        assert not recovery.fail_overdue(worker, timed(run, step_name="a", step_index=0, attempt=1), began=0.0)
    assert heard == []
    assert [read(app, run.id).status for run in (twice, cancelled, resumed)] == ["failed", "cancelled", "running"]
    assert len(app.get_steps(twice.id)) == 1
    assert app.get_steps(resumed.id) == []


def test_a_failed_runs_key_is_free_and_retry_resumes_it(app: Durably, recovery: Recovery) -> None:
    # contract 89d, 110
    handle = app.job("job")(lambda step, _: "done")
    worker = add_worker(app, "job")
    first, second = (handle.trigger(None, concurrency_key="k") for _ in range(2))
    (run,) = claim(app, worker)
    assert recovery.fail_overdue(worker, timed(run), began=0.0)
    assert app.process_one()
    assert (read(app, first).status, read(app, second).status) == ("failed", "completed")
    app.retry(first.id)
    assert app.process_one()
    assert read(app, first).output == "done"


@pytest.mark.parametrize(
    ("reason", "culprit", "interruptions"),
    [("timeout", False, [0, 0]), ("hung", True, [0, 1]), ("hung", False, [1, 1]), ("out_of_memory", False, [1, 1])],
)
def test_whom_an_end_interrupts(
    app: Durably, recovery: Recovery, reason: Any, culprit: bool, interruptions: list[int]
) -> None:
    # contract 89e, 163b, 165b
    worker, runs = held(app, 2)
    heard = hear(app, "run:recover")
    recovery.recover(worker, reason=reason, signal="SIGKILL", culprit=runs[1].id if culprit else None)
    assert [read(app, run.id).interruptions for run in runs] == interruptions
    assert {read(app, run.id).status for run in runs} == {"pending"}
    assert {event.reason for event in heard} == {reason}


def test_a_run_that_hung_too_often_fails_with_how_and_its_neighbour_does_not(app: Durably, recovery: Recovery) -> None:
    # contract 66, 165b
    worker, runs = held(app, 2)
    sql(app, "UPDATE durably_runs SET interruptions = 5")
    recovery.recover(worker, reason="hung", signal="SIGKILL", culprit=runs[0].id)
    failed, other = (read(app, run.id) for run in runs)
    assert (failed.status, failed.error_type) == ("failed", "TooManyInterruptions")
    assert "its event loop stood still" in str(failed.error)
    assert (other.status, other.interruptions) == ("pending", 5)
