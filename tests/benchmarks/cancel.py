"""Milliseconds from the call of `cancel` to the firing of the step's token, in a worker of a supervisor of four."""

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
from tests.benchmarks.latency import ECHO, bare_wake
from tests.benchmarks.supervised import Supervised

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from durably import Durably

_WORKERS = 4
_SETTLE_SECONDS = 2.0
_LEAST_PAUSE, _LONGEST_PAUSE = 0.02, 0.15
_LONGEST_WAIT_SECONDS = 60.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cancels", type=int, default=50, help="in each round")


def measure(options: argparse.Namespace, report: Report, folder: Path) -> None:
    rounds, cancels = (1, 10) if options.quick else (options.rounds, options.cancels)
    for number in track(range(rounds), "cancel", transient=True):
        found, reference = _measure_round(folder / f"round-{number}", cancels)
        report.rounds.append({"ms": found, "bare_ms": reference})
        for name, share in {"p50": 0.5, "p99": 0.99, "max": 1.0}.items():
            bare = f"bare: commit, pipe, wake, {name}"
            report.add(bare, "ms", quantile(reference, share))
            report.add(f"cancel to the token's firing, {name}", "ms", quantile(found, share), over=bare)


def _measure_round(folder: Path, cancels: int) -> tuple[list[float], list[float]]:
    with (
        Supervised(folder, workers=_WORKERS) as supervised,
        closing(Bare(folder / "bare.db")) as bare,
        subprocess.Popen((sys.executable, "-c", ECHO), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as echo,
    ):
        supervised.wait_for("worker:start", _WORKERS)
        time.sleep(_SETTLE_SECONDS)
        app = supervised.client()
        found, reference = [], []
        for number in range(cancels):
            found.append(_cancel_and_wait(app, folder / f"stamp-{number}"))
            reference.append(bare_wake(bare, echo, number))
        assert echo.stdin is not None
        echo.stdin.close()
    return found, reference


def _cancel_and_wait(app: Durably, stamp: Path) -> float:
    handle = app.get_job("cancellee")
    assert handle is not None
    run = handle.trigger(str(stamp))
    _wait_for(stamp, size=0)
    time.sleep(random.uniform(_LEAST_PAUSE, _LONGEST_PAUSE))
    before = time.monotonic_ns()
    app.cancel(run.id)
    _wait_for(stamp, size=1)
    return (int(stamp.read_text(encoding="ascii")) - before) / 1e6


def _wait_for(stamp: Path, size: int) -> None:
    deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
    while not stamp.exists() or stamp.stat().st_size < size:
        if time.monotonic() > deadline:
            raise TimeoutError(stamp)
        time.sleep(0.005)
