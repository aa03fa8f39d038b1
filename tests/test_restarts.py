"""A database server that is restarted again and again under load: nobody notices but by waiting."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from durably.testing.dialects.databases import databases
from durably.testing.dialects.suite.support import eventually
from tests.e2e.harness import Supervised

if TYPE_CHECKING:
    from pathlib import Path

    from durably import Run

IS_LONG = bool(os.environ.get("DURABLY_TEST_LONG"))
RESTARTS = 60 if IS_LONG else 3
CALLERS, WORKERS, CONCURRENCY, STEPS = 8, 2, 4, 4
# Of work between two restarts: some 2 seconds.
RUNS_BETWEEN = 120

pytestmark = pytest.mark.own("postgresql", "libsql_server")


@pytest.mark.timeout(1800 if IS_LONG else 180)
def test_a_server_that_is_restarted_every_few_seconds_costs_no_run_no_worker_and_no_caller(tmp_path: Path) -> None:
    # contract 51, 63, 155, 168, 184
    server: Any = databases()
    if server.embedded is None:
        pytest.skip("another server is not ours to restart")
    settings: dict[str, Any] = {
        "heartbeat_interval": 0.5,
        "stale_threshold": 5,
        "polling_interval": 0.1,
        "database_timeout": 20,
        "max_interruptions": 0,  # a run that lost its worker would fail
    }
    supervised = Supervised(tmp_path, "--concurrency", str(CONCURRENCY), workers=WORKERS, **settings)
    done: list[Run] = []
    is_over = threading.Event()
    with supervised, ThreadPoolExecutor(CALLERS) as callers:
        began = supervised.until_ready(WORKERS)
        calls = [callers.submit(call_until, is_over, supervised, done) for _ in range(CALLERS)]
        try:
            for n in range(RESTARTS):
                wait_for_more(done, calls)
                server.embedded.restart(("fast", "immediate")[n % 2])
            wait_for_more(done, calls)
        finally:
            is_over.set()
        for call in calls:
            call.result(60)
        assert supervised.ready_workers() == began
        for unwanted in ("worker:exit", "run:recover", "run:fail"):
            assert not supervised.events(unwanted)
        supervised.process.send_signal(signal.SIGTERM)
        assert supervised.wait() == 0
    assert {(run.status, run.output, run.attempt, run.generation, run.interruptions) for run in done} == {
        ("completed", STEPS, 1, 1, 0)
    }
    assert len(supervised.client.get_runs()) == len(done)
    executed = Counter((run_id, step) for run_id, step, _, _ in supervised.notes())
    assert len(executed) == len(done) * STEPS
    assert set(executed.values()) == {1}
    outages = [e for e in supervised.events("worker:error") if (e["context"], e["severity"]) == ("database", "error")]
    assert len(outages) >= RESTARTS  # each was felt, by the one worker or the other


def call_until(is_over: threading.Event, supervised: Supervised, done: list[Run]) -> None:
    """Trigger a run and wait for its end, again and again."""
    while not is_over.is_set():
        (run_id,) = supervised.trigger("count", STEPS)
        done.append(supervised.client.wait_for_run(run_id, timeout=60))


def wait_for_more(done: list[Run], calls: list[Any]) -> None:
    due = len(done) + RUNS_BETWEEN
    eventually(lambda: len(done) >= due or any(call.done() for call in calls), timeout=60)
    for call in calls:
        if call.done():
            call.result()
