"""Fencing, heartbeats, staleness, recovery, poison, isolation: what a lost worker can and cannot do."""

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from durably import AsyncStep, Durably, LeaseLost, StepContext, define_job
from durably.store import claims, runs, workers
from durably.store.claims import ClaimedRun
from durably.store.intents import (
    Beat,
    Checkpoint,
    Completion,
    Failure,
    Fenced,
    LogLine,
    ProgressNote,
    Release,
    StepFailure,
)
from durably.testing.dialects.databases import databases
from durably.testing.dialects.suite.support import (
    AppMaker,
    Lock,
    Wrap,
    add_worker,
    claim,
    eventually,
    hear,
    make_silent,
    read,
    recover,
    sql,
    stop_between_commits,
    types,
    worker_state,
    write,
)
from durably.worker.identity import process_key
from durably.worker.upkeep import Upkeep

QUICK: dict[str, Any] = {"heartbeat_interval": 0.1, "stale_threshold": 0.4}


def nothing(step: StepContext, input: object) -> None:
    """Do nothing, as a job."""


def hold(app: Durably, *inputs: object) -> tuple[str, list[ClaimedRun]]:
    """Trigger runs and have a worker without a process claim them all."""
    handle = app.get_job("job") or app.register(define_job("job", nothing))
    handle.batch_trigger(inputs or [None])
    worker = add_worker(app, "job")
    return worker, claim(app, worker, limit=100)


def intents_of(run: ClaimedRun) -> list[Fenced]:
    """Make one intent of each fenced kind."""
    mine: dict[str, Any] = {"run_id": run.id, "generation": run.generation}
    step: dict[str, Any] = {"name": "late", "index": 0, "attempt": 1, "duration": 0.1}
    error: dict[str, Any] = {"error": "late", "error_type": "Late", "error_traceback": "late"}
    return [
        Checkpoint(**mine, **step, output="1"),
        StepFailure(**mine, **step, **error),
        ProgressNote(**mine, progress='{"current": 1}'),
        LogLine(**mine, step_name=None, attempt=1, level="info", message="late", data="{}"),
        Completion(**mine, output="1"),
        Completion(**mine, output="1", drop_outputs=True),
        Failure(**mine, **error),
        Release(**mine),
    ]


KINDS = [
    "checkpoint",
    "step failure",
    "progress",
    "log",
    "completion",
    "slimming completion",
    "failure",
    "release",
]


def dump(app: Durably) -> list[Any]:
    """Read all that is stored of runs."""
    return [
        [tuple(row) for row in sql(app, f"SELECT * FROM durably_{table}")]
        for table in ("runs", "steps", "logs", "labels")
    ]


def make_recovered(app: Durably, run: ClaimedRun, worker: str) -> None:
    recover(app, worker)


def make_poisoned(app: Durably, run: ClaimedRun, worker: str) -> None:
    recover(app, worker, max_interruptions=0)


def make_claimed_again(app: Durably, run: ClaimedRun, worker: str) -> None:
    recover(app, worker)
    assert claim(app, add_worker(app))


def make_claimed_again_by_the_same(app: Durably, run: ClaimedRun, worker: str) -> None:
    write(app, Release(run_id=run.id, generation=run.generation))
    assert claim(app, worker)


def make_completed_by_another(app: Durably, run: ClaimedRun, worker: str) -> None:
    make_claimed_again(app, run, worker)
    assert write(app, Completion(run_id=run.id, generation=run.generation + 1, output='"theirs"')) == [None]


def make_failed_by_another(app: Durably, run: ClaimedRun, worker: str) -> None:
    make_claimed_again(app, run, worker)
    failure: dict[str, Any] = {"error": "theirs", "error_type": "Theirs", "error_traceback": ""}
    assert write(app, Failure(run_id=run.id, generation=run.generation + 1, **failure)) == [None]


def make_cancelled(app: Durably, run: ClaimedRun, worker: str) -> None:
    app.cancel(run.id)


def make_retried(app: Durably, run: ClaimedRun, worker: str) -> None:
    app.cancel(run.id)
    app.retry(run.id)


def make_deleted(app: Durably, run: ClaimedRun, worker: str) -> None:
    app.cancel(run.id)
    app.delete_run(run.id)


TAKEN_AWAY = [
    (make_recovered, "lease_lost"),
    (make_poisoned, "lease_lost"),
    (make_claimed_again, "lease_lost"),
    (make_claimed_again_by_the_same, "lease_lost"),
    (make_completed_by_another, "lease_lost"),
    (make_failed_by_another, "lease_lost"),
    (make_cancelled, "cancelled"),
    (make_retried, "lease_lost"),
    (make_deleted, "lease_lost"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("take_away", "reason"), TAKEN_AWAY, ids=lambda v: getattr(v, "__name__", None))
def test_a_late_write_changes_nothing_and_learns_why(
    app: Durably, take_away: Callable[..., None], reason: str, kind: str
) -> None:
    # contract 50, 51, 92, 128, 139
    worker, (run,) = hold(app)
    take_away(app, run, worker)
    before = dump(app)
    assert write(app, intents_of(run)[KINDS.index(kind)]) == [reason]
    assert dump(app) == before


def test_the_holders_writes_are_accepted(app: Durably) -> None:
    # contract 50
    _, held = hold(app, *range(8))
    intents = [intents_of(run)[n] for n, run in enumerate(held)]
    assert write(app, *intents) == [None] * 8
    now = [read(app, run.id) for run in held]
    assert [r.status for r in now] == ["running"] * 4 + ["completed"] * 2 + ["failed", "pending"]
    assert now[7].interruptions == 0
    assert {r.worker_id for r in now[4:]} == {None}


def test_in_one_batch_only_the_refused_are_refused(app: Durably) -> None:
    # contract 50, 51
    _, held = hold(app, *range(6))
    app.cancel(held[1].id)
    sql(app, "UPDATE durably_runs SET generation = 9 WHERE id = :id", id=held[4].id)
    for kind in range(8):
        answers = write(app, *(intents_of(held[n])[kind] for n in (1, 4)))
        assert answers == ["cancelled", "lease_lost"]
    answers = write(app, *(intents_of(run)[6] for run in held))
    assert answers == [None, "cancelled", None, None, "lease_lost", None]
    statuses = [read(app, run.id).status for run in held]
    assert statuses == ["failed", "cancelled", "failed", "failed", "running", "failed"]


def test_what_was_handed_over_before_the_end_lands_with_it(app: Durably) -> None:
    # contract 149
    _, (run,) = hold(app)
    checkpoint, _, progress, line, end, *_ = intents_of(run)
    assert write(app, end, line, progress, checkpoint) == [None] * 4
    now = read(app, run.id)
    assert (now.status, now.completed_step_count) == ("completed", 1)
    assert now.progress is not None
    assert [entry.message for entry in app.get_logs(run.id)] == ["late"]


def beat(app: Durably, worker: str, *held: ClaimedRun) -> Any:
    """Write one heartbeat."""
    (answer,) = write(
        app,
        Beat(
            worker_id=worker,
            jobs=["job"],
            held=[(run.id, run.generation) for run in held],
            loop_lag=0.0,
            oldest_step_age=None,
            isolate_after=2,
            patience=30.0,
        ),
    )
    return answer


def test_a_worker_is_silent_by_the_databases_clock_and_beats_itself_back(app: Durably) -> None:
    # contract 53, 55
    silent, beating = add_worker(app, silent_for=31), add_worker(app)

    def find() -> list[str]:
        return app.database.read(lambda c: workers.find_silent(c, 30.0))

    assert find() == [silent]
    make_silent(app, beating, 29)
    assert find() == [silent]
    assert beat(app, silent).accepted
    assert find() == []


def test_a_run_of_any_age_is_safe_while_its_worker_beats(app: Durably) -> None:
    # contract 55
    worker, (run,) = hold(app)
    sql(app, "UPDATE durably_runs SET created_at = 0, pending_at = 0, started_at = 0, updated_at = 0")
    beat(app, worker, run)
    assert app.process_until_idle() == 0
    assert read(app, run.id).status == "running"


def test_recovery_puts_the_runs_back_in_their_place_and_counts_an_interruption(app: Durably) -> None:
    # contract 37, 56, 65
    worker, held = hold(app, *range(3))
    before = [read(app, run.id) for run in held]
    declared, recovered = recover(app, worker)
    assert declared
    assert [r.id for r in recovered] == [run.id for run in held]
    assert not any(r.failed for r in recovered)
    for old, run in zip(before, held, strict=True):
        now = read(app, run.id)
        assert (now.status, now.interruptions, now.attempt, now.generation) == ("pending", 1, 1, 1)
        assert (now.created_at, now.started_at) == (old.created_at, old.started_at)
        assert now.worker_id is None
        assert now.updated_at >= old.updated_at
    assert worker_state(app, worker) == "dead"


def test_recovering_a_worker_twice_counts_once(app: Durably) -> None:
    # contract 56
    worker, (run,) = hold(app)
    recover(app, worker)
    assert recover(app, worker) == (False, [])
    assert read(app, run.id).interruptions == 1


def test_threads_that_recover_a_worker_at_once_count_each_run_once(app: Durably) -> None:
    # contract 56
    worker, held = hold(app, *range(20))
    start = threading.Barrier(6)

    def go() -> tuple[bool, int]:
        start.wait()
        declared, recovered = recover(app, worker)
        return declared, len(recovered)

    with ThreadPoolExecutor(6) as threads:
        outcomes = [f.result() for f in [threads.submit(go) for _ in range(6)]]
    assert sorted(outcomes) == [(False, 0)] * 5 + [(True, 20)]
    assert {read(app, run.id).interruptions for run in held} == {1}


def test_a_worker_that_was_declared_dead_never_lives_again(app: Durably) -> None:
    # contract 57
    worker, (run,) = hold(app)
    recover(app, worker)
    answer = beat(app, worker, run)
    assert not answer.accepted
    assert worker_state(app, worker) == "dead"
    assert not app.database.write(lambda c: workers.close(c, worker))
    assert worker_state(app, worker) == "dead"
    assert claim(app, worker) == []


def test_a_heartbeat_tells_which_runs_were_cancelled_and_which_lost(app: Durably) -> None:
    # contract 51, 94
    worker, held = hold(app, *range(4))
    for n in (1, 2, 3):
        app.cancel(held[n].id)
    app.retry(held[2].id)
    app.delete_run(held[3].id)
    answer = beat(app, worker, *held)
    assert answer.accepted
    assert answer.lost == [(held[n].id, 1, "cancelled") for n in (1, 2, 3)]
    recover(app, worker)
    answer = beat(app, worker, *held)
    assert not answer.accepted
    assert answer.lost == [
        (held[0].id, 1, "lease_lost"),
        (held[1].id, 1, "cancelled"),
        (held[2].id, 1, "lease_lost"),
        (held[3].id, 1, "lease_lost"),
    ]


def make_upkeep(app: Durably) -> Upkeep:
    def report(part: str, error: BaseException | None) -> None:
        assert error is None, part

    return Upkeep(app.database, app.settings, app.emitter, report)


def test_nobody_is_judged_by_silence_before_the_judge_has_reached_the_database_for_the_threshold(
    make_app: AppMaker,
) -> None:
    # contract 63
    app = make_app(heartbeat_interval=5, stale_threshold=30)
    worker, (run,) = hold(app)
    make_silent(app, worker, 1000)
    upkeep = make_upkeep(app)
    for now in range(100, 130, 5):
        assert upkeep.recover_stale(now) == 0
    # A gap, as an outage or a suspended host leaves it: the count begins anew.
    for now in range(150, 180, 5):
        assert upkeep.recover_stale(now) == 0
    assert upkeep.recover_stale(180.5) == 1
    assert read(app, run.id).status == "pending"


def test_nobody_is_silent_because_the_databases_clock_was_set(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 63a
    app = make_app(heartbeat_interval=5, stale_threshold=30)
    worker, (run,) = hold(app)
    upkeep = make_upkeep(app)
    for now in range(100, 140, 5):
        assert upkeep.recover_stale(now) == 0
    # The clock is set an hour ahead, or the host was suspended for an hour: seen from then on, nobody has beaten since.
    real_clock = runs.read_clock
    monkeypatch.setattr(runs, "read_clock", lambda connection: real_clock(connection) + 3_600_000_000)
    make_silent(app, worker, 3_600)
    assert upkeep.recover_stale(140) == 0
    make_silent(app, worker, -3_600)  # it beats, by that clock
    for now in range(145, 180, 5):
        assert upkeep.recover_stale(now) == 0
    assert read(app, run.id).status == "running"
    make_silent(app, worker, 31)
    assert upkeep.recover_stale(180) == 1


def test_a_recovery_at_the_start_judges_at_once_and_tells(app: Durably) -> None:
    # contract 63, 65, 160
    worker, (run,) = hold(app)
    make_silent(app, worker, 31)
    heard = hear(app)
    assert app.process_until_idle() == 1
    now = read(app, run.id)
    assert (now.status, now.interruptions, now.generation, now.attempt) == ("completed", 1, 2, 1)
    (event,) = [e for e in heard if e.type == "run:recover"]
    assert (event.run_id, event.lost_worker, event.reason, event.interruptions) == (run.id, worker, "silent", 1)
    (gone,) = [e for e in heard if e.type == "worker:exit"]
    assert (gone.lost_worker, gone.reason, gone.recovered, gone.exit_code) == (worker, "silent", 1, None)


def test_a_run_that_lost_too_many_workers_fails_with_the_count_and_the_last_ending(app: Durably) -> None:
    # contract 36, 66, 69
    app.register(define_job("job", nothing))
    run = app.get_job("job").trigger()  # type: ignore[union-attr]
    for n in range(1, 6):
        worker = add_worker(app)
        claim(app, worker)
        recover(app, worker)
        assert (read(app, run).status, read(app, run).interruptions) == ("pending", n)
    worker = add_worker(app)
    (claimed,) = claim(app, worker)
    write(app, intents_of(claimed)[0])
    heard = hear(app)
    make_upkeep(app).recovery.recover(worker, reason="died", signal="SIGKILL")
    failed = read(app, run)
    assert (failed.status, failed.interruptions, failed.attempt) == ("failed", 6, 1)
    assert failed.error_type == "TooManyInterruptions"
    assert failed.error is not None
    assert "5" in failed.error
    assert "SIGKILL" in failed.error
    assert failed.completed_at is not None
    assert failed.worker_id is None
    (event,) = [e for e in heard if e.type == "run:fail"]
    assert (event.error_type, event.interruptions, event.failed_step) == ("TooManyInterruptions", 6, None)
    assert "run:recover" not in types(heard)
    # Its checkpoints stay, so a retry resumes it, with a clean count.
    assert [s.name for s in app.get_steps(run.id)] == ["late"]
    retried = app.retry(run.id)
    assert (retried.status, retried.interruptions, retried.attempt, retried.error) == ("pending", 0, 2, None)


def test_with_max_interruptions_zero_the_first_lost_worker_fails_the_run(app: Durably) -> None:
    # contract 66
    worker, (run,) = hold(app)
    _, (recovered,) = recover(app, worker, max_interruptions=0)
    assert recovered.failed
    assert (read(app, run.id).status, read(app, run.id).interruptions) == ("failed", 1)


def test_a_drain_costs_no_interruption_and_fails_nobody(app: Durably) -> None:
    # contract 170
    worker, (run,) = hold(app)
    recover(app, worker, max_interruptions=0, interrupts=False)
    assert (read(app, run.id).status, read(app, run.id).interruptions) == ("pending", 0)


def test_an_often_interrupted_run_executes_while_its_worker_holds_nothing_else(make_app: AppMaker) -> None:
    # contract 48, 67
    app = make_app(concurrency=3)
    now_running: set[int] = set()
    company: dict[int, int] = {}

    @app.job("job")
    async def job(step: AsyncStep, input: int) -> None:
        now_running.add(input)
        for _ in range(20):
            for n in now_running:
                company[n] = max(company.get(n, 0), len(now_running))
            await asyncio.sleep(0.001)
        now_running.discard(input)

    ids = [job.trigger(n).id for n in range(10)]
    sql(app, "UPDATE durably_runs SET interruptions = 2 WHERE id IN (:a, :b)", a=ids[0], b=ids[4])
    assert app.process_until_idle() == 10
    assert company[0] == company[4] == 1
    assert max(company.values()) == 3


def test_one_worker_lets_its_slots_run_empty_for_a_run_that_was_passed_over_too_long(app: Durably) -> None:
    # contract 68
    _, (run,) = hold(app)
    sql(app, "UPDATE durably_runs SET status = 'pending', worker_id = NULL, interruptions = 2")

    def promises(worker: str, patience: float = 30.0) -> bool:
        return app.database.write(
            lambda c: claims.await_overdue_run(c, worker_id=worker, jobs=["job"], isolate_after=2, patience=patience)
        )

    one, other = add_worker(app), add_worker(app)
    assert not promises(one)
    sql(app, "UPDATE durably_runs SET pending_at = pending_at - 31000000")
    assert promises(one)
    assert not promises(other)
    assert promises(one)
    recover(app, one)
    assert promises(other)
    assert [r.id for r in claim(app, other, company="isolated")] == [run.id]
    assert not promises(one)


def test_no_worker_lets_its_slots_run_empty_for_a_run_whose_key_is_taken(app: Durably) -> None:
    # contract 48, 68
    handle = app.register(define_job("job", nothing))
    holder, suspect = (handle.trigger(concurrency_key="k") for _ in range(2))
    worker = add_worker(app, "job")
    assert [run.id for run in claim(app, worker, company="beside")] == [holder.id]
    sql(app, "UPDATE durably_runs SET interruptions = 2, pending_at = pending_at - 31000000 WHERE status = 'pending'")

    def promises() -> bool:
        return app.database.write(
            lambda c: claims.await_overdue_run(c, worker_id=worker, jobs=["job"], isolate_after=2, patience=30.0)
        )

    assert not promises()
    app.cancel(holder.id)
    assert promises()
    assert [run.id for run in claim(app, worker, company="isolated")] == [suspect.id]


def test_a_run_that_must_be_alone_gets_its_turn_from_a_worker_whose_claims_never_end(make_app: AppMaker) -> None:
    # contract 68
    app = make_app(concurrency=2, **QUICK)

    @app.job("short")
    async def short(step: AsyncStep, input: int) -> None:
        """Return at once, so that a claim is always on its way."""

    @app.job("suspect")
    async def suspect(step: AsyncStep, input: None) -> int:
        return len(await app.aget_runs(status="pending", limit=1))

    short.batch_trigger(range(6_000))
    run = suspect.trigger()
    sql(
        app, "UPDATE durably_runs SET interruptions = 2, created_at = created_at + 3600000000 WHERE id = :id", id=run.id
    )
    app.start()
    # While others were still waiting, not after them.
    assert app.wait_for_run(run.id, timeout=30).output == 1
    sql(app, "UPDATE durably_runs SET status = 'cancelled', completed_at = updated_at WHERE status = 'pending'")


def test_a_run_that_is_held_alone_may_wait_for_runs_that_only_its_worker_can_take(make_app: AppMaker) -> None:
    # contract 67a
    app = make_app(concurrency=2, **QUICK)

    @app.job("child")
    def child(step: StepContext, input: int) -> int:
        return input

    @app.job("parent")
    async def parent(step: AsyncStep, input: None) -> Any:
        return (await child.atrigger_and_wait(3, timeout=20)).output

    run = parent.trigger()
    sql(app, "UPDATE durably_runs SET interruptions = 2")
    app.start()
    assert app.wait_for_run(run.id, timeout=20).output == 3


def test_waiting_to_be_alone_ends_though_the_worker_is_never_idle_by_itself(make_app: AppMaker) -> None:
    # contract 68
    app = make_app(concurrency=2, **QUICK)
    stopping = threading.Event()

    @app.job("endless")
    async def endless(step: AsyncStep, input: int) -> None:
        await asyncio.sleep(0.01 * (input % 3 + 1))
        if not stopping.is_set():
            await endless.atrigger(input + 1)

    @app.job("suspect")
    async def suspect(step: AsyncStep, input: None) -> list[str]:
        return [run.job_name for run in await app.aget_runs(status="running")]

    for n in range(6):
        endless.trigger(n)
    run = suspect.trigger()
    sql(app, "UPDATE durably_runs SET interruptions = 2 WHERE id = :id", id=run.id)
    # Behind the others, so that it is never the oldest when the worker happens to be empty.
    sql(app, "UPDATE durably_runs SET created_at = created_at + 3600000000 WHERE id = :id", id=run.id)
    app.start()
    try:
        assert app.wait_for_run(run.id, timeout=15).output == ["suspect"]
    finally:
        stopping.set()


@pytest.fixture
def occupied(make_app: AppMaker, either: Wrap) -> Any:
    """Start a worker of one slot on a run that stays in its first step until `go_on` is set."""
    app = make_app(**QUICK)

    occupied = SimpleNamespace(
        app=app, go_on=threading.Event(), begun=threading.Event(), executions=[], ends=[], reasons=[]
    )

    async def body(step: Any, _input: Any) -> Any:
        def wait() -> None:
            occupied.begun.set()
            if len(occupied.executions) == 1:
                occupied.go_on.wait(20)

        occupied.executions.append(1)
        try:
            await step.run("first", wait)
            await step.run("second", lambda: None)
        except BaseException as error:
            occupied.ends.append(type(error).__name__)
            occupied.reasons.append(step.cancelled.reason)
            raise

    occupied.run = app.register(define_job("job", either(body))).trigger()
    occupied.heard = hear(app)
    app.start()
    assert occupied.begun.wait(10)
    yield occupied
    occupied.go_on.set()


def test_a_worker_that_was_declared_dead_abandons_its_runs_and_goes_on_under_a_new_identity(
    occupied: Any,
) -> None:
    # contract 51, 57, 58, 59, 64
    app, run = occupied.app, occupied.run
    first = read(app, run).worker_id
    assert first is not None
    recover(app, first)

    def living() -> Any:
        return app.database.read(lambda c: workers.get_workers(c, alive_only=True))

    (successor,) = eventually(living)
    assert successor.id != first
    warning = eventually(lambda: [e for e in occupied.heard if e.type == "worker:error"])[0]
    assert (warning.context, warning.severity, warning.run_id) == ("lease-lost", "warning", run.id)
    # Its only slot is taken until the abandoned function has returned.
    eventually(lambda: types(occupied.heard).count("worker:heartbeat") > 3)
    assert (read(app, run).status, read(app, run).interruptions) == ("pending", 1)
    assert occupied.ends == []
    occupied.go_on.set()
    done = app.wait_for_run(run.id, timeout=10)
    assert (occupied.ends, occupied.reasons) == ([LeaseLost.__name__], ["lease_lost"])
    assert (done.generation, done.interruptions, done.attempt) == (2, 1, 1)
    assert [(s.name, s.attempt) for s in app.get_steps(run.id)] == [("first", 1), ("second", 1)]
    assert types(occupied.heard).count("worker:error") == 1
    assert types(occupied.heard, "step:").count("step:cancel") == 1
    eventually(lambda: "run:complete" in types(occupied.heard))
    assert types(occupied.heard).count("run:complete") == 1
    assert "run:fail" not in types(occupied.heard)
    assert worker_state(app, first) == "dead"


@pytest.mark.parametrize("ending", ["return", "raise"])
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_an_abandoned_function_that_ends_without_another_step_gives_its_slot_back(
    make_app: AppMaker, kind: str, ending: str
) -> None:
    # contract 51, 58, 59, 157
    app = make_app(**QUICK)
    go_on, begun = threading.Event(), threading.Event()
    executions: list[int] = []

    def execute(step: StepContext, input: None) -> int:
        executions.append(1)
        if len(executions) == 1:
            begun.set()
            go_on.wait(20)
            if ending == "raise":
                raise RuntimeError
        return len(executions)

    async def execute_async(step: AsyncStep, input: None) -> int:
        return await asyncio.to_thread(execute, step, input)  # type: ignore[arg-type]

    run = app.register(define_job("job", execute if kind == "def" else execute_async)).trigger()
    heard = hear(app)
    app.start()
    assert begun.wait(10)
    first = read(app, run).worker_id
    assert first is not None
    recover(app, first)
    try:
        eventually(lambda: types(heard).count("worker:start") == 2)
    finally:
        go_on.set()
    assert app.wait_for_run(run.id, timeout=10).output == 2
    app.stop()
    assert types(heard, "run:").count("run:complete") == 1
    assert "run:fail" not in types(heard)
    assert [e.context for e in heard if e.type == "worker:error"] == ["lease-lost"]


def test_stop_ends_a_worker_that_is_just_changing_its_identity(make_app: AppMaker) -> None:
    # contract 59, 157
    app = make_app(**QUICK)
    stops: list[threading.Thread] = []

    def stop(event: Any) -> None:
        if event.context == "lease-lost":
            stops.append(threading.Thread(target=app.stop, daemon=True))
            stops[0].start()

    @app.job("job")
    def job(step: StepContext, input: None) -> None:
        step.cancelled.wait(20)

    run = job.trigger()
    app.on("worker:error", stop)
    app.start()
    recover(app, eventually(lambda: read(app, run).worker_id) or "")
    eventually(lambda: stops and not stops[0].is_alive())
    assert not app.database.read(lambda c: workers.get_workers(c, alive_only=True))


def test_a_lost_worker_goes_on_although_the_database_is_away_as_it_changes_its_identity(
    make_app: AppMaker, locked: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 59, 155
    databases().hurry(monkeypatch)
    app = make_app(database_timeout=0.1, **QUICK)
    stranger = contextlib.ExitStack()

    @app.job("job")
    def job(step: StepContext, input: None) -> str:
        if len(types(heard, "run:start")) == 1:
            step.cancelled.wait(20)
        return "done"

    heard = hear(app)
    run = job.trigger()
    unsubscribe = app.on("worker:stop", lambda _event: stranger.enter_context(locked()))
    app.start()
    recover(app, eventually(lambda: read(app, run).worker_id) or "")
    outage = eventually(lambda: [e for e in heard if e.type == "worker:error" and e.context == "database"])
    assert outage[0].severity == "error"
    unsubscribe()
    stranger.close()
    assert app.wait_for_run(run.id, timeout=10).output == "done"


def test_the_heartbeat_goes_on_while_a_step_blocks(occupied: Any) -> None:
    # contract 54
    beats = eventually(lambda: [e for e in occupied.heard if e.type == "worker:heartbeat" and e.oldest_step_age > 0.5])
    assert (beats[0].running, beats[0].free) == (1, 0)
    assert worker_state(occupied.app, read(occupied.app, occupied.run).worker_id or "") == "alive"


def test_the_heartbeat_goes_on_while_a_job_blocks_the_event_loop_and_shows_it(make_app: AppMaker) -> None:
    # contract 54
    app = make_app(**QUICK)
    go_on = threading.Event()

    @app.job("blocks the loop")
    async def job(step: AsyncStep, input: None) -> None:
        go_on.wait(20)

    run = job.trigger()
    app.start()
    eventually(lambda: read(app, run).status == "running")

    def row() -> Any:
        return sql(app, "SELECT heartbeat_at, loop_lag FROM durably_workers")[0]

    before = row()
    try:
        eventually(lambda: (row().loop_lag or 0) > 0.5)
        assert row().heartbeat_at - before.heartbeat_at > 300_000
    finally:
        go_on.set()
    assert app.wait_for_run(run.id, timeout=10).interruptions == 0


def test_a_worker_cut_off_from_the_database_starts_no_step_until_a_heartbeat_is_accepted(
    make_app: AppMaker, either: Wrap, locked: Lock
) -> None:
    # contract 60, 155, 184
    app = make_app(**QUICK)
    go_on, begun = threading.Event(), threading.Event()
    called: list[float] = []

    def wait() -> None:
        begun.set()
        go_on.wait(20)

    async def body(step: Any, _input: Any) -> Any:
        wait()
        await step.run("only", lambda: called.append(time.monotonic()))

    run = app.register(define_job("job", either(body))).trigger()
    app.start()
    assert begun.wait(10)
    with locked():
        worker: Any = app.in_process._started
        eventually(lambda: worker._worker.is_cut_off)
        go_on.set()
        with pytest.raises(BaseException, match="still"):
            eventually(lambda: called, timeout=0.3)
        freed = time.monotonic()
    assert app.wait_for_run(run.id, timeout=10).interruptions == 0
    assert called[0] > freed


WORKER = """
import sys, threading
from pathlib import Path
from durably import Durably
app = Durably(url, heartbeat_interval=0.1, stale_threshold=0.4, polling_interval=0.05)
heard = []
app.on("*", lambda e: heard.append(e.type + (":" + e.context if e.type == "worker:error" else "")))
@app.job("job")
def job(step, input):
    step.run("first", lambda: "theirs")
    print("in second", flush=True)
    step.run("second", lambda: sys.stdin.readline().strip() or "theirs")
    return "theirs"
app.start()
sys.stdin.readline()
app.stop(timeout=0)
print(" ".join(heard), flush=True)
app.database.close()
"""


def register_mine(app: Durably) -> Any:
    @app.job("job")
    def job(step: StepContext, input: None) -> list[str]:
        return [step.run("first", lambda: "mine"), step.run("second", lambda: "mine")]

    return job


def test_the_runs_of_a_killed_process_are_recovered_and_resumed_after_their_last_checkpoint(
    make_app: AppMaker, python: Callable[..., subprocess.Popen[str]]
) -> None:
    # contract 62, 64, 65, 186
    app = make_app(heartbeat_interval=0.1, stale_threshold=30)
    job = register_mine(app)
    run = job.trigger()
    process = python(WORKER)
    assert process.stdout is not None
    assert process.stdout.readline() == "in second\n"
    holder = read(app, run).worker_id
    heard = hear(app)
    app.start()
    process.kill()
    done = app.wait_for_run(run.id, timeout=10)
    assert done.output == ["theirs", "mine"]
    assert (done.interruptions, done.attempt, done.generation) == (1, 1, 2)
    assert done.started_at is not None
    assert done.started_at < (app.get_steps(run.id)[1].started_at)
    (event,) = [e for e in heard if e.type == "run:recover"]
    assert (event.lost_worker, event.reason) == (holder, "died")


def test_a_process_that_was_paused_past_its_recovery_changes_nothing_when_it_continues(
    url: str, make_app: AppMaker, python: Callable[..., subprocess.Popen[str]]
) -> None:
    # contract 52, 58, 62
    app = make_app(heartbeat_interval=0.1, stale_threshold=0.4)
    job = register_mine(app)
    run = job.trigger()
    process = python(WORKER)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "in second\n"
    stop_between_commits(url, psutil.Process(process.pid))
    app.start()
    done = app.wait_for_run(run.id, timeout=10)
    assert done.output == ["theirs", "mine"]
    assert (done.interruptions, done.generation) == (1, 2)
    before = dump(app)
    process.send_signal(signal.SIGCONT)
    process.stdin.write("late\n")
    process.stdin.flush()
    told = process.communicate("stop\n", timeout=20)[0]
    assert dump(app) == before
    assert "worker:error:lease-lost" in told
    assert "run:complete" not in told
    assert told.count("step:complete") == 1


def test_a_process_key_outlives_no_process() -> None:
    # contract 62
    key = process_key(os.getpid())
    assert key is not None
    child = subprocess.Popen(["sleep", "60"])
    try:
        childs = process_key(child.pid)
    finally:
        child.kill()
        child.wait()
    assert childs is not None
    assert childs != key
    assert process_key(child.pid) != childs


KILLER = """
import os
from durably import Durably
app = Durably(url, max_interruptions=2)
@app.job("bystander")
def bystander(step, input):
    return step.run("n", lambda: input)
@app.job("killer")
def killer(step, input):
    step.run("before", lambda: None)
    os._exit(9)
app.process_until_idle()
app.database.close()
"""


def test_a_run_that_kills_every_worker_is_executed_max_interruptions_and_one_times(
    make_app: AppMaker, python: Callable[..., subprocess.Popen[str]]
) -> None:
    # contract 64, 66, 69
    app = make_app(max_interruptions=2)
    killer = app.register(define_job("killer", nothing)).trigger()
    app.register(define_job("bystander", nothing)).batch_trigger(range(3))
    codes: list[int] = []
    while 0 not in codes and len(codes) < 6:
        process = python(KILLER)
        process.communicate(timeout=20)
        codes.append(process.returncode)
    assert codes == [9, 9, 9, 0]
    failed = read(app, killer)
    assert (failed.status, failed.generation, failed.interruptions) == ("failed", 3, 3)
    assert failed.error_type == "TooManyInterruptions"
    assert [s.attempt for s in app.get_steps(killer.id)] == [1]
    others = app.get_runs(job_name="bystander")
    assert {r.status for r in others} == {"completed"}
    assert max(r.interruptions for r in others) <= 2


def test_rows_of_ended_workers_are_forgotten_after_a_day_but_not_while_they_hold_a_run(app: Durably) -> None:
    # contract 188
    holding, _ = hold(app)
    day = 24 * 3600
    kept, alive, gone = add_worker(app, silent_for=day - 60), add_worker(app, silent_for=day + 60), add_worker(app)
    make_silent(app, gone, day + 60)
    make_silent(app, holding, day + 60)
    for worker in (kept, gone, holding):
        sql(app, "UPDATE durably_workers SET state = 'stopped' WHERE id = :id", id=worker)
    assert app.database.write(workers.forget_old) == 1
    assert {w.id for w in app.database.read(workers.get_workers)} == {holding, kept, alive}


def test_the_databases_clock_is_one_clock(app: Durably) -> None:
    # contract 55
    before = time.time()
    clock = app.database.read(runs.read_clock) / 1e6
    assert before - 0.01 <= clock <= time.time() + 0.01
