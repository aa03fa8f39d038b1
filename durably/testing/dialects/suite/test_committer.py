"""The committer: many intents in one commit, one culprit alone, what is transient waited out, closing."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from durably import DatabaseUnavailableError, Durably, UsageError, define_job
from durably.store.committer import Committer
from durably.store.intents import Checkpoint, Claim, Completion, Intent
from durably.testing.dialects.databases import databases
from durably.testing.dialects.suite.support import (
    Lock,
    add_worker,
    claim,
    count_writes,
    eventually,
    read,
    sql,
)


class Outages:
    """What a committer tells of the database's absence."""

    def __init__(self) -> None:
        self.told: list[BaseException | None] = []
        self.began = threading.Event()

    def __call__(self, error: BaseException | None) -> None:
        self.told.append(error)
        self.began.set()


@pytest.fixture
def outages() -> Outages:
    return Outages()


@pytest.fixture
def committer(app: Durably, outages: Outages) -> Iterator[Committer]:
    """A committer of its own, not yet begun."""
    made = Committer(app.database, longest_pause=0.05, on_outage=outages)
    yield made
    if made._thread.is_alive():
        made.close(5)


def hold(app: Durably, count: int) -> tuple[str, list[str]]:
    """Have a worker without a process claim *count* runs."""
    handle = app.register(define_job("job", lambda step, value: value))
    handle.batch_trigger(range(count))
    worker = add_worker(app)
    return worker, [run.id for run in claim(app, worker, limit=count)]


def checkpoint(run_id: str, name: str = "step", output: str = "1") -> Checkpoint:
    return Checkpoint(run_id=run_id, generation=1, name=name, index=0, attempt=1, output=output, duration=0.0)


def submit(committer: Committer, *intents: Intent) -> list[Future[Any]]:
    futures: list[Future[Any]] = []
    for intent in intents:
        futures.append(Future())
        committer.submit(intent, futures[-1])
    return futures


def test_what_waits_is_written_in_one_transaction(
    app: Durably, committer: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 70, 149 (design D2)
    worker, ids = hold(app, 50)
    app.register(define_job("other", lambda step, value: value)).trigger()
    next_claim = Claim(worker_id=worker, jobs=["other"], limit=5, isolate_after=2, company="beside")
    futures = submit(
        committer,
        *(checkpoint(i) for i in ids),
        *(Completion(run_id=i, generation=1, output="null") for i in ids),
        next_claim,
    )
    begun = count_writes(app, monkeypatch)
    committer.start()
    answers = [future.result(10) for future in futures]
    assert len(begun) == 1
    assert answers[:100] == [None] * 100
    assert [run.job_name for run in answers[100]] == ["other"]
    assert {read(app, i).completed_step_count for i in ids} == {1}


def test_of_a_batch_with_one_culprit_only_the_culprit_gets_the_error(app: Durably, committer: Committer) -> None:
    # contract 184 (design D2)
    _, ids = hold(app, 5)
    intents = [checkpoint(i) for i in ids]
    twice = checkpoint(ids[2], output="2")
    twice.attempt = 2
    unstorable = checkpoint(ids[3], name="unstorable")
    unstorable.attempt = 10**30
    futures = submit(committer, *intents, twice, unstorable)
    committer.start()
    assert [f.result(10) for f in futures[:5]] == [None] * 5
    for culprit, words in (
        (futures[5], ("unique", "duplicate")),
        (futures[6], ("large", "range", "overflow", "64 bits")),
    ):
        error = culprit.exception(10)
        assert isinstance(error, DatabaseUnavailableError)
        assert any(word in str(error).lower() for word in words), error
    assert {read(app, i).completed_step_count for i in ids} == {1}
    assert [s.output for s in app.get_steps(ids[2])] == [1]
    # And the next one is written as if nothing had been.
    assert submit(committer, checkpoint(ids[3], name="next"))[0].result(10) is None


def test_a_lock_held_by_a_stranger_is_waited_out(
    app: Durably, committer: Committer, outages: Outages, locked: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 155, 184
    databases().hurry(monkeypatch)
    app.database.close()
    _, ids = hold(app, 3)
    with locked():
        committer.start()
        futures = submit(committer, *(checkpoint(i) for i in ids))
        assert outages.began.wait(10)
        futures += submit(committer, *(checkpoint(i, name="second") for i in ids))
        assert not any(future.done() for future in futures)
    assert [future.result(10) for future in futures] == [None] * 6
    eventually(lambda: len(outages.told) == 2)
    assert isinstance(outages.told[0], DatabaseUnavailableError)  # told once, however many attempts it took
    assert "checkpoint" not in str(outages.told[0])  # nor what should have been written
    assert outages.told[1] is None


class PassingError(OSError):
    """An error that passes by itself."""


def test_a_claim_that_finds_nothing_the_second_time_does_not_hide_what_came_with_it(
    app: Durably, committer: Committer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 155, 184
    worker, ids = hold(app, 1)
    other = app.register(define_job("other", lambda step, value: value)).trigger()
    claims = submit(committer, Claim(worker_id=worker, jobs=["other"], limit=1, isolate_after=2, company="beside"))
    checkpoints: list[Future[Any]] = []
    writing, is_transient = app.database.dialect.writing, app.database.dialect.is_transient

    @contextlib.contextmanager
    def spoiled(connection: Any, *, timeout: float) -> Iterator[None]:
        if checkpoints:
            with writing(connection, timeout=timeout):
                yield
            return
        checkpoints.extend(submit(committer, checkpoint(ids[0])))
        try:
            with writing(connection, timeout=timeout):
                yield
                raise PassingError
        except PassingError:
            app.cancel(other.id)
            raise

    monkeypatch.setattr(app.database.dialect, "writing", spoiled)
    monkeypatch.setattr(app.database.dialect, "is_transient", lambda e: isinstance(e, PassingError) or is_transient(e))
    committer.start()
    assert claims[0].result(10) == []
    assert checkpoints[0].result(10) is None
    assert [step.name for step in app.get_steps(ids[0])] == ["step"]


def test_a_fault_of_ours_is_answered_to_those_who_wait_and_ends_no_writer(app: Durably, committer: Committer) -> None:
    # contract 155
    _, ids = hold(app, 3)

    def spoil(_answer: Any, _error: BaseException | None) -> None:
        raise ZeroDivisionError

    committer.submit(checkpoint(ids[0]), spoil)
    beside = submit(committer, checkpoint(ids[1]))[0]
    committer.start()
    assert beside.exception(10) is None or isinstance(beside.exception(), ZeroDivisionError)
    assert submit(committer, checkpoint(ids[2]))[0].result(10) is None


def test_closing_writes_what_was_handed_over(app: Durably, committer: Committer) -> None:
    # contract 149
    _, ids = hold(app, 20)
    committer.start()
    futures = submit(committer, *(checkpoint(i, name=f"step {n}") for n in range(50) for i in ids))
    committer.close(20)
    assert [future.result(0) for future in futures] == [None] * 1000
    assert sql(app, "SELECT count(*) AS n FROM durably_steps")[0].n == 1000


def test_closing_with_the_database_away_gives_up_in_time_and_answers_everybody(
    app: Durably, committer: Committer, outages: Outages, locked: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 155
    databases().hurry(monkeypatch)
    app.database.close()
    _, ids = hold(app, 2)
    with locked():
        committer.start()
        futures = submit(committer, *(checkpoint(i) for i in ids))
        assert outages.began.wait(10)
        committer.close(0.1)
        for future in futures:
            assert isinstance(future.exception(10), DatabaseUnavailableError)
    eventually(lambda: not committer._thread.is_alive())


def test_what_comes_after_the_end_is_refused_and_not_left_waiting(app: Durably, committer: Committer) -> None:
    # contract 51, 59
    worker, (run_id,) = hold(app, 1)
    committer.start()
    committer.close(10)
    late, claim = submit(
        committer,
        checkpoint(run_id),
        Claim(worker_id=worker, jobs=["job"], limit=1, isolate_after=2, company="beside"),
    )
    assert late.result(10) == "lease_lost"
    assert isinstance(claim.exception(10), UsageError)
    assert app.get_steps(run_id) == []


def test_waiters_may_be_futures_of_loops_futures_of_threads_functions_or_nobody(
    app: Durably, committer: Committer
) -> None:
    # contract 8
    _, ids = hold(app, 4)
    committer.start()
    told: list[Any] = []
    committer.submit(checkpoint(ids[0]), lambda answer, error: told.append((answer, error)))
    committer.submit(checkpoint(ids[1]))

    async def ask() -> Any:
        return await asyncio.gather(
            committer.ask(checkpoint(ids[2])), asyncio.to_thread(committer.ask_blocking, checkpoint(ids[3]))
        )

    assert asyncio.run(ask()) == [None, None]
    assert told == [(None, None)]
    assert {read(app, i).completed_step_count for i in ids} == {1}


def test_a_waiter_that_gave_up_harms_nobody(app: Durably, committer: Committer) -> None:
    # contract 184
    _, ids = hold(app, 2)

    async def give_up() -> None:
        abandoned = asyncio.ensure_future(committer.ask(checkpoint(ids[0])))
        await asyncio.sleep(0)
        abandoned.cancel()

    asyncio.run(give_up())
    (kept,) = submit(committer, checkpoint(ids[1]))
    committer.start()
    assert kept.result(10) is None
    assert {read(app, i).completed_step_count for i in ids} == {1}
