"""structlog, set up for one process: readable on a terminal, JSON lines in a pipe."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TextIO, cast

import structlog

from durably.errors import ValidationError
from durably.telemetry.console import ConsoleLines
from durably.telemetry.jsonlines import render_json
from durably.telemetry.levels import LEVELS, Level
from durably.telemetry.writer import LineWriter

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

Form = Literal["auto", "json", "console"]
_FORMS: Final = ("auto", "json", "console")
_STDERR: Final = 2
# Owned by `configure_log`: where this process's lines go; None before its first call.
_writer: LineWriter | None = None
# The file that it writes to, if it was given by its path.
_file: Path | None = None


def configure_log(stream: TextIO | Path | None = None, *, form: Form = "auto", level: str = "info") -> None:
    """
    Set the process's log up, in place of what was set up before.

    Loggers and relays that exist already keep writing to where they did: make them after this call.

    Args:
        stream: Where the lines go, or the path of a file to which they are appended; standard output by default.
        form: "json" is one object a line; "console" is for people, in colour on a terminal unless NO_COLOR
            is set; "auto" is "console" on a terminal, else "json".
        level: The lowest level that is logged: debug, info, warning, error or critical.

    Raises:
        ValidationError: There is no such form or level.
        OSError: The file cannot be opened.
    """
    global _writer, _file  # noqa: PLW0603 - a process has one log
    if form not in _FORMS:
        raise ValidationError("form", f"{form!r} is none of {', '.join(_FORMS)}")
    if level not in LEVELS:
        raise ValidationError("level", f"{level!r} is none of {', '.join(LEVELS)}")
    target = _open(stream) if isinstance(stream, Path) else sys.stdout if stream is None else stream
    _file = stream if isinstance(stream, Path) else None
    writer = _writer = LineWriter(target)
    structlog.configure(
        processors=[structlog.processors.format_exc_info, _stamp, _renderer(target, form)],
        wrapper_class=structlog.make_filtering_bound_logger(_number_of(level)),
        logger_factory=lambda *_names: writer,
        cache_logger_on_first_use=True,
    )


def reopen_log() -> Path | None:
    """
    Open the log's file anew, by its path: what whoever rotates it has renamed is written to no more.

    Returns:
        Its path; None if the log goes to a stream.

    Raises:
        OSError: It cannot be opened; the log goes on where it was.
    """
    if _writer is not None and _file is not None:
        _writer.move_to(_open(_file))
    return _file


def leave_log() -> None:
    """
    Give up, in a forked child, the log's file: what the child writes there goes to standard error from now on.

    It would be held open when it has been rotated away, for as long as the child lives.
    """
    if _writer is not None and _file is not None:
        _writer.divert_to(_STDERR)


def _open(path: Path) -> TextIO:
    return path.open("a", encoding="utf-8")


def ensure_log() -> None:
    """Set the log up as `configure_log` does by default, unless the application has configured structlog itself."""
    if not structlog.is_configured():
        configure_log()


def get_logger(name: str = "durably") -> FilteringBoundLogger:
    """
    Give a logger for lines that are no events, bound to the log as it is set up now.

    Args:
        name: Who logs; the lines' field `logger`.
    """
    return cast("FilteringBoundLogger", structlog.get_logger().bind(logger=name))


def lost_lines() -> int:
    """
    Count the lines that the log's stream did not take since `configure_log`.

    Returns:
        0 as long as the stream has a reader and its disk has room.
    """
    return 0 if _writer is None else _writer.lost


def _number_of(level: str) -> int:
    return 10 * (LEVELS.index(cast("Level", level)) + 1)


def _stamp(_logger: WrappedLogger, _method: str, line: EventDict) -> EventDict:
    """Give a line that is no event its time; events bring theirs."""
    if "timestamp" not in line:
        line["timestamp"] = datetime.now(UTC)
    return line


def _renderer(stream: Any, form: Form) -> Processor:
    is_terminal = _is_terminal(stream)
    if form == "json" or (form == "auto" and not is_terminal):
        return render_json
    return ConsoleLines(
        is_coloured=is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
        encoding=getattr(stream, "encoding", None) or "utf-8",
    )


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # no stream at all, or a closed one
        return False
