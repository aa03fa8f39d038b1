"""Milliseconds from the call of `trigger` to the job's first line, in a worker of an idle supervisor of four."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

from rich.progress import track

from tests.benchmarks.bare import Bare
from tests.benchmarks.common import Report, quantile
from tests.benchmarks.supervised import Supervised

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

_WORKERS = 4
_SETTLE_SECONDS = 2.0
_LEAST_PAUSE, _LONGEST_PAUSE = 0.02, 0.15
# Wakes for each byte and tells when; monotonic_ns is CLOCK_MONOTONIC, one clock for all processes.
ECHO = "import os, time\nwhile os.read(0, 1): os.write(1, b'%d\\n' % time.monotonic_ns())"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--triggers", type=int, default=200, help="in each round")


def measure(options: argparse.Namespace, report: Report, folder: Path) -> None:
    rounds, triggers = (1, 30) if options.quick else (options.rounds, options.triggers)
    for number in track(range(rounds), "latency", transient=True):
        called, returned, reference = _measure_round(folder / f"round-{number}", triggers)
        report.rounds.append({"from_call_ms": called, "from_return_ms": returned, "bare_ms": reference})
        shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
        for name, share in shares.items():
            bare = f"bare: commit, pipe, wake, {name}"
            report.add(bare, "ms", quantile(reference, share))
            report.add(f"trigger to first line, {name}", "ms", quantile(called, share), over=bare)
        report.add("trigger's return to first line, p50", "ms", quantile(returned, 0.5))


def _measure_round(folder: Path, triggers: int) -> tuple[list[float], list[float], list[float]]:
    with (
        Supervised(folder, workers=_WORKERS) as supervised,
        closing(Bare(folder / "bare.db")) as bare,
        subprocess.Popen((sys.executable, "-c", ECHO), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as echo,
    ):
        supervised.wait_for("worker:start", _WORKERS)
        time.sleep(_SETTLE_SECONDS)
        app = supervised.client()
        handle = app.get_job("stamp")
        assert handle is not None
        handle.trigger_and_wait()  # opens the connection
        stamps, reference = [], []
        for number in range(triggers):
            time.sleep(random.uniform(_LEAST_PAUSE, _LONGEST_PAUSE))
            before = time.monotonic_ns()
            run = handle.trigger()
            stamps.append((run.id, before, time.monotonic_ns()))
            time.sleep(random.uniform(_LEAST_PAUSE, _LONGEST_PAUSE))
            reference.append(bare_wake(bare, echo, number))
        ended = [(app.wait_for_run(run_id, timeout=30).output, *times) for run_id, *times in stamps]
        assert echo.stdin is not None
        echo.stdin.close()
    called = [(first_line - before) / 1e6 for first_line, before, _ in ended]
    returned = [(first_line - after) / 1e6 for first_line, _, after in ended]
    return called, returned, reference


def bare_wake(bare: Bare, echo: subprocess.Popen[bytes], number: int) -> float:
    """Commit one row and wake a process that sleeps on a pipe: the least that the way can cost."""
    assert echo.stdin is not None
    assert echo.stdout is not None
    before = time.monotonic_ns()
    bare.trigger(number, 1)
    echo.stdin.write(b".")
    echo.stdin.flush()
    return (int(echo.stdout.readline()) - before) / 1e6
