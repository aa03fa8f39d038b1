"""Health and metrics over HTTP, of a real supervisor with real workers."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import make_url

from durably.supervisor import probes
from durably.testing.dialects import Cable
from durably.testing.dialects.databases import databases
from durably.testing.dialects.suite.support import eventually
from tests.e2e.harness import APP, Supervised

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def url_of(supervised: Supervised) -> str:
    """Wait until the supervisor has told where it answers."""

    def told() -> str:
        found = [re.search(r"health is answered at (\S+)", line["event"]) for line in supervised.lines()]
        return next((match[1] for match in found if match), "")

    return eventually(told, timeout=30)


def get(url: str, **headers: str) -> tuple[int, str]:
    """Ask; give the status and the body, or 0 where nobody answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def answers(url: str, path: str, status: int) -> bool:
    return get(url + path)[0] == status


def metrics(url: str) -> Series:
    """Read /metrics: each series' value by its name and labels."""
    status, body = get(url + "/metrics")
    assert status == 200, body
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float | None:
    return series.get((name, frozenset(labels.items())))


def server_of(supervised: Supervised) -> psutil.Process | None:
    """Find the process that answers: the child that listens."""
    for child in supervised.children():
        try:
            if any(c.status == psutil.CONN_LISTEN for c in child.net_connections("tcp")):
                return child
        except psutil.Error:
            continue
    return None


def holds_port(process: psutil.Process, port: int) -> bool:
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in process.net_connections("tcp"))


def successor_of(server: psutil.Process, supervised: Supervised) -> psutil.Process:
    """Wait until another process answers in a server's place."""

    def found() -> psutil.Process | None:
        listening = server_of(supervised)
        return listening if listening is not None and listening.pid != server.pid else None

    successor = eventually(found)
    assert successor is not None
    return successor


def supervise(tmp_path: Path, **settings: Any) -> Supervised:
    return Supervised(tmp_path, "--health-port", "0", **{"heartbeat_interval": 0.2, "stale_threshold": 2, **settings})


def test_a_supervisor_is_live_ready_and_consuming_when_its_workers_are(tmp_path: Path) -> None:
    # contract 204, 205, 206
    with supervise(tmp_path) as supervised:
        url = url_of(supervised)
        supervised.until_ready(2)
        for path in ("/live", "/ready", "/consuming"):
            eventually(lambda path=path: answers(url, path, 200))  # type: ignore[misc]
        assert get(url + "/nothing")[0] == 404
        assert get(url + "/live?verbose=1") == (200, "the supervisor's loop goes round\n")
        assert urllib.request.urlopen(urllib.request.Request(url + "/live", method="HEAD")).read() == b""  # noqa: S310


def test_without_a_port_nobody_listens(tmp_path: Path) -> None:
    # contract 204
    with Supervised(tmp_path) as supervised:
        supervised.until_ready(2)
        assert server_of(supervised) is None
        assert len(supervised.children()) == 3


def test_it_is_not_ready_before_a_worker_is_and_not_while_it_drains_but_live(tmp_path: Path) -> None:
    # contract 205
    with supervise(tmp_path) as supervised:
        url = url_of(supervised)
        eventually(lambda: answers(url, "/live", 200))
        (run_id,) = supervised.trigger("wait", 30)
        eventually(lambda: [run_id, "waiting"] in [note[:2] for note in supervised.notes()], timeout=30)
        eventually(lambda: answers(url, "/ready", 200))
        supervised.process.send_signal(signal.SIGTERM)
        eventually(lambda: answers(url, "/ready", 503))
        assert "stopping (SIGTERM)" in get(url + "/ready")[1]
        assert get(url + "/live")[0] == 200
        assert get(url + "/consuming")[0] == 503
        supervised.process.send_signal(signal.SIGQUIT)
        supervised.wait()
        assert get(url + "/live")[0] == 0


def are_heartbeats_held_up(supervised: Supervised) -> bool:
    status = supervised.client.get_status()
    return min(worker.heartbeat_age_seconds for worker in (*status.alive, *status.silent)) > 1


def test_with_the_database_away_it_is_live_and_consuming_and_metrics_say_so(tmp_path: Path) -> None:
    # contract 206, 208
    with supervise(tmp_path, stale_threshold=20, database_timeout=0.5) as supervised:
        url = url_of(supervised)
        supervised.until_ready(2)
        eventually(lambda: answers(url, "/consuming", 200))
        with databases().locked(supervised.url):
            eventually(lambda: are_heartbeats_held_up(supervised), timeout=30)
            for path in ("/live", "/ready", "/consuming"):
                began = time.monotonic()
                assert get(url + path)[0] == 200
                assert time.monotonic() - began < 1
        eventually(lambda: value(metrics(url), "durably_database_up") == 1, timeout=30)


@pytest.mark.own("sqlite", "libsql-file")
def test_a_database_that_is_gone_costs_its_own_metrics_only(tmp_path: Path) -> None:
    # contract 206, 208
    with supervise(tmp_path, stale_threshold=60) as supervised:
        url = url_of(supervised)
        supervised.until_ready(2)
        eventually(lambda: answers(url, "/consuming", 200))
        path = Path(str(make_url(supervised.url).database))
        away = path.rename(path.with_suffix(".away"))
        series = metrics(url)  # the first look, which opens the database
        assert value(series, "durably_database_up") == 0
        assert value(series, "durably_workers", state="ready") == 2
        assert value(series, "durably_runs_running") is None
        assert get(url + "/live")[0] == get(url + "/consuming")[0] == 200
        eventually(lambda: any("metrics are without the database's" in line["event"] for line in supervised.lines()))
        away.rename(path)
        eventually(lambda: value(metrics(url), "durably_database_up") == 1, timeout=30)


@pytest.mark.own("postgresql")
def test_a_server_that_was_cut_off_holds_no_answer_up(tmp_path: Path) -> None:
    # contract 206, 208
    url = make_url(databases().fresh_url(tmp_path))
    real = Path(str(url.query["host"])) / ".s.PGSQL.5432"

    def connect() -> socket.socket:
        to_server = socket.socket(socket.AF_UNIX)
        to_server.connect(str(real))
        return to_server

    listener = socket.create_server(("127.0.0.1", 0))
    cable = Cable(listener, connect)
    through = url.set(host="127.0.0.1", port=listener.getsockname()[1]).difference_update_query(["host"])
    with (
        contextlib.closing(cable),
        supervise(
            tmp_path, url=through.render_as_string(False), stale_threshold=60, heartbeat_interval=1
        ) as supervised,
    ):
        health = url_of(supervised)
        supervised.until_ready(2)
        eventually(lambda: value(metrics(health), "durably_database_up") == 1, timeout=30)
        cable.is_plugged.clear()
        eventually(lambda: value(metrics(health), "durably_database_up") == 0, timeout=30)
        for path in ("/live", "/consuming", "/metrics"):
            began = time.monotonic()
            assert get(health + path)[0] == 200
            assert time.monotonic() - began < (4 if path == "/metrics" else 1)
        cable.is_plugged.set()
        eventually(lambda: value(metrics(health), "durably_database_up") == 1, timeout=60)


def test_workers_that_stand_still_do_not_consume(tmp_path: Path) -> None:
    # contract 206
    with supervise(tmp_path, stale_threshold=4, polling_interval=0.05, hang_threshold=60) as supervised:
        url = url_of(supervised)
        workers = supervised.until_ready(2)
        eventually(lambda: answers(url, "/consuming", 200))
        for pid in workers.values():
            os.kill(pid, signal.SIGSTOP)
        eventually(lambda: answers(url, "/consuming", 503), timeout=20)
        # They are killed because they are silent, and others take their place.
        eventually(lambda: answers(url, "/consuming", 200), timeout=30)
        eventually(lambda: value(metrics(url), "durably_worker_restarts_total", reason="silent") == 2)


def test_a_supervisor_that_stands_still_is_not_live(tmp_path: Path) -> None:
    # contract 205
    with supervise(tmp_path, stale_threshold=60) as supervised:
        url = url_of(supervised)
        supervised.until_ready(2)
        eventually(lambda: answers(url, "/live", 200))
        supervised.process.suspend()
        eventually(lambda: answers(url, "/live", 503), timeout=probes.LIVE_SECONDS + 10)
        supervised.process.resume()
        eventually(lambda: answers(url, "/live", 200))


def test_a_server_that_is_killed_is_replaced_and_has_forgotten_nothing(tmp_path: Path) -> None:
    # contract 207
    with supervise(tmp_path) as supervised:
        url = url_of(supervised)
        supervised.until_ready(2)
        supervised.trigger("count", 2, 2, 2)
        eventually(lambda: value(metrics(url), "durably_runs_total", job_name="count", status="completed") == 3)
        first = eventually(lambda: server_of(supervised))
        assert first is not None
        workers = supervised.ready_workers()
        first.kill()
        second = successor_of(first, supervised)
        assert value(metrics(url), "durably_runs_total", job_name="count", status="completed") == 3
        (told,) = [e for e in supervised.events("supervisor:error") if e["context"] == "health"]
        assert "was killed by signal 9" in told["error"]
        assert supervised.ready_workers() == workers
        second.suspend()  # stopped, it keeps nobody from ending
        supervised.process.send_signal(signal.SIGTERM)
        assert supervised.wait() == 0
        assert not second.is_running() or second.status() == psutil.STATUS_ZOMBIE


def test_a_server_ends_with_its_supervisor_and_frees_the_port(tmp_path: Path) -> None:
    # contract 207
    with supervise(tmp_path) as supervised:
        url = url_of(supervised)
        supervised.until_ready(2)
        eventually(lambda: answers(url, "/live", 200))
        (run_id,) = supervised.trigger("wait", 5)
        eventually(lambda: [run_id, "waiting"] in [note[:2] for note in supervised.notes()])
        server = server_of(supervised)
        assert server is not None
        orphans = supervised.children()
        supervised.process.kill()
        server.wait(10)
        port = int(url.rpartition(":")[2])
        with socket.create_server(("127.0.0.1", port)):  # though a worker lives on with its run
            pass
        for orphan in orphans:
            if orphan.is_running():
                orphan.kill()


def test_no_worker_holds_the_port_or_the_servers_pipes(tmp_path: Path) -> None:
    # contract 207
    with supervise(tmp_path) as supervised:
        url = url_of(supervised)
        workers = supervised.until_ready(2)
        server = eventually(lambda: server_of(supervised))
        assert server is not None
        server.kill()
        successor_of(server, supervised)
        os.kill(min(workers.values()), signal.SIGKILL)
        eventually(lambda: len(supervised.ready_workers()) == 2 and supervised.ready_workers() != workers)
        port = int(url.rpartition(":")[2])
        holders = [child for child in supervised.children() if holds_port(child, port)]
        assert len(holders) == 1


# --- metrics --------------------------------------------------------------------------------------------------


def test_metrics_count_what_was_done_and_tell_what_waits(tmp_path: Path) -> None:
    # contract 208
    with supervise(tmp_path) as supervised:
        url = url_of(supervised)
        supervised.until_ready(2)
        supervised.trigger("count", 2, 3)
        supervised.trigger("nobody knows", 1, 2, 3)
        eventually(lambda: value(metrics(url), "durably_runs_total", job_name="count", status="completed") == 2)
        series = metrics(url)
        assert value(series, "durably_runs_started_total", job_name="count") == 2
        assert value(series, "durably_steps_total", job_name="count", status="completed") == 5
        assert value(series, "durably_run_seconds_count", job_name="count") == 2
        assert value(series, "durably_run_seconds_bucket", job_name="count", le="+Inf") == 2
        assert value(series, "durably_run_seconds_bucket", job_name="count", le="3600.0") == 2
        assert 0.05 <= (value(series, "durably_run_seconds_sum", job_name="count") or 0) < 60
        assert value(series, "durably_run_wait_seconds_count", job_name="count") == 2
        assert value(series, "durably_workers", state="ready") == 2
        assert value(series, "durably_slots") == 4
        assert value(series, "durably_database_up") == 1
        eventually(lambda: value(metrics(url), "durably_runs_pending", job_name="nobody knows") == 3)
        series = metrics(url)
        assert value(series, "durably_runs_unknown_job", job_name="nobody knows") == 3
        assert (value(series, "durably_oldest_pending_seconds", job_name="nobody knows") or 0) > 0
        assert value(series, "durably_database_workers", state="alive") == 2


def test_killed_workers_and_recovered_runs_are_counted_by_reason(tmp_path: Path) -> None:
    # contract 208
    with supervise(tmp_path) as supervised:
        url = url_of(supervised)
        supervised.until_ready(2)
        (run_id,) = supervised.trigger("wait", 1)
        eventually(lambda: [run_id, "waiting"] in [note[:2] for note in supervised.notes()])
        held = supervised.client.get_run(run_id)
        assert held is not None
        os.kill(supervised.ready_workers()[str(held.worker_id)], signal.SIGKILL)
        eventually(lambda: value(metrics(url), "durably_worker_restarts_total", reason="died") == 1)
        eventually(lambda: value(metrics(url), "durably_runs_recovered_total", job_name="wait", reason="died") == 1)


def test_metrics_come_in_the_form_that_is_asked_for(tmp_path: Path) -> None:
    # contract 208
    with supervise(tmp_path) as supervised:
        url = url_of(supervised)
        eventually(lambda: answers(url, "/live", 200))
        body = get(url + "/metrics", Accept="application/openmetrics-text; version=1.0.0")[1]
        assert body.endswith("# EOF\n")


def test_a_client_that_dawdles_keeps_nobody_from_an_answer(tmp_path: Path) -> None:
    # contract 204
    with supervise(tmp_path) as supervised:
        url = url_of(supervised)
        eventually(lambda: answers(url, "/live", 200))
        host, _, port = url.removeprefix("http://").partition(":")
        dawdlers = [socket.create_connection((host, int(port))) for _ in range(40)]
        began = time.monotonic()
        assert get(url + "/live")[0] == 200
        assert time.monotonic() - began < 3
        for dawdler in dawdlers:
            assert dawdler.recv(1) == b""  # cut off to make room, or after its time
            dawdler.close()


def test_a_port_in_use_is_wrong_usage_and_starts_nothing(tmp_path: Path) -> None:
    # contract 204
    url = databases().fresh_url(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "durably.cli.main", "supervise", str(APP), "--dialect-url", url,
             "--health-port", str(port)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert f"health_port: nobody can listen at 127.0.0.1 port {port}: " in done.stderr
    assert done.stdout == ""


def test_an_application_may_ask_for_health_itself(tmp_path: Path) -> None:
    # contract 204
    app = tmp_path / "healthy.py"
    app.write_text(
        "from durably import Durably\n"
        "durably = Durably(health_port=0)\n"
        "@durably.job('mail')\ndef mail(step, input): return input\n"
    )
    with Supervised(tmp_path, app=app) as supervised:
        url = url_of(supervised)
        eventually(lambda: answers(url, "/consuming", 200), timeout=30)


def test_a_spawning_supervisor_has_such_a_server_too(tmp_path: Path) -> None:
    # contract 204
    url = databases().fresh_url(tmp_path)
    program = f"""
import threading, urllib.request
from durably import Supervisor, define_job

def mail(step, input): return input

if __name__ == "__main__":
    supervisor = Supervisor(dialect_url={url!r}, jobs=[define_job("mail", mail)], workers=1, health_port=0)
    supervisor.on("worker:start", lambda event: print("started", flush=True))
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    threading.Event().wait(0.1)
    input()
    supervisor.stop()
    thread.join()
"""
    (tmp_path / "main.py").write_text(program)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        told = ""
        while "health is answered at" not in told:
            told = process.stdout.readline()
            assert told
        found = re.search(r"(http://[\d.:]+)", told)
        assert found is not None
        eventually(lambda: answers(found[1], "/consuming", 200), timeout=60)
        assert value(metrics(found[1]), "durably_workers", state="ready") == 1
        process.communicate("\n", timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
