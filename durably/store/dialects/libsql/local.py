"""
A PEP 249 driver for libSQL files: libsql-experimental, with what it gets wrong put right.

It holds Python's lock while it works, so it may not wait for a file's lock itself: whoever holds that may be a
thread of the same process. It is told not to wait, and asked again.
"""

from __future__ import annotations

import os
import re
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import libsql_experimental as driver

from durably.store.dialects.libsql.pep249 import (
    Answer,
    Binary,
    Cursor,
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    Warning,  # noqa: A004 - PEP 249's name
    apilevel,
    checked,
    paramstyle,
    refusal,
    sqlite_version,
    sqlite_version_info,
    threadsafety,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Binary",
    "Connection",
    "Cursor",
    "DataError",
    "DatabaseError",
    "Error",
    "IntegrityError",
    "InterfaceError",
    "InternalError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "Warning",
    "apilevel",
    "connect",
    "paramstyle",
    "sqlite_version",
    "sqlite_version_info",
    "threadsafety",
]

_FIRST_PAUSE_SECONDS: Final = 0.0002
_LONGEST_PAUSE_SECONDS: Final = 0.005
# The driver gives no codes; these are SQLite's own words, which it has had for decades.
_CODES: Final = {
    "database is locked": "SQLITE_BUSY",
    "database table is locked": "SQLITE_LOCKED",
    "database or disk is full": "SQLITE_FULL",
    "disk I/O error": "SQLITE_IOERR",
    "locking protocol": "SQLITE_PROTOCOL",
    "unable to open": "SQLITE_CANTOPEN",
}
# Strings, names and comments, in which a question mark is none.
_NO_MARKER: Final = r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/"""
_TOKEN: Final = re.compile(rf"{_NO_MARKER}|(\?)", re.DOTALL)
# It binds integers as floating point beyond these.
_BOUND_EXACTLY: Final = range(-(2**31), 2**31)


class Connection:
    """
    One connection; for one thread at a time.

    Args:
        path: Of the file, made if missing; a `file:` URI can say otherwise; ":memory:" for none.
        timeout: Seconds to ask again while somebody holds the lock that a statement needs.
        autocommit: Whether SQLAlchemy shall leave BEGIN to somebody else.
    """

    isolation_level = None

    def __init__(self, path: str, *, timeout: float = 5, autocommit: bool = False) -> None:
        self._timeout = timeout
        self.autocommit = autocommit
        self._pid = os.getpid()
        self._raw: Any = _call(driver.connect, path, isolation_level=None, check_same_thread=False)

    @property
    def in_transaction(self) -> bool:
        """Whether one was begun."""
        return bool(self._open().in_transaction)

    def cursor(self) -> Cursor:
        """Make a cursor."""
        self._open()
        return Cursor(self)

    def run(self, sql: str, parameters: Sequence[Any]) -> Answer:
        """Execute one statement, again and again while somebody holds a lock that it needs."""
        raw = self._open()
        sql, bound = _bind(sql, parameters)
        deadline = time.monotonic() + self._timeout
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                answer: Answer = _call(_run, raw, sql, bound)
                return answer
            except OperationalError as error:
                if error.code not in {"SQLITE_BUSY", "SQLITE_LOCKED"} or time.monotonic() >= deadline:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    def run_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """Execute one statement for each of *rows*; outside a transaction each by itself."""
        return sum(self.run(sql, row).changed for row in rows)

    def commit(self) -> None:
        """Commit, if anything was begun."""
        if self.in_transaction:
            self.run("COMMIT", ())

    def rollback(self) -> None:
        """Roll back, if anything was begun."""
        if self.in_transaction:
            self.run("ROLLBACK", ())

    def close(self) -> None:
        """Roll back and close."""
        raw, self._raw = self._raw, None
        if raw is None or self._pid != os.getpid():
            return
        if raw.in_transaction:
            _call(raw.rollback)
        _call(raw.close)

    def _open(self) -> Any:
        if self._raw is None:
            raise ProgrammingError("Cannot operate on a closed database.", is_disconnect=True)
        if self._pid != os.getpid():
            raise OperationalError("the connection is of the parent process", is_disconnect=True)
        return self._raw


def connect(path: str, *, timeout: float = 5, autocommit: bool = False) -> Connection:
    """Make a `Connection`."""
    return Connection(path, timeout=timeout, autocommit=autocommit)


def _run(raw: Any, sql: str, parameters: tuple[Any, ...]) -> Answer:
    cursor = raw.cursor()
    try:
        cursor.execute(sql, parameters)
        described = cursor.description
        # All at once: asked for a row past the last, it would execute the statement again.
        rows = cursor.fetchall() if described else []
        return Answer(
            [column[0] for column in described],
            rows,
            len(rows) if described else cursor.rowcount,
            cursor.lastrowid,
        )
    finally:
        cursor.close()


def _call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call the driver, and make of its errors PEP 249's."""
    try:
        return function(*arguments, **options)
    except ValueError as error:
        message = str(error)
        code = next((code for words, code in _CODES.items() if words in message), None)
        raise refusal(message, code) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise InternalError(f"the driver has failed: {error}", is_disconnect=True) from None


def _bind(sql: str, parameters: Sequence[Any]) -> tuple[str, tuple[Any, ...]]:
    """Prepare values so that the driver stores just them, and count them, which it does not."""
    parts = _split(sql)
    if len(parts) - 1 != len(parameters):
        raise ProgrammingError(f"the statement has {len(parts) - 1} parameters; {len(parameters)} were given")
    if not parameters:
        return sql, ()
    bound: list[Any] = []
    written = [parts[0]]
    for value, part in zip(map(checked, parameters), parts[1:], strict=True):
        if isinstance(value, int) and value not in _BOUND_EXACTLY:
            written.append("CAST(? AS INTEGER)")
            bound.append(str(value))
        elif isinstance(value, str) and "\0" in value:
            raise DataError("text with a NUL in it would be read back cut off there")
        else:
            written.append("?")
            bound.append(value)
        written.append(part)
    return "".join(written), tuple(bound)


@lru_cache(512)
def _split(sql: str) -> list[str]:
    """Cut a statement at its parameters' markers."""
    parts = []
    begin = 0
    for token in _TOKEN.finditer(sql):
        if token[1]:
            parts.append(sql[begin : token.start()])
            begin = token.end()
    return [*parts, sql[begin:]]
