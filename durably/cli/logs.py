"""`durably logs`: what a run's job logged, also while it goes on."""

import contextlib
from typing import TYPE_CHECKING, Annotated, Final

from durably.cli.options import AppOption, DialectUrlOption, JsonOption, RunArgument, flag
from durably.errors import RunCancelledError, RunFailedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from durably.model import LogEntry

EPILOG: Final = """With --json an object for each entry, one to a line.

Examples
  durably logs 01JNG30F5M7C1E9R6XZ4Q7TN2A
  durably logs 7TN2A --follow
  durably logs 7TN2A --json | jq 'select(.level == "error")'
"""


def logs(
    run: RunArgument,
    *,
    follow: Annotated[bool, flag("--follow", "Go on until the run ends.")] = False,
    app: AppOption = None,
    dialect_url: DialectUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a run's log entries, in the order in which they were logged."""
    from durably.cli.application import database, find_run
    from durably.cli.tail import Tail

    show = _print_json if as_json else _print_line
    with database(app, dialect_url) as durably:
        found = find_run(durably, run)
        tail = Tail(durably, found.id)
        _print_new(tail.read, show)
        if not follow or found.is_terminal:
            return
        with contextlib.suppress(RunFailedError, RunCancelledError):  # how it ends is not what was asked
            durably.wait_for_run(found.id, on_log=lambda _entry: _print_new(tail.read, show))
        _print_new(tail.read, show)


def _print_new(read: "Callable[[], list[LogEntry]]", show: "Callable[[LogEntry], None]") -> None:
    for entry in read():
        show(entry)


def _print_line(entry: "LogEntry") -> None:
    from durably.cli.output import emit_rich
    from durably.cli.tail import log_line

    emit_rich(log_line(entry))


def _print_json(entry: "LogEntry") -> None:
    from durably.cli.output import as_dict, compact_json, emit

    emit(compact_json(as_dict(entry)) + "\n")
