"""The arguments and options that several commands share."""

from enum import StrEnum
from typing import Annotated, Any, TypeAlias

import typer

from durably.errors import ValidationError
from durably.settings import default_of, parse_duration, purpose_of

WHERE = "Application and database"
_SHORTEST_INTERVAL_SECONDS = 0.5
_APP_HELP = 'A file, a module, or "module:attribute". Else DURABLY_APP, tool.durably.app, app.py or jobs.py.'


def flag(name: str, purpose: str, panel: str | None = None) -> Any:
    """Make an option without a value; typer would show it with "<bool>"."""
    return typer.Option(name, metavar="", help=purpose, rich_help_panel=panel)


def setting(name: str, metavar: str, panel: str) -> Any:
    """Make the option of a setting, which says of it what the settings themselves say."""
    default = default_of(name)
    shown: Any = False if default is None else default
    return typer.Option(metavar=metavar, show_default=shown, help=purpose_of(name), rich_help_panel=panel)


AppArgument: TypeAlias = Annotated[
    str | None,
    typer.Argument(
        metavar="APP",
        show_default=False,
        help=_APP_HELP,
    ),
]
AppOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--app",
        metavar="APP",
        show_default=False,
        help=_APP_HELP,
        rich_help_panel=WHERE,
    ),
]
AppAsOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--app",
        metavar="APP",
        show_default=False,
        help="The same, as the other commands take it.",
        rich_help_panel=WHERE,
    ),
]
DialectUrlOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        show_default=False,
        help="The database. Else DURABLY_DIALECT_URL, tool.durably.dialect_url, or the application's.",
        rich_help_panel=WHERE,
    ),
]
JsonOption: TypeAlias = Annotated[bool, flag("--json", "Print JSON and nothing else on stdout.")]
LabelsOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="NAME=VALUE", show_default=False, help="May be given several times."),
]
TimeoutOption: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--timeout",
        metavar="DURATION",
        show_default=False,
        help='Wait no longer: seconds, or such as "5m". The run goes on.',
    ),
]
RunArgument: TypeAlias = Annotated[
    str,
    typer.Argument(metavar="RUN", show_default=False, help="A run's id, or the end of one that tells it apart."),
]


class LogFormat(StrEnum):
    """How the log's lines look."""

    auto = "auto"
    json = "json"
    console = "console"


class LogLevel(StrEnum):
    """The lowest level that is logged."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"
    critical = "critical"


def one_app(argument: str | None, option: str | None) -> str | None:
    """
    Take the application from wherever it was given.

    Raises:
        ValidationError: On `app`; there are two.
    """
    if argument is not None and option is not None and argument != option:
        raise ValidationError("app", f"given twice: {argument} and --app {option}")
    return option if argument is None else argument


def parse_labels(given: list[str] | None) -> dict[str, str]:
    """
    Read labels given as NAME=VALUE.

    Raises:
        ValidationError: On `label`; one has no "=".
    """
    labels = {}
    for text in given or ():
        name, separator, value = text.partition("=")
        if not separator:
            raise ValidationError("label", f"{text!r} is not NAME=VALUE")
        labels[name] = value
    return labels


def parse_timeout(given: str | None) -> float | None:
    """
    Read the timeout of a wait.

    Args:
        given: Seconds from 0, or digits with a unit such as "5m"; None for no timeout.

    Raises:
        ValidationError: On `timeout`.
    """
    if given is None:
        return None
    try:
        return 0.0 if given.strip() == "0" else parse_duration(given)
    except ValueError as error:
        raise ValidationError("timeout", str(error)) from None


def parse_interval(given: str) -> float:
    """
    Read the time between two looks.

    Args:
        given: Seconds from 0.5, or digits with a unit such as "1m".

    Raises:
        ValidationError: On `interval`.
    """
    try:
        seconds = parse_duration(given)
    except ValueError as error:
        raise ValidationError("interval", str(error)) from None
    if seconds < _SHORTEST_INTERVAL_SECONDS:
        raise ValidationError("interval", f"{given} is too short: from {_SHORTEST_INTERVAL_SECONDS:g} s")
    return seconds
