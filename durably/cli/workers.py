"""`durably workers`."""

from typing import TYPE_CHECKING, Final

from durably.cli.options import AppOption, DialectUrlOption, JsonOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from durably.model import Worker

EPILOG: Final = """Those that ended stay for a day.

Examples
  durably workers
  durably workers --json | jq '.[] | select(.state == "alive") | .host'
"""
_MAX_JOBS: Final = 60
_MIN_JOBS: Final = 8
_MAX_HOST: Final = 24


def workers(*, app: AppOption = None, dialect_url: DialectUrlOption = None, as_json: JsonOption = False) -> None:
    """List the workers, the living first."""
    from durably.cli.application import database
    from durably.cli.output import emit_json, emit_rich, say
    from durably.store.workers import get_workers

    with database(app, dialect_url) as durably:
        found = durably.database.read(get_workers)
    if as_json:
        emit_json(found)
    elif found:
        emit_rich(workers_table(found))
    else:
        say("there are no workers; start some with `durably supervise`")


def workers_table(found: "list[Worker]", *, silent: "Sequence[Worker]" = ()) -> "Table":
    """
    List workers.

    Args:
        silent: Those of them that are known to have fallen silent.
    """
    from durably.cli.output import make_table, status_text, text
    from durably.cli.runs import id_text, spell_seconds
    from durably.telemetry.units import shorten

    whole = {"no_wrap": True, "overflow": "ellipsis"}
    right = {"no_wrap": True, "justify": "right"}
    has_steps = any(worker.oldest_step_seconds is not None for worker in found)
    table = make_table(
        ("id", whole),
        ("host", whole),
        ("pid", right),
        ("state", whole),
        ("jobs", {"min_width": _MIN_JOBS}),  # where room is short, the column that may be wrapped gives way alone
        ("running", right),
        ("heartbeat", right),
        *([("oldest step", right)] if has_steps else []),
    )
    for worker in found:
        jobs = text(shorten(", ".join(sorted(worker.jobs)), _MAX_JOBS))
        jobs.no_wrap, jobs.overflow = True, "ellipsis"
        table.add_row(
            id_text(worker.id),
            text(shorten(worker.host, _MAX_HOST)),
            text(worker.pid),
            status_text("silent" if worker in silent else worker.state),
            jobs,
            text(f"{worker.running}/{worker.concurrency}"),
            text(f"{spell_seconds(worker.heartbeat_age_seconds)} ago"),
            *([text(spell_seconds(worker.oldest_step_seconds))] if has_steps else []),
        )
    return table
