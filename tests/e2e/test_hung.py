"""Workers that hang are found and replaced; what overruns its timeout fails; who computes is left alone."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from durably import RunFailedError
from durably.testing.dialects.suite.support import eventually
from tests.e2e.harness import Supervised

HANGING = Path(__file__).with_name("hanging.py")
QUICK: dict[str, Any] = {"heartbeat_interval": 0.2, "kill_timeout": 0.5}


def begin_beside(supervised: Supervised, job: str, kind: str) -> tuple[str, str]:
    """Begin a run that hangs, and one beside it in the only worker."""
    supervised.until_ready(1)
    (bystander,) = supervised.trigger("bystander", 3)
    eventually(lambda: [bystander, "standing-by"] in [note[:2] for note in supervised.notes()])
    (culprit,) = supervised.trigger(job, kind)
    return culprit, bystander


def failure_of(supervised: Supervised, run_id: str) -> Any:
    with pytest.raises(RunFailedError) as caught:
        supervised.client.wait_for_run(run_id, timeout=30)
    return caught.value.run


@pytest.mark.parametrize("kind", ["spin", "lock", "sleep"])
def test_a_worker_whose_event_loop_stands_still_is_replaced_and_only_the_culprit_counts_it(
    tmp_path: Path, kind: str
) -> None:
    # contract 165a, 165b
    with Supervised(tmp_path, app=HANGING, workers=1, hang_threshold=1, **QUICK) as supervised:
        culprit, bystander = begin_beside(supervised, "hang-once", kind)
        (suspected,) = eventually(lambda: supervised.events("worker:suspect"))
        assert (suspected["reason"], suspected["run_id"]) == ("hung", culprit)
        assert "in hang" in suspected["stacks"]
        assert 1 <= suspected["seconds"] < 5
        ended = [supervised.client.wait_for_run(run, timeout=30) for run in (culprit, bystander)]
        assert [(run.interruptions, run.attempt) for run in ended] == [(1, 1), (0, 1)]
        (gone,) = [e for e in supervised.events("worker:exit") if e["lost_worker"] == suspected["worker"]]
        assert (gone["reason"], gone["signal"]) == ("hung", "SIGKILL")


def test_a_worker_in_a_call_that_keeps_pythons_lock_is_replaced(tmp_path: Path) -> None:
    # contract 165, 165a
    with Supervised(tmp_path, app=HANGING, workers=1, stale_threshold=1, **QUICK) as supervised:
        supervised.until_ready(1)
        (culprit,) = supervised.trigger("hang-once", "gil")
        (suspected,) = eventually(lambda: supervised.events("worker:suspect"))
        assert suspected["reason"] == "silent"
        assert "in hang" in suspected["stacks"]
        assert supervised.client.wait_for_run(culprit, timeout=30).interruptions == 1


@pytest.mark.parametrize("job", ["overrun", "overrun-loop"])
@pytest.mark.parametrize("kind", ["spin", "gil", "lock", "sleep", "poll"])
def test_a_step_that_cannot_be_cancelled_fails_with_its_timeout_and_costs_nobody_else_anything(
    tmp_path: Path, kind: str, job: str
) -> None:
    # contract 89c, 89d, 89e
    with Supervised(tmp_path, app=HANGING, workers=1, **QUICK) as supervised:
        culprit, bystander = begin_beside(supervised, job, kind)
        run = failure_of(supervised, culprit)
        assert run.error_type == "StepTimeoutError"
        assert run.error == "step 'stuck' took longer than its timeout of 0.3 s"
        assert (run.interruptions, run.generation) == (0, 1)
        failed = [step for step in supervised.client.get_steps(culprit) if step.status == "failed"]
        assert [(step.name, step.attempt, step.error_type) for step in failed] == [("stuck", 1, "StepTimeoutError")]
        assert supervised.client.wait_for_run(bystander, timeout=30).interruptions == 0
        (suspected,) = supervised.events("worker:suspect")
        assert (suspected["reason"], suspected["run_id"], suspected["step_name"]) == ("timeout", culprit, "stuck")
        assert "in hang" in suspected["stacks"]
        (told,) = eventually(lambda: supervised.events("run:fail"))
        assert (told["run_id"], told["failed_step"]) == (culprit, "stuck")
        (gone,) = [e for e in supervised.events("worker:exit") if e["reason"] != "stopped"]
        assert (gone["lost_worker"], gone["reason"]) == (suspected["worker"], "timeout")


def test_a_step_that_is_late_because_another_run_keeps_the_event_loop_is_not_to_blame(tmp_path: Path) -> None:
    # contract 89d, 165b
    with Supervised(tmp_path, app=HANGING, workers=1, hang_threshold=2, **QUICK) as supervised:
        supervised.until_ready(1)
        (awaiting,) = supervised.trigger("await-briefly", 0.5)
        eventually(lambda: [awaiting, "awaiting"] in [note[:2] for note in supervised.notes()])
        (culprit,) = supervised.trigger("hang-once", "sleep")
        ended = [supervised.client.wait_for_run(run, timeout=30) for run in (awaiting, culprit)]
        assert [(run.output, run.interruptions) for run in ended] == [("in time", 0), ("sleep", 1)]
        (gone,) = eventually(lambda: [e for e in supervised.events("worker:exit") if e["signal"]])
        assert gone["reason"] == "hung"


def test_who_keeps_the_event_loop_is_told_before_what_waits_for_it_is_blamed_however_short_kill_timeout_is(
    tmp_path: Path,
) -> None:
    # contract 89d, 165b
    settings: dict[str, Any] = {"hang_threshold": 12, "kill_timeout": 0.3}
    with Supervised(tmp_path, app=HANGING, workers=1, **settings) as supervised:
        supervised.until_ready(1)
        (awaiting,) = supervised.trigger("await-briefly", 0.5)
        eventually(lambda: [awaiting, "awaiting"] in [note[:2] for note in supervised.notes()])
        (culprit,) = supervised.trigger("hang-once", "sleep")
        ended = [supervised.client.wait_for_run(run, timeout=40) for run in (awaiting, culprit)]
        assert [(run.output, run.interruptions) for run in ended] == [("in time", 0), ("sleep", 1)]
        (suspected,) = supervised.events("worker:suspect")
        assert (suspected["reason"], suspected["run_id"]) == ("hung", culprit)


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not tell who waits for a lock")
@pytest.mark.parametrize("late", ["nap-briefly", "await-briefly"])
@pytest.mark.parametrize("hog", ["hog-once", "hang-once"])
def test_what_is_late_because_another_run_keeps_pythons_lock_is_not_failed_for_its_timeout(
    tmp_path: Path, hog: str, late: str
) -> None:
    # contract 89d, 89f
    with Supervised(tmp_path, app=HANGING, workers=1, stale_threshold=6, **QUICK) as supervised:
        supervised.until_ready(1)
        (innocent,) = supervised.trigger(late, 1.0)
        eventually(lambda: [note for note in supervised.notes() if note[0] == innocent])
        (culprit,) = supervised.trigger(hog, "gil")
        ended = [supervised.client.wait_for_run(run, timeout=40) for run in (innocent, culprit)]
        assert [(run.output, run.interruptions) for run in ended] == [("in time", 1), ("gil", 1)]
        (suspected,) = supervised.events("worker:suspect")
        assert suspected["reason"] == "silent"
        assert [e["reason"] for e in supervised.events("worker:exit") if e["signal"]] == ["silent"]


def test_what_keeps_pythons_lock_past_its_own_timeout_fails_and_not_what_has_one_too_and_waits(tmp_path: Path) -> None:
    # contract 89d, 89f
    with Supervised(tmp_path, app=HANGING, workers=1, heartbeat_interval=0.2, kill_timeout=3) as supervised:
        supervised.until_ready(1)
        (innocent,) = supervised.trigger("nap-briefly", 1.0)
        eventually(lambda: [note for note in supervised.notes() if note[0] == innocent])
        (culprit,) = supervised.trigger("overrun", "gil")
        assert failure_of(supervised, culprit).error_type == "StepTimeoutError"
        ended = supervised.client.wait_for_run(innocent, timeout=30)
        assert (ended.output, ended.interruptions) == ("in time", 0)


def test_a_run_that_overruns_its_jobs_timeout_between_steps_fails_and_is_not_resumed(tmp_path: Path) -> None:
    # contract 89b, 89d
    with Supervised(tmp_path, app=HANGING, workers=1, **QUICK) as supervised:
        supervised.until_ready(1)
        (run_id,) = supervised.trigger("overlong", "sleep")
        run = failure_of(supervised, run_id)
        assert (run.error_type, run.interruptions) == ("RunTimeoutError", 0)
        assert [step.name for step in supervised.client.get_steps(run_id)] == ["before"]
        supervised.until_ready(1)
        assert len(supervised.notes()) == 1
        assert supervised.client.retry(run_id).status == "pending"


def test_a_step_that_returns_late_but_soon_fails_in_its_own_worker(tmp_path: Path) -> None:
    # contract 89a
    with Supervised(tmp_path, app=HANGING, workers=1, **QUICK) as supervised:
        before = supervised.until_ready(1)
        (run_id,) = supervised.trigger("late", 0.5)
        ended = supervised.client.wait_for_run(run_id, timeout=30)
        assert ended.output == "step 'slow' took longer than its timeout of 0.2 s"
        assert supervised.ready_workers() == before
        assert not supervised.events("worker:suspect")


def test_who_computes_and_gives_signs_of_life_is_left_alone(tmp_path: Path) -> None:
    # contract 165c
    settings: dict[str, Any] = {"heartbeat_interval": 0.5, "stale_threshold": 3, "hang_threshold": 3}
    with Supervised(tmp_path, app=HANGING, workers=1, **settings) as supervised:
        before = supervised.until_ready(1)
        (hog, on_loop) = (*supervised.trigger("compute", 8), *supervised.trigger("compute-on-loop", 1.0))
        for run_id in (hog, on_loop):
            ended = supervised.client.wait_for_run(run_id, timeout=60)
            assert (ended.interruptions, ended.generation) == (0, 1)
        assert supervised.ready_workers() == before
        assert not supervised.events("worker:suspect")


# contract 173
def test_a_kill_in_a_reload_says_nothing_about_a_clean_drain_afterwards(tmp_path: Path) -> None:
    with Supervised(tmp_path, app=HANGING, workers=1, drain_timeout=0.5, **QUICK) as supervised:
        supervised.until_ready(1)
        (run_id,) = supervised.trigger("hang-once", "sleep")
        eventually(lambda: [run_id, "hanging"] in [note[:2] for note in supervised.notes()])
        supervised.process.send_signal(signal.SIGHUP)
        eventually(lambda: [e for e in supervised.events("supervisor:error") if e["context"] == "drain"])
        assert supervised.client.wait_for_run(run_id, timeout=30).interruptions == 0
        supervised.process.terminate()
        assert supervised.wait() == 0


# contract 172a
def test_an_orphan_that_keeps_pythons_lock_ends_too(tmp_path: Path) -> None:
    quick: dict[str, Any] = {
        "stale_threshold": 1,
        "kill_timeout": 0.5,
        "database_timeout": 0.5,
        "heartbeat_interval": 0.2,
    }
    with Supervised(tmp_path, app=HANGING, workers=1, **quick) as supervised:
        ((_, pid),) = supervised.until_ready(1).items()
        worker = psutil.Process(pid)
        (run_id,) = supervised.trigger("hang-once", "gil")
        eventually(lambda: [run_id, "hanging"] in [note[:2] for note in supervised.notes()])
        supervised.process.kill()
        supervised.process.wait(10)
        _, alive = psutil.wait_procs([worker], timeout=20)
        assert alive == []
