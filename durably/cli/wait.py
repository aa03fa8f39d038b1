"""`durably wait`: wait for a run's end, whoever triggered it."""

from typing import Final

from durably.cli.options import AppOption, DialectUrlOption, JsonOption, RunArgument, TimeoutOption, parse_timeout

EPILOG: Final = """Prints the run's output; with --json the run. Progress and log entries go to
stderr. The exit code is 1 if the run failed, was cancelled or did not end in time.

Examples
  durably wait 01JNG30F5M7C1E9R6XZ4Q7TN2A
  durably wait 7TN2A --timeout 5m --json | jq .output
"""


def wait(
    run: RunArgument,
    *,
    timeout: TimeoutOption = None,
    app: AppOption = None,
    dialect_url: DialectUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Wait for a run's end."""
    from durably.cli.application import database, find_run
    from durably.cli.watching import wait_and_print

    seconds = parse_timeout(timeout)
    with database(app, dialect_url) as durably:
        wait_and_print(durably, find_run(durably, run), seconds, as_json=as_json)
