"""`durably purge`: delete runs that ended long ago."""

import sys
import time
from typing import Annotated, Final

import typer

from durably.cli.options import AppOption, DialectUrlOption, JsonOption

EPILOG: Final = """Pending and running runs stay, however old. The setting retain_runs has a
supervisor do this by itself.

Examples
  durably purge --older-than 30d
  durably purge --older-than 12h --limit 1000
"""
# Each is one transaction, which other writers wait for.
_AT_ONCE: Final = 500
_SECONDS_BETWEEN_REPORTS: Final = 1.0


def purge(
    *,
    older_than: Annotated[
        str,
        typer.Option(metavar="DURATION", show_default=False, help='Ended so long ago, with a unit: "30d", "12h".'),
    ],
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", show_default=False, min=1, help="At most so many; else all of that age."),
    ] = None,
    app: AppOption = None,
    dialect_url: DialectUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete runs that ended long ago, the oldest first."""
    from durably.cli.application import database
    from durably.cli.output import emit, emit_json, say
    from durably.errors import ValidationError

    if older_than.strip().isdecimal():
        # Seconds everywhere else; here, who means days would lose nearly everything.
        message = f"{older_than} of what? Give a unit: {older_than}d, or {older_than}s"
        raise ValidationError("older_than", message)

    purged, reported_at = 0, time.monotonic()
    with database(app, dialect_url) as durably:
        while limit is None or purged < limit:
            wanted = _AT_ONCE if limit is None else min(_AT_ONCE, limit - purged)
            found = durably.purge_runs(older_than, limit=wanted)
            purged += found
            if found < wanted:
                break
            if sys.stderr.isatty() and time.monotonic() >= reported_at + _SECONDS_BETWEEN_REPORTS:
                reported_at = time.monotonic()
                say(f"{purged} deleted so far")
    if as_json:
        emit_json({"purged": purged})
    else:
        emit(f"{purged} run{'' if purged == 1 else 's'} deleted\n")
