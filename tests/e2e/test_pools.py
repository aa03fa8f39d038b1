"""Pools: workers that take only some jobs, so that slow ones do not starve quick ones."""

from __future__ import annotations

import json
import signal
import statistics
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from durably import Durably, ValidationError, define_job
from durably.settings import load_settings
from durably.supervisor.pools import pools_of, warnings_about
from durably.testing.dialects.suite.support import eventually
from tests.e2e.harness import Supervised

if TYPE_CHECKING:
    from durably import Run

POOLED = Path(__file__).with_name("pooled.py")


def finish(supervised: Supervised, runs: list[str]) -> list[Run]:
    return [supervised.client.wait_for_run(run, timeout=60) for run in runs]


def jobs_of_workers(supervised: Supervised) -> list[list[str]]:
    return sorted(e["jobs"] for e in supervised.events("worker:start"))


# contract 161a
def test_slow_jobs_in_a_pool_of_their_own_do_not_hold_up_quick_ones(tmp_path: Path) -> None:
    with Supervised(tmp_path, "--pool", "heavy:1", app=POOLED, workers=1) as supervised:
        supervised.until_ready(2)
        assert jobs_of_workers(supervised) == [["quick"], ["slow"]]
        slow = supervised.trigger("slow", *[1.5] * 3)
        quick = finish(supervised, supervised.trigger("quick", *range(20)))
        assert [run.output for run in quick] == list(range(20))
        assert [run.status for run in map(supervised.client.get_run, slow) if run is not None].count("completed") < 3
        finish(supervised, slow)
        executed = {e["job_name"]: e["process"]["pid"] for e in supervised.events("run:start")}
        assert executed["quick"] != executed["slow"]
        assert {e["pool"] for e in supervised.events("worker:state")} == {"default", "heavy"}
        (start,) = supervised.events("supervisor:start")
        assert start["workers"] == 2


@pytest.mark.wakes
# contract 34, 161a
def test_an_idle_worker_of_any_pool_is_woken_at_once(tmp_path: Path) -> None:
    with Supervised(tmp_path, "--pool", "heavy:2", app=POOLED, workers=2, polling_interval=5) as supervised:
        supervised.until_ready(4)
        waited = []
        for n in range(20):
            job, given = ("slow", 0.01) if n % 2 else ("quick", 1)
            (run,) = finish(supervised, supervised.trigger(job, given))
            assert run.started_at is not None
            waited.append((run.started_at - run.created_at).total_seconds())
        assert statistics.median(waited) < 0.5, waited
        assert max(waited) < 3, waited


# contract 161a, 46
def test_jobs_of_a_pool_without_workers_wait_untouched_and_are_reported(tmp_path: Path) -> None:
    with Supervised(tmp_path, app=POOLED, workers=1, unknown_job_interval=0.5) as supervised:
        supervised.until_ready(1)
        assert jobs_of_workers(supervised) == [["quick"]]
        (at_start,) = [e for e in supervised.events("supervisor:error") if e["context"] == "no-workers"]
        assert "'slow'" in at_start["error"]
        assert "--pool heavy:1" in at_start["error"]
        (slow,) = supervised.trigger("slow", 0.01)
        (reported, *_) = eventually(
            lambda: [e for e in supervised.events("worker:error") if e["context"] == "unknown-jobs"]
        )
        assert "'slow' (1)" in reported["error"]
        run = supervised.client.get_run(slow)
        assert run is not None
        assert (run.status, run.generation) == ("pending", 0)
        with supervised.client.database.reading() as connection:
            (stored,) = connection.execute(text("SELECT jobs FROM durably_workers WHERE state = 'alive'")).scalars()
        assert json.loads(stored) == ["quick"]


# contract 161a, 171
def test_pools_may_be_the_applications_own_setting_and_each_worker_is_replaced_in_its_pool(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(POOLED.read_text().replace("Durably()", 'Durably(pools={"heavy": 1, "default": 2})'))
    with Supervised(tmp_path, app=app, workers=None) as supervised:
        before = supervised.until_ready(3)
        finish(supervised, supervised.trigger("slow", 0.01))
        supervised.process.send_signal(signal.SIGTTIN)
        supervised.until_ready(4)
        supervised.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(now := supervised.ready_workers()) == 4 and not now.keys() & before.keys(), timeout=60)
        jobs = {e["process"]["worker_id"]: e["jobs"] for e in supervised.events("worker:start")}
        now = sorted(jobs[worker] for worker in supervised.ready_workers())
        assert now == [["quick"], ["quick"], ["quick"], ["slow"]]
        finish(supervised, supervised.trigger("slow", 0.01))


MOVING = """
from durably import Durably

durably = Durably()


@durably.job("moves"POOL)
def moves(step, n):
    return n
"""


def keepers(supervised: Supervised) -> list[int]:
    return [child.pid for child in supervised.children() if child.pid not in supervised.ready_workers().values()]


@pytest.mark.wakes
# contract 161a, 171d
def test_after_a_reload_a_job_in_another_pool_wakes_the_workers_of_that_pool(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(MOVING.replace("POOL", ""))
    with Supervised(tmp_path, "--pool", "heavy:1", app=app, workers=1, polling_interval=5) as supervised:
        before = supervised.until_ready(2)
        (keeper,) = keepers(supervised)
        app.write_text(MOVING.replace("POOL", ', pool="heavy"'))
        supervised.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(now := supervised.ready_workers()) == 2 and not now.keys() & before.keys(), timeout=30)
        eventually(lambda: len(keepers(supervised)) == 1)
        assert keepers(supervised) != [keeper]
        (run,) = finish(supervised, supervised.trigger("moves", 7))
        assert run.started_at is not None
        assert (run.started_at - run.created_at).total_seconds() < 3


# contract 161a, 171d
def test_a_reload_warns_of_a_job_that_no_worker_takes_any_more(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(MOVING.replace("POOL", ""))
    with Supervised(tmp_path, app=app, workers=1) as supervised:
        supervised.until_ready(1)
        app.write_text(MOVING.replace("POOL", ', pool="heavy"'))
        supervised.process.send_signal(signal.SIGHUP)
        warned = eventually(lambda: [e["error"] for e in supervised.events("supervisor:error")])
        assert "'heavy' ('moves')" in warned[0]


# contract 161a
def test_until_idle_executes_what_is_pending_in_every_pool(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "--pool", "heavy:1", "--until-idle", app=POOLED, workers=1)
    runs = supervised.trigger("slow", 0.5, 0.5) + supervised.trigger("quick", 1)
    with supervised:
        assert supervised.wait() == 0
        assert [run.output for run in finish(supervised, runs)] == [0.5, 0.5, 1]


def test_a_worker_in_an_application_takes_the_jobs_of_all_pools(app: Durably) -> None:
    # contract 161a
    heavy = app.job("heavy", pool="heavy")(lambda step, _: "done")
    run = heavy.trigger(None)
    assert app.process_one()
    assert app.get_run(run.id).output == "done"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("given", "pools"),
    [
        ({"workers": 3}, {"default": 3}),
        ({"pools": "default:4, heavy:1"}, {"default": 4, "heavy": 1}),
        ({"pools": ["heavy:1"], "workers": 2}, {"default": 2, "heavy": 1}),
        ({"pools": {"heavy": 2}}, {"heavy": 2}),
        ({"pools": {"default": 5}, "workers": 2}, {"default": 5}),
        ({"pools": MappingProxyType({"heavy": 2})}, {"heavy": 2}),
    ],
)
def test_how_many_workers_a_pool_has(given: Any, pools: dict[str, int]) -> None:
    # contract 161a
    assert pools_of(load_settings(**given)) == pools


@pytest.mark.parametrize("wrong", ["heavy", "heavy:0", "heavy:x", "a b:1", "a:1,a:2", {}, {"": 1}, 7, {"a": True}])
def test_pools_that_cannot_be_are_refused(wrong: Any) -> None:
    # contract 161a
    with pytest.raises(ValidationError) as refused:
        load_settings(pools=wrong)
    assert refused.value.field == "pools"
    with pytest.raises(ValidationError) as refused:
        define_job("job", lambda step, input: None, pool="two words")
    assert refused.value.field == "pool"


def test_what_an_operator_is_warned_of() -> None:
    # contract 161a
    assert [context for context, _ in warnings_about({}, {"default": 1})] == ["no-jobs"]
    assert list(warnings_about({"a": "default"}, {"default": 1})) == []
    warned = dict(warnings_about({"a": "heavy"}, {"default": 1}))
    assert "'heavy' ('a')" in warned["no-workers"]
    assert "'default'" in warned["no-jobs"]
