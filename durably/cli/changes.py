"""`durably retry`, `retrigger`, `cancel` and `delete`: what a person may do to one run."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from durably.cli.options import AppOption, DialectUrlOption, JsonOption, RunArgument

if TYPE_CHECKING:
    from durably.client import Durably
    from durably.model import Run

RETRY_EPILOG: Final = """The run resumes after its completed steps.

Examples
  durably retry 01JNG30F5M7C1E9R6XZ4Q7TN2A
  durably retry 7TN2A
"""
RETRIGGER_EPILOG: Final = """The new run has the input, labels and concurrency key of the first, and begins
from its first step; the first stays as it is. Prints the new run's id.

Examples
  durably retrigger 01JNG30F5M7C1E9R6XZ4Q7TN2A
  durably wait "$(durably retrigger 7TN2A)"
"""
CANCEL_EPILOG: Final = """A worker that executes the run stops at its next step boundary.

Examples
  durably cancel 01JNG30F5M7C1E9R6XZ4Q7TN2A
  durably cancel 7TN2A
"""
DELETE_EPILOG: Final = """The run's steps, log and labels go with it.

Examples
  durably delete 01JNG30F5M7C1E9R6XZ4Q7TN2A
  durably cancel 7TN2A && durably delete 7TN2A
"""


def retry(
    run: RunArgument,
    *,
    app: AppOption = None,
    dialect_url: DialectUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a failed or cancelled run back to pending, to be resumed."""
    _change(run, app, dialect_url, lambda durably, run_id: durably.retry(run_id), as_json=as_json)


def cancel(
    run: RunArgument,
    *,
    app: AppOption = None,
    dialect_url: DialectUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cancel a pending or running run."""
    _change(run, app, dialect_url, lambda durably, run_id: durably.cancel(run_id), as_json=as_json)


def retrigger(
    run: RunArgument,
    *,
    app: AppOption = None,
    dialect_url: DialectUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a new run like one that has ended."""
    from durably.cli.application import database, find_run
    from durably.cli.output import emit, emit_json

    with database(app, dialect_url) as durably:
        created = durably.retrigger(find_run(durably, run).id)
    if as_json:
        emit_json(created)
    else:
        emit(f"{created.id}\n")


def delete(
    run: RunArgument,
    *,
    app: AppOption = None,
    dialect_url: DialectUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a run that has ended, with all that is stored of it."""
    from durably.cli.application import database, find_run
    from durably.cli.output import emit, emit_json

    with database(app, dialect_url) as durably:
        found = find_run(durably, run)
        durably.delete_run(found.id)
    if as_json:
        emit_json({"deleted": found.id})
    else:
        emit(f"{found.id} is deleted\n")


def _change(
    run: str,
    app: str | None,
    dialect_url: str | None,
    change: Callable[["Durably", str], "Run"],
    *,
    as_json: bool,
) -> None:
    from durably.cli.application import database, find_run
    from durably.cli.output import emit_json, emit_rich, status_text, text

    with database(app, dialect_url) as durably:
        changed = change(durably, find_run(durably, run).id)
    if as_json:
        emit_json(changed)
    else:
        emit_rich(text(f"{changed.id} is ") + status_text(changed.status) + text(f" (attempt {changed.attempt})"))
