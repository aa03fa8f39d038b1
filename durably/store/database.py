"""One process's way into the database: an engine, made on first use and anew after a fork."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from durably.errors import DatabaseUnavailableError
from durably.forks import ForkGate, around_forks
from durably.store.attempts import Attempts
from durably.store.dialects import find_dialect
from durably.store.lateness import telling_if_late
from durably.store.migrations import check_schema, migrate
from durably.store.pause import Pause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

    from durably.settings import Settings
    from durably.store.dialects import Dialect, Watch

T = TypeVar("T")
_FIRST_PAUSE_SECONDS: Final = 0.01
_LONGEST_PAUSE_SECONDS: Final = 0.5
# Each holds a connection of the pool, and one of the inotify instances that all processes of a user share.
_MOST_WATCHES: Final = 8
_LONGEST_WAIT_BEFORE_A_FORK_SECONDS: Final = 5.0


class Database:
    """
    The database that the settings name. Opens nothing until it is used; safe for threads and forks.

    Args:
        settings: Of them the URL and `database_timeout`.

    Raises:
        ValidationError: On `dialect_url`.
    """

    def __init__(self, settings: Settings) -> None:
        self.dialect: Final[Dialect] = find_dialect(settings)
        self.timeout: Final = settings.database_timeout
        # The three below are written under the lock, and by a forked child, which is alone.
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._checked = False
        # Whether a call of this process's has succeeded. Any thread may be the first.
        self._has_answered = False
        self._pid = os.getpid()
        self._watches = threading.BoundedSemaphore(_MOST_WATCHES)
        self._gate = ForkGate()
        # Under the gate: what is open between uses, so that it can be closed before a fork.
        self._lasting: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._watching: weakref.WeakSet[Watch] = weakref.WeakSet()
        around_forks(self._close_before_fork, self._go_on_after_fork, self._start_anew)

    def engine(self) -> Engine:
        """Give this process's engine. A forked child makes its own and leaves the parent's connections alone."""
        with self._lock:
            if self._engine is None:
                self._engine = self.dialect.create_engine()
            return self._engine

    def _close_before_fork(self) -> None:
        """
        Close every connection; the next use opens new ones. In the parent.

        SQLite remembers in the process's memory which locks it holds on a file, and a child inherits the memory but
        not the locks: it would wait for ever for a lock that nobody holds, or believe to hold what it does not, and
        whoever closes the file last would take the WAL away from under it, with all that the child has committed.
        """
        if not self._gate.shut(_LONGEST_WAIT_BEFORE_A_FORK_SECONDS):
            return  # somebody waits for the database longer than a fork may: then the child has what luck gives
        for open_connection in list(self._lasting):
            open_connection.close()
        for watch in list(self._watching):
            watch.let_go()
        if self._engine is not None:
            self._engine.dispose()

    def _go_on_after_fork(self) -> None:
        self._gate.open()

    def _start_anew(self) -> None:
        """Forget the parent's engine and leave its connections alone. In a child, right after the fork."""
        self._lock = threading.Lock()
        self._gate = ForkGate()
        if self._engine is not None:
            self._engine.dispose(close=False)
        self._engine = None
        self._lasting = weakref.WeakSet()
        self._watching = weakref.WeakSet()
        self._watches = threading.BoundedSemaphore(_MOST_WATCHES)
        self._checked = False
        self._pid = os.getpid()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Hold a connection, outside a transaction."""
        with self._gate.passing(), self.engine().connect() as connection:
            yield connection

    @contextmanager
    def lasting(self, connection: Connection | None) -> Iterator[Connection]:
        """
        Use a connection that its owner keeps between uses.

        Args:
            connection: The one of the last use, if there was one.

        Returns:
            The same, or a new one where it is closed, as it is after a fork.
        """
        with self._gate.passing():
            if connection is None or connection.closed:
                connection = self.engine().connect()
                self._lasting.add(connection)
            yield connection

    @contextmanager
    def reading(self, *, checked: bool = True) -> Iterator[Connection]:
        """Hold a connection for reading, in one transaction; *checked* as of `read`."""
        if checked:
            self.check()
        with self.connection() as connection:
            yield connection

    @contextmanager
    def writing(self, *, checked: bool = True) -> Iterator[Connection]:
        """Hold a connection in one write transaction: committed at the end, rolled back on an error."""
        if checked:
            self.check()
        with self.connection() as connection, self.dialect.writing(connection, timeout=self.timeout):
            yield connection

    def check(self) -> None:
        """
        Make sure, once per process, that the schema is the code's.

        Raises:
            SchemaOutdatedError: It is missing or behind.
            SchemaTooNewError: It is ahead.
            CopyUnfinishedError: A copy into it has not ended.
        """
        if self._checked and self._pid == os.getpid():
            return
        self.dialect.check_reachable()
        with self.connection() as connection:
            check_schema(connection, self.dialect.safe_url)
        self._checked = True

    def read(self, query: Callable[[Connection], T], *, checked: bool = True) -> T:
        """
        Run *query* for a caller; contention is waited out.

        Args:
            checked: Only if the schema is the code's. A copy works on a target that is closed to all others.

        Raises:
            DatabaseUnavailableError: It did not succeed within database_timeout, or never will.
        """

        def once() -> T:
            with self.reading(checked=checked) as connection:
                return query(connection)

        return self._persist(once)

    def write(self, change: Callable[[Connection], T], *, rings: bool = False, checked: bool = True) -> T:
        """
        Run *change* for a caller in one write transaction; contention is waited out.

        Args:
            rings: Whether others may be waiting for what is changed: idle workers, those that wait for a run.
            checked: As of `read`.

        Raises:
            DatabaseUnavailableError: It did not succeed within database_timeout, or never will.
        """
        attempts: Attempts[T] = Attempts()
        changed = self._persist(lambda: attempts.write(lambda: self.writing(checked=checked), change))
        if rings and self.dialect.capabilities.wakes == "ring":
            with contextlib.suppress(SQLAlchemyError, OSError), self.connection() as connection:
                self.dialect.ring(connection)  # if it fails, polling is the net
        return changed

    def _persist(self, action: Callable[[], T]) -> T:
        if self._has_answered:
            return self._try_until_late(action)
        with telling_if_late(self.dialect.safe_url, self.timeout):
            answer = self._try_until_late(action)
        self._has_answered = True
        return answer

    def _try_until_late(self, action: Callable[[], T]) -> T:
        pause = Pause(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                return action()
            except (SQLAlchemyError, OSError) as error:
                if not self.dialect.is_transient(error) or time.monotonic() >= deadline:
                    raise unavailable(error, self.dialect) from error
            time.sleep(pause.next())

    def watch(self) -> Watch | None:
        """
        Open a watch on commits by others, for the one in this process that watches all the time.

        Raises:
            DBAPIError: The database does not answer.
        """
        with self._gate.passing():
            watch = self.dialect.watch(self.engine())
            if watch is not None:
                self._watching.add(watch)
            return watch

    def has_changed(self, watch: Watch) -> bool:
        """
        Tell whether another connection may have committed since the last call.

        Raises:
            DBAPIError: The database does not answer.
        """
        with self._gate.passing():
            return watch.changed()

    def upkeep(self) -> None:
        """Do the dialect's upkeep."""
        with self._gate.passing():
            self.dialect.upkeep(self.engine())

    def open_watch(self) -> Watch | None:
        """
        Open a watch on commits by others, for one caller among any number; give it back with `close_watch`.

        Returns:
            None where only polling tells: as of the dialect, or because eight callers hold one.

        Raises:
            DatabaseUnavailableError: As of `read`.
        """
        self.read(lambda _connection: None)
        watches = self._watches
        if not watches.acquire(blocking=False):
            return None
        watch: Watch | None = None
        try:
            watch = self._persist(self.watch)
        finally:
            if watch is None:
                watches.release()
        return watch

    def close_watch(self, watch: Watch) -> None:
        """Close what `open_watch` gave, once."""
        with self._gate.passing():
            watch.close()
        self._watches.release()

    def migrate(self) -> bool:
        """
        Bring the schema to the code's revision.

        Returns:
            Whether anything had to be done.

        Raises:
            SchemaTooNewError: The code does not know the database's revision; nothing was written.
            DatabaseUnavailableError: It cannot be opened or made.
        """

        def once() -> bool:
            with self._gate.passing():
                return migrate(self.engine(), self.dialect, timeout=self.timeout)

        return self._persist(once)

    def close(self) -> None:
        """Close every connection; the next use opens new ones."""
        with self._lock:
            engine, self._engine = self._engine, None
            self._checked = False
        if engine is not None and self._pid == os.getpid():
            engine.dispose()


def unavailable(error: BaseException, dialect: Dialect) -> DatabaseUnavailableError:
    """Put an error of SQLAlchemy, of a driver or of the system into words without the password or the parameters."""
    cause: object = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(error, PoolTimeoutError):
        cause = "more threads want a connection at once than the pool holds"
    return DatabaseUnavailableError(f"{dialect.safe_url}: {str(cause) or type(cause).__qualname__}")


def is_outage(error: BaseException) -> bool:
    """
    Tell whether the database could not do what it was asked for, and may later; False if it refuses just that.

    Args:
        error: As `Database.read` or `write` has raised it.
    """
    refusals = (IntegrityError, DataError, ProgrammingError)
    return isinstance(error, DatabaseUnavailableError) and not isinstance(error.__cause__, refusals)
