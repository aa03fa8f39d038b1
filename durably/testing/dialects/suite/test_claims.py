"""Claims: order, known jobs, exclusion by key, who may claim, many processes at once."""

import json
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.exc import IntegrityError

from durably import Durably, StepContext, define_job
from durably.store import workers
from durably.testing.dialects.suite.support import AppMaker, add_worker, claim, eventually, hear, read, recover, sql


def nothing(step: StepContext, input: object) -> None:
    """Do nothing, as a job."""


def test_claims_take_the_oldest_first_and_at_most_the_limit(app: Durably) -> None:
    # contract 41, 42
    handle = app.register(define_job("job", nothing))
    ids = [handle.trigger(n).id for n in range(5)]
    worker = add_worker(app)
    assert [run.id for run in claim(app, worker, limit=2)] == ids[:2]
    assert [run.id for run in claim(app, worker, limit=10, company="beside")] == ids[2:]
    assert claim(app, worker, limit=10, company="beside") == []


def test_runs_of_one_moment_are_claimed_in_the_order_of_their_ids(app: Durably) -> None:
    # contract 41
    handle = app.register(define_job("job", nothing))
    ids = [run.id for run in handle.batch_trigger(range(20))]
    sql(app, "UPDATE durably_runs SET created_at = 1700000000000000")
    worker = add_worker(app)
    assert [claim(app, worker)[0].id for _ in ids] == ids


def test_the_time_of_the_trigger_goes_before_the_id(app: Durably) -> None:
    # contract 41
    handle = app.register(define_job("job", nothing))
    first, second = handle.trigger(), handle.trigger()
    sql(app, "UPDATE durably_runs SET created_at = created_at - 1000000 WHERE id = :id", id=second.id)
    worker = add_worker(app)
    assert [claim(app, worker)[0].id for _ in range(2)] == [second.id, first.id]


def test_a_worker_alone_executes_in_the_order_of_the_triggers(app: Durably) -> None:
    # contract 41
    order: list[int] = []

    @app.job("job")
    def job(step: StepContext, input: int) -> None:
        order.append(input)

    for n in range(30):
        job.trigger(n)
    assert app.process_until_idle() == 30
    assert order == list(range(30))


def test_a_claim_raises_the_generation_before_the_job_begins(app: Durably) -> None:
    # contract 35, 36, 37, 49
    seen: list[tuple[str, int, bool, bool]] = []

    @app.job("job")
    def job(step: StepContext, input: None) -> None:
        run = read(app, step.run_id)
        living = app.database.read(lambda c: workers.get_workers(c, alive_only=True))
        seen.append((run.status, run.generation, run.worker_id == living[0].id, run.started_at is not None))

    run = job.trigger()
    app.process_one()
    assert seen == [("running", 1, True, True)]
    assert read(app, run).worker_id is None


def test_a_worker_without_jobs_claims_nothing(app: Durably, make_app: AppMaker) -> None:
    # contract 44
    run = make_app().register(define_job("job", nothing)).trigger()
    assert app.process_until_idle() == 0
    assert app.process_one() is False
    assert claim(app, add_worker(app)) == []
    assert (read(app, run).status, read(app, run).generation) == ("pending", 0)


def test_a_run_of_an_unknown_job_stays_untouched_until_a_worker_knows_it(make_app: AppMaker) -> None:
    # contract 45, 48
    knows_both, knows_one = make_app(), make_app()
    unknown = knows_both.register(define_job("unknown", nothing)).trigger()
    before = knows_both.get_run(unknown.id)
    known = knows_one.register(define_job("known", nothing)).trigger()
    assert knows_one.process_until_idle() == 1
    assert read(knows_one, known).status == "completed"
    assert knows_one.get_run(unknown.id) == before
    assert knows_both.process_until_idle() == 1
    assert read(knows_one, unknown).status == "completed"


def test_pending_runs_of_jobs_that_nobody_knows_are_reported_with_names_and_counts(make_app: AppMaker) -> None:
    # contract 46
    app, other = make_app(unknown_job_interval=0.2), make_app()
    other.register(define_job("nobody knows", nothing)).batch_trigger([1, 2, 3])
    app.register(define_job("known", nothing))
    heard = hear(app, "worker:error")
    app.start()
    (event, *_) = eventually(lambda: list(heard))
    assert (event.context, event.severity) == ("unknown-jobs", "warning")
    assert "'nobody knows' (3)" in event.error
    assert other.get_runs(status="pending", limit=1)


def test_runs_of_a_job_that_a_living_worker_knows_are_not_reported(make_app: AppMaker) -> None:
    # contract 46
    app, other = make_app(), make_app()
    other.register(define_job("busy elsewhere", nothing)).trigger()
    sql(app, "UPDATE durably_runs SET pending_at = pending_at - 90000000")
    unknown = app.database.read(lambda c: workers.unknown_jobs(c, older_than=60))
    assert unknown == {"busy elsewhere": 1}
    add_worker(app, "busy elsewhere")
    assert app.database.read(lambda c: workers.unknown_jobs(c, older_than=60)) == {}


@pytest.mark.parametrize("state", ["dead", "stopped", "missing"])
def test_a_worker_that_is_not_alive_gets_nothing(app: Durably, state: str) -> None:
    # contract 47
    run = app.register(define_job("job", nothing)).trigger()
    worker = add_worker(app)
    if state == "missing":
        sql(app, "DELETE FROM durably_workers")
    else:
        sql(app, "UPDATE durably_workers SET state = :state", state=state)
    assert claim(app, worker, limit=5) == []
    assert read(app, run).generation == 0


def test_a_run_whose_key_is_taken_holds_up_none_behind_it(app: Durably) -> None:
    # contract 48, 110, 111
    handle = app.register(define_job("job", nothing))
    first = handle.trigger(concurrency_key="k")
    second = handle.trigger(concurrency_key="k")
    free = handle.trigger()
    other_key = handle.trigger(concurrency_key="other")
    worker = add_worker(app)
    assert [run.id for run in claim(app, worker, limit=10)] == [first.id, free.id, other_key.id]
    assert claim(app, worker, limit=10, company="beside") == []
    recover(app, worker)
    again = add_worker(app)
    # The recovered run keeps its place before the younger one with its key.
    assert [run.id for run in claim(app, again, limit=10)] == [first.id, free.id, other_key.id]  # contract 112
    assert read(app, second).status == "pending"


def test_a_key_held_by_a_job_that_the_worker_does_not_know_stays_taken(make_app: AppMaker) -> None:
    # contract 110
    one, other = make_app(), make_app()
    first = one.register(define_job("one", nothing)).trigger(concurrency_key="k")
    second = other.register(define_job("other", nothing)).trigger(concurrency_key="k")
    worker = add_worker(one)
    assert [run.id for run in claim(one, worker)] == [first.id]
    assert claim(other, add_worker(other)) == []
    recover(one, worker)
    # A pending run of a job that the worker does not know does not hold its key.
    assert [run.id for run in claim(other, add_worker(other))] == [second.id]


def test_the_schema_refuses_two_running_runs_of_one_key(app: Durably) -> None:
    # contract 110
    handle = app.register(define_job("job", nothing))
    for _ in range(2):
        handle.trigger(concurrency_key="k")
    with pytest.raises(Exception, match=r"(?i)unique|duplicate") as refused:
        sql(app, "UPDATE durably_runs SET status = 'running'")
    assert isinstance(refused.value.__cause__, IntegrityError)


def test_a_claimed_run_brings_what_is_known_of_its_steps(app: Durably) -> None:
    # contract 71, 82, 83
    def job(step: StepContext, input: None) -> None:
        step.run("done", lambda: [1])
        step.run("broken", lambda: 1 / 0)

    run = app.register(define_job("job", job)).trigger()
    app.process_one()
    app.retry(run.id)
    (claimed,) = claim(app, add_worker(app))
    assert (claimed.attempt, claimed.generation, claimed.interruptions) == (2, 2, 0)
    assert {n: (s.index, s.attempts, s.output) for n, s in claimed.steps.items()} == {
        "done": (0, 1, "[1]"),
        "broken": (1, 1, None),
    }


def test_threads_that_claim_at_once_share_the_runs_out(app: Durably) -> None:
    # contract 43
    handle = app.register(define_job("job", nothing))
    ids = {run.id for run in handle.batch_trigger(range(60))}
    start = threading.Barrier(6)

    def take() -> list[str]:
        worker = add_worker(app)
        start.wait()
        mine: list[str] = []
        while got := claim(app, worker, limit=3, company="beside"):
            mine += [run.id for run in got]
        return mine

    with ThreadPoolExecutor(6) as threads:
        futures = [threads.submit(take) for _ in range(6)]
    taken = [run_id for future in futures for run_id in future.result()]
    assert sorted(taken) == sorted(ids)


DRAIN = """
import json, sys
from durably import Durably
app = Durably(url, concurrency=4)
done = []
@app.job("job")
def job(step, input):
    done.append(step.run("n", lambda: input))
print("ready", flush=True)
sys.stdin.readline()
app.process_until_idle()
print(json.dumps(done), flush=True)
app.database.close()
"""


def test_processes_drain_a_backlog_and_execute_each_run_once(
    app: Durably, python: Callable[..., subprocess.Popen[str]]
) -> None:
    # contract 43
    handle = app.register(define_job("job", nothing))
    handle.batch_trigger(range(200))
    processes = [python(DRAIN) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    done: list[list[int]] = [json.loads(process.communicate("go\n", timeout=60)[0]) for process in processes]
    # Those who found nothing more went home while others still held runs, which nobody else then executed.
    assert sorted(n for one in done for n in one) == list(range(200))
    assert {(run.status, run.generation) for run in app.get_runs()} == {("completed", 1)}


def test_an_often_interrupted_run_is_claimed_by_itself_and_only_by_a_worker_that_holds_nothing(
    app: Durably,
) -> None:
    # contract 48, 67
    handle = app.register(define_job("job", nothing))
    suspect = handle.trigger()
    others = [handle.trigger().id for _ in range(3)]
    sql(app, "UPDATE durably_runs SET interruptions = 2 WHERE id = :id", id=suspect.id)
    busy, idle = add_worker(app), add_worker(app)
    # Beside others it is not taken, and holds up none of them.
    assert [run.id for run in claim(app, busy, limit=2, company="beside")] == others[:2]
    assert [run.id for run in claim(app, idle, limit=10, company="alone")] == [suspect.id]
    assert read(app, others[2]).status == "pending"


def test_a_run_interrupted_less_often_is_claimed_beside_others(app: Durably) -> None:
    # contract 67
    handle = app.register(define_job("job", nothing))
    ids = [handle.trigger().id for _ in range(3)]
    sql(app, "UPDATE durably_runs SET interruptions = 1")
    assert [run.id for run in claim(app, add_worker(app), limit=10)] == ids


def test_with_isolate_after_zero_every_run_executes_alone(app: Durably) -> None:
    # contract 67
    handle = app.register(define_job("job", nothing))
    ids = [handle.trigger().id for _ in range(2)]
    assert [run.id for run in claim(app, add_worker(app), limit=10, isolate_after=0)] == ids[:1]
    assert claim(app, add_worker(app), limit=10, company="beside", isolate_after=0) == []
