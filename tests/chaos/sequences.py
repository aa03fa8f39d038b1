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
    parts: list[list[tuple[dict[str, Any], int]]] = []
    supervisor: int | None = None
    # Over all of the log: a keeper that recovers at the start is heard before its supervisor tells of the start.
    last: dict[int, int] = {}
    for event in log:
        process, sequence = event["process"], event["sequence"]
        # Its first event may be another one than its start: an error of the start, say.
        if process["role"] == "supervisor" and process["pid"] != supervisor and sequence == 1:
            supervisor = process["pid"]
            parts.append([])
        if not parts:
            parts.append([])
        # A process begins at 1, also one with the number of an earlier one.
        parts[-1].append((event, 1 if sequence == 1 else sequence - last.get(process["pid"], 0)))
        last[process["pid"]] = sequence
    return [_measure(part) for part in parts]


def _measure(events: list[tuple[dict[str, Any], int]]) -> Life:
    lost = [e for e, _ in events if e["event"] == "supervisor:error" and e["context"] == "events-lost"]
    return Life(
        missing=sum(max(0, step - 1) for _, step in events),
        counted=sum(count_of(each["error"]) for each in lost),
        is_whole=any(event["event"] == "supervisor:stop" for event, _ in events),
        is_ordered=all(step > 0 for _, step in events),
    )


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
