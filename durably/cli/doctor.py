"""`durably doctor`: look at the set-up, and say what to do."""

from typing import TYPE_CHECKING, Final

from durably.cli.options import AppOption, DialectUrlOption, JsonOption

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from durably.findings import Finding

EXIT_ERRORS: Final = 1

EPILOG: Final = """Looks at versions, settings and where they come from, the application, the
database (reachable, schema, mode, room, clock), workers and stuck runs.

Exit codes
  0  Nothing that keeps durably from its work.
  1  At least one error.
  2  Wrong usage.

Examples
  durably doctor
  durably doctor --dialect-url sqlite:///jobs.db
  durably doctor --json | jq '.[] | select(.level != "ok")'
"""
_STYLES: Final = {"ok": "green", "warning": "yellow", "error": "bold red"}


def doctor(*, app: AppOption = None, dialect_url: DialectUrlOption = None, as_json: JsonOption = False) -> int:
    """Look at the set-up and say what to do about it."""
    from durably.cli.checks import examine
    from durably.cli.output import emit_json, emit_rich

    found = list(examine(app, dialect_url))
    if as_json:
        emit_json(found)
    else:
        emit_rich(_table(found))
    return EXIT_ERRORS if any(finding.level == "error" for finding in found) else 0


def _table(found: "Iterable[Finding]") -> "Table":
    from durably.cli.output import make_table, text

    table = make_table("", ("check", {"no_wrap": True}), ("", {"overflow": "fold"}))
    table.show_header = False
    for finding in found:
        table.add_row(text(finding.level, _STYLES[finding.level]), text(finding.check), text(finding.message))
        if finding.remedy is not None:
            table.add_row("", "", text(f"→ {finding.remedy}", "bold"))
    return table
