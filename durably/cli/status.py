"""`durably status`: one look at everything."""

from typing import TYPE_CHECKING, Any, Final

from durably.cli.options import AppOption, DialectUrlOption, JsonOption

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from durably.status import SystemStatus

EXIT_NOBODY: Final = 3
"""Runs are pending, and no worker is heard of."""
EXIT_UNKNOWN_JOB: Final = 4
"""Runs are pending of a job that no worker knows."""

EPILOG: Final = """Workers are alive if they were heard of within stale_threshold, else silent
until somebody declares them dead.

Exit codes
  0  Nothing is pending, or a worker is there for it.
  1  The database could not be asked.
  2  Wrong usage.
  3  Runs are pending, and no worker is alive.
  4  Runs are pending of a job that no living worker knows.

Examples
  durably status
  durably status --json | jq '.queues[] | {job_name, pending, oldest_seconds}'
"""
_MAX_ERROR: Final = 100


def status(*, app: AppOption = None, dialect_url: DialectUrlOption = None, as_json: JsonOption = False) -> int:
    """Look at everything once: what waits, who executes, what failed."""
    from durably.cli.application import database
    from durably.cli.output import as_dict, emit_json, emit_rich

    with database(app, dialect_url) as durably:
        found = durably.get_status()
    if as_json:
        oldest, unknown = found.oldest_pending_seconds, found.unknown_jobs
        emit_json(as_dict(found) | {"oldest_pending_seconds": oldest, "unknown_jobs": unknown})
    else:
        emit_rich(*_parts(found))
    return exit_code(found)


def exit_code(found: "SystemStatus") -> int:
    """Say as a number whether what is pending has somebody who executes it."""
    if not found.queues:
        return 0
    if not found.alive:
        return EXIT_NOBODY
    return EXIT_UNKNOWN_JOB if found.unknown_jobs else 0


def _parts(found: "SystemStatus") -> "Iterator[RenderableType]":
    from durably.cli.output import text
    from durably.cli.workers import workers_table

    yield from summary(found)
    for heading, table in (
        ("waiting", queues_table(found)),
        ("keys that runs wait for", keys_table(found)),
        ("workers", workers_table([*found.alive, *found.silent], silent=found.silent)),
        ("failed last", failures_table(found)),
    ):
        if table.row_count:
            yield text(f"\n{heading}", "bold")
            yield table


def summary(found: "SystemStatus") -> "Iterator[Text]":
    """Put the numbers into three lines."""
    from durably.cli.output import text

    workers = {
        "alive": len(found.alive),
        "silent": len(found.silent),
        "died in the last hour": found.dead_last_hour,
    }
    yield text("runs         ", "bold") + _numbers(found.counts) + text(" (at least)" if found.is_capped else "")
    yield text("last minute  ", "bold") + _numbers(found.ended_last_minute)
    yield text("workers      ", "bold") + _numbers(workers)


def _numbers(numbers: "Mapping[Any, int]") -> "Text":
    from durably.cli.output import STATUS_STYLES, text

    line = text("")
    for name, number in numbers.items():
        line.append_text(text(", " if line else ""))
        line.append_text(text(f"{number:,} {name}", STATUS_STYLES.get(name.split()[0], "") if number else "dim"))
    return line


def queues_table(found: "SystemStatus") -> "Table":
    """List the jobs with pending runs."""
    from durably.cli.output import make_table, text
    from durably.cli.runs import spell_seconds

    right = {"no_wrap": True, "justify": "right"}
    table = make_table(("job", {"no_wrap": True, "overflow": "ellipsis"}), ("pending", right), ("oldest", right), "")
    for queue in found.queues:
        table.add_row(
            text(queue.job_name),
            text(f"{queue.pending:,}"),
            text(spell_seconds(queue.oldest_seconds)),
            text("" if queue.is_known or not found.alive else "no worker knows this job", "bold red"),
        )
    return table


def keys_table(found: "SystemStatus") -> "Table":
    """List the keys that are held and waited for."""
    from durably.cli.output import make_table, text
    from durably.cli.runs import id_text, spell_seconds

    right = {"no_wrap": True, "justify": "right"}
    table = make_table(
        ("key", {"no_wrap": True, "overflow": "ellipsis"}), ("waiting", right), "held by run", "job", ("for", right)
    )
    for key in found.held_keys:
        table.add_row(
            text(key.concurrency_key),
            text(f"{key.waiting:,}"),
            id_text(key.run_id),
            text(key.job_name),
            text(spell_seconds(key.held_seconds)),
        )
    return table


def failures_table(found: "SystemStatus") -> "Table":
    """List the runs that failed last."""
    from durably.cli.output import first_line, make_table, text
    from durably.cli.runs import id_text, spell_seconds
    from durably.telemetry.units import shorten
    from durably.words import in_words

    cut = {"no_wrap": True, "overflow": "ellipsis"}
    table = make_table(
        ("run", {"no_wrap": True}), ("job", cut), ("failed", {"no_wrap": True, "justify": "right"}), ("error", cut)
    )
    for failure in found.failures:
        error = first_line(in_words(failure.error_type, failure.error))
        table.add_row(
            id_text(failure.run_id),
            text(failure.job_name),
            text(f"{spell_seconds((found.read_at - failure.failed_at).total_seconds())} ago"),
            text(shorten(error, _MAX_ERROR), "red"),
        )
    return table
