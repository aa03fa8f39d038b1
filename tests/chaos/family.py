"""A supervisor with its children, as the campaign sees it: killed and begun anew, in one folder, with one log."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from tests.e2e.harness import Supervised

if TYPE_CHECKING:
    from collections.abc import Callable

_LOAD: Final = Path(__file__).with_name("load.py")


class Family:
    """
    A supervisor that follows another in the same place.

    Args:
        group: A control group to be in; None for none.
        settings: By name.
    """

    def __init__(self, folder: Path, url: str, workers: int, group: Path | None, settings: dict[str, Any]) -> None:
        folder.mkdir()
        self.name = folder.name
        self.log = folder / "log.jsonl"
        # Gaps in the sequences of events show only if no level hides lines.
        self.supervised = Supervised(folder, "--log-level", "debug", app=_LOAD, workers=workers, url=url, **settings)
        if group is not None:
            self.supervised.within(group)
        self.is_down = True
        self._position = 0
        self._workers: set[int] = set()
        self._started: set[int] = set()
        self._without_database: set[int] = set()

    @property
    def pid(self) -> int:
        return int(self.supervised.process.pid)

    def begin(self) -> None:
        """Begin its supervisor, once the last one is gone; if one is there, do nothing."""
        if not self.is_down:
            return
        if hasattr(self.supervised, "process"):
            with contextlib.suppress(psutil.TimeoutExpired):
                self.supervised.process.wait(10)
        self.supervised.__enter__()
        self.is_down = False

    def has_ended_unasked(self) -> bool:
        return not self.is_down and self.supervised.process.poll() is not None

    def takes_signals(self) -> bool:
        """Tell whether its supervisor has come so far."""
        self._read()
        return not self.is_down and self.pid in self._started

    def found_no_database(self) -> bool:
        """Tell whether its supervisor ended because its start did not find the database, as it may (contract 161)."""
        self._read()
        return self.pid in self._without_database

    def ending(self) -> str:
        """Tell how its supervisor ended."""
        code = self.supervised.process.poll()
        return f"{self.name}'s supervisor (pid {self.pid}), exit code {code}"

    def children(self) -> list[int]:
        """List the keeper and the workers that live."""
        return [] if self.is_down else [child.pid for child in self.supervised.children()]

    def workers(self) -> list[int]:
        """List the workers that live, also those that are not ready."""
        self._read()
        return [pid for pid in self.children() if pid in self._workers]

    def keepers(self) -> list[int]:
        """List the keeper, if there is one."""
        self._read()
        return [pid for pid in self.children() if pid not in self._workers]

    def members(self) -> list[int]:
        return [] if self.is_down else [self.pid, *self.children()]

    def stop(self, seconds: float) -> int:
        """Stop it as an operator does; give its exit code, or -1 if it has not ended in time."""
        self.supervised.process.terminate()
        try:
            return int(self.supervised.process.wait(seconds))
        except psutil.TimeoutExpired:
            return -1

    def end(self) -> None:
        """Kill whatever is left, also of its earlier supervisors."""
        left = self.survivors()
        for member in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(left, timeout=10)
        self.supervised.client.database.close()

    def survivors(self) -> list[psutil.Process]:
        """List all that lives of this family, orphans of its earlier supervisors too: each has its journal's name."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.environ().get("JOURNAL") == str(self.supervised.journal):
                    found.append(process)
        return found

    def _read(self) -> None:
        if not self.log.exists():
            return
        lines, self._position = self.supervised.lines_from(self._position)
        self._workers |= {line["worker_pid"] for line in lines if line["event"] == "worker:state"}
        self._started |= {line["process"]["pid"] for line in lines if line["event"] == "supervisor:start"}
        away = f"the start failed: {self.supervised.client.database.dialect.safe_url}: "
        self._without_database |= {
            line["process"]["pid"]
            for line in lines
            if line["event"] == "supervisor:error" and line["error"].startswith(away)
        }


def until(condition: Callable[[], object], seconds: float, pause: float = 0.2) -> bool:
    """Wait until something is so; tell whether it came to be."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True
