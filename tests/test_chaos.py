"""A short campaign of all faults that are possible here: every promise is kept, and the judge is awake."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.chaos import campaign, figures
from tests.chaos.checker import check
from tests.chaos.faults import KINDS

if TYPE_CHECKING:
    from pathlib import Path

IS_LONG = bool(os.environ.get("DURABLY_TEST_LONG"))
SEED = int(os.environ.get("DURABLY_TEST_SEED", "20261126"))

pytestmark = pytest.mark.own("sqlite", "postgresql")


@pytest.mark.timeout(3600 if IS_LONG else 300)
# contract 43, 50, 52, 61, 62, 64, 65, 66, 69, 70, 73, 89d, 110, 155, 163, 165a, 166, 168, 171, 172, 184
def test_a_campaign_of_faults_breaks_no_promise(tmp_path: Path) -> None:
    # An orphan that keeps Python's lock ends (172a), but not within the campaign's patience.
    kinds = tuple(kind for kind in KINDS if kind != "hang-with-gil")
    plan = campaign.Plan(seed=SEED, seconds=600 if IS_LONG else 15, pause=0.6, kinds=kinds)
    history = campaign.run(plan, tmp_path).history
    violations = check(history)
    found = figures.figures_of(history, violations)
    print(f"\n{found}")
    assert not violations
    assert found["processes killed"] > 0
    assert found["processes that exited in a step or commit"] > 0
    assert found["interruptions"] > 0
    # Of what has really happened too it would have found out a lie.
    (first, *_) = history.checkpoints
    others = {run: row for run, row in history.runs.items() if run != first.run}
    history.runs = others
    assert "lost" in {violation.promise for violation in check(history)}
    history.checkpoints[0] = replace(first, output=first.output | {"generation": 0})
    assert "doubled" in {violation.promise for violation in check(history)}
