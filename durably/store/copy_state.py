"""What the target of a copy knows of it: a row beside durably's tables, from the copy's beginning to its end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    MetaData,
    Select,
    String,
    Table,
    Text,
    insert,
    inspect,
    literal_column,
    select,
    update,
)

from durably.store.chunks import Sum, key_of
from durably.store.migrations import UNFINISHED_COPY, replace_revision
from durably.store.tables import REVISION, VERSION_TABLE, labels, logs, metadata, runs, steps, workers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection, Row

    from durably.store.dialects import Dialect

COPIED: Final = (workers, runs, steps, logs, labels)
"""What is copied: runs before what belongs to them."""

_own: Final = MetaData()
# In the target, from the beginning of a copy to its end: one row.
_state_table: Final = Table(
    "durably_copy",
    _own,
    Column("source", Text, nullable=False),
    # The source's oldest run: whatever URL it is reached by, no other database has it.
    Column("first_run", String(26)),
    Column("chunks", BigInteger, nullable=False),
    # The table of the last chunk, and the primary key of its last row.
    Column("at_table", String(64)),
    Column("position", Text),
    # By table: the number of rows, and their digest in hexadecimals.
    Column("sums", Text, nullable=False),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyState:
    """What the target knows of the copy into it: the row of `durably_copy`."""

    source: str
    first_run: str | None
    chunks: int = 0
    at_table: str | None = None
    position: tuple[Any, ...] | None = None
    sums: Mapping[str, Sum] = field(default_factory=dict)

    @classmethod
    def read(cls, connection: Connection) -> CopyState:
        """Read it from the target."""
        row = connection.execute(select(_state_table)).one()
        return cls(
            source=row.source,
            first_run=row.first_run,
            chunks=row.chunks,
            at_table=row.at_table,
            position=None if row.position is None else tuple(json.loads(row.position)),
            sums={name: Sum(rows, int(digest, 16)) for name, (rows, digest) in json.loads(row.sums).items()},
        )

    def values(self) -> dict[str, Any]:
        """Give it as a row."""
        return {
            "source": self.source,
            "first_run": self.first_run,
            "chunks": self.chunks,
            "at_table": self.at_table,
            "position": None if self.position is None else json.dumps(self.position),
            "sums": json.dumps({name: (total.rows, f"{total.digest:x}") for name, total in self.sums.items()}),
        }

    def sum_of(self, copied: Table) -> Sum:
        """Give what has been copied of a table."""
        return self.sums.get(copied.name, Sum())

    def after(self, copied: Table, rows: Sequence[Row[Any]]) -> CopyState:
        """Give the state that follows once *rows* are copied."""
        total = self.sum_of(copied).plus(rows)
        return replace(
            self,
            chunks=self.chunks + 1,
            at_table=copied.name,
            position=key_of(copied, rows[-1]),
            sums={**self.sums, copied.name: total},
        )


def table_with_rows(connection: Connection) -> str | None:
    """Name one of durably's tables that has rows; None if all are empty, or not there."""
    inspector = inspect(connection)
    one_row: dict[str, Select[Any]] = {t.name: select(literal_column("1")).select_from(t).limit(1) for t in COPIED}
    found = (n for n, query in one_row.items() if inspector.has_table(n) and connection.execute(query).first())
    return next(found, None)


def begin(connection: Connection, dialect: Dialect, state: CopyState) -> bool:
    """
    Close an empty database to everybody else, in a write transaction.

    Returns:
        Whether it is still empty and open.
    """
    dialect.migration_lock(connection)
    if table_with_rows(connection) or not replace_revision(connection, REVISION, UNFINISHED_COPY):
        return False
    _state_table.create(connection)
    connection.execute(insert(_state_table), [state.values()])
    return True


def advance(connection: Connection, former: CopyState, state: CopyState) -> bool:
    """
    Write what is copied after one more chunk.

    Returns:
        Whether *former* is what was there; not if another process copies too.
    """
    moved = update(_state_table).where(_state_table.c.chunks == former.chunks).values(state.values())
    return connection.execute(moved).rowcount > 0


def finish(connection: Connection, dialect: Dialect) -> bool:
    """
    Open the database to everybody, in a write transaction.

    Returns:
        Whether it was being copied into.
    """
    dialect.migration_lock(connection)
    _own.drop_all(connection)
    return replace_revision(connection, UNFINISHED_COPY, REVISION)


def throw_away(connection: Connection) -> None:
    """Drop all that a copy has made, in a write transaction."""
    metadata.drop_all(connection)
    _own.drop_all(connection)
    Table(VERSION_TABLE, MetaData()).drop(connection)
