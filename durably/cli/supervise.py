"""`durably supervise`: migrate, recover, and run worker processes until told to stop."""

from pathlib import Path
from typing import Annotated, Final

import typer

from durably.cli.options import AppArgument, AppAsOption, DialectUrlOption, LogFormat, LogLevel, flag, one_app, setting

_WORKERS: Final = "Workers"
_HEALTH: Final = "Health and metrics"
_LOG: Final = "Log"

EPILOG: Final = """Signals
  TERM, INT   Drain: claim nothing more, let held runs end. After the drain
              timeout they go back at their next step boundary.
              A second one: they go back from now on.
  QUIT        Kill the workers now; their runs are recovered.
  HUP         Replace the workers one by one, with the application as it is.
  TTIN, TTOU  Add one worker, remove one worker (of the pool "default").
  USR1        Reopen the log file, as logrotate asks for.
  USR2        Log the stacks of all threads of all processes.

Exit codes
  0  All ended cleanly.
  1  The start failed, or the supervisor gave up; the log says why.
  2  Wrong usage, also of a setting in the application; no worker was started.
  3  Some children had to be killed.

Examples
  durably supervise
  durably supervise jobs.py --workers 4 --concurrency 8
  durably supervise shop.jobs:durably --dialect-url sqlite:///shop.db
  durably supervise --pool default:4 --pool heavy:1
  durably supervise --until-idle --log-format json > run.log
  durably supervise --health-port 8080
"""


def supervise(
    app: AppArgument = None,
    *,
    app_option: AppAsOption = None,
    dialect_url: DialectUrlOption = None,
    workers: Annotated[int | None, setting("workers", "N", _WORKERS)] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:N",
            show_default=False,
            help='So many workers for the jobs of a pool; may be given several times. --workers N is "default:N".',
            rich_help_panel=_WORKERS,
        ),
    ] = None,
    concurrency: Annotated[int | None, setting("concurrency", "M", _WORKERS)] = None,
    until_idle: Annotated[bool, flag("--until-idle", "Stop when no run is pending or running.", _WORKERS)] = False,
    drain_timeout: Annotated[str | None, setting("drain_timeout", "DURATION", _WORKERS)] = None,
    health_port: Annotated[int | None, setting("health_port", "PORT", _HEALTH)] = None,
    health_host: Annotated[str | None, setting("health_host", "ADDRESS", _HEALTH)] = None,
    log_format: Annotated[
        LogFormat,
        typer.Option(
            metavar="FORMAT",
            help="auto (console on a terminal, else json), json or console.",
            rich_help_panel=_LOG,
        ),
    ] = LogFormat.auto,
    log_file: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            show_default=False,
            help="Append the log to this file, as JSON lines unless told otherwise, instead of standard output.",
            rich_help_panel=_LOG,
        ),
    ] = None,
    log_level: Annotated[
        LogLevel,
        typer.Option(metavar="LEVEL", help="debug, info, warning, error or critical.", rich_help_panel=_LOG),
    ] = LogLevel.info,
) -> int:
    """Run worker processes: migrate, recover, replace those that die."""
    from durably.apps import check_app, find_app
    from durably.cli.output import say
    from durably.errors import ValidationError
    from durably.supervisor.supervisor import Supervisor
    from durably.telemetry import configure_log

    found = find_app(one_app(app, app_option))
    check_app(found.reference)
    given = {
        "workers": workers,
        "pools": pool,
        "concurrency": concurrency,
        "drain_timeout": drain_timeout,
        "health_port": health_port,
        "health_host": health_host,
    }
    supervisor = Supervisor(
        found.reference,
        dialect_url=dialect_url,
        until_idle=until_idle,
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
    )
    say(f"the application is {found.reference} ({found.source})")
    try:
        configure_log(log_file, form=log_format.value, level=log_level.value)
    except OSError as error:
        raise ValidationError("log_file", f"it cannot be opened: {error}") from error
    return supervisor.run()
