"""`durably runs`."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from durably.cli.options import (
    AppOption,
    DialectUrlOption,
    JsonOption,
    LabelsOption,
    parse_labels,
)
from durably.model import STATUSES

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from durably.model import Progress, Run, Status

EPILOG: Final = """Examples
  durably runs --status failed --status cancelled
  durably runs --job import_users --label tenant=acme --limit 100
  durably runs --json | jq '.[].id'
"""
_MAX_PROGRESS: Final = 32
_MAX_ERROR: Final = 100
_LETTERS_OF_A_SHORT_ID: Final = 8
_COLUMNS_FOR_LONG_IDS: Final = 120


def runs(
    *,
    status: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATUS",
            show_default=False,
            help=f"{', '.join(STATUSES)}. May be given several times: any of them.",
        ),
    ] = None,
    job: Annotated[
        list[str] | None,
        typer.Option(metavar="JOB", show_default=False, help="A job's name. May be given several times: any of them."),
    ] = None,
    label: LabelsOption = None,
    limit: Annotated[int, typer.Option(metavar="N", help="At most so many.")] = 20,
    before: Annotated[
        str | None,
        typer.Option(metavar="RUN", show_default=False, help="Only older ones than this run."),
    ] = None,
    app: AppOption = None,
    dialect_url: DialectUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List runs, the newest first."""
    from durably.cli.application import database, find_run
    from durably.cli.output import emit_json, emit_rich, say

    with database(app, dialect_url) as durably:
        found = durably.get_runs(
            status=cast("list[Status] | None", status),
            job_name=job,
            labels=parse_labels(label),
            limit=limit,
            before=None if before is None else find_run(durably, before).id,
        )
        now = durably.database.read(read_time)
    if as_json:
        emit_json(found)
        return
    if not found:
        say("there are no such runs" if status or job or label or before else "there are no runs")
        return
    emit_rich(_table(found, now))
    if len(found) == limit:
        say(f"there may be more: --before {found[-1].id}")


def read_time(connection: Any) -> datetime:
    """Read the database's clock."""
    from durably.store.runs import read_clock

    return datetime.fromtimestamp(read_clock(connection) / 1e6, UTC)


def duration_seconds(run: "Run", now: datetime) -> float | None:
    """Tell how long a run took, or has taken until *now*; None for one that has not begun, or waits again."""
    end = now if run.status == "running" else run.completed_at
    return None if run.started_at is None or end is None else (end - run.started_at).total_seconds()


def spell_progress(run: "Run") -> str:
    """Spell a run's progress as its job told it, else as the number of its checkpoints."""
    if run.progress is None:
        steps = run.completed_step_count
        return f"{steps} step{'' if steps == 1 else 's'}" if steps else ""
    return spell_told(run.progress)


def spell_told(progress: "Progress") -> str:
    """Spell what a job told of how far it is."""
    amount = spell_number(progress.current)
    if progress.total is not None:
        amount += f"/{spell_number(progress.total)}"
    return f"{amount} {progress.message}" if progress.message else amount


def spell_number(number: float) -> str:
    """Spell a count: all digits of a whole number, six of any other."""
    return f"{number:.0f}" if float(number).is_integer() else f"{number:g}"


def spell_seconds(seconds: float | None) -> str:
    """Spell a duration; None is empty, and clocks that disagree do not make it negative."""
    from durably.telemetry.units import human_duration

    return "" if seconds is None else human_duration(max(seconds, 0.0))


def _table(found: "list[Run]", now: datetime) -> "Table":
    from durably.cli.output import first_line, make_table, status_text, text
    from durably.telemetry.units import shorten
    from durably.words import in_words

    cut = {"no_wrap": True, "overflow": "ellipsis"}
    right = {"no_wrap": True, "justify": "right"}
    table = make_table(
        ("id", {"no_wrap": True}),
        ("job", cut),
        ("status", {"no_wrap": True}),
        ("progress", cut),
        ("attempt", right),
        ("age", right),
        ("duration", right),
        ("error", cut),
    )
    for run in found:
        error = first_line(in_words(run.error_type, run.error))
        table.add_row(
            id_text(run.id),
            text(run.job_name),
            status_text(run.status),
            text(shorten(first_line(spell_progress(run)), _MAX_PROGRESS)),
            text(run.attempt),
            text(spell_seconds((now - run.created_at).total_seconds())),
            text(spell_seconds(duration_seconds(run, now))),
            text(shorten(error, _MAX_ERROR), "red"),
        )
    return table


def id_text(given: str) -> "Text":
    """Give an id whole where there is room, else its end, which is the part that tells it from others."""
    import sys

    from durably.cli.output import console_for, text

    console = console_for(sys.stdout)
    is_narrow = console.is_terminal and console.width < _COLUMNS_FOR_LONG_IDS
    return text(given[-_LETTERS_OF_A_SHORT_ID:] if is_narrow else given)
