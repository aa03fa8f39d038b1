"""A whole family of processes that was stopped past its recovery, and goes on, changes nothing and works again."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from durably.testing.dialects.suite.support import eventually, stop_between_commits
from tests.e2e.harness import Supervised

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS: dict[str, Any] = {"workers": 1, "heartbeat_interval": 0.2, "stale_threshold": 1.5, "concurrency": 2}


def dump(supervised: Supervised, run_ids: list[str]) -> list[Any]:
    """Read what is stored of runs."""
    client = supervised.client
    return [(client.get_run(run_id), client.get_steps(run_id), client.get_logs(run_id)) for run_id in run_ids]


def test_a_family_whose_runs_were_finished_elsewhere_writes_nothing_and_takes_up_work_again(tmp_path: Path) -> None:
    # contract 50, 52, 57, 58, 59, 62
    (tmp_path / "other").mkdir()
    first = Supervised(tmp_path, **SETTINGS)
    second = Supervised(tmp_path / "other", url=first.url, **SETTINGS)
    with first:
        (zombie,) = first.until_ready(1)
        runs = first.trigger("wait", 1.5, 1.5)
        eventually(lambda: {note[0] for note in first.notes()} == set(runs))
        family = [first.process, *first.children()]
        stop_between_commits(first.url, *family)
        with second:
            ended = [second.client.wait_for_run(run_id, timeout=30) for run_id in runs]
            assert [(run.status, run.interruptions, run.generation) for run in ended] == [("completed", 1, 2)] * 2
            before = dump(second, runs)
            for process in family:
                process.send_signal(signal.SIGCONT)

            def lost() -> set[str]:
                return {e["run_id"] for e in first.events("worker:error") if e["context"] == "lease-lost"}

            eventually(lambda: lost() == set(runs))
            (gone,) = eventually(lambda: [e for e in first.events("worker:exit") if e["lost_worker"] == zombie])
            assert (gone["reason"], gone["exit_code"]) == ("died", 4)
            (successor,) = first.until_ready(1)
            assert successor != zombie
            assert dump(second, runs) == before
            assert not [e for e in first.events("run:complete") if e["run_id"] in runs]
        (new,) = first.trigger("count", 3)
        assert first.client.wait_for_run(new, timeout=20).output == 3
        (told,) = [e for e in first.events("run:start") if e["run_id"] == new]
        assert told["process"]["worker_id"] == successor
