"""What `durably doctor` looks at: the program, its settings, the application, and a database that answers."""

from __future__ import annotations

import contextlib
import platform
import shutil
import statistics
import sys
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from durably.apps import check_app, find_app, load_app
from durably.cli.application import database
from durably.errors import ApplicationError, DurablyError, SchemaOutdatedError, ValidationError
from durably.findings import Finding
from durably.settings import find_sources, find_unknown_variables, load_settings
from durably.store import stuck
from durably.store.runs import read_clock
from durably.telemetry.units import human_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from durably.client import Durably
    from durably.findings import Level

_LOOKS: Final = 5
_SLOW_SECONDS: Final = 0.1
_CLOCK_SECONDS: Final = 1.0


def examine(argument: str | None, dialect_url: str | None) -> Iterator[Finding]:
    """
    Look at everything, from what needs nothing to what needs all of it.

    Args:
        argument: The application as given; None to find it.
        dialect_url: As given; None to find it.

    Raises:
        ValidationError: On `app`: what was given names nothing.
    """
    if argument is not None:
        check_app(argument)
    yield _program()
    yield from _environment()
    try:
        load_settings()
    except ValidationError as error:
        yield _failed("settings", error)
        return  # everything else would fail for the same reason
    application = _application(argument)
    yield application
    try:
        with database(argument, dialect_url) as app:
            yield from _settings(app, "the application" if dialect_url is None else "--dialect-url")
            yield from _database(app)
    except DurablyError as error:
        if not (failed := _failed("database", error)).message.startswith(application.message):
            yield failed


def _program() -> Finding:
    packages = ", ".join(f"{name} {version(name.lower())}" for name in ("durably", "SQLAlchemy"))
    where = shutil.which("durably") or sys.executable
    return Finding(check="versions", level="ok", message=f"{packages}, Python {platform.python_version()} ({where})")


def _failed(check: str, error: DurablyError, remedy: str | None = None) -> Finding:
    return Finding(check=check, level="error", message=" ".join(str(error).split()), remedy=remedy)


def _application(argument: str | None) -> Finding:
    try:
        found = find_app(argument)
    except ValidationError:
        return Finding(
            check="application",
            level="warning",
            message="there is none here, so nothing can be supervised or triggered from this folder",
            remedy="run this where app.py or jobs.py is, or name it: --app, DURABLY_APP, or app in [tool.durably]",
        )
    try:
        with contextlib.redirect_stdout(sys.stderr):
            app = load_app(found.reference)
    except (ApplicationError, ValidationError) as error:
        return _failed("application", error, f"durably --traceback trigger JOB --app {found.reference} shows where")
    names = app.registry.names()
    if not names:
        return Finding(
            check="application",
            level="warning",
            message=f"{found.reference} ({found.source}) registers no job, so its workers claim nothing",
            remedy="import the modules that define the jobs where the application is made",
        )
    jobs = f"{len(names)} job{'' if len(names) == 1 else 's'}"
    return Finding(check="application", level="ok", message=f"{found.reference} ({found.source}): {jobs}")


def _environment() -> Iterator[Finding]:
    for name in find_unknown_variables():
        yield Finding(
            check="settings",
            level="warning",
            message=f"{name} is set, and is no setting",
            remedy="unset it, or spell it as docs/api/settings.md does",
        )


def _settings(app: Durably, given_by: str) -> Iterator[Finding]:
    """
    Tell each setting that is not the default, and where it comes from.

    Args:
        given_by: Who has set what neither the environment nor pyproject.toml has.
    """
    ambient, sources = load_settings(), find_sources()
    for name in app.settings.__slots__:
        value = getattr(app.settings, name)
        source = sources.get(name)
        if value != getattr(ambient, name):
            source = given_by
        if source is not None:
            shown = app.database.dialect.safe_url if name == "dialect_url" else value
            shown = f"{shown:g} s" if isinstance(shown, float) else shown
            yield Finding(check="settings", level="ok", message=f"{name} = {shown} ({source})")


def _database(app: Durably) -> Iterator[Finding]:
    try:
        seconds = _time_looks(app)
    except SchemaOutdatedError as error:
        yield _failed("schema", error)
        return
    except DurablyError as error:
        is_file = app.database.dialect.capabilities.hosts == "one"
        remedy = "open the file and its folder to this user" if is_file else "start it"
        yield _failed("database", error, f"{remedy}, or correct the URL; `durably doctor` again tells more")
        return
    slow = seconds > _SLOW_SECONDS
    yield Finding(
        check="database",
        level="warning" if slow else "ok",
        message=f"{app.database.dialect.safe_url} answers in {human_duration(seconds)}",
        remedy="each checkpoint waits for it: bring workers and database closer together" if slow else None,
    )
    yield Finding(check="schema", level="ok", message="is this durably's")
    try:
        yield from app.database.read(lambda connection: list(app.database.dialect.diagnose(connection)))
        yield _clock(app)
        yield from _workers(app)
        yield from _stuck(app)
    except DurablyError as error:
        yield _failed("database", error)


def _time_looks(app: Durably) -> float:
    """Give the median seconds of a few looks; the first connects."""
    taken = []
    for _ in range(1 + _LOOKS):
        began = time.perf_counter()
        app.database.read(read_clock)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def _clock(app: Durably) -> Finding:
    before = time.time()
    database_time = app.database.read(read_clock) / 1e6
    after = time.time()
    difference = (before + after) / 2 - database_time
    is_off = abs(difference) > _CLOCK_SECONDS + (after - before) / 2
    side = "ahead of" if difference > 0 else "behind"
    return Finding(
        check="clock",
        level="warning" if is_off else "ok",
        message=(
            f"this host's is {human_duration(abs(difference))} {side} the database's"
            if is_off
            else "this host's and the database's agree"
        ),
        remedy="keep it by NTP (chrony); durably goes by the database's, but this host's log does not"
        if is_off
        else None,
    )


def _workers(app: Durably) -> Iterator[Finding]:
    """Tell whether what is pending has somebody who executes it."""
    status = app.get_status()
    silent = len(status.silent)
    level: Level = "ok"
    remedy = None
    if status.queues and not status.alive:
        level, remedy = "error", "nothing is executed: start workers with `durably supervise`"
    elif silent:
        level, remedy = "warning", "a supervisor or worker that runs declares them dead and recovers their runs"
    pending = status.counts["pending"]
    message = f"{len(status.alive)} alive, {silent} silent; {pending:,} runs pending"
    yield Finding(check="workers", level=level, message=message, remedy=remedy)
    if status.alive:
        for queue in (queue for queue in status.queues if not queue.is_known):
            yield Finding(
                check="unknown job",
                level="warning",
                message=f"{queue.job_name!r}: {queue.pending:,} runs pending, and no living worker knows the job",
                remedy="supervise an application that registers it, or cancel them",
            )


def _stuck(app: Durably) -> Iterator[Finding]:
    threshold, isolate_after = app.settings.stale_threshold, app.settings.isolate_after
    found = 0
    for run in app.database.read(lambda connection: stuck.find_ownerless(connection, threshold)):
        found += 1
        is_silent = run.worker_state == "alive"
        yield Finding(
            check="stuck run",
            level="warning",
            message=_spell_ownerless(run),
            remedy=_SILENT_REMEDY if is_silent else f"durably cancel {run.run_id}, then durably retry it: it resumes",
        )
    for interrupted in app.database.read(lambda connection: stuck.find_interrupted(connection, max(isolate_after, 1))):
        found += 1
        yield Finding(
            check="stuck run",
            level="warning",
            message=f"{interrupted.run_id} of {interrupted.job_name!r} is {interrupted.status} and has lost its worker "
            f"{interrupted.interruptions} times; it executes alone",
            remedy=f"find out what kills its worker (durably logs {interrupted.run_id}; memory?), or cancel it",
        )
    if not found:
        yield Finding(check="stuck runs", level="ok", message="none")


_SILENT_REMEDY: Final = "let a supervisor or worker run on this database: it recovers the run within stale_threshold"


def _spell_ownerless(run: Any) -> str:
    who = f"worker {run.worker_id}"
    if run.worker_state is None:
        why = f"{who} has no row any more"
    elif run.worker_state == "alive":
        why = f"{who} has been silent for {human_duration(run.silent_seconds)}"
    else:
        why = f"{who} is {run.worker_state}"
    waits = f", and {run.waiting:,} runs wait for its key" if run.waiting else ""
    return f"{run.run_id} of {run.job_name!r} is running, but {why}{waits}"
