"""`durably trigger`: create a run of a job, and wait for its end if that is wanted."""

import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from durably.cli.options import (
    AppOption,
    DialectUrlOption,
    JsonOption,
    LabelsOption,
    TimeoutOption,
    flag,
    parse_labels,
    parse_timeout,
)
from durably.errors import PayloadTooLargeError, ValidationError

if TYPE_CHECKING:
    from durably.client import Durably
    from durably.handle import JobHandle
    from durably.model import Run

EPILOG: Final = """Prints the run's id; with --wait the run's output; with --json the run.
With --wait the exit code is 1 if the run failed or was cancelled.

Examples
  durably trigger hello --input '"Ada"'
  durably trigger import_users --input '{"page": 1}' --label tenant=acme
  durably trigger import_users --input - --wait --json < page.json
"""


def trigger(
    job: Annotated[str, typer.Argument(metavar="JOB", show_default=False, help="The job's name.")],
    *,
    input_text: Annotated[
        str | None,
        typer.Option("--input", metavar="JSON", show_default="null", help='The input as JSON text; "-" reads stdin.'),
    ] = None,
    app: AppOption = None,
    dialect_url: DialectUrlOption = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", show_default=False, help="A second trigger with the key gets the first one's run."),
    ] = None,
    concurrency_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", show_default=False, help="Of all runs with the key at most one is running."),
    ] = None,
    coalesce: Annotated[
        str | None,
        typer.Option(
            metavar="skip|active",
            show_default=False,
            help="With a concurrency key: take a pending run that is there already, or also the running one.",
        ),
    ] = None,
    label: LabelsOption = None,
    wait: Annotated[bool, flag("--wait", "Wait for the run's end; progress and log entries go to stderr.")] = False,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a run of a job, which a worker executes."""
    from durably.cli.application import application
    from durably.cli.output import emit, emit_json

    if timeout is not None and not wait:
        raise ValidationError("timeout", "there is nothing to time out without --wait")
    seconds = parse_timeout(timeout)
    with application(app, dialect_url) as durably:
        handle = _find_job(durably, job)
        try:
            run = handle.trigger(
                _read_input(input_text),
                idempotency_key=idempotency_key,
                concurrency_key=concurrency_key,
                coalesce=coalesce,
                labels=parse_labels(label),
            )
        except PayloadTooLargeError:
            raise
        except ValidationError as error:
            if not _is_about_input(error):
                raise
            raise _with_example(error, handle, is_given=input_text is not None) from error
        if wait:
            from durably.cli.watching import wait_and_print

            _tell(run)
            wait_and_print(durably, run, seconds, as_json=as_json)
        elif as_json:
            emit_json(run)
        else:
            _tell(run)
            emit(f"{run.id}\n")


def _is_about_input(error: ValidationError) -> bool:
    return error.field.partition(".")[0].partition("[")[0] == "input"


def _with_example(error: ValidationError, handle: "JobHandle", *, is_given: bool) -> ValidationError:
    """Say how an input looks that the job takes."""
    import shlex

    from durably.cli.example import input_example

    example = input_example(handle.job)
    remedy = "" if example is None else f"; it looks like --input {shlex.quote(example)}"
    if is_given:
        return ValidationError(error.field, error.message + remedy)
    return ValidationError("input", f"job {handle.name!r} needs one, and none was given{remedy} ({error})")


def _read_input(text: str | None) -> Any:
    from durably.handle import parse_json

    if text is None:
        return None
    if text == "-":
        try:
            text = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise ValidationError("input", f"not text: {error}") from error
    return parse_json(text)


def _find_job(durably: "Durably", name: str) -> "JobHandle":
    handle = durably.get_job(name)
    if handle is None:
        known = ", ".join(sorted(durably.registry.names())) or "none"
        raise ValidationError("job", f"there is no {name!r}; the application's jobs: {known}")
    return handle


def _tell(run: "Run") -> None:
    """Say what became of the trigger, unless it is what everybody expects."""
    from durably.cli.output import say

    if run.disposition == "idempotent":
        say(f"run {run.id} has the idempotency key already; it is {run.status}")
    elif run.disposition == "coalesced":
        say(f"run {run.id} stands for this one too; it is {run.status}")
