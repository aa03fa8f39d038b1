"""A libSQL server: many hosts, which learn by polling; one writer at a time, who queues in the server."""

from __future__ import annotations

import contextlib
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from durably.errors import ValidationError
from durably.findings import Finding
from durably.store.dialects import Capabilities, InDoubtError, NotForeseenError, without_secrets
from durably.store.dialects.libsql.wire import LOST, NOT_FORESEEN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import URL, Connection, Engine, Table

    from durably.settings import Settings

SERVER: Final = "sqlite+durably_libsql_server"
"""The drivername that `create_engine` knows the dialect by."""

# What their codes begin with: SQLite has finer ones, such as SQLITE_BUSY_SNAPSHOT.
_TRANSIENT_CODES: Final = (
    LOST,
    "SQLITE_BUSY",
    "SQLITE_LOCKED",
    "SQLITE_FULL",
    "SQLITE_IOERR",
    "STREAM_EXPIRED",
    "TRANSACTION_TIMEOUT",
    "TRANSACTION_BUSY",
    "HTTP_429",  # too many requests
)
# What may stand in an HTTP header; a blank or a line's end there would be an error that shows it.
_TOKEN: Final = re.compile("[!-~]*")
_CONNECT_SECONDS: Final = 5
# The server takes the right to write from whoever has held it for 5 s, so a turn comes within a few of these.
_READ_SECONDS: Final = 20
# One row of each connection that has ever written, with the last transaction that it committed. Outside durably's
# names, so that migrations let it be.
_MAKE_COMMITS: Final = (
    "CREATE TABLE IF NOT EXISTS _durably_commits "
    "(connection TEXT NOT NULL PRIMARY KEY, number INTEGER NOT NULL, at INTEGER NOT NULL)"
)
# Fails, as NULL is no number, where a later one is noted: the transaction was given up, and has arrived all the same.
_NOTE_COMMIT: Final = (
    "INSERT INTO _durably_commits (connection, number, at) VALUES (?, ?, unixepoch()) "
    "ON CONFLICT (connection) DO UPDATE SET number = iif(number < excluded.number, excluded.number, NULL), "
    "at = excluded.at"
)
_LAST_COMMIT: Final = "SELECT number FROM _durably_commits WHERE connection = ?"
# Whoever is cut off for longer than a week, just after a commit, writes it once more.
_OLD: Final = "FROM _durably_commits WHERE at < unixepoch() - 604800"


class LibSQLServer:
    """
    The dialect of a libSQL server.

    Args:
        url: `sqlite+libsql://host:port/`, with `secure=true` for TLS and the token in `authToken`.
        settings: Of them `database_timeout`.

    Raises:
        ValidationError: The URL has a user or an option that is unknown, or an option's value cannot be one.
    """

    name = "libsql"
    capabilities = Capabilities(wakes="polling", hosts="many")

    def __init__(self, url: URL, settings: Settings) -> None:
        if unknown := set(url.query) - {"secure", "authToken"}:
            raise ValidationError("dialect_url", f"a libSQL server knows no option {', '.join(sorted(unknown))}")
        if url.username or url.password:
            raise ValidationError("dialect_url", "a libSQL server knows no users; its token goes into authToken=...")
        if url.query.get("secure", "false") not in ("true", "false"):
            raise ValidationError("dialect_url", "secure= is true, for TLS, or false")
        token = url.query.get("authToken", "")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise ValidationError("dialect_url", "authToken= is one token, of ASCII letters, digits and signs")
        self.safe_url = without_secrets(url, *(["authToken"] if token else []))
        self._url = url.set(drivername=SERVER).difference_update_query(["authToken"])
        self._token = token
        self._timeout = settings.database_timeout

    def create_engine(self) -> Engine:
        """Make an engine whose connections are in autocommit until a transaction is begun."""
        return create_engine(
            self._url,
            poolclass=QueuePool,
            pool_size=4,
            max_overflow=60,
            pool_timeout=self._timeout,
            connect_args={
                "auth_token": self._token,  # not in the engine's URL, which is shown where SQLAlchemy tells of it
                "connect_timeout": _CONNECT_SECONDS,
                "read_timeout": _READ_SECONDS,
            },
        )

    def check_reachable(self) -> None:
        """Do nothing: only connecting tells."""

    def prepare(self, engine: Engine) -> None:
        """Make the table that a commit in doubt is looked up in."""
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(_MAKE_COMMITS)

    @contextmanager
    def writing(self, connection: Connection, *, timeout: float) -> Iterator[None]:  # noqa: ARG002 - of the driver
        """Send BEGIN IMMEDIATE and the transaction's number with the first statement; the driver bounds each wait."""
        driver: Any = connection.connection.driver_connection
        driver.transactions += 1
        name, number = driver.name, driver.transactions
        driver.defer("BEGIN IMMEDIATE")
        driver.defer(_NOTE_COMMIT, (name, number))
        transaction = connection.begin()
        is_at_end = False
        try:
            yield
            is_at_end = True
            transaction.commit()
        except BaseException as error:
            with contextlib.suppress(DBAPIError):  # it is lost, and so rolled back
                transaction.rollback()
            code = getattr(error.orig, "code", None) if isinstance(error, DBAPIError) else None
            if code == NOT_FORESEEN:
                raise NotForeseenError from error
            if code != LOST or not is_at_end:
                raise
            engine = connection.engine
            raise InDoubtError(str(error), lambda: _was_committed(engine, name, number)) from error

    def migration_lock(self, connection: Connection) -> None:
        """Do nothing: BEGIN IMMEDIATE is the lock."""

    def settle(self, connection: Connection, table: Table) -> None:
        """Do nothing, as on SQLite: the next id is always one more than the greatest."""

    def lock(self, connection: Connection, name: str) -> None:
        """Do nothing: BEGIN IMMEDIATE holds everything."""

    def is_transient(self, error: BaseException) -> bool:
        """Tell contention, what the server has taken away, a lost connection and a full disk from the rest."""
        if isinstance(error, InDoubtError):
            return True
        code = getattr(error.orig, "code", None) if isinstance(error, DBAPIError) else None
        return code is not None and code.startswith(_TRANSIENT_CODES)

    def watch(self, engine: Engine) -> None:
        """Give none: only polling tells."""

    def ring(self, connection: Connection) -> None:
        """Do nothing: nobody could hear it."""

    def upkeep(self, engine: Engine) -> None:
        """Forget old commits, and look first: most of the time there is nothing to write."""
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if connection.exec_driver_sql(f"SELECT 1 {_OLD} LIMIT 1").first():
                connection.exec_driver_sql(f"DELETE {_OLD}")

    def diagnose(self, connection: Connection) -> list[Finding]:
        """Look at the version that the server has of SQLite."""
        version = connection.exec_driver_sql("SELECT sqlite_version()").scalar_one()
        polls = "an idle worker notices a run within polling_interval, because nothing wakes it"
        return [
            Finding(check="libSQL", level="ok", message=f"of SQLite {version}"),
            Finding(check="wake-ups", level="ok", message=polls),
        ]


def _was_committed(engine: Engine, name: str, number: int) -> bool:
    """
    Look, with the right to write, which a transaction under way would still hold.

    One that is a single request may still arrive: what has not been committed by now is kept from it.
    """
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.defer("BEGIN IMMEDIATE")
        found = connection.exec_driver_sql(_LAST_COMMIT, (name,)).scalar()
        if found is None or found < number:
            # Its connection is lost, and counts no further.
            connection.exec_driver_sql(_NOTE_COMMIT, (name, number + 1))
            connection.commit()
        return bool(found == number)


registry.register(SERVER.replace("+", "."), "durably.store.dialects.libsql.engine", "ServerDialect")
