"""With the database away the supervisor goes on with all that needs none, and with the rest when it is back."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import psutil

from durably.testing.dialects.databases import databases
from durably.testing.dialects.suite.support import eventually
from tests.e2e.harness import Supervised

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path


def pids(supervised: Supervised) -> set[int]:
    return {child.pid for child in supervised.children()}


def wait_for_new_children(supervised: Supervised, known: set[int], count: int) -> None:
    """Wait until so many children have been seen that were not *known*, also if they are gone again."""
    seen = set(known)

    def are_enough() -> bool:
        seen.update(pids(supervised))
        return len(seen) >= len(known) + count

    eventually(are_enough, timeout=30)


def test_a_worker_that_dies_while_the_database_is_away_is_reaped_then_and_recovered_later(tmp_path: Path) -> None:
    # contract 155, 163, 168
    settings: dict[str, Any] = {"heartbeat_interval": 0.2, "stale_threshold": 30, "database_timeout": 0.5}
    with Supervised(tmp_path, workers=2, **settings) as supervised:
        workers = supervised.until_ready(2)
        (run_id,) = supervised.trigger("wait", 0.5)
        eventually(lambda: [run_id, "waiting"] in [note[:2] for note in supervised.notes()])
        held = supervised.client.get_run(run_id)
        assert held is not None
        known = pids(supervised)
        with databases().locked(supervised.url):
            victim = workers[str(held.worker_id)]
            os.kill(victim, signal.SIGKILL)
            eventually(lambda: not psutil.pid_exists(victim))
            supervised.process.send_signal(signal.SIGTTIN)
            # One in the other's place, and one more; neither can begin yet, so they come and go.
            wait_for_new_children(supervised, known, 2)
            eventually(lambda: [e for e in supervised.events("worker:error") if e["context"] == "database"])
            assert not supervised.events("worker:exit")

            def told_without_recovery() -> list[dict[str, Any]]:
                return [e for e in supervised.events("supervisor:error") if e["context"] == "recovery"]

            (death,) = [e for e in eventually(told_without_recovery) if f"(pid {victim})" in e["error"]]
            assert "was killed by SIGKILL" in death["error"]
        # Of those that could not begin meanwhile it tells too.
        lost = held.worker_id
        (told,) = eventually(lambda: [e for e in supervised.events("worker:exit") if e["lost_worker"] == lost])
        assert (told["signal"], told["recovered"]) == ("SIGKILL", 1)
        ended = supervised.client.wait_for_run(run_id, timeout=20)
        assert (ended.interruptions, ended.attempt) == (1, 1)


def test_a_keeper_that_waits_for_the_database_is_not_taken_for_one_that_hangs(tmp_path: Path) -> None:
    # contract 168
    settings: dict[str, Any] = {"heartbeat_interval": 0.2, "stale_threshold": 0.5, "database_timeout": 1.5}
    with Supervised(tmp_path, workers=1, **settings) as supervised:
        supervised.until_ready(1)
        with databases().locked(supervised.url):

            def told() -> list[dict[str, Any]]:
                return [e for e in supervised.events("supervisor:error") if e["context"] == "recovery"]

            eventually(told)
        eventually(lambda: len(told()) == 2)  # and that it works again
        assert not [e for e in supervised.events("supervisor:error") if e["context"] in ("silent", "keeper")]


def test_the_supervisor_stops_in_time_while_the_database_is_away(tmp_path: Path) -> None:
    # contract 168, 172
    settings: dict[str, Any] = {"database_timeout": 0.5, "drain_timeout": 0.5, "kill_timeout": 1}
    with Supervised(tmp_path, workers=2, **settings) as supervised:
        supervised.until_ready(2)
        (run_id,) = supervised.trigger("wait", 0.2)
        eventually(lambda: [run_id, "waiting"] in [note[:2] for note in supervised.notes()])
        with databases().locked(supervised.url):
            supervised.process.send_signal(signal.SIGTERM)
            code = supervised.wait(30)
            assert code in (0, 3)
            assert supervised.events("supervisor:stop")[-1]["exit_code"] == code
        stored = supervised.client.get_run(run_id)
        assert stored is not None
        assert stored.interruptions == 0


TICKS = """
import os, signal, sys, time
from durably import Supervisor, define_job

def talk(step, n):
    for i in range(n):
        step.run(f"{i}", lambda: "x" * 8000)

job = define_job("talk", talk)
supervisor = Supervisor(dialect_url=url, jobs=[job], workers=2, stale_threshold=30)
started, heard = [], []
supervisor.on("worker:start", started.append)
supervisor.on("step:complete", heard.append)
supervisor.begin()
took = []

def round():
    began = time.monotonic()
    supervisor.tick(began)
    took.append(time.monotonic() - began)

def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        supervisor._wait()
        round()

until(lambda: len(started) == 2)
for _ in range(100):
    round()                      # nothing has happened: nothing is waited for
client = supervisor_client(url, job)
client.batch_trigger([150, 150])
until(lambda: len(heard) > 50)   # the channels are full of events
print("lock", flush=True)
sys.stdin.readline()
os.kill(started[0].process.pid, signal.SIGKILL)
since = time.monotonic()
until(lambda: time.monotonic() > since + 3)
print("unlock", flush=True)
sys.stdin.readline()
supervisor.stop()
until(lambda: supervisor.is_over)
print(max(took), sorted(took)[len(took) // 2])
"""


def test_no_round_waits_for_the_database_or_a_channel(python: Callable[..., subprocess.Popen[str]], url: str) -> None:
    # contract 174
    client = "from durably import Durably\nsupervisor_client = lambda url, job: Durably(url).register(job)\n"
    process = python(client + TICKS)
    assert process.stdout is not None
    assert process.stdin is not None
    assert "lock\n" in iter(process.stdout.readline, "")
    with databases().locked(url):
        process.stdin.write("locked\n")
        process.stdin.flush()
        assert "unlock\n" in iter(process.stdout.readline, "")
    longest, median = map(float, process.communicate("unlocked\n", timeout=90)[0].split()[-2:])
    # The database was away for 3 s, and gives up after 10.
    assert longest < 2
    assert median < 0.1
