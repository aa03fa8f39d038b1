"""Migrations: once, by one of many, beside others' tables, and never by a start."""

import asyncio
import logging
import subprocess
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect

from alembic import command
from durably import Durably, SchemaOutdatedError, SchemaTooNewError, Supervisor, define_job
from durably.store.indexes import metadata
from durably.store.migrations import current_revision
from durably.store.tables import REVISION, VERSION_TABLE
from durably.testing.dialects.suite.support import AppMaker, count_writes, read, sql


def tables(app: Durably) -> list[str]:
    return app.database.read(lambda connection: inspect(connection).get_table_names())


def test_migrate_brings_the_schema_to_the_codes_revision_and_then_changes_nothing(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 10
    app = make_app(migrated=False)
    assert app.database.migrate() is True
    assert app.database.read(current_revision) == REVISION
    begun = count_writes(app, monkeypatch)
    assert app.database.migrate() is False
    app.migrate()
    asyncio.run(app.amigrate())
    assert begun == []


def test_the_migrated_schema_is_the_one_that_the_code_declares(make_app: AppMaker) -> None:
    # contract 10
    app = make_app(migrated=False)
    app.migrate()
    if app.database.dialect.name == "mariadb":
        pytest.skip("there partial indexes are columns, and commits have a table of their own")

    def is_durablys(name: str | None, kind: str, _parents: Any) -> bool:
        return kind != "table" or str(name).startswith("durably_")  # a dialect may have tables of its own

    def compare(connection: Any) -> Any:
        options = {"version_table": VERSION_TABLE, "compare_type": True, "include_name": is_durablys}
        return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)

    assert app.database.read(compare) == []


def test_a_migration_is_one_line_of_the_log_unless_alembics_are_wanted(
    make_app: AppMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    app = make_app(migrated=False)
    app.migrate()
    app.migrate()
    assert [record.getMessage() for record in caplog.records] == [
        f"migrated {app.database.dialect.safe_url} to revision {REVISION}"
    ]
    caplog.clear()
    caplog.set_level(logging.INFO, "alembic")
    other = Durably(f"sqlite:///{tmp_path / 'other.db'}")
    other.migrate()
    other.database.close()
    assert {record.name.partition(".")[0] for record in caplog.records} == {"alembic", "durably"}


def test_threads_that_migrate_one_instance_do_the_work_once(make_app: AppMaker) -> None:
    # contract 10, 11
    app = make_app(migrated=False)
    with ThreadPoolExecutor(4) as threads:
        done = [f.result() for f in [threads.submit(app.database.migrate) for _ in range(4)]]
    assert sorted(done) == [False, False, False, True]


MIGRATE = """
import sys
from durably import Durably
import alembic.command, alembic.config            # so that all are at the lock at the same moment
app = Durably(url)
print("ready", flush=True)
sys.stdin.readline()
print(app.database.migrate(), flush=True)
app.database.close()
"""


def test_processes_that_migrate_at_the_same_moment_all_return_and_one_does_it(
    make_app: AppMaker, python: Callable[..., subprocess.Popen[str]]
) -> None:
    # contract 11
    processes = [python(MIGRATE) for _ in range(3)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = sorted(process.communicate(timeout=30)[0] for process in processes)
    assert told == ["False\n", "False\n", "True\n"]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert make_app().database.read(current_revision) == REVISION


KILLED = """
import os, sys
from durably import Durably
from sqlalchemy import event

app, left = Durably(url), [int(sys.argv[1])]

def count(_connection, _cursor, statement, *_):
    if statement.lstrip().startswith(("CREATE", "ALTER", "INSERT")):
        left[0] -= 1
        if not left[0]:
            os._exit(9)

event.listen(app.database.engine(), "after_cursor_execute", count)
app.migrate()
"""


# The version table, the runs and one of their indexes, and the whole schema with its revision.
@pytest.mark.parametrize("statements", [1, 2, 5, 12, 19])
def test_a_migration_that_was_killed_half_way_is_completed_by_the_next(
    make_app: AppMaker, python: Callable[..., subprocess.Popen[str]], statements: int
) -> None:
    # contract 14
    process = python(KILLED, str(statements))
    process.communicate(timeout=30)
    assert process.returncode == 9
    app = make_app(migrated=False)
    with pytest.raises(SchemaOutdatedError):
        app.get_runs()
    assert app.database.migrate() is True
    indexes = {index["name"] for table in tables(app) for index in app.database.read(partial(index_list, table))}
    assert {index.name for table in metadata.sorted_tables for index in table.indexes} <= indexes
    handle = app.register(define_job("job", lambda step, value: value))
    assert handle.trigger(1, labels={"a": "b"}).status == "pending"
    assert app.process_until_idle() == 1


def index_list(table: str, connection: Any) -> Any:
    return inspect(connection).get_indexes(table)


def test_a_revision_that_the_code_does_not_know_is_too_new_for_everybody(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 12
    app = make_app()
    run = app.register(define_job("job", lambda step, value: value)).trigger()
    sql(app, f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    app.database.close()
    fresh = make_app(migrated=False)
    begun = count_writes(fresh, monkeypatch)
    supervisor = Supervisor(fresh, workers=1)
    for call in (fresh.migrate, fresh.start, lambda: fresh.get_run(run.id), fresh.process_one):
        with pytest.raises(SchemaTooNewError, match="9999") as refused:
            call()
        assert (refused.value.found, refused.value.expected) == ("9999", REVISION)
    del supervisor
    assert begun == []


@pytest.mark.parametrize("state", ["nothing", "no tables of ours", "an older revision"])
def test_without_the_codes_schema_every_call_but_migrate_says_to_migrate(
    make_app: AppMaker, url: str, state: str
) -> None:
    # contract 1, 13
    if state == "no tables of ours":
        theirs = create_engine(url)
        with theirs.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE theirs (id INTEGER)")
        theirs.dispose()
    if state == "an older revision":
        old = make_app()
        sql(old, f"DELETE FROM {VERSION_TABLE}")
        old.database.close()
    app = make_app(migrated=False)
    handle = app.register(define_job("job", lambda step, value: value))
    calls: list[Callable[[], object]] = [
        app.start,
        handle.trigger,
        lambda: handle.batch_trigger([1]),
        lambda: app.get_run("x"),
        app.get_runs,
        lambda: app.get_steps("x"),
        lambda: app.get_logs("x"),
        lambda: app.cancel("x"),
        lambda: app.retry("x"),
        lambda: app.delete_run("x"),
        lambda: app.purge_runs("1d"),
        lambda: app.wait_for_run("x", timeout=0),
        app.process_one,
        app.process_until_idle,
        lambda: asyncio.run(app.aget_run("x")),
        lambda: asyncio.run(app.await_run("x")),
    ]
    for call in calls:
        with pytest.raises(SchemaOutdatedError, match="migrate") as refused:
            call()
        assert (refused.value.found, refused.value.expected) == (None, REVISION)


def test_our_tables_live_beside_an_applications_alembic_history(make_app: AppMaker, tmp_path: Path, url: str) -> None:
    # contract 15
    scripts = tmp_path / "theirs"
    (scripts / "versions").mkdir(parents=True)
    (scripts / "env.py").write_text(
        textwrap.dedent(
            """
            from alembic import context
            from sqlalchemy import create_engine
            engine = create_engine(context.config.get_main_option("sqlalchemy.url"))
            with engine.connect() as connection:
                context.configure(connection=connection)
                with context.begin_transaction():
                    context.run_migrations()
                connection.commit()
            engine.dispose()
            """
        )
    )
    (scripts / "versions" / "aaaa.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\nrevision = 'aaaa'\ndown_revision = None\n"
        "def upgrade():\n    op.create_table('theirs', sa.Column('id', sa.Integer, primary_key=True))\n"
        "def downgrade():\n    op.drop_table('theirs')\n"
    )
    theirs = Config()
    theirs.set_main_option("script_location", str(scripts))
    theirs.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    command.upgrade(theirs, "head")
    app = make_app(migrated=False)
    app.migrate()
    run = app.register(define_job("job", lambda step, value: value)).trigger()
    assert [tuple(r) for r in sql(app, "SELECT * FROM alembic_version")] == [("aaaa",)]
    app.database.close()
    command.downgrade(theirs, "base")
    assert "theirs" not in tables(app)
    assert read(app, run).status == "pending"
    assert app.database.read(current_revision) == REVISION
