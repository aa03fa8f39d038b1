"""libSQL's driver for a file, as the SQLite dialect wants it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import create_engine
from sqlalchemy.dialects import registry

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

FILE: Final = "sqlite+durably_libsql_file"
"""The drivername that `create_engine` knows the dialect by."""

_TRANSIENT_CODES: Final = frozenset({"SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_PROTOCOL"})


class LibSQLDriver:
    """libsql-experimental, behind durably's own facade."""

    name = "libsql"

    def create_engine(self, url: URL, *, busy_seconds: float, **options: Any) -> Engine:
        """Make an engine for a file."""
        arguments = {"timeout": busy_seconds, "autocommit": True}
        return create_engine(url.set(drivername=FILE), connect_args=arguments, **options)

    def is_transient(self, error: BaseException) -> bool:
        """Tell contention, a full disk and failing I/O."""
        return getattr(error, "code", None) in _TRANSIENT_CODES


registry.register(FILE.replace("+", "."), "durably.store.dialects.libsql.engine", "FileDialect")
