"""
A whole database copied into another, of any dialects.

In chunks, each with its position in one transaction of the target, so that a copy that was killed goes on exactly
where it ended. Until the end the target has no revision, so it is closed to everybody else. The source is only read.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from sqlalchemy import Select, bindparam, func, insert, literal_column, select
from sqlalchemy.exc import DataError, IntegrityError

from durably.errors import ConflictError, DatabaseUnavailableError, SchemaOutdatedError, ValidationError
from durably.store.chunks import MOST_ROWS, Sum, count, key_of, read_chunks
from durably.store.copy_state import COPIED, CopyState, advance, begin, finish, table_with_rows, throw_away
from durably.store.migrations import UNFINISHED_COPY, current_revision
from durably.store.tables import labels, logs, now, runs, steps, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection, Row, Table

    from durably.store.database import Database

# Runs last: whatever anybody changes meanwhile, it shows in a run, and there it is looked for the latest.
_COMPARED: Final = (steps, logs, labels, workers, runs)

_first_run: Final = select(func.min(runs.c.id))
_has_run: Final[Select[Any]] = select(literal_column("1")).where(runs.c.id == bindparam("run_id"))
_living: Final = (
    select(workers.c.host, workers.c.pid, workers.c.process_key)
    .where(workers.c.state == "alive", workers.c.heartbeat_at >= now() - bindparam("threshold"))
    .order_by(workers.c.id)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """
    How far a copy is with one table.

    Args:
        phase: "copy", or "compare", which reads source and target.
        table: Its name without "durably_".
        done: Rows so far, those of earlier attempts included.
        total: Rows that there were at the start.
    """

    phase: Literal["copy", "compare"]
    table: str
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """
    What a copy has done.

    Args:
        rows: By table, its name without "durably_".
        resumed: Of these, those that earlier attempts had copied.
        seconds: It took, the comparison included.
    """

    rows: Mapping[str, int]
    resumed: int
    seconds: float


def copy(
    source: Database,
    target: Database,
    *,
    stale_threshold: float,
    is_gone: Callable[[str], bool],
    restart: bool = False,
    tell: Callable[[Progress], None] = lambda _progress: None,
    rows_at_once: int = MOST_ROWS,
) -> Copied:
    """
    Copy all rows as they are, or go on with such a copy; compare both databases; then open the target.

    Runs that are running are copied with the rows of their workers, so the target's first recovery gives them back.

    Args:
        source: At the code's revision. It is only read.
        target: Empty, or one that an earlier attempt has left unfinished. It is migrated.
        stale_threshold: Seconds of silence after which a worker of the source is no obstacle.
        is_gone: Tells whether the process of a worker's process key is known to have ended; then it is none either.
        restart: Throw away what an unfinished copy has left in the target, and begin anew.
        tell: Called after each chunk.
        rows_at_once: Rows of a chunk at most, from 1.

    Raises:
        ValidationError: On `to`: it is the source. Nothing was written.
        SchemaOutdatedError, SchemaTooNewError, CopyUnfinishedError: The source is not at the code's revision, or the
            target at one that it does not know. Nothing was written.
        ConflictError: A worker of the source lives; the target has rows, or another's unfinished copy: nothing was
            written. Or the source or the target was changed meanwhile: the target stays closed.
        DatabaseUnavailableError: One of them did not do what was asked within its database_timeout, or cannot store a
            value of the other's. The next attempt goes on from there.
    """
    began = time.monotonic()
    if source.dialect.safe_url == target.dialect.safe_url:
        raise ValidationError("to", f"{target.dialect.safe_url} is the database to copy from")
    _refuse_living(source, stale_threshold, is_gone)
    totals = source.read(lambda connection: {each.name: count(connection, each) for each in COPIED})
    state = _open_target(source, target, restart=restart)
    resumed = sum(total.rows for total in state.sums.values())
    names = [each.name for each in COPIED]
    begin_at = 0 if state.at_table is None else names.index(state.at_table)
    for each in COPIED[begin_at:]:
        state = _copy_table(source, target, each, state, rows_at_once, _teller(tell, "copy", each, totals[each.name]))
    for each in _COMPARED:
        _compare(source, target, each, state, rows_at_once, _teller(tell, "compare", each, 2 * totals[each.name]))
    if not target.write(lambda connection: finish(connection, target.dialect), checked=False):
        raise _other_copy(target)
    rows = {_short(each): state.sum_of(each).rows for each in COPIED}
    return Copied(rows=rows, resumed=resumed, seconds=time.monotonic() - began)


def _short(copied: Table) -> str:
    return copied.name.removeprefix("durably_")


def _teller(
    tell: Callable[[Progress], None], phase: Literal["copy", "compare"], copied: Table, total: int
) -> Callable[[int], None]:
    return lambda done: tell(Progress(phase=phase, table=_short(copied), done=done, total=total))


def _refuse_living(source: Database, stale_threshold: float, is_gone: Callable[[str], bool]) -> None:
    """Refuse while a worker may still write; the check of the schema comes first, within `read`."""
    found = source.read(lambda c: c.execute(_living, {"threshold": int(stale_threshold * 1e6)}).all())
    living = [row for row in found if row.process_key is None or not is_gone(row.process_key)]
    if living:
        first = living[0]
        others = f" and {len(living) - 1} more" if len(living) > 1 else ""
        raise ConflictError(
            f"a worker of {source.dialect.safe_url} is alive (process {first.pid} on {first.host}{others}): stop it, "
            "with SIGTERM to its `durably supervise` or with `stop()`, and copy then. One that was killed counts as "
            f"dead after {stale_threshold:g} s, on its own machine at once"
        )


def _open_target(source: Database, target: Database, *, restart: bool) -> CopyState:
    """Find the unfinished copy of *source* in the target, or begin one."""
    url = target.dialect.safe_url
    first_run = source.read(lambda connection: connection.execute(_first_run).scalar())
    if _is_there(target):
        if target.read(current_revision, checked=False) != UNFINISHED_COPY:
            _refuse_rows(target, source.dialect.safe_url, first_run)
        elif restart:
            target.write(throw_away, checked=False)
        else:
            return _find_unfinished(target, source.dialect.safe_url, first_run)
    target.migrate()
    state = CopyState(source=source.dialect.safe_url, first_run=first_run)
    if not target.write(lambda connection: begin(connection, target.dialect, state), checked=False):
        raise ConflictError(f"{url} is no longer empty: somebody else has begun to use it")
    return state


def _is_there(target: Database) -> bool:
    try:
        target.dialect.check_reachable()
    except SchemaOutdatedError:
        return False
    return True


def _refuse_rows(target: Database, source_url: str, first_run: str | None) -> None:
    url = target.dialect.safe_url
    found = target.read(table_with_rows, checked=False)
    if found is None:
        return
    is_copy = target.read(lambda c: c.execute(_has_run, {"run_id": first_run}).first(), checked=False)
    if is_copy:
        raise ConflictError(f"{url} has the runs of {source_url}: it was copied already, or is the same database")
    raise ConflictError(f"{url} is not empty ({found} has rows): copy into a fresh database")


def _find_unfinished(target: Database, source_url: str, first_run: str | None) -> CopyState:
    state = target.read(CopyState.read, checked=False)
    if state.first_run != first_run:
        raise ConflictError(
            f"{target.dialect.safe_url} holds an unfinished copy of {state.source}, which is another database than "
            f"{source_url}, or has changed since; --restart throws that copy away and begins anew"
        )
    return state


def _copy_table(
    source: Database, target: Database, copied: Table, state: CopyState, rows_at_once: int, tell: Callable[[int], None]
) -> CopyState:
    after = state.position if state.at_table == copied.name else None
    tell(state.sum_of(copied).rows)
    for rows in read_chunks(source, copied, after=after, rows_at_once=rows_at_once):
        following = state.after(copied, rows)
        _write_chunk(source, target, copied, rows, state, following)
        state = following
        tell(state.sum_of(copied).rows)
    target.write(lambda connection: target.dialect.settle(connection, copied), checked=False)
    return state


def _write_chunk(
    source: Database, target: Database, copied: Table, rows: Sequence[Row[Any]], state: CopyState, following: CopyState
) -> None:
    names = [column.name for column in copied.c]
    values = [dict(zip(names, row, strict=True)) for row in rows]

    def change(connection: Connection) -> None:
        if not advance(connection, state, following):
            raise _other_copy(target)
        connection.execute(insert(copied), values)

    try:
        target.write(change, checked=False)
    except DatabaseUnavailableError as error:
        if isinstance(error.__cause__, IntegrityError):
            raise _changed(source, target, copied) from error
        if isinstance(error.__cause__, DataError):
            first, last = key_of(copied, rows[0]), key_of(copied, rows[-1])
            raise DatabaseUnavailableError(f"{error} (a row of {copied.name} from {first} to {last})") from error
        raise


def _compare(
    source: Database, target: Database, copied: Table, state: CopyState, rows_at_once: int, tell: Callable[[int], None]
) -> None:
    """Read both anew: what is stored must be what was read, and still be what the source has."""
    done = 0
    expected = state.sum_of(copied)
    for database in (target, source):
        found = Sum()
        for rows in read_chunks(database, copied, rows_at_once=rows_at_once):
            found = found.plus(rows)
            tell(done + found.rows)
        done += found.rows
        if found != expected:
            raise _changed(database, target, copied, f": {found.rows:,} rows, {expected.rows:,} copied")


def _changed(database: Database, target: Database, copied: Table, counts: str = "") -> ConflictError:
    return ConflictError(
        f"{database.dialect.safe_url} was changed during the copy ({copied.name}{counts}): {target.dialect.safe_url} "
        "stays closed, and nothing is lost. Let nobody use either of them, triggers included, and copy again with "
        "--restart"
    )


def _other_copy(target: Database) -> ConflictError:
    return ConflictError(f"another process copies into {target.dialect.safe_url}; let it do so alone")
