"""`durably top`: a live view of workers, runs and what waits."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from durably.cli.options import AppOption, DialectUrlOption, flag, parse_interval

if TYPE_CHECKING:
    from rich.text import Text

    from durably.cli.page import View
    from durably.client import Durably

EPILOG: Final = """Keys
  q       Quit; so does Ctrl-C.
  Others  Look at once.

Where stdout is no terminal, it looks and prints once.

Examples
  durably top
  durably top --interval 5s
  durably top --once > view.txt
"""
_LONGEST_TRY_SECONDS: Final = 2.0


def top(
    *,
    interval: Annotated[
        str, typer.Option(metavar="DURATION", help='Time between looks: seconds from 0.5, or such as "1m".')
    ] = "2",
    once: Annotated[bool, flag("--once", "Look and print once.")] = False,
    app: AppOption = None,
    dialect_url: DialectUrlOption = None,
) -> None:
    """Watch workers, their runs and what waits, live."""
    import sys

    from durably.cli.application import database
    from durably.cli.output import emit_rich
    from durably.cli.page import page

    seconds = parse_interval(interval)
    with database(app, dialect_url) as durably:
        view = _look(durably)  # what is wrong from the beginning is an error, not something to wait for
        if once or not sys.stdout.isatty():
            emit_rich(page(view, _title(durably, view)))
        else:
            _watch(durably, view, seconds)


def _look(durably: "Durably") -> "View":
    from durably.cli.page import read_view

    return durably.database.read(lambda connection: read_view(connection, durably.settings.stale_threshold))


def _title(durably: "Durably", view: "View", note: str = "", *, outage: str | None = None) -> "Text":
    from durably.cli.output import text

    when = f"{view.status.read_at.astimezone():%H:%M:%S}"
    if outage is None:
        title = text(f"{when}  {durably.database.dialect.safe_url}  ", "bold") + text(note, "dim")
    else:
        title = text(f"as it was at {when}: {outage}", "bold red")
    title.no_wrap, title.overflow = True, "ellipsis"
    return title


def _watch(durably: "Durably", view: "View", seconds: float) -> None:
    """Show the view until somebody quits; an outage of the database is shown and waited out."""
    import sys

    from rich.live import Live

    from durably.cli.keys import keys
    from durably.cli.output import console_for, first_line
    from durably.cli.page import page
    from durably.errors import DatabaseUnavailableError
    from durably.settings import change_settings

    # A key is not answered while the database is asked.
    timeout = min(durably.settings.database_timeout, _LONGEST_TRY_SECONDS)
    durably.database.close()
    durably.reconfigure(change_settings(durably.settings, database_timeout=timeout))
    console = console_for(sys.stdout)
    outage: str | None = None
    note = f"every {seconds:g} s, q quits"
    with keys() as wait, Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
        while True:
            live.update(page(view, _title(durably, view, note, outage=outage), height=console.height), refresh=True)
            if "q" in wait(seconds).lower():
                return
            try:
                view, outage = _look(durably), None
            except DatabaseUnavailableError as error:
                outage = first_line(str(error))
