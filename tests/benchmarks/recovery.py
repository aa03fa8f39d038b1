"""Milliseconds from kill -9 of a worker to the next step's start of its run in another, four workers, else idle."""

from __future__ import annotations

import os
import random
import signal
import subprocess
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

    from durably import Durably

_WORKERS = 4
_SETTLE_SECONDS = 2.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kills", type=int, default=10, help="in each round")


def measure(options: argparse.Namespace, report: Report, folder: Path) -> None:
    rounds, kills = (1, 4) if options.quick else (options.rounds, options.kills)
    everything = []
    for number in track(range(rounds), "recovery", transient=True):
        found, reference = _measure_round(folder / f"round-{number}", kills)
        everything += found
        report.rounds.append({"ms": found, "bare_ms": reference})
        for name, share in {"p50": 0.5, "max": 1.0}.items():
            bare = f"bare: kill, reap, two commits, {name}"
            report.add(bare, "ms", quantile(reference, share))
            report.add(f"kill to next step, {name}", "ms", quantile(found, share), over=bare)
    report.notes.append(
        f"of all {len(everything)} kills: median {quantile(everything, 0.5):.1f} ms, worst {max(everything):.1f} ms"
    )


def _measure_round(folder: Path, kills: int) -> tuple[list[float], list[float]]:
    found, reference = [], []
    with (
        Supervised(folder, workers=_WORKERS, concurrency=1, max_interruptions=100) as supervised,
        closing(Bare(folder / "bare.db")) as bare,
    ):
        app = None
        for number in range(kills):
            supervised.wait_for("worker:start", _WORKERS + number)
            app = app or supervised.client()
            _let_all_finish_a_run(app)
            time.sleep(_SETTLE_SECONDS if number == 0 else random.uniform(0.1, 0.5))
            found.append(_kill_and_wait(app))
            reference.append(_bare_kill(bare, number))
    return found, reference


def _let_all_finish_a_run(app: Durably) -> None:
    """Have each of the idle workers finish a run: one that dies young without is replaced only after a pause."""
    handle = app.get_job("filler")
    assert handle is not None
    for run in handle.batch_trigger([None] * _WORKERS):
        app.wait_for_run(run.id, timeout=30)


def _kill_and_wait(app: Durably) -> float:
    handle = app.get_job("victim")
    assert handle is not None
    run = handle.trigger()  # a fresh one for each kill: interrupted twice, a run would execute alone
    while not (steps := app.get_steps(run.id)):
        time.sleep(0.01)
    time.sleep(random.uniform(0.05, 0.3))
    killed = time.monotonic_ns()
    os.kill(steps[0].output, signal.SIGKILL)
    return float(app.wait_for_run(run.id, timeout=120).output - killed) / 1e6


def _bare_kill(bare: Bare, number: int) -> float:
    """Kill a child, reap it, commit twice (recover, claim): the least that it can cost."""
    with subprocess.Popen(("sleep", "60")) as child:
        time.sleep(0.05)
        killed = time.monotonic_ns()
        child.kill()
        child.wait()
    bare.trigger(number, 1)
    bare.claim()
    return (time.monotonic_ns() - killed) / 1e6
