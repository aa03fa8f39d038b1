"""A cancellation reaches the step that runs in another process, soon."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from durably.testing.dialects.suite.support import eventually
from tests.e2e.harness import Supervised

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 15


def test_a_cancelled_runs_step_learns_of_it_within_milliseconds(tmp_path: Path) -> None:
    # contract 93, 94, 95, 96, 98
    took: list[float] = []
    # With such a heartbeat, only the wake-up can be so quick.
    with Supervised(tmp_path, workers=2, heartbeat_interval=20, stale_threshold=60) as supervised:
        supervised.until_ready(2)
        for _ in range(ROUNDS):
            (run,) = supervised.trigger("heed", None)
            eventually(lambda run=run: [run, "heeding"] in [note[:2] for note in supervised.notes()])  # type: ignore[misc]
            began = time.monotonic()
            supervised.client.cancel(run)
            fired = eventually(
                lambda run=run: [
                    float(at) for noted, what, _, at in supervised.notes() if (noted, what) == (run, "fired")
                ]  # type: ignore[misc]
            )
            took.append(fired[0] - began)
        told = eventually(lambda: [e for e in supervised.events("run:cancel") if e["run_id"] == run])
        assert [(e["origin"], e["previous_status"]) for e in told] == [("worker", "running")]
        assert [e["reason"] for e in supervised.events("step:cancel")] == ["cancelled"] * ROUNDS
        assert not [e for e in supervised.events("worker:error") if e["severity"] != "info"]
        assert not any(what == "after" for _, what, _, _ in supervised.notes())
    # Far from the 20 s of the heartbeat; what it takes on an idle machine is a benchmark's to say.
    assert statistics.median(took) < 2
