"""`durably doctor`: what it looks at, what it calls an error, and what it says to do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url

from durably import Durably, define_job
from durably.cli.main import main
from durably.findings import Finding
from durably.store.dialects import fileroom, serverstate
from durably.testing.dialects.suite.support import add_worker, claim, make_silent, sql

if TYPE_CHECKING:
    from durably.testing.dialects.suite.support import AppMaker

Examine = Callable[..., tuple[int, list[Finding]]]
APP = """
from durably import Durably
durably = Durably({url!r}, concurrency=3)
@durably.job("mail")
def mail(step, input): return input
"""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("DURABLY_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def examine(capsys: pytest.CaptureFixture[str]) -> Examine:
    """Carry out `durably doctor --json`; give its exit code and what it found."""

    def examine(*options: str) -> tuple[int, list[Finding]]:
        for name in ("app", "jobs"):
            sys.modules.pop(name, None)
        capsys.readouterr()
        code = main(["doctor", "--json", *options])
        return code, [Finding(**found) for found in json.loads(capsys.readouterr().out)]

    return examine


@pytest.fixture
def folder(tmp_path: Path, url: str) -> Path:
    """A folder with an application."""
    (tmp_path / "app.py").write_text(APP.format(url=url))
    return tmp_path


@pytest.fixture
def app(make_app: AppMaker) -> Durably:
    app = make_app()
    app.register(define_job("mail", lambda step, input: input))
    return app


def of(found: list[Finding], check: str) -> list[Finding]:
    return [finding for finding in found if finding.check == check]


def wrong(found: list[Finding]) -> list[Finding]:
    """List what is not well, but that the tests' own server does without fsync."""
    return [finding for finding in found if finding.level != "ok" and finding.check != "commits"]


def one(found: list[Finding], check: str) -> Finding:
    (finding,) = of(found, check)
    return finding


def test_a_sound_set_up_has_no_warning_and_no_error(folder: Path, app: Durably, examine: Examine) -> None:
    # contract 200
    code, found = examine()
    assert wrong(found) == []
    assert code == 0
    checks = {finding.check for finding in found}
    assert checks >= {"versions", "application", "settings", "database", "schema", "clock", "workers", "stuck runs"}
    assert one(found, "application").message == "app.py (the file in this folder): 1 job"
    assert one(found, "database").message.startswith(f"{app.database.dialect.safe_url} answers in ")


def test_each_setting_is_told_with_where_it_comes_from(
    folder: Path, app: Durably, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 200
    (folder / "pyproject.toml").write_text("[tool.durably]\ndrain_timeout = '5m'\nworkers = 2\n")
    monkeypatch.setenv("DURABLY_WORKERS", "3")
    settings = {finding.message for finding in of(examine()[1], "settings")}
    assert settings >= {
        "concurrency = 3 (the application)",
        "workers = 3 (DURABLY_WORKERS)",
        f"drain_timeout = 300 s ({folder / 'pyproject.toml'})",
        f"dialect_url = {app.database.dialect.safe_url} (the application)",
    }
    assert len(settings) == 4


def test_a_misspelt_variable_is_warned_of(
    folder: Path, app: Durably, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 200
    monkeypatch.setenv("DURABLY_CONCURENCY", "3")
    code, found = examine()
    (warning,) = wrong(found)
    assert warning.message == "DURABLY_CONCURENCY is set, and is no setting"
    assert warning.remedy
    assert code == 0


def test_a_wrong_setting_is_an_error_with_its_name(
    folder: Path, app: Durably, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 200
    monkeypatch.setenv("DURABLY_WORKERS", "many")
    code, found = examine()
    (error,) = [finding for finding in found if finding.level == "error"]
    assert (code, error.check) == (1, "settings")
    assert error.message.startswith("workers: 'many' is no integer")


def test_without_an_application_the_database_is_looked_at_all_the_same(
    app: Durably, url: str, examine: Examine
) -> None:
    # contract 200
    code, found = examine("--dialect-url", url)
    assert code == 0
    assert one(found, "application").level == "warning"
    assert one(found, "schema").level == "ok"


def test_an_application_that_does_not_import_is_an_error_with_its_place(
    folder: Path, app: Durably, url: str, examine: Examine
) -> None:
    # contract 200
    (folder / "app.py").write_text("import nothing_of_that_name\n")
    code, found = examine("--dialect-url", url)
    assert code == 1
    error = one(found, "application")
    assert (error.level, "nothing_of_that_name" in error.message, "app.py:1" in error.message) == ("error", True, True)
    assert one(found, "schema").level == "ok"
    code, found = examine()
    assert (code, [finding.check for finding in found if finding.level == "error"]) == (1, ["application"])


def test_an_application_without_jobs_is_warned_of(folder: Path, app: Durably, url: str, examine: Examine) -> None:
    # contract 200
    (folder / "app.py").write_text(f"from durably import Durably\ndurably = Durably({url!r})\n")
    assert one(examine()[1], "application").level == "warning"


def test_a_database_that_is_not_migrated_is_an_error_that_names_the_command(
    folder: Path, url: str, examine: Examine
) -> None:
    # contract 200
    code, found = examine()
    error = one(found, "schema")
    assert code == 1
    assert error.level == "error"
    assert "durably migrate" in error.message


def test_no_database_at_all_is_an_error_that_says_how_to_name_one(examine: Examine) -> None:
    # contract 200
    code, found = examine()
    assert code == 1
    assert "--dialect-url" in one(found, "database").message


def test_a_server_that_does_not_answer_is_an_error_without_the_password(
    examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 200
    monkeypatch.setenv("DURABLY_DATABASE_TIMEOUT", "0.2")
    code, found = examine("--dialect-url", "postgresql://ada:secret@127.0.0.1:9/none")
    error = one(found, "database")
    assert (code, error.level) == (1, "error")
    assert error.remedy
    assert "secret" not in str(found)


def test_runs_that_nobody_executes_are_an_error_and_unknown_jobs_a_warning(
    folder: Path, app: Durably, examine: Examine
) -> None:
    # contract 201
    handle = app.get_job("mail")
    assert handle is not None
    handle.trigger(1)
    code, found = examine()
    assert (code, one(found, "workers").level) == (1, "error")
    assert "durably supervise" in str(one(found, "workers").remedy)
    add_worker(app, "other")
    code, found = examine()
    assert (code, one(found, "workers").level, one(found, "unknown job").level) == (0, "ok", "warning")
    assert one(found, "unknown job").message.startswith("'mail': 1 runs pending")


def test_a_run_whose_worker_fell_silent_is_told_with_who_waits_for_its_key(
    folder: Path, app: Durably, examine: Examine
) -> None:
    # contract 201
    handle = app.get_job("mail")
    assert handle is not None
    held = handle.trigger(1, concurrency_key="ada")
    worker = add_worker(app, "mail")
    claim(app, worker)
    for _ in range(2):
        handle.trigger(2, concurrency_key="ada")
    assert of(examine()[1], "stuck run") == []
    make_silent(app, worker, 90)
    stuck = one(examine()[1], "stuck run")
    assert stuck.message.startswith(f"{held.id} of 'mail' is running, but worker {worker} has been silent for 1 min 3")
    assert stuck.message.endswith("2 runs wait for its key")
    assert one(examine()[1], "workers").remedy
    sql(app, "UPDATE durably_workers SET state = 'dead'")
    stuck = one(examine()[1], "stuck run")
    assert f"worker {worker} is dead" in stuck.message
    assert f"durably cancel {held.id}" in str(stuck.remedy)


def test_runs_that_lost_many_workers_are_told_the_worst_first(folder: Path, app: Durably, examine: Examine) -> None:
    # contract 201
    handle = app.get_job("mail")
    assert handle is not None
    runs = [handle.trigger(n).id for n in range(3)]
    add_worker(app, "mail")
    for run_id, count in zip(runs, (2, 1, 4), strict=True):
        sql(app, "UPDATE durably_runs SET interruptions = :n WHERE id = :id", n=count, id=run_id)
    stuck = of(examine()[1], "stuck run")
    assert [finding.message[:26] for finding in stuck] == [runs[2], runs[0]]
    assert "lost its worker 4 times" in stuck[0].message


def test_a_clock_that_differs_is_warned_of(
    folder: Path, app: Durably, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 200
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 90)
    clock = one(examine()[1], "clock")
    assert clock.level == "warning"
    assert clock.message.startswith(("this host's is 1 min 30 s ahead", "this host's is 1 min 29 s ahead"))


def test_people_get_a_line_and_a_remedy(folder: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    # contract 200
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("ok ") and "versions" in line for line in lines)
    assert any(line.startswith("error ") and "schema" in line for line in lines)


# --- SQLite ---------------------------------------------------------------------------------------------------


def path_of(url: str) -> Path:
    return Path(str(make_url(url).database))


@pytest.mark.own("sqlite", "libsql-file")
def test_a_files_mode_and_room_are_looked_at(folder: Path, app: Durably, examine: Examine) -> None:
    # contract 202
    found = examine()[1]
    assert one(found, "journal mode").message == "WAL"
    assert one(found, "synchronous").message.startswith("normal: ")
    assert one(found, "file system").message.startswith(str(path_of(str(app.settings.dialect_url))))
    assert {"permissions", "room", "WAL"} <= {finding.check for finding in found}
    assert one(found, "SQLite").message[0] == "3"


@pytest.mark.own("sqlite")
def test_another_journal_mode_is_an_error(folder: Path, app: Durably, url: str, examine: Examine) -> None:
    # contract 202
    import sqlite3

    app.database.close()
    with sqlite3.connect(path_of(url)) as connection:
        assert connection.execute("PRAGMA journal_mode=DELETE").fetchone() == ("delete",)
    connection.close()
    code, found = examine()
    assert (code, one(found, "journal mode").level) == (1, "error")


@pytest.mark.own("sqlite")
def test_a_wal_that_grows_is_warned_of(folder: Path, app: Durably, url: str, examine: Examine) -> None:
    # contract 202
    app.database.read(lambda _connection: None)  # keeps the file
    with path_of(f"{url}-wal").open("r+b") as wal:
        wal.truncate(200 * 1024 * 1024)
    wal_found = one(examine()[1], "WAL")
    assert (wal_found.level, wal_found.message.split(":")[0]) == ("warning", "200.0 MiB")


@pytest.mark.own("sqlite")
@pytest.mark.parametrize(("free", "level"), [(2**31, "ok"), (2**29, "warning"), (2**20, "error")])
def test_a_disk_that_is_nearly_full_is_told(
    folder: Path, app: Durably, examine: Examine, monkeypatch: pytest.MonkeyPatch, free: int, level: str
) -> None:
    # contract 202
    usage = namedtuple("usage", "free")  # noqa: PYI024 - as shutil has it
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: usage(free))
    assert one(examine()[1], "room").level == level


@pytest.mark.own("sqlite")
@pytest.mark.parametrize("closed", ["file", "gate", "folder"])
def test_a_file_that_is_closed_to_this_user_is_an_error_that_says_whose_it_is(
    folder: Path, app: Durably, url: str, monkeypatch: pytest.MonkeyPatch, examine: Examine, closed: str
) -> None:
    # contract 185, 200
    file = path_of(url)
    place = {"file": file, "gate": Path(f"{file}-gate"), "folder": file.parent}[closed]
    if closed == "gate":
        place.touch()  # made by the first writer
    access = os.access
    # Tests may run as root, to whom nothing is closed.
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != place and access(path, mode))
    code, found = examine()
    error = one(found, "database")
    assert (code, error.level) == (1, "error")
    assert f"{place} may not be read and written by this user (uid {os.geteuid()})" in error.message
    assert f"of uid {place.stat().st_uid}: chmod u+rw {place}" in error.message
    assert (error.remedy or "").startswith("open the file and its folder to this user")


@pytest.mark.own("sqlite")
def test_a_network_file_system_is_an_error(
    folder: Path, app: Durably, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 202
    monkeypatch.setattr(fileroom, "file_system", lambda _folder: "nfs4")
    code, found = examine()
    assert (code, one(found, "file system").level) == (1, "error")


@pytest.mark.own("sqlite")
def test_a_user_without_inotify_instances_is_told_how_to_get_more(
    folder: Path, app: Durably, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 202
    def refuse(**_options: Any) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("inotify_simple.INotify", refuse)
    found = one(examine()[1], "inotify")
    assert found.level == "warning"
    assert "max_user_instances" in str(found.remedy)


# --- PostgreSQL -----------------------------------------------------------------------------------------------


@pytest.mark.own("postgresql")
def test_a_servers_state_is_looked_at(folder: Path, app: Durably, examine: Examine) -> None:
    # contract 202
    found = examine()[1]
    assert "psycopg 3" in one(found, "PostgreSQL").message
    assert one(found, "role").message == "the primary"
    assert " of " in one(found, "connections").message
    assert one(found, "wake-ups").message == "by LISTEN and NOTIFY"


@pytest.mark.own("postgresql")
def test_a_long_transaction_is_warned_of_with_its_pid(
    folder: Path, app: Durably, url: str, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 202
    import psycopg

    monkeypatch.setattr(serverstate, "_LONG_TRANSACTION_SECONDS", 0)
    with psycopg.connect(url, application_name="stranger") as stranger:
        stranger.execute("SELECT 1")
        found = one(examine()[1], "transactions")
        assert found.level == "warning"
        assert f"stranger (pid {stranger.info.backend_pid})" in found.message


@pytest.mark.own("postgresql")
@pytest.mark.parametrize(
    ("check", "changes", "level"),
    [
        ("PostgreSQL", {"number": 120_000}, "error"),
        ("role", {"is_replica": True}, "error"),
        ("commits", {"fsync": "off"}, "warning"),
        ("commits", {"fsync": "on", "synchronous_commit": "off"}, "warning"),
        ("connections", {"used": 90, "most": 100}, "warning"),
    ],
)
def test_what_is_wrong_with_a_server_is_told_with_a_remedy(check: str, changes: dict[str, Any], level: str) -> None:
    # contract 202
    sound = {"number": 180_000, "version": "18", "is_replica": False, "fsync": "on", "synchronous_commit": "on"}
    server = namedtuple("server", [*sound, "used", "most"])(**{**sound, "used": 1, "most": 100, **changes})  # noqa: PYI024
    looks = (serverstate._version, serverstate._role, serverstate._safety, serverstate._connections)
    found = one([look(server) for look in looks], check)
    assert found.level == level
    assert found.remedy


@pytest.mark.own("sqlite")
def test_a_file_beside_the_wal_of_another_is_found_to_be_damaged(folder: Path, app: Durably, examine: Examine) -> None:
    # contract 200
    job = app.register(define_job("job", lambda step, input: input))
    file = Path(str(make_url(app.database.dialect.safe_url).database))
    wal = Path(f"{file}-wal")
    with contextlib.closing(sqlite3.connect(file)) as stranger:  # while it is open, the WAL stays
        for _ in range(2):
            job.batch_trigger(range(100))
            stranger.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            shutil.copyfile(file, folder / "backup.db") if not (folder / "backup.db").exists() else None
        job.batch_trigger(range(100))
        shutil.copyfile(wal, folder / "left")
        app.database.close()
    shutil.copyfile(folder / "backup.db", file)
    shutil.copyfile(folder / "left", wal)
    code, found = examine()
    assert code == 1
    assert one(found, "integrity").level == "error"
