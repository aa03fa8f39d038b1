"""What is a libSQL server's own: streams that it takes away, its deaths, its token, commits in doubt."""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from durably import DatabaseUnavailableError, Durably, SchemaOutdatedError, StepContext, ValidationError, define_job
from durably.store.batch import write_batch
from durably.store.dialects import NotForeseenError
from durably.store.dialects.libsql import hrana
from durably.store.dialects.libsql.engine import ServerDialect
from durably.store.dialects.libsql.line import Line
from durably.store.intents import Checkpoint, Completion, Intent, LogLine
from durably.testing.dialects.suite.support import add_worker, claim, eventually, hear
from tests.sqld import LibSQLServer, Sqld

pytestmark = pytest.mark.own("libsql_server")

Make = Callable[..., Durably]


def echo(step: Any, value: Any) -> Any:
    return value


def count(app: Durably) -> int:
    return len(app.get_runs())


def test_a_transaction_of_one_statement_is_two_requests_and_many_rows_are_one(server: LibSQLServer) -> None:
    with contextlib.closing(server.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE t (id)")
        before = connection.requests
        cursor.execute("BEGIN IMMEDIATE")
        cursor.execute("INSERT INTO t VALUES (1)")
        connection.commit()
        assert connection.requests - before == 2
        cursor.execute("BEGIN IMMEDIATE")
        cursor.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(500)])
        connection.commit()
        cursor.execute("BEGIN")
        connection.commit()
        assert connection.requests - before == 4


def test_what_is_foreseen_is_one_request_with_its_commit(server: LibSQLServer) -> None:
    with contextlib.closing(server.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE t (id)")
        before = connection.requests
        cursor.execute("BEGIN IMMEDIATE")
        assert connection.foresee("INSERT INTO t VALUES (?)", [(n,) for n in range(3)]) == 3
        assert connection.foresee("UPDATE t SET id = 7 WHERE id = ?", [(2,)]) == 1
        connection.commit()
        assert connection.requests - before == 1
        assert [row[0] for row in cursor.execute("SELECT id FROM t ORDER BY id")] == [0, 1, 7]


@pytest.mark.parametrize("wants_an_answer", [False, True])
@pytest.mark.parametrize("ids", [(9,), (1,), (0, 9), (9, 0)])  # none is 9, two are 1
def test_what_is_foreseen_and_does_not_come_true_is_not_committed(
    server: LibSQLServer, ids: tuple[int, ...], wants_an_answer: bool
) -> None:
    with contextlib.closing(server.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE t (id)")
        cursor.executemany("INSERT INTO t VALUES (?)", [(0,), (1,), (1,)])
        cursor.execute("BEGIN IMMEDIATE")
        cursor.execute("INSERT INTO t VALUES (5)")
        connection.foresee("UPDATE t SET id = 7 WHERE id = ?", [(id_,) for id_ in ids])
        finish = partial(cursor.execute, "SELECT 1") if wants_an_answer else connection.commit
        with pytest.raises(hrana.OperationalError) as told:
            finish()
        assert told.value.code == "NOT_FORESEEN"
        connection.rollback()
        assert [row[0] for row in cursor.execute("SELECT id FROM t ORDER BY id")] == [0, 1, 1]


def test_what_is_foreseen_and_large_is_sent_in_parts_of_one_transaction(server: LibSQLServer) -> None:
    with contextlib.closing(server.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE t (id)")
        before = connection.requests
        cursor.execute("BEGIN IMMEDIATE")
        connection.foresee("INSERT INTO t VALUES (?)", [("x" * 1_500_000,) for _ in range(7)])
        with contextlib.closing(server.connect()) as other:
            assert other.cursor().execute("SELECT count(*) FROM t").fetchall() == [(0,)]
        connection.commit()
        assert connection.requests - before == 3
        assert cursor.execute("SELECT count(*), sum(length(id)) FROM t").fetchall() == [(7, 7 * 1_500_000)]


def test_a_commit_does_not_drop_what_was_foreseen_in_a_transaction_that_could_not_begin(server: LibSQLServer) -> None:
    with contextlib.closing(server.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE t (id)")
        connection.defer("BEGIN NOTHING")
        connection.foresee("INSERT INTO t VALUES (?)", [(1,)])
        with pytest.raises(hrana.DatabaseError):
            cursor.execute("SELECT 1")
        with pytest.raises(hrana.DatabaseError):
            connection.commit()


def test_a_rollback_forgets_what_was_foreseen(server: LibSQLServer) -> None:
    with contextlib.closing(server.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE t (id)")
        cursor.execute("BEGIN IMMEDIATE")
        connection.foresee("INSERT INTO t VALUES (?)", [(1,)])
        connection.rollback()
        connection.commit()
        assert cursor.execute("SELECT count(*) FROM t").fetchall() == [(0,)]


def test_a_group_of_checkpoints_and_ends_is_one_request(server_url: str, make: Make) -> None:
    # contract 50
    app = make(server_url)
    job = app.register(define_job("echo", echo))
    for n in range(4):
        job.trigger(n)
    runs = claim(app, add_worker(app, "echo"), limit=4, company="beside")
    step: dict[str, Any] = {"name": "done", "index": 0, "attempt": 1, "duration": 0.0, "output": "1"}
    group: list[Intent] = [Checkpoint(run_id=run.id, generation=1, **step) for run in runs]
    group += [Completion(run_id=run.id, generation=1, output="1", drop_outputs=False) for run in runs[:3]]
    lost = Completion(run_id=runs[3].id, generation=7, output="1", drop_outputs=False)
    with app.database.writing() as connection:
        driver: Any = connection.connection.driver_connection
        before = driver.requests
        write_batch(connection, group, foresees=True)
    assert driver.requests - before == 1
    with pytest.raises(NotForeseenError), app.database.writing() as connection:
        write_batch(connection, [lost], foresees=True)
    with app.database.writing() as connection:
        assert write_batch(connection, [lost]) != [None]
    assert sorted(run.status for run in app.get_runs()) == ["completed"] * 3 + ["running"]


def test_a_transaction_that_arrives_after_it_was_given_up_changes_nothing(
    server_url: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 184
    app = make(server_url)
    app.register(define_job("echo", echo)).trigger(1)
    (run,) = claim(app, add_worker(app, "echo"))
    line = LogLine(run_id=run.id, generation=1, step_name=None, attempt=1, level="info", message="once", data="{}")
    post, late = Line.post, list[bytes]()

    def lose_the_first(self: Line, body: bytes, **options: bool) -> tuple[int, bytes]:
        if b"COMMIT" in body and not late:
            late.append(body)
            raise TimeoutError("timed out")
        return post(self, body, **options)

    monkeypatch.setattr(Line, "post", lose_the_first)
    app.database.write(lambda connection: write_batch(connection, [line], foresees=True))
    with app.database.connection() as connection:
        driver: Any = connection.connection.driver_connection
        driver._line.post(late[0])  # as a system does that goes on sending for a socket which was closed
    assert [entry.message for entry in app.get_logs(run.id)] == ["once"]


def test_a_transaction_that_the_server_has_taken_away_is_lost_whole_and_tried_again(
    server: LibSQLServer, server_url: str, make: Make
) -> None:
    # contract 184
    app = make(server_url, database_timeout=20)
    tries: list[float] = []

    def change(connection: Any) -> None:
        connection.execute(text("INSERT INTO durably_labels (run_id, key, value) SELECT 'x', 'y', 'z' WHERE 0"))
        tries.append(time.monotonic())
        if len(tries) == 1:
            with contextlib.closing(server.connect()) as other:  # gets the right to write after 5 s
                other.cursor().execute("BEGIN IMMEDIATE")
                other.cursor().execute("SELECT 1")
                other.commit()

    app.database.write(change)
    assert len(tries) == 2
    assert tries[1] - tries[0] < 10


def test_an_idle_stream_is_gone_after_a_while_and_the_connection_is_not(server: LibSQLServer) -> None:
    with contextlib.closing(server.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE t (id)")
        cursor.execute("BEGIN")
        cursor.execute("INSERT INTO t VALUES (1)")

        def expired() -> bool:
            with contextlib.closing(server.connect()) as other:  # nobody waits, so that only time ends it
                return bool(other.cursor().execute("SELECT count(*) FROM t").fetchone() == (0,))

        assert expired()
        time.sleep(11)  # what the server counts is that nothing comes
        with pytest.raises(hrana.OperationalError) as lost:
            cursor.execute("INSERT INTO t VALUES (2)")
        assert lost.value.code == "STREAM_EXPIRED"
        assert lost.value.is_disconnect
        assert cursor.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_an_idle_instance_needs_no_second_try(server_url: str, make: Make) -> None:
    app = make(server_url)
    with app.database.connection() as connection:
        driver: Any = connection.connection.driver_connection
        connection.execute(text("SELECT 1"))
        connection.rollback()
        assert not driver.in_transaction
        driver._line._http.sock.shutdown(socket.SHUT_RD)  # as when the server has closed it
        assert connection.execute(text("SELECT 1")).scalar() == 1


def test_a_server_that_was_killed_forgets_a_transaction_and_nothing_else(
    sqld: Sqld, server_url: str, make: Make
) -> None:
    # contract 184
    app = make(server_url, database_timeout=20)
    job = app.register(define_job("job", echo))
    ids = [job.trigger(n).id for n in range(10)]
    tries: list[int] = []

    def change(connection: Any) -> int:
        tries.append(1)
        connection.execute(text("SELECT 1"))
        if len(tries) == 1:
            sqld.kill()
            sqld.start()
        return int(connection.execute(text("SELECT count(*) FROM durably_runs")).scalar_one())

    assert app.database.write(change) == 10
    assert len(tries) == 2
    assert sorted(run.id for run in app.get_runs()) == ids


def test_a_server_that_is_killed_under_load_loses_no_run_and_fails_none(
    sqld: Sqld, server_url: str, make: Make
) -> None:
    # contract 155, 184
    app = make(server_url, concurrency=8, database_timeout=20)
    called: list[tuple[int, int]] = []

    @app.job("job")
    def job(step: StepContext, input: int) -> int:
        for n in range(5):
            step.run(f"step {n}", lambda n=n: called.append((input, n)))
        return input

    heard = hear(app)
    ids = [run.id for run in job.batch_trigger(range(100))]
    app.start()
    for share in (100, 250):
        eventually(lambda share=share: len(called) > share, timeout=30)  # type: ignore[misc]
        sqld.kill()
        sqld.start()
    done = [app.wait_for_run(run_id, timeout=30) for run_id in ids]
    assert [run.output for run in done] == list(range(100))
    assert {(run.attempt, run.generation, run.interruptions, run.completed_step_count) for run in done} == {
        (1, 1, 0, 5)
    }
    assert not [event for event in heard if event.type in ("run:fail", "run:recover", "step:fail")]
    assert len(called) == len(set(called)) == 500


def test_a_server_that_stands_still_holds_a_caller_up_for_a_bounded_time(
    sqld: Sqld, server_url: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 183
    monkeypatch.setattr("durably.store.dialects.libsql.server._READ_SECONDS", 0.2)
    app = make(server_url, database_timeout=0.5)
    assert count(app) == 0
    sqld.pause()
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailableError, match="timed out"):
        app.get_runs()
    assert time.monotonic() - began < 3
    sqld.resume()
    assert count(app) == 0


def test_upkeep_forgets_old_commits_alone(server: LibSQLServer, server_url: str, make: Make) -> None:
    app = make(server_url)
    app.register(define_job("job", echo)).trigger(1)
    with contextlib.closing(server.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute("INSERT INTO _durably_commits VALUES ('old', 1, unixepoch() - 604801)")
        app.database.upkeep()
        (new,) = cursor.execute("SELECT connection FROM _durably_commits").fetchall()
        assert new != ("old",)


def test_a_forked_child_uses_a_connection_of_its_own(server: LibSQLServer, server_url: str, make: Make) -> None:
    # contract 187
    app = make(server_url)
    job = app.register(define_job("job", echo))
    parents = server.connect()
    parents.cursor().execute("BEGIN")
    parents.cursor().execute("SELECT count(*) FROM durably_runs")
    child = os.fork()
    if child == 0:
        status = 1
        with contextlib.suppress(BaseException):
            job.trigger("child")
            try:
                parents.cursor()
            except hrana.OperationalError as error:
                status = 0 if error.is_disconnect else 2
            parents.rollback()
            parents.close()
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert parents.cursor().execute("SELECT count(*) FROM durably_runs").fetchone() == (0,)  # of its own snapshot
    parents.close()
    assert [run.input for run in app.get_runs()] == ["child"]


_PUBLIC_KEY = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAuO5VObMG8cxga3XCzpTzpoYlU5rP9jTPwCsn0R8fAhY=
-----END PUBLIC KEY-----
"""
# {"a": "rw"}, signed for the key above, which nothing else knows.
_SIGNED = (
    "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9.eyJhIjoicncifQ."
    "YVUvgUFWGFx_niZ70bLatM_RXAnrvj3PVontjn1uqXCvlc_z4Lsu48mepM-ECP9GBO2Nl49ZWkAaTAULCEVUAQ"
)


def test_the_token_of_the_url_opens_the_server_and_is_told_nowhere(tmp_path: Path, make: Make) -> None:
    # contract 185
    (tmp_path / "key.pem").write_text(_PUBLIC_KEY)
    sqld = Sqld("--auth-jwt-key-file", str(tmp_path / "key.pem"))
    try:
        app = make(f"{sqld.url}&authToken={_SIGNED}")
        app.migrate()
        assert count(app) == 0
        for url in (sqld.url, f"{sqld.url}&authToken=wrong{_SIGNED}"):
            stranger = make(url, database_timeout=0.2)
            with pytest.raises(DatabaseUnavailableError) as refused:
                stranger.get_runs()
            assert "401" in str(refused.value)
            assert _SIGNED not in f"{refused.value} {app!r} {stranger!r} {stranger.database.dialect.safe_url}"
    finally:
        sqld.close()


def test_a_server_that_is_not_there_is_unavailable_in_time(make: Make) -> None:
    # contract 183
    app = make("sqlite+libsql://127.0.0.1:1/?secure=false&authToken=s3cret", database_timeout=0.3)
    with pytest.raises(DatabaseUnavailableError, match="refused") as refused:
        app.migrate()
    assert "s3cret" not in str(refused.value)


def test_a_server_of_another_kind_is_no_libsql_server() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        contextlib.closing(hrana.connect(f"http://127.0.0.1:{other.getsockname()[1]}", read_timeout=0.2)) as connection,
        pytest.raises(hrana.OperationalError, match="timed out"),
    ):
        connection.cursor().execute("SELECT 1")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("h/?colour=red&authToken=s3cret", "no option colour"),
        ("h/?authToken=s3cret%0d%0aHost: x", "one token"),
        ("h/?authToken=s3cret&authToken=s3cret2", "one token"),
        ("h/?secure=s3cret", "true, for TLS, or false"),
        ("me:s3cret@h/", "no users"),
        ("s3cret@h/", "no users"),
    ],
)
def test_what_no_server_can_be_asked_for_is_refused_without_showing_a_secret(url: str, said: str) -> None:
    # contract 7, 185
    with pytest.raises(ValidationError, match=said) as refused:
        Durably(f"sqlite+libsql://{url}")
    assert refused.value.field == "dialect_url"
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("h/", "http://h"),
        ("h:8080/?secure=false", "http://h:8080"),
        ("h/name?secure=true", "https://h/name"),
        ("[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_a_url_gives_the_servers_address(url: str, address: str) -> None:
    found, options = ServerDialect().create_connect_args(make_url(f"sqlite+libsql://{url}"))
    assert (found, options) == ([address], {})


def test_the_token_is_not_in_what_sqlalchemy_shows_of_an_engine() -> None:
    # contract 7
    dialect = Durably("sqlite+libsql://h/?authToken=s3cret").database.dialect
    engine = dialect.create_engine()
    assert "s3cret" not in f"{engine!r} {engine.url} {engine.url!r} {dialect!r}"
    assert dialect.safe_url == "sqlite+libsql://h/?authToken=***"
    assert "`durably migrate --dialect-url URL`" in str(SchemaOutdatedError(None, "0001", url=dialect.safe_url))


@pytest.mark.parametrize("url", ["sqlite+libsql://h/?authToken=s3cret", "sqlite+libsql:///file.db"])
def test_without_its_driver_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    # contract 6, 185
    monkeypatch.setitem(sys.modules, "sqlalchemy_libsql", None)
    with pytest.raises(ValidationError, match=r"pip install 'durably\[libsql\]'") as refused:
        Durably(url)
    assert refused.value.field == "dialect_url"
    assert "s3cret" not in str(refused.value)


def test_a_transaction_whose_first_statement_fails_is_one_still(server: LibSQLServer) -> None:
    with contextlib.closing(server.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE t (id)")
        cursor.execute("BEGIN")
        with pytest.raises(hrana.ProgrammingError):
            cursor.execute("SELEC")
        cursor.execute("INSERT INTO t VALUES (1)")
        connection.rollback()
        assert cursor.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_a_refused_request_is_no_transient_error(server_url: str, make: Make) -> None:
    app = make(server_url)
    with app.database.connection() as connection, pytest.raises(DBAPIError) as refused:
        connection.execute(text("SELEC"))
    assert not app.database.dialect.is_transient(refused.value)
