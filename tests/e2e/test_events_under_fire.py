"""Workers are killed while they write events: nobody stalls, and what is lost is little and shows."""

from __future__ import annotations

import os
import random
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from durably.testing.dialects.suite.support import eventually
from tests.e2e.harness import Supervised

if TYPE_CHECKING:
    from pathlib import Path

IS_LONG = bool(os.environ.get("DURABLY_TEST_LONG"))
KILLS = 1000 if IS_LONG else 50
SEED = int(os.environ.get("DURABLY_TEST_SEED", "20261126"))
# What a worker tells in the hundredth of a second for which its outbox gathers, with room for a busy machine.
MOST_LOST_BY_A_KILL = 100


@pytest.mark.timeout(3600 if IS_LONG else 240)
# contract 142, 166, 166a, 167
def test_events_of_killed_workers_end_without_a_gap_and_those_of_others_go_on(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    options: dict[str, Any] = {"max_interruptions": 10_000, "isolate_after": 10_000}
    with Supervised(tmp_path, "--log-level", "debug", workers=4, **options) as supervised:
        supervised.until_ready(4)
        # Events of 8,000 bytes: most kills hit a message half-way.
        supervised.trigger("flood", *[10] * (100 * KILLS))
        log = Follow(supervised)
        for _ in range(KILLS):
            seen = log.told
            eventually(lambda seen=seen: log.read().told > seen + 5, timeout=30)  # type: ignore[misc]
            time.sleep(chance.random() * 0.02)
            eventually(lambda: kill_one(log.alive(), chance), timeout=30)
        supervised.process.terminate()
        assert supervised.wait() == 0
        assert [run.status for run in supervised.client.get_runs(limit=1)] == ["pending"], "there was work to the end"
        with supervised.client.database.reading() as connection:
            stored = connection.execute(text("SELECT count(*) FROM durably_steps")).scalar_one()
        log.read()
        lost = stored - log.checkpoints
        assert 0 <= lost <= MOST_LOST_BY_A_KILL * KILLS
        told_of_loss = [e for e in supervised.events("supervisor:error") if e["context"] == "events-lost"]
        counted = sum(int(e["error"].split(" ")[2]) for e in told_of_loss if e["error"].startswith("the last "))
        assert lost <= counted <= 4 * (lost + KILLS), "each checkpoint has two events, each run two more"
        assert len(told_of_loss) <= KILLS
        for pid, heard in log.sequences.items():
            assert heard == len(log.numbers[pid]), f"what {pid} told has a gap"
        print(f"{KILLS} kills, {stored} checkpoints, {lost} of their events lost; {counted} events counted as lost")


def kill_one(pids: list[int], chance: random.Random) -> bool:
    """Kill one of several; False if there is none, or it has just been killed and that is not told yet."""
    try:
        os.kill(chance.choice(pids), signal.SIGKILL)
    except (IndexError, ProcessLookupError):
        return False
    return True


class Follow:
    """
    Reads the log as it grows.

    Args:
        supervised: Whose log.
    """

    def __init__(self, supervised: Supervised) -> None:
        self._supervised = supervised
        self._position = 0
        self._ready: dict[str, int] = {}
        self.told = self.checkpoints = 0
        # By pid: the highest sequence, and all that came.
        self.sequences: dict[int, int] = {}
        self.numbers: dict[int, set[int]] = {}

    def read(self) -> Follow:
        """Take in what has come."""
        lines, self._position = self._supervised.lines_from(self._position)
        for line in lines:
            if "sequence" not in line:
                continue
            pid = line["process"]["pid"]
            self.told += 1
            self.sequences[pid] = max(line["sequence"], self.sequences.get(pid, 0))
            self.numbers.setdefault(pid, set()).add(line["sequence"])
            match line["event"]:
                case "step:complete":
                    self.checkpoints += 1
                case "worker:start":
                    self._ready[line["process"]["worker_id"]] = pid
                case "worker:exit":
                    self._ready.pop(line["lost_worker"], None)
        return self

    def alive(self) -> list[int]:
        """Give the pids of the workers that are at work."""
        return list(self.read()._ready.values())
