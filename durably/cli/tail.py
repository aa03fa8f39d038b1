"""A run's log entries: read on from where one was, rendered a line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from durably.cli.output import compact_json, text
from durably.store import runs

if TYPE_CHECKING:
    from rich.text import Text

    from durably.client import Durably
    from durably.model import LogEntry

_LEVEL_STYLES: Final = {"debug": "dim", "info": "blue", "warning": "yellow", "error": "red"}


class Tail:
    """
    One reader of a run's log, who has read so far.

    Args:
        durably: Whose database it is in.
        run_id: The run.
    """

    def __init__(self, durably: Durably, run_id: str) -> None:
        self._durably = durably
        self._run_id = run_id
        self._position = 0

    def read(self) -> list[LogEntry]:
        """Read the entries that were committed since the last call, in the order in which they were logged."""
        entries, self._position = self._durably.database.read(
            lambda connection: runs.get_logs(connection, self._run_id, after=self._position)
        )
        return entries


def log_line(entry: LogEntry) -> Text:
    """Render an entry: when (by the clock where this runs), its level, its step, what it says."""
    when = f"{entry.created_at.astimezone():%H:%M:%S.%f}"[:-3]
    line = text(when, "dim")
    line.append(f" {entry.level:<7} ", _LEVEL_STYLES[entry.level])
    if entry.step_name:
        line.append_text(text(f"{entry.step_name}: ", "dim"))
    line.append_text(text(entry.message))
    if entry.data:
        line.append_text(text(f" {compact_json(entry.data)}", "dim"))
    return line
