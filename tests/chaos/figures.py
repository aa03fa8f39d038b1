"""What a campaign's history amounts to."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from tests.benchmarks.common import quantile
from tests.chaos.checker import late_beginnings
from tests.chaos.sequences import lives

if TYPE_CHECKING:
    from tests.chaos.history import History
    from tests.chaos.violation import Violation


def figures_of(history: History, violations: list[Violation]) -> dict[str, Any]:
    """Count; times are seconds."""
    broken = Counter(violation.promise for violation in violations)
    what = Counter(witness.what for witness in history.witnesses)
    begun = Counter((witness.run, witness.step) for witness in history.witnesses if witness.what == "began")
    told = [life for log in history.logs.values() for life in lives(log)]
    found: dict[str, Any] = {
        "runs triggered": len(history.asked),
        "runs completed": sum(run.status == "completed" for run in history.runs.values()),
        "runs failed": sum(run.status == "failed" for run in history.runs.values()),
        "runs that were to fail": sum(each.fails_with is not None for each in history.asked),
        "runs lost": broken["lost"],
        "claims": sum(run.generation for run in history.runs.values()),
        "interruptions": sum(run.interruptions for run in history.runs.values()),
        "checkpoints": len(history.checkpoints),
        "steps done twice after a checkpoint": broken["doubled"],
        "steps begun again before a checkpoint": sum(times - 1 for times in begun.values()),
        "steps begun by a superseded execution, and refused": sum(map(len, late_beginnings(history).values())),
        "faults": len(history.faults),
        "processes killed": sum(len(fault.pids) for fault in history.faults if fault.is_kill),
        "processes that exited in a step or commit": what["dying"],
        "workers suspected": sum(e["event"] == "worker:suspect" for log in history.logs.values() for e in log),
        "workers suspected without cause": broken["suspect"],
        "events told": sum(map(len, history.logs.values())),
        "events missing in sequences": sum(life.missing for life in told),
        "events counted as lost": sum(life.counted for life in told),
        "violations": len(violations),
    }
    for cause, times in sorted(recoveries(history).items()):
        for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
            found[f"recovery after {cause}, {name} (s)"] = round(quantile(times, share), 3)
        found[f"recovery after {cause}, runs"] = len(times)
    return found


def faults_by_kind(history: History) -> dict[str, int]:
    return dict(sorted(Counter(fault.kind for fault in history.faults).items()))


def missed_by_kind(history: History) -> dict[str, int]:
    """Count the faults that met nobody, because those for whom they were meant were down just then."""
    return dict(sorted(Counter(fault.kind for fault in history.faults if fault.met_nobody).items()))


def recoveries(history: History) -> dict[str, list[float]]:
    """Give by what killed a worker how long after it each of its runs was executed again, in any worker."""
    deaths: dict[int, list[tuple[float, str]]] = defaultdict(list)
    for fault in history.faults:
        for pid in fault.pids if fault.is_kill else ():
            deaths[pid].append((fault.at, fault.kind))
    for witness in history.witnesses:
        if witness.what == "dying":
            deaths[witness.pid].append((witness.at, "exit"))
    calls: dict[str, dict[int, float]] = defaultdict(dict)
    held: dict[tuple[str, int], tuple[float, str]] = {}
    for witness in history.witnesses:
        if witness.what == "called":
            calls[witness.run][witness.generation] = witness.at
            # In a long campaign a number may be that of several processes, one after the other.
            if ends := [end for end in deaths[witness.pid] if end[0] >= witness.at]:
                held[witness.run, witness.generation] = min(ends)
    times: dict[str, list[float]] = defaultdict(list)
    for (run, generation), (died, cause) in held.items():
        later = [at for after, at in calls[run].items() if after > generation and at > died]
        if later:
            times[cause].append(min(later) - died)
    return times
