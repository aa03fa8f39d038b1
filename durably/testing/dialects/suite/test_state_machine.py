"""The statuses of a run: what each operation makes of a run in each status, and what races leave."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from durably import (
    ConflictError,
    Durably,
    NotFoundError,
    Progress,
    Run,
    StepContext,
    ValidationError,
    define_job,
)
from durably.model import STATUSES, TERMINAL, Status
from durably.store.intents import Checkpoint, Completion, Failure, LogLine, ProgressNote, Release, StepFailure
from durably.testing.dialects.suite.support import AppMaker, add_worker, claim, hear, read, recover, sql, write

MISSING = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
FAR_FUTURE = datetime(2100, 1, 1, tzinfo=UTC)


def give_back(step: StepContext, input: Any) -> Any:
    """Return the input."""
    return input


def mine(app: Durably, run: Run) -> dict[str, Any]:
    """Write as the worker that claimed the run last, whatever has become of the run since."""
    return {"run_id": run.id, "generation": read(app, run).generation}


STEP: dict[str, Any] = {"index": 1, "attempt": 1, "duration": 0.1}
ERROR: dict[str, Any] = {"error": "e", "error_type": "E", "error_traceback": "t"}

Operation = Callable[[Durably, Run, str], Any]
OPERATIONS: dict[str, Operation] = {
    # By a worker. Each gives its verdict, or what it took.
    "claim": lambda app, run, worker: claim(app, worker, "job"),
    "log": lambda app, run, worker: write(
        app, LogLine(**mine(app, run), step_name=None, attempt=1, level="info", message="late", data="{}")
    ),
    "progress": lambda app, run, worker: write(app, ProgressNote(**mine(app, run), progress='{"current": 7}')),
    "fail_step": lambda app, run, worker: write(app, StepFailure(**mine(app, run), name="late", **STEP, **ERROR)),
    "checkpoint": lambda app, run, worker: write(app, Checkpoint(**mine(app, run), name="late", **STEP, output="1")),
    "complete": lambda app, run, worker: write(app, Completion(**mine(app, run), output='"out"')),
    "fail": lambda app, run, worker: write(app, Failure(**mine(app, run), **ERROR)),
    "release": lambda app, run, worker: write(app, Release(**mine(app, run))),
    # By whoever finds the worker dead.
    "recover": lambda app, run, worker: recover(app, worker)[1],
    "recover_drained": lambda app, run, worker: recover(app, worker, interrupts=False)[1],
    "recover_poison": lambda app, run, worker: recover(app, worker, max_interruptions=1)[1],
    # By callers.
    "cancel": lambda app, run, worker: app.cancel(run.id),
    "retry": lambda app, run, worker: app.retry(run.id),
    "retrigger": lambda app, run, worker: app.retrigger(run.id),
    "delete_run": lambda app, run, worker: app.delete_run(run.id),
    "purge_runs": lambda app, run, worker: app.purge_runs(older_than=FAR_FUTURE),
}

MATRIX = """
                 pending       running    completed     failed        cancelled

claim            running       (none)     (none)        (none)        (none)
log              (lease_lost)  running    (lease_lost)  (lease_lost)  (cancelled)
progress         (lease_lost)  running    (lease_lost)  (lease_lost)  (cancelled)
fail_step        (lease_lost)  running    (lease_lost)  (lease_lost)  (cancelled)
checkpoint       (lease_lost)  running    (lease_lost)  (lease_lost)  (cancelled)
complete         (lease_lost)  completed  (again)       (lease_lost)  (cancelled)
fail             (lease_lost)  failed     (lease_lost)  (lease_lost)  (cancelled)
release          (lease_lost)  pending    (lease_lost)  (lease_lost)  (cancelled)

recover          (none)        pending    (none)        (none)        (none)
recover_drained  (none)        pending    (none)        (none)        (none)
recover_poison   (none)        failed     (none)        (none)        (none)

cancel           cancelled     cancelled  (conflict)    (conflict)    (conflict)
retry            (conflict)    (conflict) (conflict)    pending       pending
retrigger        (conflict)    (conflict) completed     failed        cancelled
delete_run       (conflict)    (conflict) gone          gone          gone
purge_runs       (none)        (none)     gone          gone          gone
"""
"""
What each operation makes of a run in each status; in brackets, how it is refused.

A worker that completes a run again, because it never learned that its first commit was done, is answered as the
first time.
"""

SETS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "claim": lambda run: {"generation": run.generation + 1},
    "progress": lambda run: {"progress": Progress(current=7)},
    "checkpoint": lambda run: {"current_step_index": 2, "completed_step_count": 2},
    "complete": lambda run: {"output": "out"},
    "fail": lambda run: ERROR,
    "recover": lambda run: {"interruptions": run.interruptions + 1},
    "recover_poison": lambda run: {"interruptions": run.interruptions + 1, "error_type": "TooManyInterruptions"},
    "retry": lambda run: {"attempt": run.attempt + 1, "interruptions": 0} | dict.fromkeys(ERROR),
}
"""What each operation sets, beside the status, who holds the run, and the times that go with them."""


def cases() -> list[tuple[str, Status, str]]:
    """Read the matrix: an operation, a status, and what becomes of it."""
    _, *rows = [line.split() for line in MATRIX.splitlines() if line]
    assert {operation for operation, *_ in rows} == set(OPERATIONS)
    return [
        (operation, status, becomes)
        for operation, *all_become in rows
        for status, becomes in zip(STATUSES, all_become, strict=True)
    ]


def make(app: Durably, status: str) -> tuple[Run, str]:
    """
    Bring a run into *status*, from where it has lost one worker and left behind all that a run can leave.

    Returns:
        The run, an hour old; and the worker that claimed it last.
    """
    handle = app.get_job("job") or app.register(define_job("job", give_back))
    run = handle.trigger(1, labels={"org": "a"}, concurrency_key="k", idempotency_key="i")
    first, worker = add_worker(app, "job"), add_worker(app, "job")
    claim(app, first, "job")
    write(
        app,
        Checkpoint(**mine(app, run), name="done", index=0, attempt=1, output="1", duration=0.1),
        StepFailure(**mine(app, run), name="broken", **STEP, **ERROR),
        ProgressNote(**mine(app, run), progress='{"current": 1}'),
        LogLine(**mine(app, run), step_name=None, attempt=1, level="info", message="begun", data="{}"),
    )
    recover(app, first)
    ways = {"completed": "complete", "failed": "fail", "cancelled": "cancel"}
    if status != "pending":
        OPERATIONS["claim"](app, run, worker)
    if status in ways:
        OPERATIONS[ways[status]](app, run, worker)
    for time in ("created_at", "pending_at", "started_at", "completed_at", "updated_at"):
        sql(app, f"UPDATE durably_runs SET {time} = {time} - 3600000000")
    found = read(app, run)
    assert (found.status, found.interruptions) == (status, 1)
    return found, worker


def dump(app: Durably) -> list[list[Any]]:
    """Read all that is stored of runs."""
    return [
        [tuple(row) for row in sql(app, f"SELECT * FROM durably_{table}")]
        for table in ("runs", "steps", "logs", "labels")
    ]


def refusal(app: Durably, operation: str, run: Run, worker: str) -> str:
    """Have an operation refused, and put into the matrix's word how."""
    try:
        answer = OPERATIONS[operation](app, run, worker)
    except ConflictError as error:
        names_the_status = error.status == run.status and run.status in str(error)
        return "(conflict)" if names_the_status else repr(error)
    if not answer:
        return "(none)"
    return "(again)" if answer == [None] else f"({answer[0]})"


@pytest.mark.parametrize(("operation", "status", "becomes"), cases())
def test_each_operation_makes_its_transition_or_is_refused_and_changes_nothing(
    app: Durably, operation: str, status: Status, becomes: str
) -> None:
    # contract 35, 36, 37, 40, 50, 51, 65, 66, 90, 91, 92, 100, 102, 104, 105, 127, 129, 130, 158, 170
    run, worker = make(app, status)
    before = dump(app)
    if becomes.startswith("("):
        assert refusal(app, operation, run, worker) == becomes
        assert dump(app) == before
        return
    OPERATIONS[operation](app, run, worker)
    if becomes == "gone":
        assert dump(app) == [[], [], [], []]
        return
    now = read(app, run)
    follows = {"worker_id", "completed_at", "updated_at", *(["error"] if operation == "recover_poison" else [])}
    sets: dict[str, Any] = {"status": becomes} | (SETS[operation](run) if operation in SETS else {})
    assert now == replace(run, **sets, **{name: getattr(now, name) for name in follows})
    assert now.worker_id == (worker if becomes == "running" else None)
    assert (now.completed_at is not None) == (becomes in TERMINAL) == now.is_terminal
    assert now.is_active != now.is_terminal
    if becomes != status:
        assert now.updated_at > run.updated_at
        assert now.completed_at in (None, now.updated_at)
    # What was done stays, also of a run that begins again.
    assert all(set(old) <= set(new) for old, new in zip(before[1:], dump(app)[1:], strict=True))


@pytest.mark.parametrize("call", ["cancel", "retry", "retrigger", "delete_run"])
def test_a_missing_run_is_not_found(app: Durably, call: str) -> None:
    # contract 91, 102, 105, 127
    with pytest.raises(NotFoundError, match=MISSING):
        getattr(app, call)(MISSING)


def test_times_and_counters_move_as_the_table_says(app: Durably) -> None:
    # contract 35, 36, 37, 40
    pending = app.register(define_job("job", give_back)).trigger()
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
    write(app, Failure(run_id=pending.id, generation=3, **ERROR))
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


@pytest.mark.parametrize("error", [None, ValueError("told to"), SystemExit(3), KeyboardInterrupt()])
def test_how_the_function_ends_decides_how_the_run_ends(app: Durably, error: BaseException | None) -> None:
    # contract 38, 39
    @app.job("job")
    def job(step: StepContext, input: int) -> int:
        if error is not None and input == 1:
            raise error
        return input

    ended, next_one = job.trigger(1), job.trigger(2)
    assert app.process_until_idle() == 2
    run = read(app, ended)
    if error is None:
        assert (run.status, run.output, run.error) == ("completed", 1, None)
    else:
        assert (run.status, run.output, run.error_type) == ("failed", None, type(error).__name__)
        assert f"{type(error).__name__}" in (run.error_traceback or "")
    assert read(app, next_one).status == "completed"


# --- cancel -------------------------------------------------------------------------------------------------


def test_a_cancelled_pending_run_is_never_executed(app: Durably) -> None:
    # contract 90
    run = app.register(define_job("job", give_back)).trigger()
    assert app.cancel(run.id) == read(app, run)
    assert app.process_until_idle() == 0
    now = read(app, run)
    assert (now.status, now.generation, now.started_at) == ("cancelled", 0, None)


def test_a_cancelled_running_run_frees_its_key_at_once(app: Durably) -> None:
    # contract 90, 98, 113
    run, worker = make(app, "running")
    younger = app.get_job("job").trigger(2, concurrency_key="k")  # type: ignore[union-attr]
    assert claim(app, worker, company="beside") == []
    assert app.cancel(run.id) == read(app, run)
    assert [claimed.id for claimed in claim(app, worker, company="beside")] == [younger.id]


# --- retry --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_retried_run_is_the_same_run_with_all_that_it_has_done(app: Durably, status: str) -> None:
    # contract 99, 100
    run, _ = make(app, status)
    steps, logs = app.get_steps(run.id), app.get_logs(run.id)
    heard = hear(app)
    retried = app.retry(run.id)
    assert retried == read(app, run)
    for kept in ("id", "input", "labels", "idempotency_key", "concurrency_key", "created_at", "started_at", "progress"):
        assert getattr(retried, kept) == getattr(run, kept)
    assert (retried.status, retried.attempt, retried.interruptions) == ("pending", 2, 0)
    assert (app.get_steps(run.id), app.get_logs(run.id)) == (steps, logs)
    assert [step.status for step in steps] == ["completed", "failed"]
    (event,) = heard
    assert (event.type, event.run_id, event.previous_status, event.attempt) == ("run:retry", run.id, status, 2)


def test_a_process_that_does_not_know_the_job_may_retry_and_retrigger_it(app: Durably, make_app: AppMaker) -> None:
    # contract 102, 104
    run, _ = make(app, "failed")
    stranger = make_app()
    assert stranger.retrigger(run.id).input == run.input
    assert stranger.retry(run.id).status == "pending"


# --- retrigger ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", TERMINAL)
def test_a_retriggered_run_is_a_new_run_with_the_same_input_and_nothing_done(app: Durably, status: str) -> None:
    # contract 32, 104
    run, _ = make(app, status)
    before = dump(app)
    heard = hear(app)
    new = app.retrigger(run.id)
    assert new.id > run.id
    assert replace(new, disposition=None) == read(app, new)
    for same in ("job_name", "input", "labels", "concurrency_key"):
        assert getattr(new, same) == getattr(run, same)
    assert (new.status, new.attempt, new.generation, new.interruptions) == ("pending", 1, 0, 0)
    for empty in ("idempotency_key", "worker_id", "progress", "output", "error", "started_at", "completed_at"):
        assert getattr(new, empty) is None
    assert (app.get_steps(new.id), app.get_logs(new.id)) == ([], [])
    assert new.created_at > run.created_at
    assert [run.id for run in app.get_runs(labels={"org": "a"})] == [new.id, run.id]
    assert all(set(old) <= set(now) for old, now in zip(before, dump(app), strict=True))
    (event,) = heard
    assert (event.type, event.run_id, event.retriggered_from) == ("run:trigger", new.id, run.id)
    assert (event.input, event.concurrency_key, event.idempotency_key) == (1, "k", None)
    assert dict(event.labels) == {"org": "a"}


def test_a_run_may_be_retriggered_any_number_of_times_and_so_may_what_comes_of_it(app: Durably) -> None:
    # contract 104, 109
    run, _ = make(app, "completed")
    ids = [run.id, app.retrigger(run.id).id, asyncio.run(app.aretrigger(run.id)).id]
    app.process_until_idle()
    ids.append(app.retrigger(ids[1]).id)
    assert len(set(ids)) == 4
    assert [read(app, run_id).status for run_id in ids] == ["completed"] * 3 + ["pending"]
    # The first one alone has the idempotency key.
    assert app.get_job("job").trigger(1, idempotency_key="i").id == run.id  # type: ignore[union-attr]


def test_an_input_that_no_longer_fits_is_not_retriggered(app: Durably, make_app: AppMaker) -> None:
    # contract 105
    run, _ = make(app, "completed")
    before = dump(app)
    today = make_app()
    today.register(define_job("job", give_back, input=list[int]))
    heard = hear(today)
    with pytest.raises(ValidationError, match=run.id):
        today.retrigger(run.id)
    assert (dump(app), heard) == (before, [])


# --- delete and purge ---------------------------------------------------------------------------------------


def test_a_deleted_run_is_gone_with_all_that_it_had_and_others_stay(app: Durably) -> None:
    # contract 109, 127
    run, worker = make(app, "failed")
    other = app.get_job("job").trigger(2, labels={"org": "a"})  # type: ignore[union-attr]
    claim(app, worker)
    write(app, Checkpoint(**mine(app, other), name="done", **STEP, output="1"))
    heard = hear(app)
    app.delete_run(run.id)
    assert app.get_run(run.id) is None
    assert app.get_runs(labels={"org": "a"}) == [read(app, other)]
    assert [len(rows) for rows in dump(app)] == [1, 1, 0, 1]
    (event,) = heard
    assert (event.type, event.run_id, event.reason, dict(event.labels)) == (
        "run:delete",
        run.id,
        "delete",
        {"org": "a"},
    )
    # Its key is free.
    assert app.get_job("job").trigger(3, idempotency_key="i").disposition == "created"  # type: ignore[union-attr]


def end(app: Durably, ages: list[float]) -> list[str]:
    """Make cancelled runs that ended so many seconds ago."""
    handle = app.get_job("job") or app.register(define_job("job", give_back))
    ids = [handle.trigger().id for _ in ages]
    for run_id, age in zip(ids, ages, strict=True):
        app.cancel(run_id)
        sql(
            app,
            "UPDATE durably_runs SET completed_at = completed_at - :age WHERE id = :id",
            id=run_id,
            age=int(age * 1e6),
        )
    return ids


def test_purge_takes_the_oldest_ends_first_and_tells_each(app: Durably) -> None:
    # contract 129
    ids = end(app, [100, 400, 300, 10, 200])
    heard = hear(app)
    assert app.purge_runs(older_than=60, limit=2) == 2
    assert {run.id for run in app.get_runs()} == {ids[0], ids[3], ids[4]}
    assert [(e.type, e.run_id, e.reason) for e in heard] == [
        ("run:delete", ids[1], "purge"),
        ("run:delete", ids[2], "purge"),
    ]
    assert app.purge_runs(older_than=timedelta(minutes=1)) == 2
    assert app.purge_runs(older_than="1m") == 0
    assert [run.id for run in app.get_runs()] == [ids[3]]
    assert len(heard) == 4


def test_purge_takes_what_ended_strictly_before_the_cutoff(app: Durably) -> None:
    # contract 129
    (run_id,) = end(app, [100])
    ended_at = read(app, run_id).completed_at
    assert ended_at is not None
    assert app.purge_runs(older_than=ended_at) == 0
    assert app.purge_runs(older_than=ended_at + timedelta(microseconds=1)) == 1


def test_purge_takes_at_most_five_hundred_unless_told_otherwise(app: Durably) -> None:
    # contract 129
    app.register(define_job("job", give_back)).batch_trigger(range(502))
    sql(app, "UPDATE durably_runs SET status = 'cancelled', completed_at = updated_at")
    assert app.purge_runs(older_than=FAR_FUTURE) == 500
    assert app.purge_runs(older_than=FAR_FUTURE) == 2


@pytest.mark.parametrize("older_than", [datetime(2100, 1, 1), 0, -1, "soon", float("nan")])  # noqa: DTZ001
def test_a_cutoff_that_is_none_is_refused(app: Durably, older_than: Any) -> None:
    # contract 4, 129
    end(app, [100])
    with pytest.raises(ValidationError) as refused:
        app.purge_runs(older_than=older_than)
    assert refused.value.field == "older_than"
    assert len(app.get_runs()) == 1


@pytest.mark.parametrize("limit", [-1, True, "3", 1.5, None])
def test_a_limit_that_is_none_is_refused(app: Durably, limit: Any) -> None:
    # contract 27, 129
    end(app, [100])
    with pytest.raises(ValidationError) as refused:
        app.purge_runs(older_than=60, limit=limit)
    assert refused.value.field == "limit"
    assert app.purge_runs(older_than=60, limit=0) == 0
    assert len(app.get_runs()) == 1


def test_a_run_that_has_not_ended_is_never_purged_however_old(app: Durably) -> None:
    # contract 130
    handle = app.register(define_job("job", give_back))
    for _ in range(2):
        handle.trigger()
    claim(app, add_worker(app))
    sql(app, "UPDATE durably_runs SET created_at = 0, pending_at = 0, updated_at = 0")
    assert app.purge_runs(older_than=FAR_FUTURE) == 0
    assert {run.status for run in app.get_runs()} == {"pending", "running"}


# --- races --------------------------------------------------------------------------------------------------


def race(*calls: Callable[[], Any]) -> list[Any]:
    """Make calls at the same moment; give their results or errors."""
    start = threading.Barrier(len(calls))

    def go(call: Callable[[], Any]) -> Any:
        start.wait()
        try:
            return call()
        except (ConflictError, NotFoundError) as error:
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return [f.result() for f in [threads.submit(go, call) for call in calls]]


@pytest.mark.parametrize(("call", "status"), [("cancel", "running"), ("retry", "failed")])
def test_of_racing_calls_exactly_one_succeeds(app: Durably, call: str, status: str) -> None:
    # contract 35, 91, 102
    run, _ = make(app, status)
    outcomes = race(*[lambda: getattr(app, call)(run.id)] * 4)
    assert sum(isinstance(outcome, Run) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, ConflictError) for outcome in outcomes) == 3


def test_of_a_cancel_and_a_finish_that_race_exactly_one_happens(app: Durably) -> None:
    # contract 35, 91, 92
    for _ in range(10):
        run, worker = make(app, "running")
        cancelled, (verdict,) = race(
            lambda r=run: app.cancel(r.id),  # type: ignore[misc]
            lambda r=run, w=worker: OPERATIONS["complete"](app, r, w),  # type: ignore[misc]
        )
        now = read(app, run)
        if verdict is None:
            assert isinstance(cancelled, ConflictError)
            assert cancelled.status == now.status == "completed"
        else:
            assert verdict == "cancelled"
            assert now.status == "cancelled"
            assert now.output is None
        app.delete_run(run.id)


def test_of_a_finish_and_a_recovery_that_race_exactly_one_happens(app: Durably) -> None:
    # contract 35, 51, 56
    for _ in range(10):
        run, worker = make(app, "running")
        (verdict,), recovered = race(
            lambda r=run, w=worker: OPERATIONS["complete"](app, r, w),  # type: ignore[misc]
            lambda r=run, w=worker: OPERATIONS["recover"](app, r, w),  # type: ignore[misc]
        )
        now = read(app, run)
        happened = ("completed", 1, None, 0) if verdict is None else ("pending", 2, "lease_lost", 1)
        assert (now.status, now.interruptions, verdict, len(recovered)) == happened
        if now.is_active:
            app.cancel(run.id)
        app.delete_run(run.id)


@pytest.mark.parametrize("call", ["delete_run", "purge_runs"])
def test_of_a_deletion_and_a_retry_that_race_exactly_one_happens(app: Durably, call: str) -> None:
    # contract 35, 127, 128, 130
    for _ in range(10):
        run, worker = make(app, "failed")
        deleted, retried = race(
            lambda r=run, w=worker: OPERATIONS[call](app, r, w),  # type: ignore[misc]
            lambda r=run: app.retry(r.id),  # type: ignore[misc]
        )
        if isinstance(retried, NotFoundError):
            assert deleted in (None, 1)
            assert dump(app) == [[], [], [], []]
            continue
        assert read(app, run).status == "pending"
        assert deleted == 0 if call == "purge_runs" else isinstance(deleted, ConflictError)
        app.cancel(run.id)
        app.delete_run(run.id)


def test_a_run_that_is_being_claimed_is_not_deleted(app: Durably) -> None:
    # contract 127
    for _ in range(10):
        run, worker = make(app, "pending")
        deleted, claimed = race(
            lambda r=run: app.delete_run(r.id),  # type: ignore[misc]
            lambda r=run, w=worker: OPERATIONS["claim"](app, r, w),  # type: ignore[misc]
        )
        assert isinstance(deleted, ConflictError)
        assert deleted.status in ("pending", "running")
        assert [run.id for run in claimed] == [run.id]
        app.cancel(run.id)
        app.delete_run(run.id)
