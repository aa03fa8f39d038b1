"""Waiting for a run before somebody's eyes: its progress, its log entries, how long it takes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, Self

from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from durably.cli.logs import log_line
from durably.cli.output import console_for, printable, say
from durably.cli.runs import duration_seconds, spell_number, spell_seconds
from durably.store.workers import get_workers

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

    from durably.client import Durably
    from durably.model import LogEntry, Progress, Run


def watch(durably: Durably, run: Run, timeout: float | None) -> None:
    """
    Wait for a run's end; on a terminal with a spinner, or a bar once the run tells its total.

    Args:
        run: As it was triggered.
        timeout: Seconds; None waits for ever.

    Raises:
        RunFailedError, RunCancelledError, WaitTimeoutError: As of the wait.
    """
    say(f"run {run.id} of job {run.job_name!r}")
    if not run.is_terminal and not durably.database.read(_is_any_alive):
        say("no worker is alive; start one with `durably supervise`")
    with _Watching(durably, run) as watching:
        try:
            ended = durably.wait_for_run(
                run.id, timeout=timeout, on_progress=watching.see_progress, on_log=watching.see_entry
            )
        finally:
            watching.see_the_rest()
    say(f"completed in {spell_seconds(duration_seconds(ended, ended.updated_at))}")


def _is_any_alive(connection: Any) -> bool:
    return bool(get_workers(connection, alive_only=True))


class _Watching:
    """
    What is shown while a run is waited for.

    Args:
        durably: Reads the entries that were logged before the wait began.
        run: The run.
    """

    def __init__(self, durably: Durably, run: Run) -> None:
        self._durably = durably
        self._run_id = run.id
        # Entries shown so far; after the first that the wait tells, it tells them all.
        self._shown = 0
        self._is_told_all = False
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
        self._catch_up(self._durably.get_logs(self._run_id))
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

    def see_entry(self, entry: LogEntry) -> None:
        """Show a log entry; before the first, those that were logged as the wait began."""
        if not self._is_told_all:
            self._is_told_all = True
            entries = self._durably.get_logs(self._run_id)
            self._catch_up(entries[: entries.index(entry)] if entry in entries else [])
        self._show([entry])

    def see_the_rest(self) -> None:
        """Show the entries of a run that had ended as the wait began."""
        if not self._is_told_all:
            self._catch_up(self._durably.get_logs(self._run_id))

    def _catch_up(self, entries: list[LogEntry]) -> None:
        self._show(entries[self._shown :])

    def _show(self, entries: list[LogEntry]) -> None:
        self._shown += len(entries)
        for entry in entries:
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
