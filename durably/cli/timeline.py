"""A run's steps as bars over the time from the run's start to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from durably.cli.output import first_line, make_table, text
from durably.cli.runs import spell_seconds
from durably.words import in_words

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from rich.table import Table

    from durably.model import Step

_BAR: Final = "━"


def timeline(steps: Sequence[Step], start: datetime, end: datetime, *, width: int) -> Table:
    """
    Draw each attempt at a step: when it began and how long it took, relative to the run.

    Args:
        steps: In the order in which they are to be shown.
        start: When the run began.
        end: When it ended, or now.
        width: Cells of the whole time.
    """
    right = {"no_wrap": True, "justify": "right"}
    table = make_table("step", ("began", right), ("took", right), ("", {"no_wrap": True}), ("", {"overflow": "fold"}))
    for step in steps:
        style = "red" if step.status == "failed" else "green"
        again = f" (attempt {step.attempt})" if step.attempt > 1 else ""
        table.add_row(
            text(step.name + again, style if step.status == "failed" else ""),
            text("+" + spell_seconds((step.started_at - start).total_seconds()), "dim"),
            text(spell_seconds((step.completed_at - step.started_at).total_seconds())),
            text(bar(step, start, end, width=width), style),
            text(_error(step), "red"),
        )
    return table


def bar(step: Step, start: datetime, end: datetime, *, width: int) -> str:
    """
    Draw one bar in its place; however short, it is seen.

    Args:
        step: One attempt.
        start: Where the first cell begins.
        end: Where the last cell ends.
        width: From 1.

    Returns:
        Spaces and bar, *width* cells.
    """
    whole = (end - start).total_seconds()
    if whole <= 0:
        return _BAR * width
    begun = (step.started_at - start).total_seconds() / whole
    ended = (step.completed_at - start).total_seconds() / whole
    first = min(max(round(begun * width), 0), width - 1)
    last = min(max(round(ended * width), first + 1), width)
    return (" " * first + _BAR * (last - first)).ljust(width)


def _error(step: Step) -> str:
    return first_line(in_words(step.error_type, step.error)) if step.status == "failed" else ""
