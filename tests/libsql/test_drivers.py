"""Both drivers keep PEP 249, where the stock ones do not."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine

from durably.store.dialects.libsql import hrana, local, pep249
from durably.store.dialects.libsql.file import FILE
from durably.store.dialects.libsql.server import SERVER
from durably.testing.dialects.suite.support import spelled

if TYPE_CHECKING:
    from tests.sqld import LibSQLServer

pytestmark = pytest.mark.own("libsql_server")

Connect = Callable[[], Any]


@pytest.fixture(params=["file", "server"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connect]:
    """Give connections to one database."""
    with contextlib.ExitStack() as opened:
        if request.param == "file":
            path = str(tmp_path / "file.db")
            yield lambda: opened.enter_context(contextlib.closing(local.connect(path, timeout=0.05)))
        else:
            server: LibSQLServer = request.getfixturevalue("server")
            yield lambda: opened.enter_context(contextlib.closing(server.connect()))


@pytest.fixture
def cursor(connect: Connect) -> pep249.Cursor:
    cursor: pep249.Cursor = connect().cursor()
    cursor.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v, needed DEFAULT 1 NOT NULL)")
    return cursor


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 0, -1, 2**31 - 1, 2**31, -(2**31) - 1, 2**53 + 1, 2**63 - 1, -(2**63), 1_764_000_000_123_456_789),
        *(0.1, -1e300, "", "é😀'\"?", "?", b"", b"\0\xff", "x" * 100_000),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_value_comes_back_as_it_was_and_is_stored_as_its_kind(cursor: pep249.Cursor, value: Any) -> None:
    stored = cursor.execute("INSERT INTO t (v) VALUES (?) RETURNING v, typeof(v)", (value,)).fetchone()
    kinds = {type(None): "null", bool: "integer", int: "integer", float: "real", str: "text", bytes: "blob"}
    assert stored == (value, kinds[type(value)])
    assert cursor.execute("SELECT count(*) FROM t WHERE v IS ?", (value,)).fetchone() == (1,)


@pytest.mark.parametrize("value", [bytearray(b"\0x"), memoryview(b"\0x"), pep249.Binary(b"\0x")], ids=type)
def test_all_kinds_of_bytes_can_be_stored(cursor: pep249.Cursor, value: Any) -> None:
    assert cursor.execute("SELECT ?, typeof(?)", (value, value)).fetchone() == (b"\0x", "blob")


@pytest.mark.parametrize(
    ("value", "error"),
    [
        *((float("nan"), pep249.DataError), (float("inf"), pep249.DataError), (-float("inf"), pep249.DataError)),
        *((2**63, pep249.DataError), ("\ud800", pep249.DataError), (object(), pep249.ProgrammingError)),
    ],
    ids=spelled,
)
def test_what_cannot_be_stored_as_it_is_is_refused(
    cursor: pep249.Cursor, value: Any, error: type[pep249.Error]
) -> None:
    with pytest.raises(error):
        cursor.execute("INSERT INTO t (v) VALUES (?)", (value,))
    assert cursor.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_text_with_a_nul_is_whole_or_refused(cursor: pep249.Cursor) -> None:
    try:
        read = cursor.execute("SELECT ?", ("a\0b",)).fetchone()
    except pep249.DataError:
        return
    assert read == ("a\0b",)


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        ("INSERT INTO t (id) VALUES (1)", pep249.IntegrityError),
        ("INSERT INTO t (needed) VALUES (NULL)", pep249.IntegrityError),
        ("INSERT INTO child VALUES (7)", pep249.IntegrityError),
        ("INSERT INTO nowhere VALUES (1)", pep249.DatabaseError),
        ("SELECT nothing FROM t", pep249.DatabaseError),
        ("SELEC", pep249.DatabaseError),
    ],
)
def test_an_error_is_of_its_class_and_leaves_the_connection_usable(
    cursor: pep249.Cursor, statement: str, error: type[pep249.Error]
) -> None:
    cursor.execute("CREATE TABLE child (parent REFERENCES t)")
    cursor.execute("INSERT INTO t (id) VALUES (1)")
    with pytest.raises(error) as refused:
        cursor.execute(statement)
    assert not refused.value.is_disconnect
    assert cursor.execute("SELECT count(*) FROM t").fetchone() == (1,)


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        *(("SELECT ?", ()), ("SELECT ?", (1, 2)), ("SELECT 1", (1,)), ("SELECT '?', ?", ()), ("SELECT 1 -- ?", (1,))),
        ("SELECT ? /* ? */", (2**40, 1)),
    ],
)
def test_a_wrong_number_of_parameters_is_an_error(
    cursor: pep249.Cursor, statement: str, parameters: tuple[int, ...]
) -> None:
    with pytest.raises(pep249.ProgrammingError):
        cursor.execute(statement, parameters)


def test_a_marker_in_a_string_a_name_or_a_comment_is_none(cursor: pep249.Cursor) -> None:
    cursor.execute("""SELECT '?''?', ? AS "?", /* ? */ ? AS [?] -- ?""", (2**40, "x"))
    assert cursor.fetchall() == [("?'?", 2**40, "x")]
    assert cursor.description is not None
    assert [column[0] for column in cursor.description][1:] == ["?", "?"]


def test_rowcount_and_description_are_of_the_statement(cursor: pep249.Cursor) -> None:
    def seen(sql: str) -> tuple[int, bool]:
        cursor.execute(sql)
        return cursor.rowcount, cursor.description is None

    assert cursor.executemany("INSERT INTO t (v) VALUES (?)", [(n,) for n in range(5)]).rowcount == 5
    assert seen("UPDATE t SET v = 1 WHERE id < 4") == (3, True)
    assert seen("UPDATE t SET v = 1 WHERE id < 3 RETURNING id") == (2, False)
    assert seen("SELECT 1") == (-1, False)
    assert seen("DELETE FROM t WHERE id = 99") == (0, True)
    assert seen("CREATE TABLE more (id)") == (-1, True)
    assert seen("/* so */ INSERT INTO t (id) VALUES (70)") == (1, True)
    assert cursor.lastrowid == 70
    assert seen("SELECT id FROM t WHERE 0") == (-1, False)


def test_fetching_past_the_end_gives_nothing_and_writes_nothing(cursor: pep249.Cursor) -> None:
    cursor.execute("INSERT INTO t (v) VALUES (1), (2), (3) RETURNING id")
    assert cursor.fetchone() == (1,)
    assert cursor.fetchmany(1) == [(2,)]
    assert cursor.fetchmany(9) == [(3,)]
    assert (cursor.fetchone(), cursor.fetchmany(2), cursor.fetchall(), list(cursor)) == (None, [], [], [])
    assert cursor.execute("SELECT count(*) FROM t").fetchall() == [(3,)]


def test_what_is_closed_says_so_in_an_error_of_its_own(connect: Connect) -> None:
    connection = connect()
    cursor = connection.cursor()
    connection.close()
    connection.close()
    for use in (connection.cursor, connection.commit, connection.rollback, lambda: cursor.execute("SELECT 1")):
        with pytest.raises(pep249.ProgrammingError, match="closed") as refused:
            use()
        assert refused.value.is_disconnect


def test_a_transaction_is_whole_with_its_first_select_and_its_tables(connect: Connect) -> None:
    ours, theirs = connect(), connect()
    ours.cursor().execute("BEGIN IMMEDIATE")
    assert ours.in_transaction
    ours.cursor().execute("CREATE TABLE t (id)")
    ours.cursor().execute("INSERT INTO t VALUES (1)")
    ours.rollback()
    assert not ours.in_transaction
    with pytest.raises(pep249.DatabaseError, match="no such table"):
        theirs.cursor().execute("SELECT * FROM t")


def test_a_failed_statement_leaves_its_transaction_to_the_caller(cursor: pep249.Cursor, connect: Connect) -> None:
    connection: Any = cursor.connection
    cursor.execute("BEGIN IMMEDIATE")
    cursor.execute("INSERT INTO t (id) VALUES (1)")
    with pytest.raises(pep249.IntegrityError):
        cursor.executemany("INSERT INTO t (id) VALUES (?)", [(2,), (1,)])
    assert connection.in_transaction
    connection.commit()
    assert connect().cursor().execute("SELECT id FROM t").fetchall() == [(1,), (2,)]


def test_two_threads_of_one_process_take_turns_and_neither_stands_still(tmp_path: Path) -> None:
    path = str(tmp_path / "file.db")
    with contextlib.closing(local.connect(path)) as ours, contextlib.closing(local.connect(path)) as theirs:
        ours.cursor().execute("PRAGMA journal_mode = WAL")
        ours.cursor().execute("CREATE TABLE t (id)")
        ours.cursor().execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        thread = threading.Thread(target=lambda: theirs.cursor().execute("INSERT INTO t VALUES (1)"))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()  # waits, while this thread goes on
        ours.commit()
        thread.join(5)
        assert time.monotonic() - began < 2


def test_the_wait_for_a_lock_is_bounded(tmp_path: Path) -> None:
    path = str(tmp_path / "file.db")
    with contextlib.closing(local.connect(path)) as ours, contextlib.closing(local.connect(path, timeout=0)) as theirs:
        ours.cursor().execute("BEGIN IMMEDIATE")
        with pytest.raises(pep249.OperationalError, match="locked") as refused:
            theirs.cursor().execute("BEGIN IMMEDIATE")
        assert refused.value.code == "SQLITE_BUSY"


def test_both_are_drivers_of_sqlalchemy_with_autocommit(connect: Connect, tmp_path: Path) -> None:
    connection = connect()
    module = hrana if isinstance(connection, hrana.Connection) else local
    url = f"{SERVER}://h/" if module is hrana else f"{FILE}:///{tmp_path}/x.db"
    made = create_engine(url, creator=lambda: connection)
    with made.connect().execution_options(isolation_level="AUTOCOMMIT") as alone:
        assert alone.get_isolation_level() == "AUTOCOMMIT"
        alone.exec_driver_sql("CREATE TABLE t (id)")
        assert not connection.in_transaction
    with made.connect() as within:
        assert within.get_isolation_level() == "SERIALIZABLE"
        within.exec_driver_sql("INSERT INTO t VALUES (1)")
        assert connection.in_transaction
    assert connect().cursor().execute("SELECT count(*) FROM t").fetchone() == (0,)
    made.dispose()
