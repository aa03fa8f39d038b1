"""Where the suite gets its databases from."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import Column, Integer, MetaData, Table, inspect, make_url
from sqlalchemy.exc import SQLAlchemyError

from durably import Durably, DurablyError
from durably.settings import Settings
from durably.store.dialects import find_dialect
from durably.store.tables import metadata
from durably.testing.dialects.cable import Cable, lay_by_tcp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest
    from sqlalchemy import Connection

# In a database that is the suite's to empty. Outside durably's names, or the schema would not be the declared one.
_MARK: Final = Table("_durably_conformance", MetaData(), Column("id", Integer, primary_key=True))


class Databases(Protocol):
    """Makes the databases of one dialect. Held by the test session's one thread."""

    def fresh_url(self, folder: Path, name: str = "durably") -> str:
        """
        Give the URL of a database without tables; called once for each test that wants one.

        Args:
            folder: The test's own.
            name: Of a file in it, for dialects of files.
        """

    def fill(self, url: str) -> None:
        """Give a fresh database the current schema, where Alembic would take long by copying; again it does nothing."""

    def is_free(self, url: str) -> bool:
        """Tell whether nobody is in the middle of a write, as far as the database's locks tell."""

    def locked(self, url: str) -> contextlib.AbstractContextManager[None]:
        """Keep everybody else from writing, as a stranger can who never ends a transaction."""

    def hurry(self, patch: pytest.MonkeyPatch) -> None:
        """Let a connection that is opened from now on wait 0.2 s at most for a stranger's lock before it says so."""

    def cable(self, url: str, folder: Path) -> tuple[Cable, str]:
        """
        Lay a way to the server that can be cut.

        Args:
            url: Of a fresh database.
            folder: The test's own, for a socket.

        Returns:
            The way, and the URL that takes it.
        """

    def clean(self) -> None:
        """Drop the databases made so far, after a test."""

    def close(self) -> None:
        """Drop what tests shared, after the last one."""


class OneDatabase:
    """
    One database on a server, of which everything is dropped before each test.

    A base for a maker of its own: what only the database's own statements can do, a stranger's locks, is skipped here.

    Args:
        url: An empty database, as users give it; or one that an earlier session of tests has left behind.

    Raises:
        pytest.UsageError: It holds somebody's tables.
    """

    def __init__(self, url: str) -> None:
        import pytest

        if os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1") != "1":
            raise pytest.UsageError("one database is emptied before each test, so one test runs at a time: no -n")
        self.url = url
        try:
            with self._connection() as connection:
                tables = set(inspect(connection).get_table_names())
                if not tables or _MARK.name in tables:
                    _MARK.create(connection, checkfirst=True)
                    return
        except (DurablyError, SQLAlchemyError) as error:
            raise pytest.UsageError(f"--url: {error}; it must name an empty database that is there") from None
        raise pytest.UsageError(
            f"the suite drops all that is in its database, and this one holds {', '.join(sorted(tables))}: "
            "give an empty one"
        )

    def fresh_url(self, folder: Path, name: str = "durably") -> str:  # noqa: ARG002 - for those that are files
        """Drop what is in it, and give its URL."""
        with self._connection() as connection:
            self._drop_all(connection)
        return self.url

    def fill(self, url: str) -> None:
        """Migrate it."""
        migrate(url)

    def is_free(self, url: str) -> bool:  # noqa: ARG002 - for its heirs
        """Believe so."""
        return True

    def locked(self, url: str) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002 - for its heirs
        """Skip the test."""
        import pytest

        pytest.skip("locks of a stranger need a maker of databases that takes them: --databases")

    def hurry(self, patch: pytest.MonkeyPatch) -> None:
        """Do nothing: each wait takes as long as the dialect lets it."""

    def cable(self, url: str, folder: Path) -> tuple[Cable, str]:  # noqa: ARG002 - for a socket in it
        """Lay it by TCP, where the URL has a host and a port."""
        import pytest

        if make_url(url).port is None:
            pytest.skip("cutting the way to the server needs a URL with a port, or a maker that lays it")
        return lay_by_tcp(url)

    def clean(self) -> None:
        """Leave it to the next test to empty."""

    def close(self) -> None:
        """Leave it empty."""
        with self._connection() as connection:
            self._drop_all(connection)
            _MARK.drop(connection)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[Connection]:
        """Open one past the dialect's ways, which may need tables of their own."""
        engine = find_dialect(Settings(dialect_url=self.url)).create_engine()
        try:
            with engine.begin() as connection:
                yield connection
        finally:
            engine.dispose()

    @staticmethod
    def _drop_all(connection: Connection) -> None:
        metadata.drop_all(connection)
        for name in set(inspect(connection).get_table_names()) - {_MARK.name}:
            Table(name, MetaData()).drop(connection)


class SQLiteFiles:
    """A file each."""

    scheme = "sqlite"

    def __init__(self) -> None:
        self._template: Path | None = None

    def fresh_url(self, folder: Path, name: str = "durably") -> str:
        """Name a file that does not exist."""
        return f"{self.scheme}:///{folder / name}.db"

    def fill(self, url: str) -> None:
        """Copy a migrated file: Alembic takes a tenth of a second each time."""
        path = Path(database_of(url))
        if self._template is None:
            self._template = Path(tempfile.mkdtemp()) / "template.db"
            migrate(f"{self.scheme}:///{self._template}")
        if not path.exists():
            shutil.copyfile(self._template, path)

    def is_free(self, url: str) -> bool:
        """Try the gate."""
        gate = os.open(database_of(url) + "-gate", os.O_RDWR)
        try:
            fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(gate)
        return True

    @contextlib.contextmanager
    def locked(self, url: str) -> Iterator[None]:
        """Begin a write transaction past the gate."""
        with contextlib.closing(self.connect(database_of(url))) as stranger:
            stranger.cursor().execute("BEGIN IMMEDIATE")
            yield
            stranger.rollback()

    def hurry(self, patch: pytest.MonkeyPatch) -> None:
        """Shorten the busy timeout."""
        patch.setattr("durably.store.dialects.sqlite._BUSY_SECONDS", 0.05)

    def cable(self, url: str, folder: Path) -> tuple[Cable, str]:  # noqa: ARG002 - for servers
        """Skip the test."""
        import pytest

        pytest.skip("a file has no connection that could be cut")

    def clean(self) -> None:
        """Leave them to pytest, whose folders they are in."""

    def close(self) -> None:
        """Drop the template."""
        if self._template is not None:
            shutil.rmtree(self._template.parent)

    def connect(self, path: str) -> Any:
        """Open a file as a stranger, in autocommit."""
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


def database_of(url: str) -> str:
    """Give the database's name in a URL, which of a file is its path."""
    return str(make_url(url).database)


def migrate(url: str) -> None:
    """Bring a database to the code's schema."""
    app = Durably(url)
    app.migrate()
    app.database.close()


make: Callable[[], Databases] = SQLiteFiles
"""Makes this session's maker; set by the plugin from its options."""

_made: list[Databases] = []


def databases() -> Databases:
    """Give this session's maker; a server begins with the first call."""
    if not _made:
        _made.append(make())
    return _made[0]


def is_open() -> bool:
    """Tell whether this session has used its maker."""
    return bool(_made)


def close() -> None:
    """End what began with the first call."""
    while _made:
        _made.pop().close()


def only_polls(url: str) -> bool:
    """Tell whether nothing wakes those who wait for others' commits on a database."""
    return find_dialect(Settings(dialect_url=url)).capabilities.wakes == "polling"
