"""
SQLAlchemy's dialect for libSQL, as sqlalchemy-libsql has it, over durably's own drivers.

Loaded by SQLAlchemy when an engine is made, not before: sqlalchemy-libsql loads libSQL's driver, which a process
that only forks others must not hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.pool import QueuePool
from sqlalchemy_libsql.libsql import SQLiteDialect_libsql

from durably.store.dialects import FORESEEN

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from sqlalchemy import URL, Pool

_LEVELS: Final = ("SERIALIZABLE", "AUTOCOMMIT")


class _Dialect(SQLiteDialect_libsql):  # type: ignore[misc]  # it ships no types
    """What a server's and a file's have in common."""

    supports_statement_cache = True
    returns_native_bytes = True

    @classmethod
    def get_pool_class(cls, url: URL) -> type[Pool]:  # noqa: ARG003 - SQLAlchemy's signature
        """Keep connections."""
        return QueuePool

    def create_connect_args(self, url: URL) -> tuple[list[str], dict[str, Any]]:
        """Give the server's address, the file's path or its `file:` URI; what else there is comes by `connect_args`."""
        if ":" in (url.host or ""):
            url = url.set(host=f"[{url.host}]")  # an IPv6 address, which sqlalchemy-libsql writes as any other
        (address,), _of_sqlite3 = super().create_connect_args(url)
        return [address], {}

    def on_connect(self) -> None:
        """Do nothing: the driver makes no functions."""

    def do_begin(self, dbapi_connection: Any) -> None:
        """Begin by hand, for the driver does not; a listener may have done so."""
        if not dbapi_connection.autocommit and not dbapi_connection.in_transaction:
            dbapi_connection.cursor().execute("BEGIN")

    def get_isolation_level_values(self, dbapi_connection: Any) -> Sequence[str]:  # noqa: ARG002
        """Name the two that there are."""
        return _LEVELS

    def get_default_isolation_level(self, dbapi_connection: Any) -> str:  # noqa: ARG002
        """Name the one that a connection begins with."""
        return _LEVELS[0]

    def get_isolation_level(self, dbapi_connection: Any) -> str:
        """Name the connection's."""
        return _LEVELS[1] if dbapi_connection.autocommit else _LEVELS[0]

    def set_isolation_level(self, dbapi_connection: Any, level: str) -> None:
        """Set the connection's."""
        dbapi_connection.autocommit = level == _LEVELS[1]

    def detect_autocommit_setting(self, dbapi_connection: Any) -> bool:
        """Tell whether the connection begins nothing by itself."""
        return bool(dbapi_connection.autocommit)

    def is_disconnect(self, e: BaseException, connection: object, cursor: object) -> bool:  # noqa: ARG002
        """Ask the error, which knows."""
        return bool(getattr(e, "is_disconnect", False))


class ServerDialect(_Dialect):
    """A server's."""

    driver = "durably_libsql_server"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> ModuleType:
        """Give the driver."""
        from durably.store.dialects.libsql import hrana

        return hrana

    def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        """Execute, or keep what is foreseen."""
        if context is not None and context.execution_options.get(FORESEEN):
            cursor.rowcount = cursor.connection.foresee(statement, [parameters])
            return
        super().do_execute(cursor, statement, parameters, context)

    def do_executemany(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        """Execute, or keep what is foreseen."""
        if context is not None and context.execution_options.get(FORESEEN):
            cursor.rowcount = cursor.connection.foresee(statement, parameters)
            return
        super().do_executemany(cursor, statement, parameters, context)


class FileDialect(_Dialect):
    """A file's."""

    driver = "durably_libsql_file"
    supports_statement_cache = True

    @classmethod
    def import_dbapi(cls) -> ModuleType:
        """Give the driver."""
        from durably.store.dialects.libsql import local

        return local
