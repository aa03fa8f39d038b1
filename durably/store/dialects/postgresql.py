"""PostgreSQL 13 or later, over psycopg 3: many hosts, woken by LISTEN and NOTIFY."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import selectors
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from sqlalchemy import BigInteger, bindparam, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import QueuePool

from durably.errors import ValidationError
from durably.store.dialects import Capabilities, InDoubtError, without_secrets
from durably.store.dialects.serverstate import diagnose_server
from durably.store.tables import now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Connection, Engine, Table
    from sqlalchemy.engine import ExceptionContext

    from durably.findings import Finding
    from durably.settings import Settings

_LOST_CONNECTION_STATES: Final = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03", "25P04"})
_TRANSIENT_STATES: Final = _LOST_CONNECTION_STATES | {
    "40001",  # serialization failure
    "40P01",  # deadlock: this was the victim
    "55P03",  # lock timeout
    "25006",  # read-only: this server is no longer the primary
    "58030",  # input or output error
}
# Connections; disk full, memory, too many connections.
_TRANSIENT_CLASSES: Final = ("08", "53")
# libpq's own are two minutes and two hours: a host that was cut off is noticed within these, so that it is tried again
# before the workers that wait for it are taken for dead.
_CONNECTION_DEFAULTS: Final = {
    "connect_timeout": "5",
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
    "application_name": "durably",
}
# Nobody holds a lock for long but a stranger; after this it is tried again, until the caller's time is up.
_LOCK_TIMEOUT_MS: Final = 2_000
# Frees what a process holds that was stopped, or whose host was cut off, in the middle of a transaction; none of
# durably's is idle for long. Whoever comes back finds its transaction rolled back, and writes it again.
_IDLE_TRANSACTION_MS: Final = 10_000
_SCHEMA_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,63}")
# Of the schema that is used, however it was chosen: in the URL, by the role, by a server's setting.
_CHANNEL: Final = "'durably_' || md5(coalesce(current_schema(), ''))"
_RING: Final = text(f"SELECT pg_notify({_CHANNEL}, '')")
_BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
# A row for each connection that has ever written: its last commit. Outside durably's names, so that migrations let it
# be; a new row each time, because versions of one row pile up where a long reader keeps them (docs/adr/0006).
_MAKE_COMMITS: Final = (
    "CREATE TABLE IF NOT EXISTS _durably_commits (mark UUID PRIMARY KEY, at TIMESTAMPTZ NOT NULL DEFAULT now())",
    "CREATE INDEX IF NOT EXISTS _durably_commits_by_time ON _durably_commits (at)",
)
_MARK_COMMIT: Final = (
    "DELETE FROM _durably_commits WHERE mark = '{last}'; INSERT INTO _durably_commits (mark) VALUES ('{mark}')"
)
# Waits for a transaction under way that has the mark; rolled back.
_TRY_MARK: Final = "INSERT INTO _durably_commits (mark) VALUES ('{mark}') ON CONFLICT DO NOTHING"
# Whoever is cut off for longer than a week, just after a commit, writes it once more.
_FORGET: Final = "DELETE FROM _durably_commits WHERE at < now() - INTERVAL '1 week'"
_NO_MARK: Final = UUID(int=0)
_LAST_MARK: Final = "durably_last_mark"
_take_lock: Final = select(func.pg_advisory_xact_lock(bindparam("key", type_=BigInteger)))


class PostgreSQL:
    """
    The PostgreSQL dialect.

    Args:
        url: `postgresql://user@host/name`, with libpq's options in its query. Two more are durably's own:
            `schema=name` for the schema that its tables live in, which the migration makes; `pooler=transaction`
            if the connection goes through a pooler that hands it to another client after each transaction.
        settings: Of them `database_timeout`.

    Raises:
        ValidationError: The driver is not installed, or an option of durably's own is wrong.
    """

    name = "postgresql"
    # A ring passes a pooler, so it reaches those who listen past it.
    capabilities = Capabilities(wakes="ring", hosts="many")

    def __init__(self, url: URL, settings: Settings) -> None:
        try:
            import psycopg as _driver  # noqa: F401
        except ImportError as error:
            raise ValidationError(
                "dialect_url", f"PostgreSQL needs its driver: pip install 'durably[postgresql]' ({error})"
            ) from None
        # libpq takes passwords in the query too.
        self.safe_url = without_secrets(url, *(name for name in url.query if "password" in name.lower()))
        self._schema = _option(url, "schema")
        if self._schema is not None and not _SCHEMA_NAME.fullmatch(self._schema):
            raise ValidationError("dialect_url", f"schema={self._schema}: 1 to 63 letters, digits, '_' and '-'")
        pooler = _option(url, "pooler")
        if pooler not in (None, "transaction"):
            raise ValidationError("dialect_url", f"pooler={pooler}: only 'transaction' needs to be told")
        self._is_pooled = pooler is not None
        self._url = url.set(drivername="postgresql+psycopg").difference_update_query(["schema", "pooler"])
        self._timeout = settings.database_timeout

    def create_engine(self) -> Engine:
        """Make an engine whose sessions have their schema and their bounds from the first statement on."""
        arguments: dict[str, Any] = {k: v for k, v in _CONNECTION_DEFAULTS.items() if k not in self._url.query}
        if self._is_pooled:
            arguments["prepare_threshold"] = None  # what is prepared would stay with another client's session
        else:
            settings = " ".join(f"-c {k}={_escaped(v)}" for k, v in self._session().items())
            arguments["options"] = f"{settings} {_option(self._url, 'options') or ''}".strip()
        engine = create_engine(
            self._url,
            poolclass=QueuePool,
            pool_size=4,
            # A server has 100 connections by default, for all processes; the calls of more threads wait their turn.
            max_overflow=12,
            pool_timeout=self._timeout,
            # The driver goes through a statement parameter by parameter: 1,000 rows took 120 ms at once, and 74 ms so.
            insertmanyvalues_page_size=50,
            # What reads needs no transaction: READ COMMITTED sees in each statement what was committed before it.
            isolation_level="AUTOCOMMIT",
            connect_args=arguments,
        )
        event.listen(engine, "handle_error", _note_lost_connection)
        if self._is_pooled:
            event.listen(engine, "begin", self._configure_transaction)
        return engine

    def check_reachable(self) -> None:
        """Do nothing: only connecting tells."""

    def prepare(self, engine: Engine) -> None:
        """Make the schema, if the URL names one, and the table that a commit in doubt is looked up in."""
        with engine.connect() as connection:
            self._begin(connection)
            self.migration_lock(connection)  # IF NOT EXISTS looks and makes, and two may look at once
            if self._schema is not None:
                name = connection.dialect.identifier_preparer.quote_identifier(self._schema)
                connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {name}"))
            for statement in _MAKE_COMMITS:
                connection.exec_driver_sql(statement)
            connection.commit()

    @contextmanager
    def writing(self, connection: Connection, *, timeout: float) -> Iterator[None]:  # noqa: ARG002 - of the session
        """Begin, and leave a mark by which a commit whose answer was lost is known; lock_timeout bounds each wait."""
        transaction = connection.begin()
        mark = uuid4()
        try:
            self._begin(connection, _MARK_COMMIT.format(last=connection.info.get(_LAST_MARK, _NO_MARK), mark=mark))
            yield
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
            raise InDoubtError(str(error.orig), lambda: self._was_committed(engine, mark)) from error
        connection.info[_LAST_MARK] = mark

    def migration_lock(self, connection: Connection) -> None:
        """Take a lock of the transaction's: one of the session's would not survive a pooler."""
        self.lock(connection, "durably migration")

    def settle(self, connection: Connection, table: Table) -> None:
        """Move the sequence, which knows only of the ids that it gave; without statistics, whole tables are sorted."""
        if (column := table.autoincrement_column) is not None:
            sequence = func.pg_get_serial_sequence(table.name, column.name)
            connection.execute(select(func.setval(sequence, func.max(column))).having(func.max(column).is_not(None)))
        connection.execute(text(f"ANALYZE {table.name}"))

    def lock(self, connection: Connection, name: str) -> None:
        """Take the transaction's advisory lock on a hash of *name*; two names with one hash only wait needlessly."""
        digest = hashlib.sha256(name.encode()).digest()
        connection.execute(_take_lock, {"key": int.from_bytes(digest[:8], signed=True)})

    def is_transient(self, error: BaseException) -> bool:
        """Tell contention, a lost or refused connection and a server that is short of something from the rest."""
        if isinstance(error, InDoubtError):
            return True
        if not isinstance(error, DBAPIError):
            return False
        state = getattr(error.orig, "sqlstate", None)
        if state is None:  # libpq gives none where it could not connect, or lost the connection
            return error.connection_invalidated or isinstance(error, OperationalError)
        return error.connection_invalidated or state in _TRANSIENT_STATES or state.startswith(_TRANSIENT_CLASSES)

    def watch(self, engine: Engine) -> ChannelWatch | None:
        """Listen; behind a pooler only polling tells, for it would give the listening session to others."""
        return None if self._is_pooled else ChannelWatch(engine)

    def ring(self, connection: Connection) -> None:
        """Notify, in a transaction of its own: in one that writes it would make all commits follow each other."""
        with connection.begin():
            connection.execute(_RING)

    def upkeep(self, engine: Engine) -> None:
        """Forget old commits; the rest the server's autovacuum does."""
        with engine.connect() as connection:
            connection.exec_driver_sql(_FORGET)
            connection.commit()

    def diagnose(self, connection: Connection) -> list[Finding]:
        """Look at the server's version, role, safety, and what holds its connections and its vacuum up."""
        return list(diagnose_server(connection, is_pooled=self._is_pooled))

    def _was_committed(self, engine: Engine, mark: UUID) -> bool:
        """
        Tell whether the mark is there.

        pg_xact_status would not do: after a crash the server gives the ids anew of transactions that it had not written
        to its disk, and tells what became of another.
        """
        with engine.connect() as connection:
            self._begin(connection)
            return connection.exec_driver_sql(_TRY_MARK.format(mark=mark)).rowcount == 0

    def _begin(self, connection: Connection, *statements: str) -> None:
        """Begin, and execute more in the same round trip; behind a pooler it has begun already."""
        together = "; ".join(statements if self._is_pooled else (_BEGIN, *statements))
        if together:
            connection.exec_driver_sql(together)

    def _session(self) -> dict[str, str]:
        bounds = {
            "lock_timeout": str(_LOCK_TIMEOUT_MS),
            "idle_in_transaction_session_timeout": str(_IDLE_TRANSACTION_MS),
        }
        return bounds if self._schema is None else bounds | {"search_path": f'"{self._schema}"'}

    def _configure_transaction(self, connection: Connection) -> None:
        """Begin, and set for one transaction what a pooler does not let a session keep."""
        connection.exec_driver_sql(_BEGIN)
        calls = (f"set_config('{name}', '{value}', true)" for name, value in self._session().items())
        connection.exec_driver_sql(f"SELECT {', '.join(calls)}")


class ChannelWatch:
    """
    LISTEN on a connection of its own.

    Args:
        engine: Gives the connection, which leaves its pool.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Its descriptor stays while the sockets in it change.
        self._selector = selectors.DefaultSelector()
        # Readable while there is no connection: `changed` is to be called, which opens one.
        self._lost_reading, self._lost_writing = os.pipe()
        self._selector.register(self._lost_reading, selectors.EVENT_READ)
        self._connection: Connection | None = None
        self._driver: Any = None
        os.write(self._lost_writing, b".")
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Give the descriptor of the selector, which holds the socket."""
        return int(self._selector.fileno())

    def changed(self) -> bool:
        """Take what has arrived; after a lost connection listen anew, and count what was missed as a change."""
        if self._connection is not None:
            try:
                self._driver.pgconn.consume_input()
            except self._engine.dialect.loaded_dbapi.Error:
                self.let_go()
            else:
                return self._take_notifications()
        self._connect()
        return True

    def let_go(self) -> None:
        """Close the connection until the next `changed`."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._selector.unregister(self._socket)
        os.write(self._lost_writing, b".")
        connection.invalidate()  # so that nobody tries to roll back what may be lost
        self._driver.close()

    def close(self) -> None:
        """Free the descriptors and the connection."""
        self.let_go()
        self._selector.close()
        os.close(self._lost_reading)
        os.close(self._lost_writing)

    def _connect(self) -> None:
        connection = self._engine.connect()
        try:
            channel = connection.execute(text(f"SELECT {_CHANNEL}")).scalar_one()
            connection.execute(text(f'LISTEN "{channel}"'))
            connection.commit()
            self._driver = connection.connection.driver_connection  # before it leaves the pool, with which it goes
            connection.detach()
            self._socket = self._driver.fileno()
            self._selector.register(self._socket, selectors.EVENT_READ)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        os.read(self._lost_reading, 1)

    def _take_notifications(self) -> bool:
        found = False
        while self._driver.pgconn.notifies() is not None:
            found = True
        return found


@compiles(now, "postgresql")
def _now_postgresql(*_: Any, **__: Any) -> str:
    # One value in a whole statement, and another in the next; now() would be the transaction's beginning.
    return "CAST(EXTRACT(EPOCH FROM statement_timestamp()) * 1000000 AS BIGINT)"


def _option(url: URL, name: str) -> str | None:
    value = url.query.get(name)
    return value if value is None or isinstance(value, str) else " ".join(value)


def _escaped(value: str) -> str:
    """Write a value into libpq's `options`, whose words blanks separate."""
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def _note_lost_connection(context: ExceptionContext) -> None:
    """Take a session that the server has ended for lost, though its socket may not tell yet."""
    state = getattr(context.original_exception, "sqlstate", None)
    if state is not None and (state in _LOST_CONNECTION_STATES or state.startswith("08")):
        context.is_disconnect = True
