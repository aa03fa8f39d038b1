"""Lines a second through channels and log of a supervisor whose two workers say more than it can take."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import orjson
from rich.progress import track

from tests.benchmarks.supervised import Supervised, cpu_seconds

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from tests.benchmarks.common import Report

_WORKERS = 2
_WARM_UP_SECONDS = 1.0
_BARE_LINES = 50_000


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round")


def measure(options: argparse.Namespace, report: Report, folder: Path) -> None:
    rounds, seconds = (1, 1.0) if options.quick else (options.rounds, options.seconds)
    for number in track(range(rounds), "relay", transient=True):
        found = _measure_round(folder / f"round-{number}", seconds)
        report.rounds.append(found)
        report.add("bare: dumps and write, a line each", "lines/s", found["bare_per_second"])
        report.add("relayed", "lines/s", found["per_second"], over="bare: dumps and write, a line each")
        report.add("supervisor's processor while it relays", "% of a core", found["cpu_percent"])
        report.add("relayed per second of its processor", "lines/s", found["per_cpu_second"])


def _measure_round(folder: Path, seconds: float) -> dict[str, Any]:
    with Supervised(folder, workers=_WORKERS) as supervised:
        supervised.wait_for("worker:start", _WORKERS)
        app = supervised.client()
        handle = app.get_job("chatter")
        assert handle is not None
        runs = handle.batch_trigger([seconds + 2 * _WARM_UP_SECONDS] * _WORKERS)
        time.sleep(_WARM_UP_SECONDS)
        began, lines, cpu = time.monotonic(), _count_lines(supervised.log), cpu_seconds([supervised.pid])
        time.sleep(seconds)
        passed = time.monotonic() - began
        lines = _count_lines(supervised.log) - lines
        cpu = cpu_seconds([supervised.pid]) - cpu
        said = sum(app.wait_for_run(run.id, timeout=60).output for run in runs)
    return {
        "per_second": lines / passed,
        "cpu_percent": 100 * cpu / passed,
        "per_cpu_second": lines / cpu,
        "said": said,
        "in_the_log": _count_lines(supervised.log),
        "bare_per_second": _measure_bare(folder / "bare.jsonl", supervised.log),
    }


def _count_lines(log: Path) -> int:
    with log.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _measure_bare(file: Path, log: Path) -> float:
    """Parse, dump and write a line of the same log again and again, one system call each."""
    line = log.read_bytes().splitlines()[-20]
    with file.open("wb", buffering=0) as out:
        began = time.monotonic()
        for _ in range(_BARE_LINES):
            os.write(out.fileno(), orjson.dumps(orjson.loads(line)) + b"\n")
        return _BARE_LINES / (time.monotonic() - began)
