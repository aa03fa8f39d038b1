"""Log entries of a run, a line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from durably.cli.output import compact_json, text

if TYPE_CHECKING:
    from rich.text import Text

    from durably.model import LogEntry

_LEVEL_STYLES: Final = {"debug": "dim", "info": "blue", "warning": "yellow", "error": "red"}


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
