"""What is SQLite's own: the file, its folder, its disk, and who is told of its changes."""

import asyncio
import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from durably import DatabaseUnavailableError, Durably, SchemaOutdatedError, StepContext, define_job
from durably.testing.dialects.suite.support import AppMaker, add_worker, claim, eventually, hear, sql, types
from durably.testing.dialects.suite.test_local_worker import give_back

pytestmark = pytest.mark.own("sqlite")


def test_a_local_file_is_in_wal_mode_with_foreign_keys(app: Durably) -> None:
    # contract 73, 128, 189
    assert sql(app, "PRAGMA journal_mode")[0][0] == "wal"
    assert sql(app, "PRAGMA foreign_keys")[0][0] == 1
    assert Path(str(make_url(app.database.dialect.safe_url).database)).exists()


def test_a_call_makes_no_file_where_there_is_none(make_app: AppMaker, tmp_path: Path) -> None:
    # contract 1, 13
    app = make_app(migrated=False)
    with pytest.raises(SchemaOutdatedError, match="migrate"):
        app.get_runs()
    assert not (tmp_path / "durably.db").exists()


def test_an_empty_file_is_migrated(make_app: AppMaker, tmp_path: Path) -> None:
    # contract 14
    (tmp_path / "durably.db").touch()
    app = make_app(migrated=False)
    with pytest.raises(SchemaOutdatedError):
        app.start()
    app.migrate()
    assert app.get_runs() == []


def test_a_wait_on_what_is_no_database_raises_our_error(tmp_path: Path) -> None:
    # contract 183
    (tmp_path / "garbage.db").write_bytes(b"x" * 10_000)
    app = Durably(f"sqlite:///{tmp_path / 'garbage.db'}")
    with pytest.raises(DatabaseUnavailableError, match="not a database"):
        app.wait_for_run("x", timeout=1)
    with pytest.raises(DatabaseUnavailableError, match="not a database"):
        asyncio.run(app.await_run("x", timeout=1))
    app.database.close()


def test_where_the_system_has_no_inotify_left_polling_does_it_all(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 34, 135, 186, 187
    def used_up(**_: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("inotify_simple.INotify", used_up)
    app = make_app(polling_interval=0.1, heartbeat_interval=0.1, stale_threshold=0.3)
    handle = app.register(define_job("job", give_back))
    heard = hear(app)
    run = handle.trigger("lost")
    lost = add_worker(app, "job")
    claim(app, lost)
    app.start()
    assert app.wait_for_run(run.id, timeout=10).interruptions == 1
    assert handle.trigger_and_wait("new", timeout=10).output == "new"
    assert not [event for event in heard if event.type == "worker:error"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("needs the right to mount a tmpfs, to fill it")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Write until the disk is full."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        size = 65536
        while size:
            try:
                file.write(b"x" * size)
            except OSError:
                size //= 2
    return filler


def test_a_full_disk_is_told_once_and_loses_nothing(make_app: AppMaker, small_disk: Path) -> None:
    # contract 155, 184
    app = make_app(
        migrated=False,
        dialect_url=f"sqlite:///{small_disk / 'durably.db'}",
        concurrency=4,
        # So that no other part of the worker meets the full disk; that has tests of its own.
        heartbeat_interval=60,
        stale_threshold=120,
    )
    app.migrate()
    go_on, waiting = threading.Event(), threading.Semaphore(0)

    @app.job("job")
    def job(step: StepContext, input: int) -> int:
        first = step.run("first", lambda: "x" * 1000)
        waiting.release()
        go_on.wait(30)
        step.log.info("between", n=input)
        return len(first) + len(step.run("second", lambda: "y" * 100_000))

    ids = [run.id for run in job.batch_trigger(range(8))]
    heard = hear(app)
    app.start()
    try:
        for _ in range(4):
            assert waiting.acquire(timeout=10)
        filler = fill(small_disk)
        go_on.set()
        errors = eventually(lambda: [e for e in heard if e.type == "worker:error"])
        assert (errors[0].context, errors[0].severity) == ("database", "error")
        assert "full" in errors[0].error or "disk" in errors[0].error
        assert types(heard, "run:").count("run:complete") < 8
        filler.unlink()
        done = [app.wait_for_run(i, timeout=20) for i in ids]
    finally:
        go_on.set()
    assert {run.output for run in done} == {101_000}
    assert {(run.generation, run.interruptions) for run in done} == {(1, 0)}
    assert {run.completed_step_count for run in done} == {2}
    assert [len(app.get_logs(i)) for i in ids] == [1] * 8
    assert types(heard).count("run:complete") == 8 or eventually(lambda: types(heard).count("run:complete") == 8)
    database = [e.severity for e in heard if e.type == "worker:error" and e.context == "database"]
    assert database == ["error", "info"]
    assert sql(app, "PRAGMA integrity_check")[0][0] == "ok"


def test_a_file_that_is_no_database_is_unavailable_and_stays_as_it_is(make_app: AppMaker, tmp_path: Path) -> None:
    # contract 183
    path = tmp_path / "notes.txt"
    path.write_text("these are no pages of SQLite\n" * 100)
    app = make_app(migrated=False, dialect_url=f"sqlite:///{path}", database_timeout=0.5)
    calls: list[Callable[[], object]] = [app.migrate, app.start, lambda: app.get_run("x")]
    for call in calls:
        with pytest.raises(DatabaseUnavailableError, match="not a database") as refused:
            call()
        assert str(path) in str(refused.value)
    assert path.read_text().startswith("these are no pages")


@pytest.mark.parametrize("place", ["no/such/folder/a.db", "file/a.db", "folder"])
def test_a_place_that_cannot_hold_the_file_is_unavailable_at_once(
    make_app: AppMaker, tmp_path: Path, place: str
) -> None:
    # contract 183, 185
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    app = make_app(migrated=False, dialect_url=f"sqlite:///{tmp_path / place}", database_timeout=5)
    with pytest.raises(DatabaseUnavailableError, match="folder"):
        app.migrate()
    with pytest.raises((DatabaseUnavailableError, SchemaOutdatedError)):
        app.start()


def test_a_file_that_sqlite_removes_while_it_is_looked_at_closes_nothing(
    app: Durably, make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 185
    path = make_url(app.database.dialect.safe_url).database
    removed = Path(f"{path}-shm")
    app.database.close()
    removed.touch()
    access = os.access

    def remove_first(place: Path, mode: int) -> bool:
        if Path(place) == removed:
            removed.unlink()  # as the last process does that closes the database
        return access(place, mode)

    monkeypatch.setattr(os, "access", remove_first)
    make_app().database.dialect.check_reachable()
    assert not removed.exists()


def test_a_file_system_that_is_read_only_is_unavailable(make_app: AppMaker, tmp_path: Path) -> None:
    # contract 183
    folder = tmp_path / "read only"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("needs the right to mount a read-only tmpfs")
    try:
        app = make_app(migrated=False, dialect_url=f"sqlite:///{folder / 'a.db'}", database_timeout=0.5)
        with pytest.raises(DatabaseUnavailableError, match="mounted read-only: move the file"):
            app.migrate()
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
