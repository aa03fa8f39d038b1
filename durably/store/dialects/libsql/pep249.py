"""What PEP 249 asks of any driver, for those of durably's own: constants, exception classes, a cursor over rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Row: TypeAlias = tuple[Any, ...]

apilevel: Final = "2.0"
threadsafety: Final = 1
paramstyle: Final = "qmark"
Binary = bytes
# Of the server and of the file driver that durably was tested with; SQLAlchemy chooses its SQL by it.
sqlite_version_info: Final = (3, 45, 1)
sqlite_version: Final = "3.45.1"

_INTEGERS: Final = range(-(2**63), 2**63)
_THAT_CHANGE_ROWS: Final = frozenset({"INSERT", "UPDATE", "DELETE", "REPLACE", "WITH"})


class Warning(Exception):  # noqa: A001, N818 - PEP 249's names
    """Never raised; PEP 249 wants the name."""


class Error(Exception):
    """
    Any error of a driver.

    Args:
        message: Of the database.
        code: Its word for it, such as SQLITE_BUSY.
        is_disconnect: Whether the connection is of no more use.
    """

    def __init__(self, message: str, code: str | None = None, *, is_disconnect: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.is_disconnect = is_disconnect


class InterfaceError(Error):
    """The driver was misused."""


class DatabaseError(Error):
    """The database refuses."""


class DataError(DatabaseError):
    """A value cannot be stored as what it is."""


class OperationalError(DatabaseError):
    """The database cannot do it, which need not be the caller's fault."""


class IntegrityError(DatabaseError):
    """A constraint forbids it."""


class InternalError(DatabaseError):
    """Never raised; PEP 249 wants the name."""


class ProgrammingError(DatabaseError):
    """The call or its parameters are wrong."""


class NotSupportedError(DatabaseError):
    """The database does not know how."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one statement gave."""

    columns: Sequence[str]
    rows: list[Row]
    changed: int
    last_row_id: int | None


class Executor(Protocol):
    """A connection, as its cursors need it."""

    def run(self, sql: str, parameters: Sequence[Any]) -> Answer:
        """Execute one statement."""

    def run_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """Execute one statement for each of *rows*; tell how many rows were changed in all."""


class Cursor:
    """
    A cursor that has read all of its rows.

    Args:
        connection: Executes.
    """

    arraysize = 1

    def __init__(self, connection: Executor) -> None:
        self.connection = connection
        self.description: tuple[tuple[Any, ...], ...] | None = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self._rows: Iterator[Row] = iter(())

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Cursor:
        """Execute one statement."""
        self._forget()
        result = self.connection.run(sql, parameters)
        self.description = tuple((name, *(None,) * 6) for name in result.columns) or None
        self._rows = iter(result.rows)
        if verb(sql) in _THAT_CHANGE_ROWS:
            self.rowcount = result.changed
            self.lastrowid = result.last_row_id
        return self

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> Cursor:
        """Execute one statement for each of *rows*."""
        self._forget()
        self.rowcount = self.connection.run_many(sql, list(rows))
        return self

    def fetchone(self) -> Row | None:
        """Give the next row, and None past the last."""
        return next(self._rows, None)

    def fetchmany(self, size: int | None = None) -> list[Row]:
        """Give the next *size* rows."""
        wanted = self.arraysize if size is None else size
        return [row for _, row in zip(range(wanted), self._rows, strict=False)]

    def fetchall(self) -> list[Row]:
        """Give the rows that are left."""
        return list(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return self._rows

    def close(self) -> None:
        """Forget the rows; SQLAlchemy may ask afterwards how many an INSERT has changed."""
        self._rows = iter(())

    def setinputsizes(self, sizes: object) -> None:
        """Do nothing, as PEP 249 allows."""

    def setoutputsize(self, size: object, column: object = None) -> None:
        """Do nothing, as PEP 249 allows."""

    def _forget(self) -> None:
        self.description = None
        self.rowcount = -1
        self.lastrowid = None
        self._rows = iter(())


def verb(sql: str) -> str:
    """Give a statement's first word, past blanks and comments, in capitals."""
    rest = sql.lstrip()
    while rest.startswith(("--", "/*")):
        rest = rest.partition("\n" if rest.startswith("--") else "*/")[2].lstrip()
    return "".join(takewhile(str.isalpha, rest)).upper()


def checked(value: Any) -> int | float | str | bytes | None:
    """
    Make *value* one of SQLite's five kinds.

    Raises:
        DataError: It has no exact counterpart: a NaN, an infinity, an integer beyond 64 bits, half a character.
        ProgrammingError: It is of a type that cannot be bound.
    """
    match value:
        case None:
            return None
        case int():
            if value not in _INTEGERS:
                raise DataError("integers are of 64 bits")
            return int(value)
        case float():
            if not -float("inf") < value < float("inf"):
                raise DataError(f"{value} would be stored as NULL, or not at all")
            return float(value)
        case str():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"not text: {error}") from None
            return str.__str__(value)
        case bytes() | bytearray() | memoryview():
            return bytes(value)
    raise ProgrammingError(f"a value of type {type(value).__qualname__} cannot be bound")


def refusal(message: str, code: str | None) -> DatabaseError:
    """Choose the class for what the database says to a statement."""
    lowered = message.lower()
    code = code or None
    if "constraint failed" in lowered or (code or "").startswith("SQLITE_CONSTRAINT"):
        return IntegrityError(message, code)
    if "unsupported statement" in lowered:
        return NotSupportedError(message, code)
    if (code or "").startswith(("SQL_", "ARGS_")):
        return ProgrammingError(message, code)
    return OperationalError(message, code)
