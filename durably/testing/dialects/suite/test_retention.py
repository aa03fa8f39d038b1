"""Retention: runs that ended long ago go by themselves, a few at a time, however busy the database is."""

import threading
import time

import pytest

from durably import Durably, StepContext, define_job
from durably.testing.dialects.suite.support import AppMaker, eventually, hear, sql
from durably.worker.upkeep import Upkeep


def nothing(step: StepContext, input: object) -> None:
    """Do nothing, as a job."""
    step.run("only", lambda: None)
    step.log.info("done")


def end_long_ago(app: Durably, count: int) -> None:
    """Have so many runs that ended two hours ago."""
    handle = app.get_job("job") or app.register(define_job("job", nothing))
    handle.batch_trigger([None] * count)
    app.process_until_idle()
    sql(app, "UPDATE durably_runs SET completed_at = completed_at - 7200000000 WHERE completed_at IS NOT NULL")


def keep(app: Durably) -> Upkeep:
    """Do the housekeeping as a keeper does, with its next round due."""
    upkeep = Upkeep(app.database, app.settings, app.emitter, lambda _part, _error: None)
    upkeep._next_housekeeping = 0.0
    return upkeep


def count(app: Durably, table: str) -> int:
    return int(sql(app, f"SELECT count(*) AS n FROM durably_{table}")[0].n)


def test_ended_runs_of_that_age_go_with_all_their_rows_and_no_others(make_app: AppMaker) -> None:
    # contract 88, 130, 131
    app = make_app(retain_runs="1h", concurrency=20)
    end_long_ago(app, 7)
    young = app.register(define_job("young", nothing)).trigger()
    app.process_one()
    old_but_pending = app.register(define_job("later", nothing)).trigger()
    sql(app, "UPDATE durably_runs SET created_at = created_at - 7200000000 WHERE id = :id", id=old_but_pending.id)
    heard = hear(app, "run:delete")
    keep(app).round(1.0)
    assert {run.id for run in app.get_runs()} == {young.id, old_but_pending.id}
    assert (count(app, "steps"), count(app, "logs")) == (1, 1)
    assert [(event.job_name, event.reason) for event in heard] == [("job", "purge")] * 7


def test_without_retain_runs_nothing_goes(app: Durably) -> None:
    # contract 3, 131
    end_long_ago(app, 3)
    keep(app).round(1.0)
    assert count(app, "runs") == 3


def test_a_round_goes_on_in_small_transactions_until_none_is_due(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 131
    app = make_app(retain_runs="1h", concurrency=50)
    end_long_ago(app, 25)
    monkeypatch.setattr("durably.worker.upkeep._PURGE_CHUNK", 10)
    left: list[int] = []
    app.on("run:delete", lambda _event: left.append(count(app, "runs")))
    keep(app).round(1.0)
    assert left == [15] * 10 + [5] * 10 + [0] * 5


def test_a_round_ends_when_its_time_is_up_and_the_next_goes_on(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 131
    app = make_app(retain_runs="1h", concurrency=50)
    end_long_ago(app, 25)
    monkeypatch.setattr("durably.worker.upkeep._PURGE_CHUNK", 10)
    monkeypatch.setattr("durably.worker.upkeep._PURGE_SECONDS", 0.1)
    slow = threading.Event()
    app.on("run:delete", lambda _event: slow.wait(0.02))  # so each transaction's events use the round's time up
    upkeep = keep(app)
    upkeep.round(1.0)
    left = [count(app, "runs")]
    while upkeep._next_purge < time.monotonic() + 1:  # soon, not a minute later
        upkeep.round(upkeep._next_purge)
        left.append(count(app, "runs"))
    assert left == [15, 5, 0]


def test_a_busy_worker_purges_too(make_app: AppMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    # contract 131, 186
    monkeypatch.setattr("durably.worker.upkeep._HOUSEKEEPING_SECONDS", 0.05)
    app = make_app(retain_runs="1h", concurrency=4)
    end_long_ago(app, 5)
    enough = threading.Event()

    @app.job("endless")
    def endless(step: StepContext, n: int) -> None:
        if not enough.is_set():
            endless.trigger(n + 1)

    endless.batch_trigger([0, 0, 0, 0])
    app.start()
    eventually(lambda: not app.get_runs(job_name="job"))
    enough.set()
