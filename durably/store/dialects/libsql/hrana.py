"""
A PEP 249 driver for libSQL servers: Hrana 3 over HTTP, in Python alone.

A connection is in autocommit until a BEGIN, which travels with the statement that follows it. It has a stream at the
server only while a transaction is open: nothing is left that could expire between transactions. A transaction whose
answers are all foreseen is one request: who is killed leaves none open, for which all others would have to wait until
the server takes it away.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

from durably.store.dialects.libsql.line import Line
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
    paramstyle,
    refusal,
    sqlite_version,
    sqlite_version_info,
    threadsafety,
    verb,
)
from durably.store.dialects.libsql.wire import LOST, NOT_FORESEEN, http_error, statement, value

if TYPE_CHECKING:
    from collections.abc import Sequence

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

_BEGINS: Final = frozenset({"BEGIN", "BEGIN DEFERRED", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"})
_OPENING: Final = frozenset({"BEGIN", "SAVEPOINT"})
_OK: Final = 200
# The server has taken the stream away, and the transaction with it.
_LOST_CODES: Final = frozenset({"STREAM_EXPIRED", "TRANSACTION_TIMEOUT", "TRANSACTION_BUSY"})
# Fails, with an overflow, unless the statement before it has changed one row; a batch can ask for nothing but failures.
_EXPECT_ONE: Final = statement("SELECT abs(-9223372036854775808 + (changes() = 1))", (), wants_rows=False)
# A request is kept whole in memory, here and at the server.
_LARGEST_REQUEST: Final = 4_000_000


class Connection:
    """
    One connection; for one thread at a time. Opens its socket with the first statement.

    Args:
        url: `http://host:port/path` or `https://...`; the path is what stands before `/v3/pipeline`.
        auth_token: Sent as the bearer's, if there is one.
        connect_timeout: Seconds.
        read_timeout: Seconds without a byte from the server, which answers a writer when its turn has come.

    Attributes:
        autocommit: SQLAlchemy's isolation level AUTOCOMMIT: whether it begins nothing by itself.
        name: Of this connection alone, for what a caller notes in the database.
        transactions: How many a caller has counted, for the same.
        requests: How many were sent.
    """

    isolation_level = None

    def __init__(self, url: str, *, auth_token: str = "", connect_timeout: float = 5, read_timeout: float = 30) -> None:
        parts = urlsplit(url)
        headers = {"Content-Type": "application/json"}
        if auth_token:
            headers["Authorization"] = f"Bearer {auth_token}"
        self._host = parts.hostname or ""
        self._line = Line(
            (self._host, parts.port),
            f"{parts.path.rstrip('/')}/v3/pipeline",
            headers,
            is_secure=parts.scheme == "https",
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
        )
        self.autocommit = False
        self.name: Final = uuid4().hex
        self.transactions = 0
        self.requests = 0
        self._pid = os.getpid()
        self._baton: str | None = None
        self._deferred: list[dict[str, Any]] = []
        # Characters and bytes of what is deferred and foreseen; not 0 if a commit has to send it.
        self._foreseen = 0
        self._is_closed = False

    @property
    def in_transaction(self) -> bool:
        """Whether one was begun, if only here."""
        return bool(self._deferred) or self._baton is not None

    def cursor(self) -> Cursor:
        """Make a cursor."""
        self._check_open()
        return Cursor(self)

    def defer(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        """
        Keep a statement, whose answer nobody wants, until the next is sent, and forget it if none is.

        The first is a BEGIN. If one of them fails, the statement that they were kept for raises the error.
        """
        self._check_open()
        self._deferred.append(statement(sql, parameters, wants_rows=False))

    def foresee(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """
        Keep statements of a transaction until it is committed, or an answer is wanted.

        If one of them then changes another number of rows than one, what they were kept for raises an
        OperationalError of code `NOT_FORESEEN`.

        Returns:
            How many rows they will have changed, or raise.
        """
        if not self.in_transaction:
            return self.run_many(sql, rows)
        for row in rows:
            self.defer(sql, row)
            self._deferred.append(_EXPECT_ONE)
            self._foreseen += len(sql) + sum(len(one) for one in row if isinstance(one, (str, bytes)))
            if self._foreseen > _LARGEST_REQUEST:
                self._batch([], keeps=True)
        return len(rows)

    def run(self, sql: str, parameters: Sequence[Any]) -> Answer:
        """Execute one statement, after what was deferred."""
        if sql.strip().rstrip(";").upper() in _BEGINS and not self.in_transaction:
            self.defer(sql)
            return Answer((), [], 0, None)
        keeps = self.in_transaction or verb(sql) in _OPENING
        result = self._batch([statement(sql, parameters, wants_rows=True)], keeps=keeps)[-1]
        return Answer(
            tuple(column["name"] or "" for column in result["cols"]),
            [tuple(map(value, row)) for row in result["rows"]],
            result["affected_row_count"],
            int(result["last_insert_rowid"]) if result.get("last_insert_rowid") else None,
        )

    def run_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """Execute one statement for each of *rows*, in one request; outside a transaction each by itself."""
        if not rows:
            return 0
        statements = [statement(sql, row, wants_rows=False) for row in rows]
        results = self._batch(statements, keeps=self.in_transaction)
        return sum(result["affected_row_count"] for result in results)

    def commit(self) -> None:
        """Commit, if anything was sent, or is to be."""
        self._check_open()
        if self._baton is None and not self._foreseen:
            self._deferred.clear()
            return
        self._batch([statement("COMMIT", (), wants_rows=False)], keeps=False)

    def rollback(self) -> None:
        """Roll back; what the server has taken away, it has rolled back already."""
        self._check_open()
        self._deferred.clear()
        self._foreseen = 0
        try:
            if self._baton is not None:
                self._batch([statement("ROLLBACK", (), wants_rows=False)], keeps=False)
        except OperationalError as error:
            if not error.is_disconnect:
                raise

    def close(self) -> None:
        """Roll back and free the socket."""
        if self._is_closed:
            return
        try:
            if self._pid == os.getpid():
                self.rollback()
        finally:
            self._is_closed = True
            self._drop()

    def _batch(self, statements: list[dict[str, Any]], *, keeps: bool) -> list[dict[str, Any]]:
        """
        Send statements, each on the condition that the one before it succeeded.

        Args:
            keeps: Whether a transaction may be open afterwards, so that the stream must stay.

        Returns:
            Their results, without those of what was deferred.
        """
        deferred, foreseen = self._deferred, self._foreseen
        self._deferred, self._foreseen = [], 0
        steps: list[dict[str, Any]] = [{"stmt": one} for one in deferred + statements]
        for number, step in enumerate(steps[1:]):
            step["condition"] = {"type": "ok", "step": number}
        requests: list[dict[str, Any]] = [{"type": "batch", "batch": {"steps": steps}}]
        requests.append({"type": "get_autocommit"} if keeps else {"type": "close"})
        batch, state = self._send(requests)
        is_over = state["type"] != "ok" or not keeps or state["response"]["is_autocommit"]
        if is_over:
            self._release()
        if batch["type"] == "ok":
            result = batch["response"]["result"]
            at, error = next(((n, one) for n, one in enumerate(result["step_errors"]) if one), (0, None))
        else:
            at, error = 0, batch["error"]
        if error and steps[at]["stmt"] is _EXPECT_ONE:
            raise OperationalError("a statement has not changed one row", NOT_FORESEEN)
        if error:
            if is_over and keeps:
                # It has not begun: what comes next may not be committed by itself.
                self._deferred, self._foreseen = deferred, foreseen
            raise self._refused(error)
        results: list[dict[str, Any]] = result["step_results"][len(deferred) :]
        return results

    def _release(self) -> None:
        """Close the stream of a transaction that is over: by its last statement, or because the server ended it."""
        if self._baton is not None:
            self._send([{"type": "close"}])
            self._baton = None

    def _refused(self, error: dict[str, Any]) -> DatabaseError:
        refused = refusal(error["message"], error.get("code"))
        if refused.code in _LOST_CODES:
            refused.is_disconnect = True
            self._drop()
        return refused

    def _send(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Send one request over HTTP, and keep the stream's new baton."""
        self._check_open()
        body = json.dumps({"baton": self._baton, "requests": requests}, separators=(",", ":")).encode()
        self.requests += 1
        try:
            status, content = self._line.post(body)
        except (OSError, http.client.HTTPException) as error:
            baton = self._baton
            self._drop()
            if baton is not None:
                self._give_up(baton)
            reason = str(error) or type(error).__name__
            raise OperationalError(f"no answer from {self._host}: {reason}", LOST, is_disconnect=True) from error
        if status != _OK:
            self._drop()
            raise http_error(status, content)
        try:
            answer = json.loads(content)
            self._baton = answer["baton"]
            results: list[dict[str, Any]] = answer["results"]
        except (ValueError, LookupError, TypeError) as error:
            self._drop()
            raise OperationalError(f"not an answer of a libSQL server: {error!r}", LOST, is_disconnect=True) from error
        return results

    def _give_up(self, baton: str) -> None:
        """Close a stream whose last request may not have arrived: it would keep writers out for seconds."""
        body = json.dumps({"baton": baton, "requests": [{"type": "close"}]}).encode()
        with contextlib.suppress(OSError, http.client.HTTPException):
            self._line.post(body, hurried=True)
        self._line.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ProgrammingError("Cannot operate on a closed database.", is_disconnect=True)
        if self._pid != os.getpid():
            # The transaction, the socket and what is on its way through it are the parent's.
            self._deferred.clear()
            self._foreseen = 0
            self._drop()
            raise OperationalError("the connection is of the parent process", LOST, is_disconnect=True)

    def _drop(self) -> None:
        """Forget the stream and the socket; closing it takes nothing from a parent, which has its own descriptor."""
        self._baton = None
        self._line.close()


def connect(url: str, *, auth_token: str = "", connect_timeout: float = 5, read_timeout: float = 30) -> Connection:
    """Make a `Connection`."""
    return Connection(url, auth_token=auth_token, connect_timeout=connect_timeout, read_timeout=read_timeout)
