"""SQLite: a file, one writer at a time, no server; over the standard library's driver or another."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from durably.errors import DatabaseUnavailableError, SchemaOutdatedError, ValidationError
from durably.store.dialects import Capabilities
from durably.store.dialects.fileroom import diagnose_file, why_closed
from durably.store.dialects.gate import gate
from durably.store.dialects.mounts import NETWORK_FILE_SYSTEMS, file_system
from durably.store.tables import REVISION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Table

    from durably.findings import Finding
    from durably.settings import Settings

_TRANSIENT_CODES: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_PROTOCOL,
    }
)
# Of opening the gate: the system or the disk is short of something.
_TRANSIENT_ERRNOS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM})
# With the keeper's checkpoints the WAL stays at a few MB; this bounds it where no keeper runs (4 KB pages).
_WAL_PAGES_BEFORE_A_COMMIT_CHECKPOINTS: Final = 8_000
_WAL_BYTES_KEPT: Final = 64 * 1024 * 1024
# The gate comes first, so SQLite's own wait is only for strangers who write to the file without it.
_BUSY_SECONDS: Final = 2.0
_BEGIN: Final = "durably_begin"


class _FileGoneError(OSError):
    """The file in its place is not the one that was opened."""


class Driver(Protocol):
    """
    What differs between drivers that open SQLite's files.

    Attributes:
        name: The dialect's name.
    """

    name: str

    def create_engine(self, url: URL, *, busy_seconds: float, **options: Any) -> Engine:
        """
        Make an engine for a file; its connections are in autocommit, and begin nothing by themselves.

        Args:
            url: Its `database` is a `file:` URI.
            busy_seconds: How long a statement waits for a lock that somebody holds on the file.
            **options: More of SQLAlchemy's `create_engine`.
        """

    def is_transient(self, error: BaseException) -> bool:
        """Tell contention, a full disk and failing I/O, of the driver's own errors."""


class _StandardDriver:
    """The standard library's sqlite3."""

    name = "sqlite"

    def create_engine(self, url: URL, *, busy_seconds: float, **options: Any) -> Engine:
        arguments = {"check_same_thread": False, "isolation_level": None, "timeout": busy_seconds}
        return create_engine(url.set(drivername="sqlite+pysqlite"), connect_args=arguments, **options)

    def is_transient(self, error: BaseException) -> bool:
        code = getattr(error, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in _TRANSIENT_CODES


class SQLite:
    """
    The SQLite dialect.

    Args:
        url: `sqlite:///path`; the file is made by the migration.
        settings: Of them `synchronous` and `database_timeout`.
        driver: Opens the file; by default the standard library's.

    Raises:
        ValidationError: The URL names no file; several processes cannot share memory.
    """

    capabilities = Capabilities(wakes="commit" if sys.platform == "linux" else "polling", hosts="one")

    def __init__(self, url: URL, settings: Settings, driver: Driver | None = None) -> None:
        if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
            slashes = f"; with three slashes, {url.host} is one: '{url.drivername}:///{url.host}'" if url.host else ""
            raise ValidationError(
                "dialect_url", f"SQLite needs a file that processes can share, such as 'sqlite:///durably.db'{slashes}"
            )
        self._driver: Driver = driver or _StandardDriver()
        self.name = self._driver.name
        self.safe_url = url.render_as_string(hide_password=True)
        self._url = url
        self._path = Path(url.database).absolute()
        self._gate_path = f"{self._path}-gate"
        self._synchronous = settings.synchronous
        self._timeout = settings.database_timeout
        # Which file the engine's first connection has opened: device and inode. Any thread may be the first to tell.
        self._opened: tuple[int, int] | None = None

    def create_engine(self) -> Engine:
        """Make an engine whose connections are in autocommit until a transaction is begun by name."""
        self._opened = None
        engine = self._driver.create_engine(
            # Without "rwc", connecting would make an empty file in the place of one that was removed.
            self._url.set(database=self._path.as_uri()).update_query_dict({"uri": "true", "mode": "rw"}),
            busy_seconds=_BUSY_SECONDS,
            poolclass=QueuePool,
            # Every connection that a caller's thread may need at once; a wait is bounded by the pool's timeout.
            pool_size=4,
            max_overflow=60,
        )
        event.listen(engine, "connect", self._configure)
        event.listen(engine, "begin", _begin)
        return engine

    def check_reachable(self) -> None:
        """Refuse a missing file here, because connecting would make an empty one."""
        self._check_no_folder()
        self._check_no_orphaned_wal()
        if not self._path.exists():
            raise SchemaOutdatedError(None, REVISION, url=self.safe_url, missing_file=str(self._path))
        self._check_not_closed()

    def prepare(self, engine: Engine) -> None:
        """Make the file and set its journal mode, which stays with it; alone, behind the gate."""
        self._check_creatable()
        self._path.touch(0o666)
        with gate(self._gate_path, self._timeout), _without_transaction(engine) as connection:
            mode = connection.exec_driver_sql("PRAGMA journal_mode=WAL").scalar_one()
        if mode != "wal":
            raise DatabaseUnavailableError(f"{self._path}: the file system does not allow WAL mode (got {mode!r})")

    @contextmanager
    def writing(self, connection: Connection, *, timeout: float) -> Iterator[None]:
        """Queue at the gate, then BEGIN IMMEDIATE."""
        with gate(self._gate_path, timeout):
            self._check_same_file()
            connection.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
            try:
                with connection.begin():
                    yield
            finally:
                connection.execution_options(**{_BEGIN: "BEGIN"})

    def migration_lock(self, connection: Connection) -> None:
        """Do nothing: BEGIN IMMEDIATE is the lock."""

    def settle(self, connection: Connection, table: Table) -> None:
        """Do nothing: the next id is always one more than the greatest, and plans do not depend on the rows."""

    def lock(self, connection: Connection, name: str) -> None:
        """Do nothing: BEGIN IMMEDIATE holds everything."""

    def is_transient(self, error: BaseException) -> bool:
        """Tell contention, a full disk, failing I/O and a file that was moved away from the rest."""
        if isinstance(error, _FileGoneError):
            return True
        if isinstance(error, TimeoutError) or (isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS):
            return True
        cause = error.orig if isinstance(error, DBAPIError) else error
        return cause is not None and self._driver.is_transient(cause)

    def watch(self, engine: Engine) -> FileWatch | None:
        """Watch the file by inotify; only polling tells elsewhere than on Linux, or where a user has used it up."""
        if sys.platform != "linux":
            return None
        try:
            return FileWatch(self._path, engine)
        except OSError:  # fs.inotify.max_user_instances is 128 by default, for all processes of a user
            return None

    def ring(self, connection: Connection) -> None:
        """Do nothing: watches see the commit."""

    def upkeep(self, engine: Engine) -> None:
        """
        Move what is in the WAL to the file, as far as no reader or writer is held up.

        Raises:
            DatabaseUnavailableError: The file in its place is not the one that was opened.
        """
        try:
            self._check_same_file()
        except _FileGoneError as error:
            raise DatabaseUnavailableError(str(error)) from None
        with _without_transaction(engine) as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    def diagnose(self, connection: Connection) -> list[Finding]:
        """Look at the file's mode, its room, and whether its commits can be watched."""
        return list(diagnose_file(connection, self._path, largest_wal=_WAL_BYTES_KEPT))

    def _check_not_closed(self) -> None:
        if (reason := why_closed(self._path)) is not None:
            raise DatabaseUnavailableError(reason)

    def _check_creatable(self) -> None:
        """Refuse, before the migration makes the file, a folder that cannot hold it."""
        self._check_no_folder()
        self._check_no_orphaned_wal()
        folder = self._path.parent
        if not folder.is_dir():
            raise DatabaseUnavailableError(f"{self._path}: there is no folder {folder}; make it first")
        self._check_not_closed()
        if (kind := file_system(folder)) in NETWORK_FILE_SYSTEMS:
            raise DatabaseUnavailableError(
                f"{self._path}: on a network file system ({kind}), where SQLite cannot keep several processes "
                "apart; use a local disk, or PostgreSQL for several hosts"
            )

    def _check_same_file(self) -> None:
        """
        Refuse to write to a file that has no name any more: who was told that it is stored would find nothing.

        Raises:
            _FileGoneError: It was removed or replaced; transient, for who moved it away may move it back.
        """
        if self._opened is not None and self._opened != _identity(self._path):
            raise _FileGoneError(
                f"{self._path}: the file was removed or replaced while in use, so nothing is written; stop every "
                "process that uses it, put it back, without the -wal and -shm of another, and start again"
            )

    def _check_no_orphaned_wal(self) -> None:
        """Tell a file that was removed from one that never was."""
        if not self._path.exists() and (wal := Path(f"{self._path}-wal")).exists():
            raise DatabaseUnavailableError(
                f"{self._path}: there is no such file, but its {wal.name} is there: it was removed, maybe while in "
                "use; stop every process that uses it, put it back, and start again; or remove what is left of it "
                f"({self._path.name}-*) to begin anew"
            )

    def _check_no_folder(self) -> None:
        if self._path.is_dir():
            raise DatabaseUnavailableError(f"{self._path} is a folder, not a database file")

    def _configure(self, connection: Any, _record: object) -> None:
        self._opened = self._opened or _identity(self._path)
        cursor = connection.cursor()
        for pragma in (
            f"synchronous={self._synchronous}",
            "foreign_keys=ON",
            f"wal_autocheckpoint={_WAL_PAGES_BEFORE_A_COMMIT_CHECKPOINTS}",
            f"journal_size_limit={_WAL_BYTES_KEPT}",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()


class FileWatch:
    """
    inotify on the database's WAL, and `PRAGMA data_version`.

    inotify costs nothing while idle and fires a moment before the commit is visible; data_version tells that it is.

    Args:
        path: The database file.
        engine: Gives the one connection whose data_version is compared.
    """

    def __init__(self, path: Path, engine: Engine) -> None:
        from inotify_simple import INotify, flags

        self._engine = engine
        with contextlib.ExitStack() as opened:
            self._connection = opened.enter_context(_without_transaction(engine))
            self._version = self._read_version()
            # While a connection that has read is open, SQLite keeps the WAL's file: it is emptied, but not removed.
            self._inotify = opened.enter_context(INotify(nonblocking=True))
            self._watch_wal = partial(self._inotify.add_watch, f"{path}-wal", flags.MODIFY)
            self._watch_wal()
            opened.pop_all()

    def fileno(self) -> int:
        """Give inotify's descriptor."""
        return int(self._inotify.fileno())

    def changed(self) -> bool:
        """Compare the connection's data_version with that of the last call; a new connection's is always another."""
        for _ in self._inotify.read(timeout=0):
            pass
        if self._connection.closed:
            self._connection = _without_transaction(self._engine)
            self._version = -1
            self._read_version()
            self._watch_wal()  # another file, if all connections were closed
        version = self._read_version()
        changed, self._version = version != self._version, version
        return changed

    def let_go(self) -> None:
        """Close the connection until the next `changed`."""
        self._connection.close()

    def close(self) -> None:
        """Free inotify's descriptor and the connection."""
        self._inotify.close()
        self._connection.close()

    def _read_version(self) -> int:
        return int(self._connection.exec_driver_sql("PRAGMA data_version").scalar_one())


def _without_transaction(engine: Engine) -> Connection:
    return engine.connect().execution_options(**{_BEGIN: ""})


def _begin(connection: Connection) -> None:
    if statement := connection.get_execution_options().get(_BEGIN, "BEGIN"):
        connection.exec_driver_sql(statement)


def _identity(path: Path) -> tuple[int, int] | None:
    """Tell a file from any other that is or was at *path*; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
