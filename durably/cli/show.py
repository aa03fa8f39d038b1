"""`durably show`: one run, its steps over time, what it logged, and why it failed."""

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from durably.cli.options import AppOption, DialectUrlOption, JsonOption, RunArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from durably.model import LogEntry, Run, Step

EPILOG: Final = """With --json: the run with its "steps" and all its "logs".

Examples
  durably show 01JNG30F5M7C1E9R6XZ4Q7TN2A
  durably show 7TN2A --json | jq '.steps[] | {name, status}'
"""
_MAX_VALUE: Final = 400
_MAX_LOGS: Final = 20
_BAR_CELLS: Final = 32


def show(
    run: RunArgument,
    *,
    app: AppOption = None,
    dialect_url: DialectUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a run: its fields, steps over time, log entries, error."""
    from durably.cli.application import database, find_run
    from durably.cli.output import as_dict, emit_json, emit_rich
    from durably.cli.runs import read_time

    with database(app, dialect_url) as durably:
        found = find_run(durably, run)
        steps = durably.get_steps(found.id)
        logs = durably.get_logs(found.id)
        now = durably.database.read(read_time)
    if as_json:
        emit_json(as_dict(found) | {"steps": steps, "logs": logs})
    else:
        emit_rich(*_parts(found, steps, logs, now))


def _parts(run: "Run", steps: "list[Step]", logs: "list[LogEntry]", now: datetime) -> "Iterator[RenderableType]":
    from durably.cli.output import text
    from durably.cli.tail import log_line
    from durably.cli.timeline import timeline

    yield _fields(run, now)
    if steps:
        start = run.started_at or run.created_at
        yield text("")
        yield timeline(steps, start, run.completed_at or now, width=_BAR_CELLS)
    if logs:
        left_out = len(logs) - _MAX_LOGS
        yield text(f"\nlog, the last {_MAX_LOGS} of {len(logs)}" if left_out > 0 else "\nlog", "bold")
        yield from (log_line(entry) for entry in logs[-_MAX_LOGS:])
    if run.status == "failed" and run.error_traceback:
        yield text("\ntraceback", "bold")
        yield text(run.error_traceback.rstrip(), "red")


def _fields(run: "Run", now: datetime) -> "Table":
    from rich.table import Table

    from durably.cli.output import text

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _rows(run, now):
        if value:
            grid.add_row(text(name), value)
    return grid


def _rows(run: "Run", now: datetime) -> "Iterator[tuple[str, Text | None]]":
    from durably.cli.output import join, status_text, text
    from durably.cli.runs import duration_seconds, spell_progress, spell_seconds
    from durably.words import in_words

    counts = join([
        f"attempt {run.attempt}",
        f"{run.generation} claims" if run.generation > 1 else None,
        f"{run.interruptions} interruption{'' if run.interruptions == 1 else 's'}" if run.interruptions else None,
    ], ", ")  # fmt: skip
    waited = None if run.started_at is None else (run.started_at - run.created_at).total_seconds()
    yield "run", text(run.id)
    yield "job", text(run.job_name)
    yield "status", status_text(run.status) + text(f" ({counts})")
    yield "progress", text(spell_progress(run))
    yield "labels", text(join(f"{name}={value}" for name, value in run.labels.items()))
    yield "idempotency key", text(run.idempotency_key)
    yield "concurrency key", text(run.concurrency_key)
    yield "worker", text(run.worker_id)
    yield "created", text(f"{_local(run.created_at)}, {spell_seconds((now - run.created_at).total_seconds())} ago")
    yield "waited", text(spell_seconds(waited))
    yield "took", text(spell_seconds(duration_seconds(run, now)))
    yield "input", _value(run.input)
    yield "output", _value(run.output) if run.status == "completed" else None
    yield "error", text(in_words(run.error_type, run.error), "red")


def _local(time: datetime) -> str:
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S}"


def _value(value: Any) -> "Text":
    from durably.cli.output import compact_json, text
    from durably.telemetry.units import shorten

    return text(shorten(compact_json(value), _MAX_VALUE))
