"""What pytest and SQLAlchemy's own tests must know of the dialects under test before they begin."""

from typing import Any

from sqlalchemy import URL, Engine, event
from sqlalchemy.dialects.sqlite import provision as _provision  # noqa: F401 - ours replaces one of its
from sqlalchemy.testing import exclusions
from sqlalchemy.testing.provision import post_configure_engine
from sqlalchemy.testing.requirements import SuiteRequirements

from durably.store.dialects.libsql import file as _file  # noqa: F401 - tells SQLAlchemy of its dialect
from durably.store.dialects.libsql import server as _server  # noqa: F401 - the same


@post_configure_engine.for_db("sqlite")  # type: ignore[untyped-decorator]
def _configure(url: URL, engine: Engine, follower_ident: str | None) -> None:
    """Attach no second database, which a server cannot; let files be lost with the machine, for speed."""
    if url.host is None:
        event.listen(engine, "connect", _never_sync)


def _never_sync(connection: Any, _record: object) -> None:
    connection.cursor().execute("PRAGMA synchronous = OFF")


# Of a part of SQLAlchemy that has no types.
_has: Any = exclusions.open()  # type: ignore[no-untyped-call]
_has_not: Any = exclusions.closed()  # type: ignore[no-untyped-call]


class Requirements(SuiteRequirements):
    """Where SQLite, over any driver, is not what the suite takes a database for."""

    @property
    def schemas(self) -> Any:
        return _has_not

    @property
    def parens_in_union_contained_select_w_limit_offset(self) -> Any:
        return _has_not

    @property
    def parens_in_union_contained_select_wo_limit_offset(self) -> Any:
        return _has_not

    @property
    def reflect_table_options(self) -> Any:
        return _has
