"""What an idle supervisor of four costs: processor, memory, and the time from the command to ready workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from rich.progress import track

from tests.benchmarks.supervised import Supervised, cpu_seconds, memory_mb

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from tests.benchmarks.common import Report

_WORKERS = 4
_FURTHER_WORKERS = 2
_SETTLE_SECONDS = 3.0
_COMMAND = (
    *(sys.executable, "-m", "durably.cli.main", "supervise", "tests.benchmarks.app:durably"),
    *("--log-format", "json"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of idleness in each round")


def measure(options: argparse.Namespace, report: Report, folder: Path) -> None:
    rounds, seconds = (1, 3.0) if options.quick else (options.rounds, options.seconds)
    for number in track(range(rounds), "idle", transient=True):
        import_seconds, bare_mb = _measure_bare()
        with Supervised(folder / f"round-{number}", command=_COMMAND, workers=_WORKERS) as supervised:
            began = time.monotonic()
            supervised.wait_for("worker:start", _WORKERS)
            ready_seconds = time.monotonic() - began
            time.sleep(_SETTLE_SECONDS)
            cpu = _measure_cpu(supervised, seconds)
            memory = _measure_memory(supervised)
            further = _measure_further_worker(supervised, memory)
        _add(report, cpu, memory, bare_mb)
        report.add("PSS of all per further worker", "MB", further, over="PSS of a bare Python")
        report.add("python -c 'import durably'", "s", import_seconds)
        report.add("command to all workers ready", "s", ready_seconds, over="python -c 'import durably'")
        report.rounds.append(
            {"cpu_percent": cpu, "memory_mb": memory, "further_mb": further, "ready_seconds": ready_seconds}
        )


def _add(report: Report, cpu: dict[str, float], memory: dict[str, Any], bare_mb: float) -> None:
    for role, percent in cpu.items():
        report.add(f"processor, {role}", "% of a core", percent)
    report.add("processor, all", "% of a core", sum(cpu.values()))
    report.add("PSS of a bare Python", "MB", bare_mb)
    for role, sizes in memory.items():
        for kind, index in (("PSS", 0), ("private", 1)):
            mean = sum(size[index] for size in sizes) / len(sizes)
            report.add(f"{kind}, {role}", "MB", mean, over="PSS of a bare Python")


def _measure_bare() -> tuple[float, float]:
    """Time an interpreter that imports durably, and weigh one that imports nothing."""
    began = time.monotonic()
    subprocess.run((sys.executable, "-c", "import durably"), check=True)
    import_seconds = time.monotonic() - began
    with subprocess.Popen((sys.executable, "-c", "input()"), stdin=subprocess.PIPE) as bare:
        time.sleep(0.3)
        pss, _ = memory_mb(bare.pid)
        bare.kill()
    return import_seconds, pss


def _measure_cpu(supervised: Supervised, seconds: float) -> dict[str, float]:
    pids = {role: [p.pid for p in found] for role, found in supervised.processes().items()}
    began, before = time.monotonic(), {role: cpu_seconds(found) for role, found in pids.items()}
    time.sleep(seconds)
    passed = time.monotonic() - began
    return {role: 100 * (cpu_seconds(found) - before[role]) / passed for role, found in pids.items()}


def _measure_memory(supervised: Supervised) -> dict[str, list[tuple[float, float]]]:
    return {role: [memory_mb(p.pid) for p in found] for role, found in supervised.processes().items()}


def _measure_further_worker(supervised: Supervised, before: dict[str, list[tuple[float, float]]]) -> float:
    """Add workers by SIGTTIN, and see how much all processes together grow by each."""
    for number in range(_FURTHER_WORKERS):
        os.kill(supervised.pid, signal.SIGTTIN)
        supervised.wait_for("worker:start", _WORKERS + number + 1)
    time.sleep(_SETTLE_SECONDS)
    after = _measure_memory(supervised)
    return (_total_pss(after) - _total_pss(before)) / _FURTHER_WORKERS


def _total_pss(memory: dict[str, list[tuple[float, float]]]) -> float:
    return sum(pss for sizes in memory.values() for pss, _ in sizes)
