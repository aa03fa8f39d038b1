"""`durably copy`: move everything to another database, of whatever dialect."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from durably.cli.options import JsonOption, flag

if TYPE_CHECKING:
    from durably.store.copying import Copied
    from durably.store.database import Database

EPILOG: Final = """Stop all workers first, and let nobody trigger meanwhile; then change the URL, and
start them. The source is only read. The target must be empty: it is migrated, and
closed to everybody until the copy has ended and both have been compared, row by row.
A copy that was broken off goes on where it was if it is started again.

Examples
  durably copy --from sqlite:///jobs.db --to postgresql://app@db.example/jobs
  durably copy --from 'postgresql://app@db.example/jobs?schema=jobs' --to sqlite:///jobs.db
  durably copy --from sqlite:///jobs.db --to postgresql://app@db.example/jobs --restart
"""


def copy(
    *,
    source: Annotated[
        str, typer.Option("--from", metavar="URL", show_default=False, help="The database to copy. It is only read.")
    ],
    target: Annotated[
        str,
        typer.Option("--to", metavar="URL", show_default=False, help="An empty one, or one that need not exist yet."),
    ],
    restart: Annotated[
        bool, flag("--restart", "Throw away what an unfinished copy has left in the target, and begin anew.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy all runs, steps, logs and labels to another database."""
    import contextlib

    from durably.cli.application import saying_what_is_waited_for
    from durably.cli.copybars import CopyBars
    from durably.cli.output import emit, emit_json, say
    from durably.store.copying import copy as copy_database

    databases = [_open("from", source), _open("to", target)]
    with contextlib.ExitStack() as opened:
        for database in databases:
            opened.callback(database.close)
        opened.enter_context(saying_what_is_waited_for())
        _refuse_missing(databases[0])
        try:
            with CopyBars() as bars:
                done = copy_database(
                    *databases,
                    stale_threshold=_stale_threshold(),
                    is_gone=_is_gone,
                    restart=restart,
                    tell=bars.see,
                )
        except KeyboardInterrupt:
            say("broken off; the same command goes on from here")
            raise
    urls = [database.dialect.safe_url for database in databases]
    if as_json:
        emit_json({"from": urls[0], "to": urls[1], "rows": done.rows, "resumed": done.resumed, "seconds": done.seconds})
    else:
        emit(f"{urls[1]}: {_spell(done)}\n")


def _open(option: str, url: str) -> "Database":
    from durably.errors import ValidationError
    from durably.settings import load_settings
    from durably.store.database import Database

    try:
        return Database(load_settings(dialect_url=url))
    except ValidationError as error:
        raise ValidationError(option if error.field == "dialect_url" else error.field, error.message) from None


def _refuse_missing(source: "Database") -> None:
    """Refuse a file that is not there as a wrong URL: to migrate it, as others are told, would make an empty one."""
    from durably.errors import SchemaOutdatedError, ValidationError

    try:
        source.dialect.check_reachable()
    except SchemaOutdatedError:
        raise ValidationError("from", f"{source.dialect.safe_url}: there is no such file") from None


def _stale_threshold() -> float:
    from durably.settings import load_settings

    return load_settings().stale_threshold


def _is_gone(process_key: str) -> bool:
    """Tell whether a process is known to have ended, as only its own machine can tell."""
    from durably.worker.identity import is_gone, machine_key

    machine = machine_key()
    return machine is not None and process_key.startswith(machine) and is_gone(process_key)


def _spell(done: "Copied") -> str:
    from durably.cli.runs import spell_seconds

    parts = [f"{rows:,} {name if rows != 1 else name.removesuffix('s')}" for name, rows in done.rows.items()]
    copied = sum(done.rows.values()) - done.resumed
    rate = f"{copied / done.seconds:,.0f} rows/s" if done.seconds else ""
    earlier = f"; {done.resumed:,} of them were there from an attempt before" if done.resumed else ""
    listed = f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"copied {listed} in {spell_seconds(done.seconds)} ({rate}{earlier}); both databases hold the same"
