"""`durably workers`."""

from typing import TYPE_CHECKING, Final

from durably.cli.options import AppOption, DialectUrlOption, JsonOption

if TYPE_CHECKING:
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
        emit_rich(_table(found))
    else:
        say("there are no workers; start some with `durably supervise`")


def _table(found: "list[Worker]") -> "Table":
    from durably.cli.output import make_table, status_text, text
    from durably.cli.runs import id_text
    from durably.telemetry.units import human_duration, shorten

    whole = {"no_wrap": True, "overflow": "ellipsis"}
    right = {"no_wrap": True, "justify": "right"}
    table = make_table(
        ("id", whole),
        ("host", whole),
        ("pid", right),
        ("state", whole),
        ("jobs", {"min_width": _MIN_JOBS}),  # where room is short, the column that may be wrapped gives way alone
        ("running", right),
        ("heartbeat", right),
    )
    for worker in found:
        jobs = text(shorten(", ".join(sorted(worker.jobs)), _MAX_JOBS))
        jobs.no_wrap, jobs.overflow = True, "ellipsis"
        table.add_row(
            id_text(worker.id),
            text(shorten(worker.host, _MAX_HOST)),
            text(worker.pid),
            status_text(worker.state),
            jobs,
            text(f"{worker.running}/{worker.concurrency}"),
            text(f"{human_duration(max(worker.heartbeat_age_seconds, 0.0))} ago"),
        )
    return table
