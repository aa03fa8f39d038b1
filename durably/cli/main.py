"""The command `durably`: its commands, and what becomes of their errors."""

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer

from durably.cli import (
    changes,
    copy,
    doctor,
    logs,
    migrate,
    purge,
    runs,
    show,
    status,
    supervise,
    top,
    trigger,
    wait,
    workers,
)
from durably.cli.help import Command, Group
from durably.cli.options import flag
from durably.cli.output import EXIT_CLOSED_PIPE, close_stdout, first_line, open_closed_streams, printable, say
from durably.errors import DurablyError, RunFailedError, ValidationError
from durably.words import in_words

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

_EPILOG: Final = """Exit codes
  0    Done.
  1    What was asked for failed: the run, the database, the application as it was
       imported.
  2    Wrong usage: a command, option, argument or setting is wrong, also an
       application that is not there.
  130  Ctrl-C.
Some commands have more, which their help lists.

Examples
  durably supervise jobs.py --workers 4
  durably trigger hello --input '"Ada"' --wait
  durably runs --status failed
"""

cli = typer.Typer(cls=Group, rich_markup_mode="rich")
for _panel, _commands in {
    "Work": (
        (supervise.supervise, supervise.EPILOG),
        (trigger.trigger, trigger.EPILOG),
        (wait.wait, wait.EPILOG),
    ),
    "Look": (
        (status.status, status.EPILOG),
        (top.top, top.EPILOG),
        (runs.runs, runs.EPILOG),
        (show.show, show.EPILOG),
        (logs.logs, logs.EPILOG),
        (workers.workers, workers.EPILOG),
        (doctor.doctor, doctor.EPILOG),
    ),
    "Change": (
        (changes.cancel, changes.CANCEL_EPILOG),
        (changes.retry, changes.RETRY_EPILOG),
        (changes.retrigger, changes.RETRIGGER_EPILOG),
        (changes.delete, changes.DELETE_EPILOG),
        (purge.purge, purge.EPILOG),
    ),
    "Database": (
        (migrate.migrate, migrate.EPILOG),
        (copy.copy, copy.EPILOG),
    ),
}.items():
    for _command, _command_epilog in _commands:
        cli.command(cls=Command, epilog=_command_epilog, rich_help_panel=_panel)(_command)


@dataclass
class Globals:
    """
    What the options before the command say.

    Args:
        traceback: Whether errors are shown with where they came from.
    """

    traceback: bool = False


def _print_version(value: bool) -> None:  # noqa: FBT001 - typer's callback of a flag
    if value:
        from importlib.metadata import version

        typer.echo(f"durably {version('durably')}")
        raise typer.Exit


@cli.callback(invoke_without_command=True, epilog=_EPILOG)
def durably(
    context: typer.Context,
    *,
    traceback: Annotated[
        bool, flag("--traceback", "Show errors with their tracebacks. Stands before the command.")
    ] = False,
    version: Annotated[  # noqa: ARG001 - its callback does it
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, metavar="", help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Durable, resumable jobs in the SQL database you already have."""
    context.ensure_object(Globals).traceback = traceback
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Carry out a command line.

    Args:
        arguments: Without the program's name; None for the process's own.

    Returns:
        The exit code: 0, 1 if what was asked for failed, 2 for wrong usage, 130 after Ctrl-C; else the command's.
    """
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    given = Globals()
    try:
        command = typer.main.get_command(cli)
        code = command.main(args=arguments, prog_name="durably", standalone_mode=False, obj=given)
        sys.stdout.flush()
        return code or 0
    except BrokenPipeError:
        close_stdout()
        return EXIT_CLOSED_PIPE
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except Exception as error:  # noqa: BLE001 - a person gets a line, not a traceback
        return _report(error, given)


def _report(error: Exception, given: Globals) -> int:
    """Say what went wrong and give the exit code for it."""
    if given.traceback:
        _print_traceback(error)
    if (format_message := getattr(error, "format_message", None)) is not None:
        say(_spell_usage(error, format_message()))
        return EXIT_USAGE
    if isinstance(error, RunFailedError):
        run = error.run
        say(f"run {run.id} of job {run.job_name!r} failed: {in_words(run.error_type, first_line(run.error))}")
    elif isinstance(error, DurablyError):
        say(str(error))
    else:
        say(f"{in_words(type(error).__qualname__, first_line(str(error)))} (durably --traceback ... shows where)")
    return EXIT_USAGE if isinstance(error, ValidationError) else EXIT_FAILED


def _spell_usage(error: Any, message: str) -> str:
    """Put an error of the command line itself into one line, with where to read on."""
    if "--traceback" in message:
        return "--traceback stands before the command: durably --traceback COMMAND"
    context = getattr(error, "ctx", None)
    path = "durably" if context is None else context.command_path
    words = " ".join(message.replace("Value error, ", "").split()).removesuffix(".")
    if path.endswith(" trigger") and "unexpected extra argument" in words:
        words += "; the input is an option: --input JSON"
    return f"{words}; see {path} --help"


def _print_traceback(error: Exception) -> None:
    """Print where an error came from: for a run that failed, in the job."""
    stored = error.run.error_traceback if isinstance(error, RunFailedError) else None
    sys.stderr.write(printable(stored or "".join(traceback.format_exception(error))).rstrip() + "\n")


if __name__ == "__main__":
    sys.exit(main())
