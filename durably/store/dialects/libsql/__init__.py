"""libSQL: a server (sqld, Turso), over a driver of durably's own; or a file, over libSQL's."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from durably.errors import ValidationError

if TYPE_CHECKING:
    from sqlalchemy import URL

    from durably.settings import Settings
    from durably.store.dialects import Dialect


def libsql(url: URL, settings: Settings) -> Dialect:
    """
    Give the dialect of a `sqlite+libsql` URL.

    Args:
        url: `sqlite+libsql://host:port/?secure=true&authToken=...` is a server, `sqlite+libsql:///path` a file.
        settings: As of the dialect that it turns out to be.

    Raises:
        ValidationError: The driver is not installed, or the URL is wrong.
    """
    for module in ("sqlalchemy_libsql", "libsql_experimental"):
        # Looked for, not imported: the process may be one that only forks others.
        if find_spec(module) is None:
            raise ValidationError(
                "dialect_url", f"libSQL needs its driver: pip install 'durably[libsql]' (there is no {module})"
            )
    if url.host:
        from durably.store.dialects.libsql.server import LibSQLServer

        return LibSQLServer(url, settings)
    from durably.store.dialects.libsql.file import LibSQLDriver
    from durably.store.dialects.sqlite import SQLite

    return SQLite(url, settings, LibSQLDriver())
