"""Runs a second of a backlog, from the first run:start to the last run:complete, against bare sqlite3."""

from __future__ import annotations

import shutil
import time
from datetime import datetime
from itertools import product
from typing import TYPE_CHECKING, Any

from rich.progress import track

from tests.benchmarks import bare
from tests.benchmarks.common import Report, commas
from tests.benchmarks.supervised import Supervised, cpu_seconds

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

_RUNS = {1: 5_000, 10: 600}
_QUICK_RUNS = {1: 1_000, 10: 100}
_BATCH = 1_000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", type=commas(str, ("sync", "async")), default=["async", "sync"])
    parser.add_argument("--steps", type=commas(int, tuple(_RUNS)), default=list(_RUNS))
    parser.add_argument("--workers", type=commas(int), default=[1, 2, 4])
    parser.add_argument("--synchronous", type=commas(str, ("normal", "full")), default=["normal", "full"])
    parser.add_argument("--concurrency", type=int, default=32)


def measure(options: argparse.Namespace, report: Report, folder: Path) -> None:
    runs = _QUICK_RUNS if options.quick else _RUNS
    outer = list(product(range(1 if options.quick else options.rounds), options.synchronous, options.steps))
    for number, synchronous, steps in track(outer, "throughput", transient=True):
        fact: dict[str, Any] = {"round": number, "synchronous": synchronous, "steps": steps}
        reference = f"bare sqlite3, {steps} step, {synchronous}"
        # The reference before and after, for the machine may have changed meanwhile.
        before = bare.runs_per_second(folder / "before.db", synchronous, runs[steps], steps)
        found = {
            (kind, workers): measure_one(
                folder / "jobs",
                runs[steps],
                f"{kind}-{steps}",
                workers=workers,
                concurrency=options.concurrency,
                synchronous=synchronous,
            )
            for kind, workers in product(options.kinds, options.workers)
        }
        after = bare.runs_per_second(folder / "after.db", synchronous, runs[steps], steps)
        for file in folder.glob("*.db*"):
            file.unlink()
        report.add(reference, "runs/s", (before + after) / 2)
        report.rounds.append(fact | {"bare_before": before, "bare_after": after})
        for (kind, workers), one in found.items():
            name = f"{kind}, {steps} step, {synchronous}, {workers} worker"
            report.add(name, "runs/s", one["runs_per_second"], over=reference)
            report.rounds.append(fact | {"kind": kind, "workers": workers} | one)
    lost = sum(entry.get("events_lost", 0) for entry in report.rounds)
    report.notes.append(f"events that did not reach the log: {lost}")


def measure_one(folder: Path, count: int, job: str, **settings: Any) -> dict[str, Any]:
    """
    Have a supervisor execute a backlog.

    Args:
        folder: Made here, and removed.
        count: Runs of the backlog.
        job: Its job.
        settings: Of the supervisor, and `url`.
    """
    supervised = Supervised(folder, until_idle=True, **settings)
    app = supervised.client()
    app.migrate()
    handle = app.get_job(job)
    assert handle is not None
    for first in range(0, count, _BATCH):
        handle.batch_trigger(range(first, min(first + _BATCH, count)))
    with supervised:
        supervisor_seconds = _watch(supervised)
        supervised.wait_for_end(timeout=600)
    completed = len(app.get_runs(status="completed"))
    shutil.rmtree(folder)
    if completed != count:
        raise RuntimeError(f"{completed} of {count} runs completed")
    began = _times(supervised, "supervisor:start")[0]
    first_run, last_run = min(_times(supervised, "run:start")), max(_times(supervised, "run:complete"))
    told = [len(supervised.of(event)) for event in ("run:start", "run:complete")]
    return {
        "runs": count,
        "seconds": last_run - first_run,
        "runs_per_second": count / (last_run - first_run),
        "seconds_from_supervisor_start": last_run - began,
        "supervisor_cpu_seconds": supervisor_seconds,
        "events_lost": 2 * count - sum(told),
    }


def _watch(supervised: Supervised) -> float:
    """Follow the supervisor's processor time until it ends."""
    spent = 0.0
    while supervised.is_running:
        spent = max(spent, cpu_seconds([supervised.pid]))
        time.sleep(0.1)
    return spent


def _times(supervised: Supervised, event: str) -> list[float]:
    return [datetime.fromisoformat(line["timestamp"]).timestamp() for line in supervised.of(event)]
