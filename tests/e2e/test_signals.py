"""Each signal that an operator sends to a supervisor, beyond those of stopping."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, Self

import pytest

from durably.testing.dialects.suite.support import eventually
from tests.e2e.harness import Supervised

HANGING = Path(__file__).with_name("hanging.py")


def said(supervised: Supervised) -> list[str]:
    return [line["event"] for line in supervised.lines() if line.get("logger") == "durably.supervisor"]


def states(supervised: Supervised) -> dict[str, str]:
    """Give each worker's last state."""
    return {e["worker"]: e["state"] for e in supervised.events("worker:state")}


class Load:
    """
    Runs that are triggered and completed all the time, from a thread.

    Args:
        supervised: Executes them.
    """

    def __init__(self, supervised: Supervised) -> None:
        self._supervised = supervised
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.runs: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            self.runs += self._supervised.trigger("count", 2, 2)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


# contract 171, 171a
@pytest.mark.timeout(180)
def test_a_reload_under_load_interrupts_and_loses_no_run_and_never_stands_still(tmp_path: Path) -> None:
    with Supervised(tmp_path, workers=2) as supervised:
        supervised.until_ready(2)
        supervised.process.send_signal(signal.SIGTTIN)
        before = supervised.until_ready(3)
        with Load(supervised) as load:
            eventually(lambda: len(supervised.events("run:complete")) > 20)
            for _ in range(2):
                known = set(supervised.ready_workers())
                supervised.process.send_signal(signal.SIGHUP)

                def are_replaced(known: set[str] = known) -> bool:
                    now = set(supervised.ready_workers())
                    return len(now) == 3 and not now & known

                eventually(are_replaced, timeout=60)
        ended = [supervised.client.wait_for_run(run, timeout=30) for run in load.runs]
        assert {(run.status, run.interruptions, run.generation) for run in ended} == {("completed", 0, 1)}
        assert not supervised.events("run:release")
        assert not set(supervised.ready_workers()) & set(before)
        assert len(supervised.ready_workers()) == 3, "the worker that SIGTTIN added is one of those replaced"
        completed = sorted(run.completed_at.timestamp() for run in ended if run.completed_at is not None)
        assert max(b - a for a, b in itertools.pairwise(completed)) < 1


# contract 171b
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not tell what a process has open")
def test_no_child_holds_the_log_file_or_what_belongs_to_another(tmp_path: Path) -> None:
    log = tmp_path / "durably.log"
    with Supervised(tmp_path, "--log-file", str(log), workers=3).reads(log) as supervised:
        supervised.until_ready(3)
        held = []
        for child in supervised.children():
            opened = {str(entry.readlink()) for entry in Path(f"/proc/{child.pid}/fd").iterdir() if entry.is_symlink()}
            assert str(log) not in opened
            held += [name for name in opened if "durably-stacks-" in name or "durably-board-" in name]
        assert len(held) == len(set(held)) == 4 + 3
        assert not [name for name in held if "(deleted)" not in name], "nothing stays behind when all are killed"


# contract 171b
def test_sigusr1_reopens_the_log_file_that_was_rotated_and_loses_no_line(tmp_path: Path) -> None:
    log, rotated = tmp_path / "durably.log", tmp_path / "durably.log.1"
    supervised = Supervised(tmp_path, "--log-file", str(log), workers=1).reads(log)
    with supervised:
        supervised.until_ready(1)
        (first,) = supervised.trigger("count", 1)
        eventually(lambda: [e for e in supervised.events("run:complete") if e["run_id"] == first])
        log.rename(rotated)
        supervised.process.send_signal(signal.SIGUSR1)
        eventually(lambda: log.exists() and any("is reopened" in line for line in said(supervised)))
        (second,) = supervised.trigger("count", 1)
        eventually(lambda: [e for e in supervised.events("run:complete") if e["run_id"] == second])
        assert first in rotated.read_text()
        assert second not in rotated.read_text()
        assert first not in log.read_text()
        log.unlink()
        tmp_path.joinpath("durably.log").mkdir()  # where no file can be opened
        supervised.process.send_signal(signal.SIGUSR1)
        supervised.process.terminate()
        assert supervised.wait() == 0


def test_without_a_log_file_sigusr1_says_so(tmp_path: Path) -> None:
    # contract 171b
    with Supervised(tmp_path, workers=1) as supervised:
        supervised.until_ready(1)
        supervised.process.send_signal(signal.SIGUSR1)
        eventually(lambda: said(supervised) == ["SIGUSR1: there is no log file to reopen"])


# contract 171c
def test_sigusr2_logs_the_stacks_of_all_processes_also_of_one_that_hangs(tmp_path: Path) -> None:
    with Supervised(tmp_path, app=HANGING, workers=2) as supervised:
        workers = supervised.until_ready(2)
        (run,) = supervised.trigger("hang-once", "gil")
        eventually(supervised.notes)
        for _ in range(2):
            seen = len(said(supervised))
            supervised.process.send_signal(signal.SIGUSR2)
            eventually(lambda seen=seen: len(said(supervised)) == seen + 5)  # type: ignore[misc]
            lines = [line for line in supervised.lines() if line.get("logger") == "durably.supervisor"][seen:]
            told = [line["event"] + line.get("exception", "") for line in lines]
            assert told[0].startswith("SIGUSR2")
            assert "heed_signals" in told[1]
            assert "stacks of the keeper" in told[2] + told[3] + told[4]
            assert sum("in hang" in line for line in told) == 1
            assert all(any(worker in line for line in told) for worker in workers)
            assert sum(line.count("Current thread") for line in told) == 3, "each has only what was written just now"
        assert supervised.client.get_run(run).status == "running"  # type: ignore[union-attr]
        supervised.process.send_signal(signal.SIGQUIT)
        supervised.wait()


# contract 171a
def test_what_sigttin_and_sigttou_did_survives_a_reload(tmp_path: Path) -> None:
    with Supervised(tmp_path, workers=2) as supervised:
        supervised.until_ready(2)
        supervised.process.send_signal(signal.SIGTTOU)
        eventually(lambda: len(supervised.ready_workers()) == 1)
        (before,) = supervised.ready_workers()
        supervised.process.send_signal(signal.SIGHUP)
        eventually(lambda: states(supervised)[before] == "exited" and len(supervised.ready_workers()) == 1)
        supervised.process.send_signal(signal.SIGTTOU)  # the last one stays
        eventually(lambda: "SIGTTOU changes nothing now" in said(supervised))
        assert len(supervised.ready_workers()) == 1


# contract 171a
def test_sigttou_removes_a_worker_that_does_not_begin_before_one_that_works(tmp_path: Path) -> None:
    app, broken = tmp_path / "app.py", tmp_path / "broken"
    app.write_text(
        "from pathlib import Path\nfrom durably import Durably\n"
        f"if Path({str(broken)!r}).exists(): raise RuntimeError('no luck')\n"
        "durably = Durably()\n"
    )
    with Supervised(tmp_path, app=app, workers=2) as supervised:
        workers = supervised.until_ready(2)
        first, second = [e["worker"] for e in supervised.events("worker:state") if e["state"] == "starting"]
        broken.touch()
        os.kill(workers[first], signal.SIGKILL)
        eventually(lambda: [e for e in supervised.events("worker:backoff") if e["deaths"] >= 4])
        supervised.process.send_signal(signal.SIGTTOU)
        eventually(lambda: "SIGTTOU: one worker less makes 1" in said(supervised))
        died = len(supervised.events("worker:backoff"))
        supervised.process.send_signal(signal.SIGTTOU)
        eventually(lambda: "SIGTTOU changes nothing now" in said(supervised))
        assert states(supervised)[second] == "ready"
        assert len(supervised.events("worker:backoff")) == died


# contract 162a
def test_children_are_called_by_what_they_are(tmp_path: Path) -> None:
    with Supervised(tmp_path, "--pool", "heavy-duty:1", "--health-port", "0", workers=1) as supervised:
        supervised.until_ready(2)
        called = sorted(Path(f"/proc/{child.pid}/comm").read_text().strip() for child in supervised.children())
        assert called == ["durably-health", "durably-keeper", "durably:default", "durably:heavy-d"]


# contract 171
@pytest.mark.timeout(180)
def test_a_storm_of_reloads_and_numbers_ends_with_as_many_workers_as_were_asked_for(tmp_path: Path) -> None:
    with Supervised(tmp_path, workers=2) as supervised:
        supervised.until_ready(2)
        runs = supervised.trigger("count", *[20] * 10)
        for _ in range(8):
            for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGHUP, signal.SIGTTOU):
                supervised.process.send_signal(number)
                time.sleep(0.03)  # so that they do not merge into one

        def is_calm() -> bool:
            alive = [state for state in states(supervised).values() if state != "exited"]
            return alive == ["ready", "ready"] and len(supervised.children()) == 3

        eventually(is_calm, timeout=90)
        ended: list[Any] = [supervised.client.wait_for_run(run, timeout=60) for run in runs]
        assert {run.interruptions for run in ended} == {0}
        assert not [e for e in supervised.events("worker:exit") if e["reason"] != "stopped"]


def test_a_supervisor_that_waits_for_a_long_run_does_not_spin(tmp_path: Path) -> None:
    # contract 169
    with Supervised(tmp_path, workers=3) as supervised:
        supervised.until_ready(3)
        (run,) = supervised.trigger("stubborn", 4)
        eventually(supervised.notes)
        supervised.process.terminate()
        eventually(lambda: list(states(supervised).values()).count("exited") == 2)
        before = supervised.process.cpu_times()
        assert supervised.client.wait_for_run(run, timeout=30).status == "completed"
        after = supervised.process.cpu_times()
        assert after.user + after.system - before.user - before.system < 0.5
        assert supervised.wait() == 0


def test_a_log_file_that_cannot_be_opened_is_refused_before_anything_begins(tmp_path: Path) -> None:
    # contract 171b
    with Supervised(tmp_path, "--log-file", str(tmp_path / "none" / "log")) as supervised:
        assert supervised.wait() == 2
        assert "log_file: it cannot be opened" in supervised.errors()
        assert supervised.lines() == []
