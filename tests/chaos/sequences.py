"""Looks for gaps in what each process told, and whether its supervisor has counted them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.chaos.violation import Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.history import History

_COUNT: Final = re.compile(r"(\d+) events of worker ")


class Life(NamedTuple):
    """
    What one supervisor logged, from its start to its end.

    Args:
        missing: Numbers that are missing in sequences, without those at their ends.
        counted: Events that it told to be lost.
        is_whole: Whether it ended by itself, and so had the time to count.
        is_ordered: Whether each process's numbers ascend.
    """

    missing: int
    counted: int
    is_whole: bool
    is_ordered: bool


def lives(log: list[dict[str, Any]]) -> list[Life]:
    """Split a family's log into those of its supervisors."""
    parts: list[list[dict[str, Any]]] = []
    supervisor: int | None = None
    for event in log:
        process = event["process"]
        # Its first event may be another one than its start: an error of the start, say.
        if process["role"] == "supervisor" and process["pid"] != supervisor and event["sequence"] == 1:
            supervisor = process["pid"]
            parts.append([])
        if parts:
            parts[-1].append(event)
    return [_measure(part) for part in parts]


def _measure(events: list[dict[str, Any]]) -> Life:
    last: dict[int, int] = {}
    missing = counted = 0
    is_ordered = True
    for event in events:
        pid, sequence = event["process"]["pid"], event["sequence"]
        step = sequence - last.get(pid, 0)
        is_ordered = is_ordered and step > 0
        missing += max(0, step - 1)
        last[pid] = sequence
        if event["event"] == "supervisor:error" and event["context"] == "events-lost":
            counted += count_of(event["error"])
    return Life(missing, counted, any(e["event"] == "supervisor:stop" for e in events), is_ordered)


def count_of(error: str) -> int:
    """Read how many events a supervisor:error says were lost."""
    found = _COUNT.search(error)
    if found is None:
        raise ValueError(f"no count of lost events in {error!r}")
    return int(found[1])


def check_sequences(history: History) -> Iterator[Violation]:
    """What each process told comes in its order, and every gap is counted."""
    for name, log in history.logs.items():
        for life in lives(log):
            if not life.is_ordered:
                yield Violation("sequence", name, "the events of a process are out of order")
            if life.is_whole and life.missing > life.counted:
                yield Violation("sequence", name, f"{life.missing} events are missing, {life.counted} were counted")
