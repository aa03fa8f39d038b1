"""A short campaign of all faults that are possible here: every promise is kept, and the judge is awake."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from sqlalchemy import make_url

from durably.testing.dialects.databases import database_of, databases
from durably.testing.dialects.suite.support import eventually
from tests.chaos import campaign, figures
from tests.chaos.checker import check
from tests.chaos.faults import KINDS
from tests.databases import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator

IS_LONG = bool(os.environ.get("DURABLY_TEST_LONG"))
SEED = int(os.environ.get("DURABLY_TEST_SEED", "20261126"))
ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.own("sqlite", "postgresql", "libsql_file", "libsql_server")


@pytest.mark.timeout(3600 if IS_LONG else 300)
# contract 43, 50, 52, 61, 62, 64, 65, 66, 69, 70, 73, 89d, 110, 155, 163, 165, 165a, 166, 168, 171, 172, 172a, 184
def test_a_campaign_of_faults_breaks_no_promise(tmp_path: Path) -> None:
    plan = campaign.Plan(seed=SEED, seconds=600 if IS_LONG else 15, pause=0.6)
    outcome = campaign.run(plan, tmp_path)
    history = outcome.history
    violations = check(history)
    found = figures.figures_of(history, violations)
    print(f"\n{found}\n{outcome.hindered}\n{outcome.failures}")
    assert not violations
    # All of them were inflicted, in the order of the seed.
    possible = [kind for kind in KINDS if kind not in outcome.hindered]
    drawn = [fault for fault in plan.schedule() if fault.kind in possible]
    assert [fault.kind for fault in history.faults] == [fault.kind for fault in drawn]
    assert {fault.kind for fault in history.faults} == set(possible)
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


class Program:
    """`python -m tests.chaos`, with a folder of its own for what is temporary."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder / "temporary"
        self.folder.mkdir()
        self._said, self._errors = folder / "said", folder / "errors"
        # A program of its own, which is nobody's test: pytest-xdist tells its processes by the environment.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        with self._said.open("w") as said, self._errors.open("w") as errors:
            self.process = psutil.Popen(
                [sys.executable, "-m", "tests.chaos", *options],
                cwd=ROOT,
                env=inherited | {"TMPDIR": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=errors,
            )

    def outcome(self) -> tuple[int, str, str]:
        """Wait for its end; give its exit code, what it said and what it complained of."""
        code = int(self.process.wait(120))
        return code, self._said.read_text(encoding="utf-8"), self._errors.read_text(encoding="utf-8")

    def family(self) -> list[psutil.Process]:
        """List what lives of all that it has begun."""
        return list(_with_environment("TMPDIR", str(self.folder)))


def _with_environment(name: str, value: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(name) == value:
                yield process
        except psutil.Error:
            continue


@pytest.mark.timeout(180)
def test_the_program_takes_the_url_of_a_database_and_says_what_it_cannot_do_to_it(tmp_path: Path) -> None:
    url = databases().fresh_url(tmp_path)
    if url.startswith("sqlite") and not make_url(url).host:
        Path(database_of(url)).touch()  # it must be there
    kinds = "kill-worker,lock,restart-database,fill-disk"
    program = Program(tmp_path, "--minutes", "0.1", "--dialect", url, "--seed", "1", "--faults", kinds)
    code, said, complained = program.outcome()
    assert (code, complained) == (0, ""), said + complained
    assert "kill-worker" in said
    for kind in ("lock", "restart-database", "fill-disk"):
        assert f"not inflicted: {kind}: " in said
    assert "this was seed 1." in said.lower()
    assert list(program.folder.glob("durably-*")) == []
    assert program.family() == []


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_program_leaves_nothing_behind_when_it_is_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    import tests.databases

    program = Program(tmp_path, "--minutes", "5", "--dialect", tests.databases.chosen)
    # Its supervisors have witnesses: it is in the middle of it.
    eventually(
        lambda: [file for file in program.folder.glob("durably-chaos-*/family-*/journal") if file.stat().st_size],
        timeout=60,
    )
    program.process.send_signal(number)
    code, _, complained = program.outcome()
    assert (code, complained) == (130, ""), complained
    assert list(program.folder.glob("durably-*")) == []
    eventually(lambda: not program.family())


@pytest.mark.own("sqlite")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--minutes", "0"), "argument --minutes: 0 is not above 0"),
        (("--minutes", "nan"), "argument --minutes: nan is not above 0"),
        (("--workers", "0"), "argument --workers: 0 is less than 1"),
        (("--faults", "kill-worker,boredom"), "argument --faults: no such fault: boredom"),
        (("--dialect", "oracle"), f"argument --dialect: oracle is neither a URL nor one of {', '.join(NAMES)}"),
        (("--dialect", "oracle://x/y"), "argument --dialect: "),
        (("--dialect", "postgresql://127.0.0.1:1/x"), "argument --dialect: "),
        (("--folder", "/nowhere"), "argument --folder: /nowhere is no directory"),
    ],
)
def test_wrong_usage_of_the_program_is_told(tmp_path: Path, options: tuple[str, str], reason: str) -> None:
    code, _, complained = Program(tmp_path, *options).outcome()
    assert code == 2
    assert f"python -m tests.chaos: error: {reason}" in complained
    assert "Traceback" not in complained
