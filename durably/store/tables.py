"""The tables. Times are microseconds since 1970 by the database's clock; JSON is text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    literal_column,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

REVISION: Final = "0001"
"""The schema revision that this code reads and writes; alembic/versions ends with it."""

VERSION_TABLE: Final = "durably_alembic_version"

_EPOCH: Final = datetime.fromtimestamp(0, UTC)

metadata = MetaData()


class Word(String):
    """
    A name, a key, an id: short text that is compared exactly, so that case, accents and blanks at its end count.

    A dialect that compares text otherwise registers its own form with `sqlalchemy.ext.compiler.compiles`.
    """

    inherit_cache = True


class LongText(Text):
    """Text of any length; a dialect whose TEXT has a bound registers its own form, as for `Word`."""

    inherit_cache = True


runs = Table(
    "durably_runs",
    metadata,
    Column("id", Word(26), primary_key=True),
    Column("job_name", Word(255), nullable=False),
    Column("status", Word(16), nullable=False),
    Column("input", LongText, nullable=False),
    Column("output", LongText),
    Column("error", LongText),
    Column("error_type", Word(512)),
    Column("error_traceback", LongText),
    Column("labels", LongText, nullable=False),
    Column("idempotency_key", Word(255)),
    Column("concurrency_key", Word(255)),
    Column("attempt", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("interruptions", Integer, nullable=False),
    Column("progress", LongText),
    # Set exactly while the status is running.
    Column("worker_id", Word(26)),
    # The worker that lets its slots run empty for this run, which must execute alone.
    Column("awaited_by", Word(26)),
    Column("created_at", BigInteger, nullable=False),
    # When the run last became pending.
    Column("pending_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("updated_at", BigInteger, nullable=False),
)


def has_status(status: str, table: Any = runs) -> ColumnElement[bool]:
    """Compare the status with a literal: a partial index serves no bound parameter."""
    compared: ColumnElement[bool] = table.c.status == literal_column(f"'{status}'")
    return compared


steps = Table(
    "durably_steps",
    metadata,
    Column("run_id", ForeignKey("durably_runs.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Word(255), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("position", Integer, nullable=False),
    Column("status", Word(16), nullable=False),
    Column("output", LongText),
    Column("error", LongText),
    Column("error_type", Word(512)),
    Column("error_traceback", LongText),
    Column("started_at", BigInteger, nullable=False),
    Column("completed_at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
logs = Table(
    "durably_logs",
    metadata,
    # Ascends in the order in which entries were logged.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("run_id", ForeignKey("durably_runs.id", ondelete="CASCADE"), nullable=False),
    Column("step_name", Word(255)),
    Column("attempt", Integer, nullable=False),
    Column("level", Word(16), nullable=False),
    Column("message", LongText, nullable=False),
    Column("data", LongText, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

labels = Table(
    "durably_labels",
    metadata,
    Column("run_id", ForeignKey("durably_runs.id", ondelete="CASCADE"), primary_key=True),
    Column("key", Word(255), primary_key=True),
    Column("value", Word(255), nullable=False),
    sqlite_with_rowid=False,
)

workers = Table(
    "durably_workers",
    metadata,
    Column("id", Word(26), primary_key=True),
    Column("state", Word(16), nullable=False),
    Column("host", Word(255), nullable=False),
    Column("pid", Integer, nullable=False),
    # Names the process on its machine until the next boot; None where that cannot be told.
    Column("process_key", Word(255)),
    # Whose child it is; that supervisor alone judges its silence. None without a supervisor.
    Column("supervisor_id", Word(26)),
    Column("jobs", LongText, nullable=False),
    Column("concurrency", Integer, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("heartbeat_at", BigInteger, nullable=False),
    Column("loop_lag", Float),
    Column("oldest_step_age", Float),
)


class now(FunctionElement[int]):  # noqa: N801 - it reads as SQL's function does
    """
    The database's clock, in microseconds since 1970.

    A dialect whose SQL differs registers its own form with `sqlalchemy.ext.compiler.compiles`.
    """

    type = BigInteger()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(*_: Any, **__: Any) -> str:
    # julianday counts whole milliseconds; 210866760000 s lie between its day 0 and 1970.
    return "(CAST(round(julianday('now') * 86400000) AS INTEGER) - 210866760000000) * 1000"


def to_time(microseconds: int) -> datetime:
    """Read a stored time."""
    return _EPOCH + timedelta(microseconds=microseconds)


def to_time_or_none(microseconds: int | None) -> datetime | None:
    """Read a stored time that may be missing."""
    return None if microseconds is None else to_time(microseconds)


def to_microseconds(moment: datetime) -> int:
    """Write an aware datetime as a stored time."""
    return (moment - _EPOCH) // timedelta(microseconds=1)
