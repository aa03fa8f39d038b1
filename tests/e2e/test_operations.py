"""What docs/operations.md tells an operator to type does what it says."""

import re
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import make_url

from durably import Durably
from durably.testing.dialects.suite.support import eventually
from tests.e2e.harness import Supervised

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


@pytest.mark.own("sqlite")
def test_a_backup_taken_under_load_is_whole_and_its_runs_are_resumed_after_their_checkpoints(tmp_path: Path) -> None:
    # contract 64, 66
    (command,) = re.findall(r"^python3 (-c .*) shop\.db backup\.db$", PAGE, re.MULTILINE)
    for folder in ("there", "restored"):
        (tmp_path / folder).mkdir()
    with Supervised(tmp_path / "there", workers=2) as supervised:
        ids = supervised.trigger("count", *[20] * 20)
        eventually(lambda: supervised.journal.read_text().count("\n") > 40, timeout=30)
        there, backup = str(make_url(supervised.url).database), str(tmp_path / "restored" / "runs.db")
        subprocess.run([sys.executable, *shlex.split(command), there, backup], check=True)
    with closing(sqlite3.connect(backup)) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    url = f"sqlite:///{backup}"
    restored = Durably(url)
    kept = {(run_id, step.name) for run_id in ids for step in restored.get_steps(run_id)}
    assert 0 < len(kept) < 400
    with Supervised(tmp_path / "restored", url=url, workers=2) as supervised:
        assert {restored.wait_for_run(run_id, timeout=60).output for run_id in ids} == {20}
        again = {tuple(line.split()[:2]) for line in supervised.journal.read_text().splitlines()}
    assert not {(run_id, name.removeprefix("step ")) for run_id, name in kept} & again
    restored.database.close()


def test_each_command_and_setting_that_the_page_names_exists() -> None:
    commands = set(re.findall(r"`durably ([a-z]+)", PAGE))
    assert {"supervise", "doctor", "status", "copy"} <= commands
    helped = subprocess.run(
        [sys.executable, "-m", "durably", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert [name for name in commands if not re.search(rf"^. {name}\b", helped, re.MULTILINE)] == []
    options = set(re.findall(r"`(?:durably supervise )?(--[a-z-]+)", PAGE)) - {"--older-than", "--from", "--to"}
    of_supervise = subprocess.run(
        [sys.executable, "-m", "durably", "supervise", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert [name for name in options if name not in of_supervise] == []
