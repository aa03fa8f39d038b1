"""A copy before somebody's eyes: a bar for each table that is copied, one for each that is compared."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, Self

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from durably.cli.output import console_for

if TYPE_CHECKING:
    from durably.store.copying import Progress

_WIDEST_NAME: Final = len("compare workers")


class CopyBars:
    """The bars, on stderr; none where that is no terminal."""

    def __init__(self) -> None:
        console = console_for(sys.stderr)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_raised: object) -> None:
        self._bars.stop()

    def see(self, progress: Progress) -> None:
        """Show how far the copy is; what was added to the source meanwhile makes no bar longer than whole."""
        name = f"{progress.phase} {progress.table}".ljust(_WIDEST_NAME)
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=progress.total)
        self._bars.update(self._tasks[name], completed=min(progress.done, progress.total))
