"""Runs a second and milliseconds from trigger to start on each dialect, side by side with its bare driver."""

from __future__ import annotations

import random
import time
from contextlib import closing
from typing import TYPE_CHECKING

from rich.progress import track

from tests.benchmarks.bare import Bare, BarePostgreSQL, execute_backlog
from tests.benchmarks.common import Report, commas, quantile
from tests.benchmarks.supervised import Supervised
from tests.benchmarks.throughput import measure_one
from tests.databases import PostgreSQLServer

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

_DIALECTS = ("sqlite", "postgresql")
_RUNS, _QUICK_RUNS = 4_000, 500
_TRIGGERS, _QUICK_TRIGGERS = 100, 20
_SETTLE_SECONDS = 2.0
_LEAST_PAUSE, _LONGEST_PAUSE = 0.02, 0.15


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=commas(str, _DIALECTS), default=list(_DIALECTS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=32)


def measure(options: argparse.Namespace, report: Report, folder: Path) -> None:
    runs, triggers = (_QUICK_RUNS, _QUICK_TRIGGERS) if options.quick else (_RUNS, _TRIGGERS)
    server = PostgreSQLServer(is_durable=True) if "postgresql" in options.only else None
    rounds = range(1 if options.quick else options.rounds)
    try:
        for number in track(rounds, "dialects", transient=True):
            for dialect in options.only:
                place = folder / f"{dialect}-{number}"
                place.mkdir()
                _measure_one(dialect, place, server, runs, triggers, options, report)
    finally:
        if server is not None:
            server.clean()
            server.close()


def _measure_one(
    dialect: str,
    place: Path,
    server: PostgreSQLServer | None,
    runs: int,
    triggers: int,
    options: argparse.Namespace,
    report: Report,
) -> None:
    def fresh(name: str) -> str | None:
        return None if server is None or dialect == "sqlite" else server.fresh_url(place, name)

    def bare(name: str) -> float:
        url = fresh(name)
        with closing(Bare(place / f"{name}.db") if url is None else BarePostgreSQL(url)) as one:
            return execute_backlog(one, runs, steps=1)

    # The reference before and after, for the machine may have changed meanwhile.
    before = bare("before")
    found = measure_one(
        place / "jobs",
        runs,
        "async-1",
        url=fresh("jobs"),
        workers=options.workers,
        concurrency=options.concurrency,
    )
    after = bare("after")
    report.add(f"{dialect}: bare driver, one connection", "runs/s", (before + after) / 2)
    reference = f"{dialect}: bare driver, one connection"
    report.add(f"{dialect}: durably, async, 1 step", "runs/s", found["runs_per_second"], over=reference)
    report.rounds.append({"dialect": dialect, "bare_before": before, "bare_after": after} | found)
    waits = _latencies(place / "latency", fresh("latency"), triggers, options.workers)
    for name, share in {"p50": 0.5, "p99": 0.99}.items():
        report.add(f"{dialect}: trigger to first line, {name}", "ms", quantile(waits, share))


def _latencies(folder: Path, url: str | None, triggers: int, workers: int) -> list[float]:
    with Supervised(folder, url=url, workers=workers) as supervised:
        supervised.wait_for("worker:start", workers)
        time.sleep(_SETTLE_SECONDS)
        app = supervised.client()
        handle = app.get_job("stamp")
        assert handle is not None
        handle.trigger_and_wait()  # opens the connection
        stamps = []
        for _ in range(triggers):
            time.sleep(random.uniform(_LEAST_PAUSE, _LONGEST_PAUSE))
            before = time.monotonic_ns()
            stamps.append((handle.trigger().id, before))
        waits = [(app.wait_for_run(run_id, timeout=30).output - before) / 1e6 for run_id, before in stamps]
        app.database.close()
    return waits
