"""Holds the events of a campaign against the legal transitions; those that died with their process are not missed."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Final

from tests.chaos.violation import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.history import History

# How a worker, or for a lost one its keeper, tells that a generation is over.
_ENDS: Final = ("run:complete", "run:fail", "run:release", "run:recover", "run:cancel")
_STATUS: Final = {"run:complete": "completed", "run:fail": "failed"}


def check_transitions(history: History) -> Iterator[Violation]:
    """Each generation starts once and ends once, the terminal one is the last, each checkpoint is told once."""
    events = [event for log in history.logs.values() for event in log if "run_id" in event]
    claims = {(e["run_id"], e["process"]["worker_id"]): e["generation"] for e in events if e["event"] == "run:start"}
    started = Counter((e["run_id"], e["generation"]) for e in events if e["event"] == "run:start")
    for (run, generation), times in started.items():
        if times > 1:
            yield Violation("transition", run, f"generation {generation} started {times} times")
        if run in history.runs and generation > history.runs[run].generation:
            yield Violation(
                "transition", run, f"generation {generation} started, {history.runs[run].generation} stored"
            )
    ends: dict[tuple[str, int], list[str]] = defaultdict(list)
    terminal: dict[str, list[tuple[str, int | None]]] = defaultdict(list)
    for event in events:
        if event["event"] in _ENDS:
            generation = claims.get((event["run_id"], _holder(event)))
            if generation is not None:
                ends[event["run_id"], generation].append(event["event"])
            if event["event"] in _STATUS:
                terminal[event["run_id"]].append((event["event"], generation))
    for (run, generation), told in ends.items():
        if len(told) > 1:
            yield Violation("transition", run, f"generation {generation} ended with {' and '.join(told)}")
    yield from _check_terminal(history, terminal)
    completed = Counter((e["run_id"], e["step_name"]) for e in events if e["event"] == "step:complete")
    stored = {(each.run, each.step) for each in history.checkpoints}
    for (run, step), times in completed.items():
        if times > 1:
            yield Violation("transition", run, f"step {step} was told complete {times} times")
        if (run, step) not in stored:
            yield Violation("transition", run, f"step {step} was told complete and has no checkpoint")


def _holder(event: dict[str, Any]) -> str | None:
    lost: str | None = event.get("lost_worker", event["process"]["worker_id"])
    return lost


def _check_terminal(history: History, terminal: dict[str, list[tuple[str, int | None]]]) -> Iterator[Violation]:
    for run, told in terminal.items():
        if len(told) > 1:
            yield Violation("transition", run, f"it ended {len(told)} times")
        ended, generation = told[0]
        stored = history.runs.get(run)
        if stored is None:
            continue  # another check tells of it
        if stored.status != _STATUS[ended]:
            yield Violation("transition", run, f"{ended} was told of a run that is {stored.status}")
        if generation is not None and generation != stored.generation:
            yield Violation("transition", run, f"{ended} of generation {generation}, and {stored.generation} is stored")
