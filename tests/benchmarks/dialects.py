"""Runs a second and milliseconds from trigger to start on each dialect, side by side with its bare driver."""

from __future__ import annotations

import random
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import track
from sqlalchemy import make_url

from durably.testing.dialects import Databases, SQLiteFiles
from tests.benchmarks.bare import Bare, BareLibSQLFile, BareLibSQLServer, BarePostgreSQL, execute_backlog
from tests.benchmarks.common import Report, commas, quantile
from tests.benchmarks.supervised import Supervised
from tests.benchmarks.throughput import measure_one
from tests.databases import LibSQLFiles, PostgreSQLServer
from tests.sqld import LibSQLServer

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

_DIALECTS: dict[str, Callable[[], Databases]] = {
    "sqlite": SQLiteFiles,
    "postgresql": partial(PostgreSQLServer, is_durable=True),
    "libsql-file": LibSQLFiles,
    "libsql-server": LibSQLServer,
}
_RUNS, _QUICK_RUNS = 4_000, 500
_TRIGGERS, _QUICK_TRIGGERS = 100, 20
_SETTLE_SECONDS = 2.0
_LEAST_PAUSE, _LONGEST_PAUSE = 0.02, 0.15


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=commas(str, tuple(_DIALECTS)), default=list(_DIALECTS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=32)


def measure(options: argparse.Namespace, report: Report, folder: Path) -> None:
    runs, triggers = (_QUICK_RUNS, _QUICK_TRIGGERS) if options.quick else (_RUNS, _TRIGGERS)
    makers = {dialect: _DIALECTS[dialect]() for dialect in options.only}
    rounds = range(1 if options.quick else options.rounds)
    try:
        for number in track(rounds, "dialects", transient=True):
            for dialect, maker in makers.items():
                place = folder / f"{dialect}-{number}"
                place.mkdir()
                _measure_one(dialect, place, maker, runs, triggers, options, report)
    finally:
        for maker in makers.values():
            maker.clean()
            maker.close()


def _measure_one(
    dialect: str,
    place: Path,
    maker: Databases,
    runs: int,
    triggers: int,
    options: argparse.Namespace,
    report: Report,
) -> None:
    def bare(name: str) -> float:
        maker.clean()
        with closing(_bare(maker, maker.fresh_url(place, name))) as one:
            return execute_backlog(one, runs, steps=1)

    # The reference before and after, for the machine may have changed meanwhile.
    before = bare("before")
    maker.clean()
    found = measure_one(
        place / "jobs",
        runs,
        "async-1",
        url=maker.fresh_url(place, "database"),
        workers=options.workers,
        concurrency=options.concurrency,
    )
    after = bare("after")
    report.add(f"{dialect}: bare driver, one connection", "runs/s", (before + after) / 2)
    reference = f"{dialect}: bare driver, one connection"
    report.add(f"{dialect}: durably, async, 1 step", "runs/s", found["runs_per_second"], over=reference)
    report.rounds.append({"dialect": dialect, "bare_before": before, "bare_after": after} | found)
    maker.clean()
    waits = _latencies(place / "latency", maker.fresh_url(place, "waits"), triggers, options.workers)
    for name, share in {"p50": 0.5, "p99": 0.99}.items():
        report.add(f"{dialect}: trigger to first line, {name}", "ms", quantile(waits, share))


def _bare(maker: Databases, url: str) -> Bare:
    """Open one connection of the driver alone."""
    match maker:
        case PostgreSQLServer():
            return BarePostgreSQL(url)
        case LibSQLServer():
            return BareLibSQLServer(maker.connect())
        case LibSQLFiles():
            return BareLibSQLFile(Path(str(make_url(url).database)))
        case _:
            return Bare(Path(str(make_url(url).database)))


def _latencies(folder: Path, url: str, triggers: int, workers: int) -> list[float]:
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
