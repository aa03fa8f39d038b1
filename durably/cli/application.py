"""What a command works on: the application, its database, one of its runs."""

from __future__ import annotations

import contextlib
import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from durably.apps import find_app, load_app
from durably.cli.output import say
from durably.client import Durably
from durably.errors import ApplicationError, NotFoundError, ValidationError
from durably.settings import change_settings, load_settings
from durably.waiting import LOGGER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from durably.model import Run

_RUNS_SEARCHED: Final = 1_000
_FEWEST_LETTERS: Final = 4


@contextmanager
def application(argument: str | None, dialect_url: str | None = None) -> Iterator[Durably]:
    """
    Import the application, and close its database at the end.

    Args:
        argument: As given; None to find it.
        dialect_url: Wins over the application's.

    Raises:
        ValidationError: There is none, or it cannot be imported.
    """
    app = _load(find_app(argument).reference)
    if dialect_url is not None:
        app.reconfigure(change_settings(app.settings, dialect_url=dialect_url))
    with _open(app):
        yield app


@contextmanager
def database(argument: str | None, dialect_url: str | None) -> Iterator[Durably]:
    """
    Open a database, with its application only where nothing else names it.

    Args:
        argument: The application as given; None if it was not.
        dialect_url: As given; else that of the application as given, of the settings, of an application found.

    Raises:
        ValidationError: Nothing names a database, or the application that should does not.
        ApplicationError: The application cannot be imported.
    """
    if dialect_url is None and (argument is not None or not load_settings().dialect_url):
        app = _load_or_explain(argument or _find_or_explain())
    else:
        app = Durably(dialect_url)
    with _open(app):
        yield app


@contextmanager
def _open(app: Durably) -> Iterator[None]:
    with saying_what_is_waited_for(), contextlib.closing(app.database):
        yield


@contextmanager
def saying_what_is_waited_for() -> Iterator[None]:
    """Say on stderr, in the program's own way, what durably logs by Python's logging: that a database is late."""
    logger, handler = logging.getLogger("durably"), _Saying()
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


class _Saying(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.name != LOGGER:  # a command that waits for a run has said more, and sooner
            say(record.getMessage())


def _load_or_explain(reference: str) -> Durably:
    """Import an application for the sake of its database alone, which can be named without it."""
    remedy = "for a look without the application, name its database: --dialect-url URL"
    try:
        return _load(reference)
    except ValidationError as error:
        raise ValidationError(error.field, f"{error.message}; {remedy}") from error
    except ApplicationError as error:
        raise ApplicationError(f"{error}; {remedy}") from error


def _find_or_explain() -> str:
    try:
        return find_app().reference
    except ValidationError:
        raise ValidationError(
            "dialect_url",
            "no database given: pass --dialect-url, set DURABLY_DIALECT_URL, or run this where the application is",
        ) from None


def find_run(app: Durably, given: str) -> Run:
    """
    Look a run up by its id, or by the end of its id among the latest runs.

    Raises:
        NotFoundError: There is none.
        ValidationError: On `run`; it is the end of several ids.
    """
    if (run := app.get_run(given)) is not None:
        return run
    ending = given.upper()
    found = []
    if len(ending) >= _FEWEST_LETTERS:
        found = [run for run in app.get_runs(limit=_RUNS_SEARCHED) if run.id.endswith(ending)]
    if len(found) > 1:
        raise ValidationError("run", f"{given!r} ends the ids of {len(found)} runs, {found[0].id} and {found[1].id}")
    if not found:
        raise NotFoundError(f"there is no run {given!r}")
    return found[0]


def _load(reference: str) -> Durably:
    """Import an application; what it prints goes to stderr, for stdout is for data."""
    with contextlib.redirect_stdout(sys.stderr):
        return load_app(reference)
