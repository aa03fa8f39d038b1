"""The page of `durably top`: what fits a terminal of some size, the most urgent first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group

from durably.cli.output import first_line, make_table, status_text, text
from durably.cli.runs import spell_seconds, spell_told
from durably.cli.status import failures_table, keys_table, queues_table, summary
from durably.store.running import read_rate, read_running
from durably.store.status import read_status
from durably.telemetry.units import shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text
    from sqlalchemy import Connection

    from durably.model import Worker
    from durably.status import SystemStatus
    from durably.store.running import RunningRun

_BARS: Final = " ▁▂▃▄▅▆▇█"
_LETTERS: Final = 8
_MAX_NAME: Final = 22
_MAX_HOST: Final = 14
_HEAD_LINES: Final = 6
_AVERAGED_SECONDS: Final = 5
_LINES_OF_A_SECTION: Final = 3
"""An empty one, the heading, and that of the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """
    What a page shows, of one moment.

    Args:
        rate: Runs that ended in each of the last 60 seconds, the oldest first.
    """

    status: SystemStatus
    running: Sequence[RunningRun]
    rate: Sequence[int]


def read_view(connection: Connection, stale_threshold: float) -> View:
    """Read what a page shows, in one transaction."""
    status = read_status(connection, stale_threshold=stale_threshold)
    return View(status=status, running=read_running(connection), rate=read_rate(connection))


def page(view: View, title: Text, *, height: int | None = None) -> Group:
    """
    Lay a page out.

    Args:
        title: Its first line.
        height: Lines that there are; None for as many as it takes.
    """
    status = view.status
    head: list[RenderableType] = [title, *summary(status), _throughput(view.rate)]
    sections = [
        ("workers", _workers_table(status)),
        ("running", _running_table(view.running)),
        ("waiting", queues_table(status)),
        ("keys that runs wait for", keys_table(status)),
        ("failed last", failures_table(status)),
    ]
    shown = [(heading, table) for heading, table in sections if table.row_count]
    rooms = _share([table.row_count for _, table in shown], height)
    parts = head
    for (heading, table), room in zip(shown, rooms, strict=True):
        if room:
            left_out = table.row_count - room
            more = f" ({room} of {table.row_count})" if left_out else ""
            parts += [text(""), text(f"{heading}{more}", "bold"), _cut(table, room)]
    return Group(*parts)


def _share(wanted: Sequence[int], height: int | None) -> list[int]:
    """Share the lines of a page among sections: one row each from the first on, then row by row in turn."""
    if height is None:
        return list(wanted)
    left = height - _HEAD_LINES
    rooms = [0] * len(wanted)
    for n in range(len(wanted)):
        if left > _LINES_OF_A_SECTION:
            rooms[n] = 1
            left -= 1 + _LINES_OF_A_SECTION
    while left > 0 and any(0 < room < want for room, want in zip(rooms, wanted, strict=True)):
        for n, want in enumerate(wanted):
            if left > 0 and 0 < rooms[n] < want:
                rooms[n] += 1
                left -= 1
    return rooms


def _cut(table: Table, rows: int) -> Table:
    """Keep a table's first rows."""
    for column in table.columns:
        column._cells = column._cells[:rows]  # noqa: SLF001 - rich has no other way but to make the table anew
    table.rows = table.rows[:rows]
    return table


def _throughput(rate: Sequence[int]) -> Text:
    most = max(*rate, 1)
    bars = "".join(_BARS[min(len(_BARS) - 1, -(-number * (len(_BARS) - 1) // most))] for number in rate)
    lately = rate[-1 - _AVERAGED_SECONDS : -1]  # the last second is not over
    return text("ended        ", "bold") + text(bars, "green") + text(f" {sum(lately) / len(lately):,.1f}/s")


def _workers_table(status: SystemStatus) -> Table:
    right = {"no_wrap": True, "justify": "right"}
    whole = {"no_wrap": True}
    table = make_table(
        ("supervisor", whole), ("worker", whole), ("host", whole), ("pid", right), ("state", whole),
        ("runs", right), ("heard", right), ("step for", right),
    )  # fmt: skip
    for worker, state in _by_supervisor(status):
        table.add_row(
            text((worker.supervisor_id or "none")[-_LETTERS:]),
            text(worker.id[-_LETTERS:]),
            text(shorten(worker.host, _MAX_HOST)),
            text(worker.pid),
            status_text(state),
            text(f"{worker.running}/{worker.concurrency}"),
            text(spell_seconds(worker.heartbeat_age_seconds)),
            text(spell_seconds(worker.oldest_step_seconds)),
        )
    return table


def _by_supervisor(status: SystemStatus) -> list[tuple[Worker, str]]:
    """Order workers: the silent first, then the siblings beside each other."""
    silent = [(worker, "silent") for worker in status.silent]
    alive = [(worker, "alive") for worker in status.alive]
    return silent + sorted(alive, key=lambda pair: (pair[0].supervisor_id or "", pair[0].id))


def _running_table(running: Sequence[RunningRun]) -> Table:
    cut: dict[str, Any] = {"no_wrap": True, "overflow": "ellipsis"}
    table = make_table(
        ("run", {"no_wrap": True}), ("job", cut), ("worker", {"no_wrap": True}),
        ("for", {"no_wrap": True, "justify": "right"}), ("after step", cut), ("progress", cut),
    )  # fmt: skip
    for run in running:
        table.add_row(
            text(run.run_id[-_LETTERS:]),
            text(shorten(run.job_name, _MAX_NAME)),
            text(run.worker_id[-_LETTERS:]),
            text(spell_seconds(run.running_seconds)),
            text(_spell_step(run)),
            text("" if run.progress is None else shorten(first_line(spell_told(run.progress)), _MAX_NAME)),
        )
    return table


def _spell_step(run: RunningRun) -> str:
    """Tell which step a run is past, with its number from 1 on: which one is under way is in no table."""
    if run.last_step is None or run.last_position is None:
        return ""
    return f"{run.last_position + 1} {shorten(run.last_step, _MAX_NAME)}"
