"""What commands print: data on stdout, words on stderr; for people on a terminal, for programs in a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

EXIT_CLOSED_PIPE: Final = 141
"""Nobody reads on: what a shell sees of any program that SIGPIPE ends."""
STATUS_STYLES: Final = {
    "pending": "yellow",
    "running": "cyan",
    "completed": "green",
    "failed": "bold red",
    "cancelled": "magenta",
    "alive": "green",
    "silent": "bold yellow",
    "stopped": "dim",
    "dead": "bold red",
    "died": "bold red",
}
_WIDTH_IN_A_PIPE: Final = 10_000


def open_closed_streams() -> None:
    """
    Let what is written to a stream that the process was begun without go nowhere.

    Its descriptor's number, the lowest that is free, is taken too, or the database would get it, and all that jobs
    print there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - stays open
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def say(message: str) -> None:
    """Tell the person something, in one line on stderr that begins with the program's name."""
    with contextlib.suppress(OSError, ValueError):  # nobody listens, and there is nobody to tell that
        sys.stderr.write(f"durably: {printable(message)}\n")
        sys.stderr.flush()


def emit(text: str) -> None:
    """
    Write to stdout, at once.

    Args:
        text: As it is to be, with its last newline.

    Raises:
        typer.Exit: The reader has gone.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        close_stdout()
        raise typer.Exit(EXIT_CLOSED_PIPE) from None


def close_stdout() -> None:
    """Let the interpreter's last flush go nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def emit_json(data: Any) -> None:
    """
    Write records, or lists and dicts of them, as JSON.

    Args:
        data: Times become ISO 8601 text.
    """
    emit(json.dumps(data, indent=2, ensure_ascii=False, default=_as_json) + "\n")


def as_dict(record: Any) -> dict[str, Any]:
    """Give a record's fields by name, in their order."""
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _as_json(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value):
        return as_dict(value)
    raise TypeError(f"{value!r} is no JSON data")


def emit_value(value: Any) -> None:
    """Write JSON data for a person: a text as itself, all else as indented JSON."""
    if isinstance(value, str):
        emit((printable(value) if sys.stdout.isatty() else value) + "\n")
    elif not sys.stdout.isatty():
        emit_json(value)
    else:
        from rich.json import JSON

        emit_rich(JSON.from_data(value, ensure_ascii=False))


def emit_rich(*parts: RenderableType) -> None:
    """Write what rich renders to stdout: in colour on a terminal, else plain, uncut and without trailing spaces."""
    console = console_for(sys.stdout)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    rendered = capture.get()
    if not console.is_terminal:
        rendered = "\n".join(line.rstrip() for line in rendered.split("\n"))
    emit(rendered)


def console_for(stream: TextIO) -> Console:
    """Make a console that colours nothing but a terminal, and not that under NO_COLOR, and takes text literally."""
    from rich.console import Console

    is_terminal = stream.isatty()
    is_coloured = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Console(
        file=stream,
        force_terminal=is_terminal,
        color_system="auto" if is_coloured else None,
        width=None if is_terminal else _WIDTH_IN_A_PIPE,
        highlight=False,
        markup=False,
        emoji=False,
    )


def make_table(*columns: str | tuple[str, Mapping[str, Any]]) -> Table:
    """
    Make a table without lines.

    Args:
        columns: A heading each, with rich's options of the column if it has any.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        heading, options = (column, {}) if isinstance(column, str) else column
        table.add_column(heading, **options)
    return table


def text(value: Any, style: str = "") -> Text:
    """Make a cell of a table, of any text; None is empty."""
    from rich.text import Text

    return Text("" if value is None else printable(str(value)), style=style)


def status_text(status: str) -> Text:
    """Make a cell of a status, in its colour."""
    return text(status, STATUS_STYLES.get(status, ""))


def compact_json(value: Any) -> str:
    """Write JSON data, or a mapping of it, in one line."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_as_json)


def printable(value: str) -> str:
    """Escape what would move a terminal's cursor or colour it, because the text may be anybody's; keep newlines."""
    return "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in value.expandtabs(4))


def first_line(value: str | None) -> str:
    """Give a text's first line that says something."""
    return next((line.strip() for line in (value or "").splitlines() if line.strip()), "")


def join(parts: Iterable[str | None], separator: str = " ") -> str:
    """Join what is there."""
    return separator.join(part for part in parts if part)
