"""
MariaDB 10.6 or later for durably, over PyMySQL: `mariadb://user@host/name`.

What differs from the databases that durably brings: there are no partial indexes, UPDATE returns nothing, each DDL
statement commits, names are compared loosely, and no server function tells what became of a transaction.
"""

from __future__ import annotations

import contextlib
import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import QueuePool
from sqlalchemy.schema import CreateIndex

from durably.errors import DatabaseUnavailableError
from durably.findings import Finding
from durably.ids import new_id
from durably.store.dialects import Capabilities, InDoubtError
from durably.store.tables import LongText, Word, now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Connection, Engine, Table

    from durably.settings import Settings

_OLDEST: Final = (10, 6)  # which knows SKIP LOCKED
_TRANSIENT_ERRORS: Final = frozenset({
    1020,  # a row was changed since it was read
    1021,  # disk full
    1040,  # too many connections
    1053,  # the server is shutting down
    1114,  # table full
    1158, 1159, 1160, 1161,  # network
    1205,  # lock wait timeout
    1213,  # deadlock: this was the victim
    1290,  # read-only: this server is no longer the primary
    1927, 2002, 2003, 2006, 2013, 2055,  # the connection was refused, killed or lost
    4031,  # the server has ended it, because it was idle in a transaction
})  # fmt: skip
# Nobody holds a lock for long but a stranger; after this it is tried again, until the caller's time is up.
_LOCK_WAIT_SECONDS: Final = 2
# Frees what a process holds that was stopped, or whose host was cut off, in the middle of a transaction.
_IDLE_TRANSACTION_SECONDS: Final = 10
_SECONDS_TO_CONNECT: Final = 5
_FORGET_COMMITS_AFTER_SECONDS: Final = 86_400

# Which transactions were committed: of each connection the latest. Written as the last thing in each, so whoever lost
# the answer to a COMMIT can look.
_COMMITS: Final = """
    CREATE TABLE IF NOT EXISTS durably_mariadb_commits (
        session CHAR(26) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY,
        number BIGINT NOT NULL,
        committed_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP
    )
"""
_mark: Final = text(
    "INSERT INTO durably_mariadb_commits (session, number) VALUES (:session, :number) "
    "ON DUPLICATE KEY UPDATE number = :number"
)
# With a lock, so that it waits while the transaction's session is still ending.
_marked: Final = text("SELECT number FROM durably_mariadb_commits WHERE session = :session LOCK IN SHARE MODE")
_forget: Final = text("DELETE FROM durably_mariadb_commits WHERE committed_at < NOW() - INTERVAL :age SECOND")
_take_lock: Final = text("SELECT GET_LOCK(:name, :seconds)")
_free_locks: Final = text("DO RELEASE_ALL_LOCKS()")


class MariaDB:
    """
    The MariaDB dialect.

    Args:
        url: `mariadb://user@host/name`, with PyMySQL's options in its query.
        settings: Of them `database_timeout`.
    """

    name = "mariadb"
    # It has nothing to wait for: workers poll.
    capabilities = Capabilities(wakes="polling", hosts="many")

    def __init__(self, url: URL, settings: Settings) -> None:
        self.safe_url = url.render_as_string(hide_password=True)
        self._url = url.set(drivername="mariadb+pymysql")
        self._timeout = settings.database_timeout

    def create_engine(self) -> Engine:
        """Make an engine whose sessions have their bounds, and the clock's time zone, from the first statement on."""
        engine = create_engine(
            self._url,
            poolclass=QueuePool,
            pool_size=4,
            max_overflow=12,
            pool_timeout=self._timeout,
            isolation_level="READ COMMITTED",
            connect_args={
                "charset": "utf8mb4",
                "connect_timeout": _SECONDS_TO_CONNECT,
                "read_timeout": self._timeout + _LOCK_WAIT_SECONDS,
                "write_timeout": self._timeout + _LOCK_WAIT_SECONDS,
                "init_command": (
                    "SET time_zone = '+00:00', sql_mode = 'TRADITIONAL', "
                    f"innodb_lock_wait_timeout = {_LOCK_WAIT_SECONDS}, lock_wait_timeout = {_LOCK_WAIT_SECONDS}, "
                    f"idle_transaction_timeout = {_IDLE_TRANSACTION_SECONDS}"
                ),
            },
        )
        event.listen(engine, "connect", _name_session)
        return engine

    def check_reachable(self) -> None:
        """Do nothing: only connecting tells."""

    def prepare(self, engine: Engine) -> None:
        """Refuse a server that is too old; make the table of commits."""
        with engine.connect() as connection:
            version = connection.dialect.server_version_info
            if version is not None and version[:2] < _OLDEST:
                raise DatabaseUnavailableError(
                    f"{self.safe_url}: MariaDB {'.'.join(map(str, version))} is too old; it takes 10.6 or later"
                )
            connection.execute(text(_COMMITS))

    @contextmanager
    def writing(self, connection: Connection, *, timeout: float) -> Iterator[None]:  # noqa: ARG002 - of the session
        """Begin; at the end leave a mark, by which a commit whose answer was lost is known."""
        try:
            transaction = connection.begin()
            session = str(connection.info["durably_session"])
            number = connection.info["durably_number"] = connection.info["durably_number"] + 1
            try:
                yield
                connection.execute(_mark, {"session": session, "number": number})
            except BaseException:
                with contextlib.suppress(DBAPIError):  # it is lost, and so rolled back
                    transaction.rollback()
                raise
            try:
                transaction.commit()
            except DBAPIError as error:
                with contextlib.suppress(DBAPIError):
                    transaction.rollback()
                if not error.connection_invalidated:
                    raise
                engine = connection.engine
                raise InDoubtError(str(error.orig), lambda: self._was_committed(engine, session, number)) from error
        finally:
            self._free_locks(connection)

    def migration_lock(self, connection: Connection) -> None:
        """Take a lock of the session's: each DDL statement ends the transaction."""
        self.lock(connection, "durably migration")

    def settle(self, connection: Connection, table: Table) -> None:
        """Do nothing: the next id is always one more than the greatest, and statistics keep themselves."""

    def lock(self, connection: Connection, name: str) -> None:
        """Take the session's lock on *name*, which `writing` frees after the commit."""
        # Names have at most 64 characters, and belong to the server, not to the database.
        digest = hashlib.sha256(f"{self._url.database} {name}".encode()).hexdigest()
        if not connection.execute(_take_lock, {"name": digest, "seconds": _LOCK_WAIT_SECONDS}).scalar():
            raise TimeoutError(f"others have held the lock on {name!r} for {_LOCK_WAIT_SECONDS} s")

    def is_transient(self, error: BaseException) -> bool:
        """Tell contention, a lost or refused connection and a server that is short of something from the rest."""
        if isinstance(error, (InDoubtError, TimeoutError)):
            return True
        if not isinstance(error, DBAPIError):
            return False
        arguments = getattr(error.orig, "args", ())
        return error.connection_invalidated or (bool(arguments) and arguments[0] in _TRANSIENT_ERRORS)

    def watch(self, engine: Engine) -> None:
        """Give nothing: only polling tells."""

    def ring(self, connection: Connection) -> None:
        """Do nothing: nobody can listen."""

    def upkeep(self, engine: Engine) -> None:
        """Forget the commits of connections that are long gone."""
        with engine.begin() as connection:
            connection.execute(_forget, {"age": _FORGET_COMMITS_AFTER_SECONDS})

    def diagnose(self, connection: Connection) -> list[Finding]:
        """Look at the server's version."""
        version = connection.exec_driver_sql("SELECT version()").scalar_one()
        return [Finding(check="server", level="ok", message=str(version))]

    def _was_committed(self, engine: Engine, session: str, number: int) -> bool:
        with engine.connect() as connection:
            return connection.execute(_marked, {"session": session}).scalar() == number

    def _free_locks(self, connection: Connection) -> None:
        if connection.invalidated or connection.closed:
            return
        with contextlib.suppress(DBAPIError):  # they go with the session
            try:
                connection.execute(_free_locks)
            finally:
                connection.rollback()  # or no transaction could be begun after a failure


def _name_session(_connection: object, record: Any) -> None:
    record.info["durably_session"] = new_id()
    record.info["durably_number"] = 0


@compiles(now, "mariadb")
def _now(*_: Any, **__: Any) -> str:
    return "CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)"


@compiles(Word, "mariadb")
def _word(type_: Word, _compiler: Any, **_: Any) -> str:
    # Other collations take "Key", "key" and "key " for one.
    return f"VARCHAR({type_.length}) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin"


@compiles(LongText, "mariadb")
def _long_text(*_: Any, **__: Any) -> str:
    return "LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin"


# Where a partial index is unique, what it says is said by a column that is NULL for the rows outside of it.
_GENERATED: Final = {
    "durably_runs_one_running_per_key": "CASE WHEN status = 'running' THEN concurrency_key END",
    "durably_steps_one_checkpoint_per_name": "CASE WHEN status = 'completed' THEN name END",
}
_OTHER_COLUMNS: Final = {"durably_steps_one_checkpoint_per_name": "run_id, "}


@compiles(CreateIndex, "mariadb")
def _create_index(create: CreateIndex, compiler: Any, **options: Any) -> str:
    index: Any = create.element
    expression = _GENERATED.get(str(index.name))
    if expression is None:
        return str(compiler.visit_create_index(create, **options))
    column = f"{index.name}_value"
    return (
        f"ALTER TABLE {index.table.name} ADD COLUMN IF NOT EXISTS {column} "
        f"VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin AS ({expression}) VIRTUAL, "
        f"ADD UNIQUE INDEX IF NOT EXISTS {index.name} ({_OTHER_COLUMNS.get(str(index.name), '')}{column})"
    )
