"""Four processes do the same at the same moment, 25 times over; exactly one wins, and nobody sees an error."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from durably import Durably, StepContext, define_job
from durably.testing.dialects.suite.support import add_worker, claim, read

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

ROUNDS = 25
RACERS = 4

# Each line is one round: what to do, and with what. The answer is the error, or what came of it.
RACER = """
import json, sys
from durably import ConflictError, Durably, define_job
from durably.store import claims

app = Durably(url)
job = app.register(define_job("job", lambda step, input: None))

def claim(worker, limit):
    found = app.database.write(lambda c: claims.claim(
        c, worker_id=worker, jobs=("job",), limit=limit, isolate_after=2, company="beside"))
    return [run.id for run in found]

def trigger(options):
    run = job.trigger(None, **options)
    return [run.id, run.disposition]

acts = {
    "claim": claim,
    "trigger": trigger,
    "cancel": lambda run_id: app.cancel(run_id).status,
    "retry": lambda run_id: app.retry(run_id).status,
}
app.database.check()
print("ready", flush=True)
for line in sys.stdin:
    act, *arguments = json.loads(line)
    try:
        answer = acts[act](*arguments)
    except ConflictError as error:
        answer = f"conflict {error.status}"
    except BaseException as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps(answer), flush=True)
"""


class Racers:
    """Processes that wait for their lines, and each a living worker's row."""

    def __init__(self, processes: list[subprocess.Popen[str]], workers: list[str]) -> None:
        self.workers = workers
        self._processes = processes

    def race(self, *orders: list[Any]) -> list[Any]:
        """Give each its order, all ready; take their answers."""
        lines = [json.dumps(order) + "\n" for order in orders]
        for process, line in zip(self._processes, lines, strict=True):
            assert process.stdin is not None
            process.stdin.write(line)
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.flush()
        return [json.loads(self._line(process)) for process in self._processes]

    @staticmethod
    def _line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline()


@pytest.fixture
def racers(app: Durably, python: Callable[..., subprocess.Popen[str]]) -> Iterator[Racers]:
    """Four processes on the test's database, ready."""
    processes = [python(RACER) for _ in range(RACERS)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    yield Racers(processes, [add_worker(app, "job") for _ in processes])
    assert [process.poll() for process in processes] == [None] * RACERS


def nothing(step: StepContext, input: object) -> None:
    """Do nothing, as a job."""


def test_a_run_is_claimed_by_one_of_many(app: Durably, racers: Racers) -> None:
    # contract 35, 43, 184
    job = app.register(define_job("job", nothing))
    for _ in range(ROUNDS):
        run = job.trigger()
        answers = racers.race(*(["claim", worker, 1] for worker in racers.workers))
        assert sorted(answers) == [[], [], [], [run.id]]
        found = read(app, run)
        assert (found.status, found.generation) == ("running", 1)
        assert found.worker_id == racers.workers[answers.index([run.id])]


def test_many_drain_a_backlog_without_sharing_a_run(app: Durably, racers: Racers) -> None:
    # contract 42, 43, 184
    job = app.register(define_job("job", nothing))
    for _ in range(ROUNDS):
        made = {run.id for run in job.batch_trigger([None] * 10)}
        taken: list[str] = []
        while len(taken) < 10:
            answers = racers.race(*(["claim", worker, 2] for worker in racers.workers))
            assert all(len(answer) <= 2 for answer in answers)
            taken += [run_id for answer in answers for run_id in answer]
        assert sorted(taken) == sorted(made)


def test_of_runs_that_share_a_key_one_is_claimed(app: Durably, racers: Racers) -> None:
    # contract 110, 111, 184
    job = app.register(define_job("job", nothing))
    for n in range(ROUNDS):
        key = f"key {n}"
        first, *_ = [job.trigger(concurrency_key=key) for _ in range(RACERS)]
        answers = racers.race(*(["claim", worker, 4] for worker in racers.workers))
        assert sorted(answers) == [[], [], [], [first.id]]
        assert Counter(run.status for run in app.get_runs(limit=RACERS)) == {"running": 1, "pending": 3}
        for run in app.get_runs(limit=RACERS):
            app.cancel(run.id)


def test_triggers_of_one_idempotency_key_create_one_run(app: Durably, racers: Racers) -> None:
    # contract 106, 108, 184
    for n in range(ROUNDS):
        answers = racers.race(*[["trigger", {"idempotency_key": f"key {n}"}]] * RACERS)
        assert len({run_id for run_id, _ in answers}) == 1
        assert Counter(disposition for _, disposition in answers) == {"created": 1, "idempotent": 3}
    assert len(app.get_runs()) == ROUNDS


def test_coalescing_triggers_leave_one_pending_run(app: Durably, racers: Racers) -> None:
    # contract 114, 117, 184
    for n in range(ROUNDS):
        answers = racers.race(*[["trigger", {"concurrency_key": f"key {n}", "coalesce": "skip"}]] * RACERS)
        assert len({run_id for run_id, _ in answers}) == 1
        assert Counter(disposition for _, disposition in answers) == {"created": 1, "coalesced": 3}
    assert len(app.get_runs(status="pending")) == ROUNDS


def test_a_run_is_cancelled_by_one_of_many(app: Durably, racers: Racers) -> None:
    # contract 35, 91, 184
    job = app.register(define_job("job", nothing))
    for n in range(ROUNDS):
        run = job.trigger()
        if n % 2:
            claim(app, racers.workers[0])
        answers = racers.race(*[["cancel", run.id]] * RACERS)
        assert sorted(answers) == ["cancelled", *["conflict cancelled"] * 3]
        assert read(app, run).status == "cancelled"


def test_a_run_is_retried_by_one_of_many(app: Durably, racers: Racers) -> None:
    # contract 35, 102, 184
    job = app.register(define_job("job", nothing))
    for _ in range(ROUNDS):
        run = job.trigger()
        app.cancel(run.id)
        answers = racers.race(*[["retry", run.id]] * RACERS)
        assert sorted(answers) == [*["conflict pending"] * 3, "pending"]
        assert (read(app, run).status, read(app, run).attempt) == ("pending", 2)
        app.cancel(run.id)


def test_of_a_claim_a_cancel_and_a_retry_each_outcome_is_one_of_theirs(app: Durably, racers: Racers) -> None:
    # contract 35, 90, 92, 184
    job = app.register(define_job("job", nothing))
    for _ in range(ROUNDS):
        run = job.trigger()
        claimed, cancelled, retried, again = racers.race(
            ["claim", racers.workers[0], 1],
            ["cancel", run.id],
            ["retry", run.id],
            ["claim", racers.workers[1], 1],
        )
        found = read(app, run)
        assert cancelled == "cancelled"
        assert retried in ("pending", "conflict pending", "conflict running")
        assert found.generation == sum(answer == [run.id] for answer in (claimed, again))
        assert found.attempt == (2 if retried == "pending" else 1)
        if retried != "pending":
            assert found.status == "cancelled"
        if found.is_active:
            app.cancel(run.id)
