"""The census under fire: whatever is killed, its report is that of a census left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from durably.testing.dialects.suite.support import eventually

IS_LONG = bool(os.environ.get("DURABLY_TEST_LONG"))
KILLS = 500 if IS_LONG else 50
CENSUSES = 3
SEED = int(os.environ.get("DURABLY_TEST_SEED", "20261123"))
CENSUS = Path(__file__).parents[2] / "docs" / "examples" / "census.py"


class Census:
    """
    One run of the example's own command.

    Args:
        folder: For its database, log and report.
        options: Of the command.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir()
        self.report = folder / "report"
        self._log = folder / "log.jsonl"
        self._told: list[dict[str, Any]] = []
        self._read_to = 0
        environment = os.environ | {"DURABLY_DIALECT_URL": f"sqlite:///{folder / 'census.db'}"}
        with self._log.open("wb") as log:
            self.process = psutil.Popen(
                [sys.executable, str(CENSUS), "--workers", "4", "--output", str(self.report), *options],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
            )

    def events(self) -> list[dict[str, Any]]:
        """Read the log's lines so far that are events; the command's own words stand between them."""
        with self._log.open("rb") as log:
            log.seek(self._read_to)
            lines = log.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()  # it is being written
        self._read_to += sum(map(len, lines))
        self._told += [json.loads(line) for line in lines if line.startswith(b"{")]
        return self._told

    def workers(self) -> list[int]:
        """Give the pids of the workers that are ready."""
        told = self.events()
        ready = {e["process"]["worker_id"]: e["process"]["pid"] for e in told if e["event"] == "worker:start"}
        gone = {e["lost_worker"] for e in told if e["event"] == "worker:exit"}
        return [pid for worker_id, pid in ready.items() if worker_id not in gone and psutil.pid_exists(pid)]

    def completed_steps(self) -> int:
        """Count the checkpoints told so far."""
        return sum(event["event"] == "step:complete" for event in self.events())


@pytest.mark.timeout(3600 if IS_LONG else 240)
# contract 50, 64, 70, 71, 73
def test_the_report_of_a_census_whose_workers_are_killed_is_that_of_one_left_alone(tmp_path: Path) -> None:
    limit = [] if IS_LONG else ["--limit", "24"]
    calm = Census(tmp_path / "calm", *limit)
    assert calm.process.wait(600) == 0
    chance = random.Random(SEED)
    killed = 0
    # Killed all the time, one census lasts for some 400 kills: a worker that is begun anew takes its time.
    for number in range(CENSUSES):
        shaken = Census(tmp_path / f"shaken-{number}", *limit, "--slow", "0.2")
        killed += kill_workers(shaken, KILLS - killed, chance)
        assert shaken.process.wait(600) == 0
        assert (shaken.report / "report.md").read_bytes() == (calm.report / "report.md").read_bytes()
        check_history(shaken.events())
        if killed == KILLS:
            return
    pytest.fail(f"{killed} workers were killed, not {KILLS}, before {CENSUSES} censuses ended")


def kill_workers(census: Census, most: int, chance: random.Random) -> int:
    """Kill workers that are ready until there were so many, or the census has ended; give how many there were."""
    killed: set[int] = set()
    while len(killed) < most and not ended(census):
        if not (alive := [pid for pid in census.workers() if pid not in killed]):
            continue
        before, victim = census.completed_steps(), chance.choice(alive)
        os.kill(victim, signal.SIGKILL)
        killed.add(victim)
        if chance.random() < 0.3:
            eventually(lambda before=before: census.completed_steps() > before or ended(census), timeout=60)  # type: ignore[misc]
    return len(killed)


def ended(census: Census) -> bool:
    return not census.process.is_running() or census.process.status() == psutil.STATUS_ZOMBIE


def check_history(told: list[dict[str, Any]]) -> None:
    """Hold what was told against what was promised. All processes are on one machine and share its clock."""
    completed: dict[tuple[str, str], str] = {}
    claimed: dict[str, list[tuple[str, str]]] = {}
    for event in sorted(told, key=lambda event: event["timestamp"]):
        if event["event"] == "run:start":
            claimed.setdefault(event["run_id"], []).append((event["timestamp"], event["process"]["worker_id"]))
        if event["event"] in ("step:start", "step:complete"):
            step = event["run_id"], event["step_name"]
            assert step not in completed, f"{event['event']} after the checkpoint of {completed[step]}: {event}"
            if event["event"] == "step:complete":
                completed[step] = event["timestamp"]
        if event["event"] in ("step:complete", "run:complete", "step:fail", "run:fail"):
            assert event["process"]["worker_id"] == claimed[event["run_id"]][-1][1], (
                f"written after a newer claim: {event}"
            )
    assert {event["event"] for event in told} >= {"run:recover", "worker:exit", "run:complete"}
    assert not [event for event in told if event["event"] == "run:fail"]
