"""Whole tables, read in chunks by primary key, and sums that tell whether two tables hold the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import orjson
from sqlalchemy import Text, func, literal, select, tuple_

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import Connection, Row, Select, Table

    from durably.store.database import Database

MOST_ROWS: Final = 1_000
_MOST_CHARACTERS: Final = 4 * 1024 * 1024
_DIGEST_BYTES: Final = 16
_DIGESTS: Final = 1 << (8 * _DIGEST_BYTES)


@dataclass(frozen=True, slots=True)
class Sum:
    """
    What some rows of a table come to, in whatever order: databases do not agree on the order of texts.

    Args:
        rows: How many.
        digest: The sum of a hash of each row, modulo 2**128.
    """

    rows: int = 0
    digest: int = 0

    def plus(self, rows: Iterable[Sequence[Any]]) -> Sum:
        """Give what they come to together with *rows*, which are none of those so far."""
        hashes = [blake2b(orjson.dumps(tuple(row)), digest_size=_DIGEST_BYTES).digest() for row in rows]
        total = sum(map(int.from_bytes, hashes))
        return Sum(self.rows + len(hashes), (self.digest + total) % _DIGESTS)


def read_chunks(
    database: Database, table: Table, *, after: Sequence[Any] | None = None, rows_at_once: int = MOST_ROWS
) -> Iterator[Sequence[Row[Any]]]:
    """
    Read a table by its primary key, each chunk in a transaction of its own.

    Args:
        database: Whether or not it is open to others.
        after: The primary key to go on behind; None begins with the first row.
        rows_at_once: Rows of a chunk at most. It has fewer where they hold more than some 4 million characters,
            but always one.

    Raises:
        DatabaseUnavailableError: As of `Database.read`.
    """
    limit = rows_at_once
    while True:
        rows, limit = database.read(partial(_read_chunk, table=table, after=after, limit=limit), checked=False)
        if not rows:
            return
        yield rows
        after = key_of(table, rows[-1])
        limit = min(2 * limit, rows_at_once)


def count(connection: Connection, table: Table) -> int:
    """Count a table's rows."""
    return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def key_of(table: Table, row: Row[Any]) -> tuple[Any, ...]:
    """Give a row's primary key."""
    return tuple(row._mapping[column] for column in table.primary_key)  # noqa: SLF001 - the documented way by column


def _read_chunk(
    connection: Connection, *, table: Table, after: Sequence[Any] | None, limit: int
) -> tuple[Sequence[Row[Any]], int]:
    """Read what follows *after*; halve the limit until the chunk is no larger than it may be, and give that too."""
    while limit > 1 and _characters(connection, table, after, limit) > _MOST_CHARACTERS:
        limit //= 2
    return connection.execute(_following(select(table), table, after, limit)).all(), limit


def _characters(connection: Connection, table: Table, after: Sequence[Any] | None, limit: int) -> int:
    """Count the characters of a chunk's unbounded texts where they are, before they fill this process's memory."""
    texts = [column for column in table.c if isinstance(column.type, Text)]
    if not texts:
        return 0
    size = sum((func.length(func.coalesce(column, "")) for column in texts), start=literal(0))
    sizes = _following(select(size.label("size")), table, after, limit).subquery()
    return int(connection.execute(select(func.coalesce(func.sum(sizes.c.size), 0))).scalar_one())


def _following(query: Select[Any], table: Table, after: Sequence[Any] | None, limit: int) -> Select[Any]:
    key = list(table.primary_key)
    if after is not None:
        position = [literal(value, column.type) for value, column in zip(after, key, strict=True)]
        query = query.where(tuple_(*key) > tuple_(*position) if len(key) > 1 else key[0] > position[0])
    return query.order_by(*key).limit(limit)
