"""One look at everything: `get_status`, and `durably status`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Select

from durably import Durably, SystemStatus, define_job
from durably.cli.main import main
from durably.store import status as store_status
from durably.testing.dialects.suite.support import add_worker, claim, make_silent, recover, sql

if TYPE_CHECKING:
    from durably.testing.dialects.suite.support import AppMaker

Look = Callable[..., tuple[int, str, str]]


def behave(step: Any, input: Any) -> Any:
    if input == "fail":
        raise ValueError("no route\nto host")
    return input


@pytest.fixture
def app(make_app: AppMaker) -> Durably:
    app = make_app(stale_threshold=30)
    for name in ("mail", "report"):
        app.register(define_job(name, behave))
    return app


def trigger(app: Durably, job: str, input: Any = None, **options: Any) -> str:
    handle = app.get_job(job)
    assert handle is not None
    return handle.trigger(input, **options).id


@pytest.fixture
def look(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Look:
    """Carry out `durably status`; give its exit code, stdout and stderr."""

    def look(*options: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["status", "--dialect-url", url, *options])
        return code, *capsys.readouterr()

    monkeypatch.delenv("DURABLY_DIALECT_URL", raising=False)
    return look


def test_an_empty_database_has_nothing_to_tell(app: Durably) -> None:
    # contract 196
    status = app.get_status()
    assert set(status.counts.values()) == set(status.ended_last_minute.values()) == {0}
    assert list(status.counts) == ["pending", "running", "completed", "failed", "cancelled"]
    assert (status.queues, status.held_keys, status.alive, status.silent, status.failures) == ((), (), (), (), ())
    assert status.oldest_pending_seconds is None
    assert not status.is_capped


def test_runs_are_counted_by_status_and_those_that_ended_within_a_minute_apart(app: Durably) -> None:
    # contract 196
    for input in (1, 2, "fail"):
        trigger(app, "mail", input)
    app.process_until_idle()
    app.cancel(trigger(app, "mail"))
    sql(app, "UPDATE durably_runs SET completed_at = completed_at - 61000000 WHERE input = '2'")
    for _ in range(3):
        trigger(app, "report")
    claim(app, add_worker(app, "mail", "report"))
    status = app.get_status()
    assert status.counts == {"pending": 2, "running": 1, "completed": 2, "failed": 1, "cancelled": 1}
    assert status.ended_last_minute == {"completed": 1, "failed": 1, "cancelled": 1}


def test_the_queue_of_each_job_tells_its_length_and_how_long_its_oldest_waits(app: Durably) -> None:
    # contract 197
    trigger(app, "report")
    mails = [trigger(app, "mail") for _ in range(3)]
    sql(app, "UPDATE durably_runs SET pending_at = pending_at - 90000000 WHERE id = :id", id=mails[1])
    sql(app, "UPDATE durably_runs SET created_at = created_at - 900000000 WHERE id = :id", id=mails[2])
    add_worker(app, "mail")
    mail, report = app.get_status().queues
    assert (mail.job_name, mail.pending, mail.is_known) == ("mail", 3, True)
    assert 90 <= mail.oldest_seconds < 120  # since it became pending, however long ago it was made
    assert (report.job_name, report.pending, report.is_known) == ("report", 1, False)
    assert report.oldest_seconds < 30
    assert app.get_status().unknown_jobs == ("report",)
    assert app.get_status().oldest_pending_seconds == pytest.approx(mail.oldest_seconds, abs=20)


def test_runs_that_wait_for_a_key_are_told_with_who_holds_it(app: Durably) -> None:
    # contract 197
    held = trigger(app, "mail", concurrency_key="ada")
    worker = add_worker(app, "mail", "report")
    claim(app, worker)
    for _ in range(2):
        trigger(app, "report", concurrency_key="ada")
    trigger(app, "report", concurrency_key="free")
    status = app.get_status()
    assert status.waiting_for_keys == 2
    (key,) = status.held_keys
    assert (key.concurrency_key, key.waiting, key.run_id, key.job_name, key.worker_id) == (
        "ada", 2, held, "mail", worker,
    )  # fmt: skip
    assert 0 <= key.held_seconds < 30


def test_workers_are_alive_silent_or_dead(app: Durably) -> None:
    # contract 198
    alive, silent = add_worker(app, "mail"), add_worker(app, "mail", silent_for=31)
    dead, long_dead = add_worker(app, "mail"), add_worker(app, "mail", silent_for=3_601)
    for worker in (dead, long_dead):
        recover(app, worker)
    trigger(app, "mail")
    claim(app, alive)
    status = app.get_status()
    assert [(worker.id, worker.running) for worker in status.alive] == [(alive, 1)]
    assert [worker.id for worker in status.silent] == [silent]
    assert status.dead_last_hour == 1
    assert status.alive[0].oldest_step_seconds is None
    assert status.alive[0].supervisor_id is None


def test_what_a_silent_worker_knows_nobody_knows(app: Durably) -> None:
    # contract 197
    trigger(app, "mail")
    worker = add_worker(app, "mail")
    assert app.get_status().unknown_jobs == ()
    make_silent(app, worker, 31)
    assert app.get_status().unknown_jobs == ("mail",)


def test_the_last_failures_are_told_the_latest_first(app: Durably) -> None:
    # contract 198
    runs = [trigger(app, "mail", "fail") for _ in range(7)]
    app.process_until_idle()
    failures = app.get_status().failures
    assert [failure.run_id for failure in failures] == runs[:1:-1]
    assert {(f.job_name, f.error_type, f.error) for f in failures} == {("mail", "ValueError", "no route\nto host")}


def test_more_than_the_bound_is_told_as_at_least(app: Durably, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    # contract 196
    assert store_status._MOST_COUNTED == 100_000
    for _ in range(3):
        trigger(app, "mail")
    assert not app.get_status().is_capped
    assert "(at least)" not in look()[1]
    monkeypatch.setattr(store_status, "_MOST_COUNTED", 3)  # what the statements would have found at it
    assert app.get_status().is_capped
    assert "3 pending, 0 running, 0 completed, 0 failed, 0 cancelled (at least)" in look()[1]


def test_the_awaitable_twin_gives_the_same(app: Durably) -> None:
    # contract 196
    trigger(app, "mail")
    assert asyncio.run(app.aget_status()).counts == app.get_status().counts
    assert isinstance(app.get_status(), SystemStatus)


@pytest.mark.parametrize(
    ("workers", "expected"), [([], 3), ([("mail", 31.0)], 3), ([("report", 0.0)], 4), ([("mail", 0.0)], 0)], ids=str
)
def test_the_exit_code_tells_whether_somebody_is_there_for_what_waits(
    app: Durably, look: Look, workers: list[tuple[str, float]], expected: int
) -> None:
    # contract 199
    for job, silence in workers:
        add_worker(app, job, silent_for=silence)
    assert look()[0] == 0
    trigger(app, "mail")
    assert look()[0] == look("--json")[0] == expected


def test_status_says_it_all_in_a_page(app: Durably, look: Look) -> None:
    # contract 199
    trigger(app, "mail", "fail")
    app.process_until_idle()
    trigger(app, "mail", concurrency_key="ada")
    claim(app, add_worker(app, "mail"))
    trigger(app, "report", concurrency_key="ada")
    _, out, err = look()
    assert err == ""
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "runs 1 pending, 1 running, 0 completed, 1 failed, 0 cancelled"
    assert lines[1] == "last minute 0 completed, 1 failed, 0 cancelled"
    assert lines[2].startswith("workers 1 alive, 0 silent, 0 died in the last hour")
    assert any(line.startswith("report 1 ") and line.endswith("no worker knows this job") for line in lines)
    assert any(line.startswith("ada 1 ") for line in lines)
    assert any("elsewhere 1 alive mail 1/100" in line for line in lines)
    assert any(line.endswith("ago ValueError: no route") for line in lines)


def test_status_as_json_has_the_records_fields_and_what_follows_from_them(app: Durably, look: Look) -> None:
    # contract 199
    trigger(app, "mail")
    add_worker(app, "report")
    data = json.loads(look("--json")[1])
    assert set(data) == set(SystemStatus.__slots__) | {"oldest_pending_seconds", "unknown_jobs"}
    assert data["counts"]["pending"] == 1
    assert data["queues"][0] | {"oldest_seconds": 0} == {
        "job_name": "mail", "pending": 1, "oldest_seconds": 0, "is_known": False,
    }  # fmt: skip
    assert data["alive"][0]["jobs"] == ["report"]
    assert data["unknown_jobs"] == ["mail"]


@pytest.mark.own("sqlite")
def test_every_statement_reads_an_index_and_never_the_whole_table(app: Durably) -> None:
    # contract 196
    statements = [value for value in vars(store_status).values() if isinstance(value, Select)]
    assert len(statements) == 7

    def plans(connection: Any) -> list[str]:
        texts = [
            statement.compile(connection.engine, compile_kwargs={"literal_binds": True}) for statement in statements
        ]
        return [row[-1] for text in texts for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]

    lines = app.database.read(plans)
    assert [line for line in lines if line.startswith("SCAN durably_") and "USING" not in line] == []
    assert len([line for line in lines if "durably_" in line and "USING" in line]) >= 12
