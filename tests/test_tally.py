"""What a supervisor counts of its children's events, and what is answered of it."""

from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from durably.settings import load_settings
from durably.supervisor.healthchild import Looks
from durably.supervisor.probes import Answers, Snapshot
from durably.supervisor.tally import BUCKETS, Tally
from durably.telemetry.metrics import Measured, render
from durably.testing.dialects.suite.support import eventually


def completed(job: str, duration: float) -> dict[str, Any]:
    return {"type": "run:complete", "job_name": job, "duration": duration}


def test_each_duration_falls_into_one_bucket() -> None:
    # contract 208
    tally = Tally()
    for seconds in (0.0, 0.01, 0.02, 3_600.0, 4_000.0):
        tally.take(completed("mail", seconds))
    ((labels, numbers, total),) = tally.as_data()["histograms"]["run_seconds"]
    assert labels == ("mail",)
    assert numbers == [2, 1, *[0] * (len(BUCKETS) - 3), 1, 1]
    assert total == pytest.approx(7600.03)


def test_buckets_are_told_added_up_as_prometheus_wants_them() -> None:
    # contract 208
    tally = Tally()
    for seconds in (0.005, 0.02, 7.0):
        tally.take(completed("mail", seconds))
    measured = Measured(buckets=BUCKETS, workers=(), status=None, **tally.as_data())
    body, content_type = render(measured, "text/plain")
    assert content_type.startswith("text/plain")
    buckets = [
        sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if sample.name == "durably_run_seconds_bucket"
    ]
    assert buckets == [1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3]


def test_jobs_beyond_the_bound_share_one_series() -> None:
    # contract 208
    tally = Tally()
    for n in range(250):
        tally.take(completed(f"job {n}", 1.0))
    tally.take(completed("job 0", 1.0))
    series = tally.counters["runs"]
    assert len(series) == 201
    assert series["other", "completed"] == 50
    assert series["job 0", "completed"] == 2


def test_a_run_that_lost_too_many_workers_has_no_duration() -> None:
    # contract 208
    tally = Tally()
    tally.take({"type": "run:fail", "job_name": "mail", "duration": None})
    assert tally.counters["runs"] == {("mail", "failed"): 1}
    assert tally.histograms == {}


def test_without_the_extra_metrics_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    # contract 208
    monkeypatch.setitem(sys.modules, "durably.telemetry.metrics", None)
    status, _, body = Answers(lambda: None).give("/metrics", "")
    assert status == 501
    assert b"durably[metrics]" in body


@pytest.mark.parametrize(
    ("workers", "status", "words"),
    [
        ([], 503, "no worker is ready"),
        ([{"state": "starting", "idle_for": None}], 503, "no worker is ready"),
        ([{"state": "ready", "idle_for": None}], 503, "no worker has looked for work yet"),
        ([{"state": "ready", "idle_for": 31.0}], 503, "for 31 s (the bound is 30 s)"),
        ([{"state": "ready", "idle_for": 31.0}, {"state": "ready", "idle_for": 1.0}], 200, "looks for work"),
    ],
)
def test_consuming_is_judged_by_the_worker_that_was_last_at_work(
    workers: list[dict[str, Any]], status: int, words: str
) -> None:
    # contract 206
    answers = Answers(lambda: None)
    answers.hear(Snapshot(has_begun=True, bound=30.0, workers=workers))
    given, _, body = answers.give("/consuming", "")
    assert given == status
    assert words in body.decode()


def test_a_database_that_takes_its_time_is_waited_for_no_longer_than_two_seconds() -> None:
    # contract 208
    is_back = threading.Event()
    status: Any = object()

    class App:
        settings = load_settings(dialect_url="sqlite:///none.db")

        def reconfigure(self, settings: Any) -> None:
            assert settings.database_timeout == 2.0

        def get_status(self) -> Any:
            is_back.wait(30)
            return status

    looks, plan = Looks(), SimpleNamespace(load=App, overrides={})
    threading.Thread(target=looks.keep_looking, args=(plan,), daemon=True).start()
    began = time.monotonic()
    assert looks.give() is None
    assert 1.9 < time.monotonic() - began < 10
    is_back.set()
    assert eventually(looks.give) is status
