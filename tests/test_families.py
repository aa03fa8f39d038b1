"""Several supervisors share a database, and whole families are killed: nothing is lost, doubled or mixed up."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter, defaultdict
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from sqlalchemy import text

from durably.ids import new_id
from durably.store.triggers import NewRun, trigger
from durably.testing.dialects.databases import databases
from durably.testing.dialects.suite.support import eventually
from tests.e2e.harness import Supervised

if TYPE_CHECKING:
    from pathlib import Path

    from durably import Durably

IS_LONG = bool(os.environ.get("DURABLY_TEST_LONG"))
RUNS = 2_000 if IS_LONG else 240
KEYS = 60 if IS_LONG else 24
FAMILIES, WORKERS, CONCURRENCY, STEPS = 3, 2, 4, 3
KILLS = 40 if IS_LONG else 8
SEED = int(os.environ.get("DURABLY_TEST_SEED", "20261125"))
HEARTBEAT, SILENCE = 0.5, 2.0
# Two cores for three supervisors and their workers: what a busy machine adds to what is promised.
SLACK_SECONDS = 3.0


pytestmark = pytest.mark.own("postgresql", "libsql_server")


@pytest.mark.timeout(1800 if IS_LONG else 180)
def test_families_that_are_killed_lose_no_run_and_keep_the_runs_of_a_key_apart(tmp_path: Path) -> None:
    # contract 43, 50, 62, 64, 70, 73, 110, 112
    chance = random.Random(SEED)
    families = begin_families(tmp_path)
    client = families[0].client
    keys = trigger_runs(client)
    killed: dict[str, float] = {}
    with contextlib.ExitStack() as living:
        for family in families:
            living.enter_context(family)
            family.until_ready(WORKERS)
        for n in range(KILLS):
            family = chance.choice(families)
            eventually(family.children, timeout=30)
            killed |= kill(family)
            family.__enter__()
            due = RUNS * (n + 1) // (KILLS + 1)
            eventually(lambda due=due: count_completed(client) >= due, timeout=120)  # type: ignore[misc]
        eventually(lambda: count_completed(client) == RUNS, timeout=300)
        check_checkpoints(client, families)
        check_serial(families, keys)
        delays = recovery_delays(families, killed)
    print(f"\n{len(delays)} workers recovered after {min(delays):.2f} to {max(delays):.2f} s")
    assert max(delays) < SILENCE + HEARTBEAT + SLACK_SECONDS


def begin_families(tmp_path: Path) -> list[Supervised]:
    url = databases().fresh_url(tmp_path, "shared")
    families = []
    for n in range(FAMILIES):
        (folder := tmp_path / f"host-{n}").mkdir()
        settings: dict[str, Any] = {
            "heartbeat_interval": HEARTBEAT,
            "stale_threshold": SILENCE,
            "polling_interval": 0.2,
            "max_interruptions": 10_000,
            "isolate_after": 10_000,
        }
        families.append(Supervised(folder, "--concurrency", str(CONCURRENCY), url=url, workers=WORKERS, **settings))
    return families


def trigger_runs(client: Durably) -> dict[str, str]:
    """Create the runs; give the key of each."""
    wanted = [
        NewRun(id=new_id(), job_name="count", input=str(STEPS), concurrency_key=f"key {n % KEYS}") for n in range(RUNS)
    ]
    client.database.write(lambda c: trigger(c, wanted, client.database.dialect.lock), rings=True)
    return {new.id: str(new.concurrency_key) for new in wanted}


def kill(family: Supervised) -> dict[str, float]:
    """End a supervisor and all its children at once; give when each of its workers died."""
    members = [family.process, *family.children()]
    for member in members:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGKILL)
    died = time.time()
    psutil.wait_procs(members, timeout=10)
    pids = {member.pid for member in members}
    started = family.events("worker:start")
    return {e["process"]["worker_id"]: died for e in started if e["process"]["pid"] in pids}


def count_completed(client: Durably) -> int:
    with client.database.reading() as connection:
        return int(
            connection.execute(text("SELECT count(*) FROM durably_runs WHERE status = 'completed'")).scalar_one()
        )


def check_checkpoints(client: Durably, families: list[Supervised]) -> None:
    with client.database.reading() as connection:
        stored = connection.execute(text("SELECT run_id, name, count(*) FROM durably_steps GROUP BY 1, 2")).all()
        found = connection.execute(text("SELECT id, generation FROM durably_runs")).all()
    assert {count for _, _, count in stored} == {1}
    assert len(stored) == RUNS * STEPS
    generations = {run_id: int(generation) for run_id, generation in found}
    executed = Counter((run, step) for family in families for run, step, _, _ in family.notes())
    assert all(times <= generations[run] for (run, _), times in executed.items())
    assert sum(times - 1 for times in executed.values()) <= KILLS * WORKERS * CONCURRENCY
    completed = Counter(e["run_id"] for family in families for e in family.events("run:complete"))
    assert set(completed.values()) == {1}


def check_serial(families: list[Supervised], keys: dict[str, str]) -> None:
    """Hold it that no two executions of one key's runs overlap."""
    spans: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for family in families:
        for run, _, pid, noted in family.notes():
            spans[keys[run]][run, pid].append(float(noted))
    for executions in spans.values():
        ordered = sorted((min(times), max(times)) for times in executions.values())
        assert all(before[1] <= after[0] for before, after in pairwise(ordered))


def recovery_delays(families: list[Supervised], killed: dict[str, float]) -> list[float]:
    """Give how long after its death each worker was declared dead, by whichever family."""
    told = {
        e["lost_worker"]: datetime.fromisoformat(e["timestamp"]).timestamp()
        for family in families
        for e in family.events("worker:exit")
    }
    return [told[worker] - died for worker, died in killed.items() if worker in told]
