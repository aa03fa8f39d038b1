"""Workers are killed at random moments; nothing that was checkpointed runs again, and everything completes."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from durably.testing.dialects.suite.support import eventually
from tests.e2e.harness import Supervised

if TYPE_CHECKING:
    from pathlib import Path

IS_LONG = bool(os.environ.get("DURABLY_TEST_LONG"))
KILLS = 500 if IS_LONG else 50
SEED = int(os.environ.get("DURABLY_TEST_SEED", "20261123"))


@pytest.mark.timeout(1800 if IS_LONG else 180)
# contract 43, 50, 61, 64, 70, 73
def test_no_checkpointed_step_runs_again_however_often_workers_are_killed(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    supervised = Supervised(tmp_path, workers=4, max_interruptions=10_000, isolate_after=10_000)
    runs = supervised.trigger("count", *[20] * (KILLS * 4))
    with supervised:
        supervised.until_ready(4)
        for _ in range(KILLS):
            seen = len(supervised.notes())
            alive = eventually(supervised.children, timeout=60)
            os.kill(chance.choice(alive).pid, signal.SIGKILL)
            # The next one dies after some more steps, wherever it is then; or, all work done, at once.
            more = chance.randrange(1, 40)
            eventually(lambda seen=seen, more=more: progress_or_end(supervised, seen + more, runs), timeout=60)  # type: ignore[misc]
        eventually(lambda: all_completed(supervised, len(runs)), timeout=120)
    with supervised.client.database.reading() as connection:
        stored = connection.execute(text("SELECT run_id, name, count(*) FROM durably_steps GROUP BY 1, 2")).all()
        assert {count for _, _, count in stored} == {1}
        assert len(stored) == 20 * len(runs)
        claims = connection.execute(text("SELECT id, generation FROM durably_runs")).all()
        generations = {claim.id: int(claim.generation) for claim in claims}
    executed = Counter((run, step) for run, step, _, _ in supervised.notes())
    # A step may run again only if its worker died before the commit: at most once for each claim of its run.
    assert all(times <= generations[run] for (run, _), times in executed.items())
    # Over all steps, a repetition costs a kill: each worker executes two runs at once, each at one step.
    repeated = sum(times - 1 for times in executed.values())
    assert repeated <= 2 * KILLS
    completed = [line["run_id"] for line in supervised.events("run:complete")]
    assert len(completed) == len(set(completed)), "no run is told completed twice"
    supervised.client.database.close()


def progress_or_end(supervised: Supervised, notes: int, runs: list[str]) -> bool:
    return len(supervised.notes()) >= notes or all_completed(supervised, len(runs))


def all_completed(supervised: Supervised, count: int) -> bool:
    with supervised.client.database.reading() as connection:
        found = connection.execute(text("SELECT count(*) FROM durably_runs WHERE status = 'completed'")).scalar_one()
    return bool(found == count)
