"""Waiting for a run before somebody's eyes: its progress, its log entries, how long it takes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, Self

from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from durably.cli.output import console_for, emit_json, emit_value, printable, say
from durably.cli.runs import duration_seconds, spell_number, spell_seconds
from durably.cli.tail import Tail, log_line
from durably.errors import NotFoundError, RunCancelledError, RunFailedError
from durably.store.workers import get_workers

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from durably.client import Durably
    from durably.model import Progress, Run


def wait_and_print(durably: Durably, run: Run, timeout: float | None, *, as_json: bool) -> None:
    """
    Wait for a run's end, and print its output; with *as_json* the run, however it ended.

    Args:
        run: As it was triggered or found.
        timeout: Seconds; None waits for ever.

    Raises:
        RunFailedError, RunCancelledError, WaitTimeoutError: As of the wait.
        NotFoundError: It was deleted meanwhile.
    """
    try:
        watch(durably, run, timeout)
    except KeyboardInterrupt:
        say(f"run {run.id} goes on")
        raise
    except (RunFailedError, RunCancelledError) as error:
        if as_json:
            emit_json(error.run)
        raise
    ended = durably.get_run(run.id)  # the output as stored, not as its type
    if ended is None:
        raise NotFoundError(f"run {run.id} was deleted as it ended")
    if as_json:
        emit_json(ended)
    else:
        emit_value(ended.output)


def watch(durably: Durably, run: Run, timeout: float | None) -> None:
    """
    Wait for a run's end; on a terminal with a spinner, or a bar once the run tells its total.

    Args:
        run: As it was triggered or found.
        timeout: Seconds; None waits for ever.

    Raises:
        RunFailedError, RunCancelledError, WaitTimeoutError: As of the wait.
    """
    say(f"run {run.id} of job {run.job_name!r}")
    if not run.is_terminal and not durably.database.read(_is_any_alive):
        # A supervisor has no row: while it waits to replace workers that died, only its log tells of it.
        say(
            "no worker is alive at the moment; the run waits for one: "
            "start some with `durably supervise`, unless a supervisor is about to"
        )
    with _Watching(durably, run) as watching:
        try:
            ended = durably.wait_for_run(
                run.id, timeout=timeout, on_progress=watching.see_progress, on_log=watching.show_log
            )
        finally:
            watching.show_log()
    say(f"completed in {spell_seconds(duration_seconds(ended, ended.updated_at))}")


def _is_any_alive(connection: Any) -> bool:
    return bool(get_workers(connection, alive_only=True))


class _Watching:
    """
    What is shown while a run is waited for.

    Args:
        durably: Reads the run's log.
        run: The run.
    """

    def __init__(self, durably: Durably, run: Run) -> None:
        self._tail = Tail(durably, run.id)
        self._console = console_for(sys.stderr)
        self._bars = Bars(
            *_COLUMNS_WITHOUT_TOTAL,
            console=self._console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not self._console.is_terminal,
        )
        self._task = self._bars.add_task("", total=None, job=printable(run.job_name))

    def __enter__(self) -> Self:
        self._bars.start()
        self.show_log()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._bars.stop()

    def see_progress(self, progress: Progress) -> None:
        """Show how far the run has come."""
        self._bars.columns = _COLUMNS_WITHOUT_TOTAL if progress.total is None else _COLUMNS_WITH_TOTAL
        message = printable(progress.message or "").replace("\n", " ")
        if progress.total is None:
            message = f"{spell_number(progress.current)} {message}"
        self._bars.update(
            self._task, completed=progress.current, total=progress.total, description=message, refresh=True
        )

    def show_log(self, _entry: object = None) -> None:
        """Show the log entries that are new."""
        for entry in self._tail.read():
            self._console.print(log_line(entry), soft_wrap=True)


_SPINNER: Final[tuple[str | ProgressColumn, ...]] = (
    SpinnerColumn(),
    TextColumn("{task.fields[job]}", style="bold", markup=False),
)
_END: Final[tuple[str | ProgressColumn, ...]] = (
    TimeElapsedColumn(),
    TextColumn("{task.description}", style="dim", markup=False),
)
_COLUMNS_WITHOUT_TOTAL: Final = (*_SPINNER, *_END)
_COLUMNS_WITH_TOTAL: Final = (*_SPINNER, BarColumn(), MofNCompleteColumn(), *_END)
