"""A supervisor under measurement: started as a program, read by its log, watched through /proc."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

from tests.benchmarks.jobs import make_app

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from durably import Durably

_ROOT = Path(__file__).parents[2]
_HOST = (sys.executable, "-m", "tests.benchmarks.host")
_LOOK_SECONDS = 0.003


class Supervised:
    """
    A supervisor's life; ends with the `with` block.

    Args:
        folder: For its log, and for its database where that is a file.
        command: Which program; by default the smallest around `durably.Supervisor`.
        url: Of a database that is there; None makes a file in the folder.
        until_idle: Whether that ends when nothing is pending or running.
        settings: Of durably, by name.
    """

    def __init__(
        self,
        folder: Path,
        *,
        command: tuple[str, ...] = _HOST,
        url: str | None = None,
        until_idle: bool = False,
        **settings: object,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.url = url or f"sqlite:///{folder / 'jobs.db'}"
        self.log = folder / "log.jsonl"
        self._command = (*command, "until-idle") if until_idle else command
        self._environment = os.environ | {f"DURABLY_{k.upper()}": str(v) for k, v in settings.items()}
        self._environment["DURABLY_DIALECT_URL"] = self.url
        self._process: subprocess.Popen[bytes]
        self._read = 0
        self._rest = b""
        self.lines: list[dict[str, Any]] = []

    def client(self) -> Durably:
        """Make what triggers and looks up, in this process."""
        return make_app(self.url)

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, cwd=_ROOT, env=self._environment)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self.is_running:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait_for_end(self, timeout: float) -> None:
        """Wait until it ends by itself; its log is then whole."""
        code = self._process.wait(timeout=timeout)
        self._read_log()
        if code != 0:
            raise RuntimeError(f"the supervisor ended with {code}: {self.lines[-3:]}")

    def wait_for(self, event: str, count: int, timeout: float = 60.0) -> None:
        """Wait until the log has *count* lines of an event."""
        until = time.monotonic() + timeout
        while len(self.of(event)) < count:
            if time.monotonic() > until or self._process.poll() is not None:
                raise RuntimeError(f"{len(self.of(event))} of {count} {event} in time: {self.lines[-3:]}")
            time.sleep(_LOOK_SECONDS)
            self._read_log()

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    def _read_log(self) -> None:
        with self.log.open("rb") as log:
            log.seek(self._read)
            data = log.read()
        self._read += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.lines += [json.loads(line) for line in lines]

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Give its processes by role; who tells no worker:start is the keeper."""
        me = psutil.Process(self.pid)
        workers = {line["process"]["pid"] for line in self.of("worker:start")}
        children = me.children()
        return {
            "supervisor": [me],
            "keeper": [child for child in children if child.pid not in workers],
            "worker": [child for child in children if child.pid in workers],
        }


def cpu_seconds(pids: Iterable[int]) -> float:
    """Add up what processes have spent on the processor, exactly (schedstat counts nanoseconds, not ticks)."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError):
                total += int((task / "schedstat").read_text(encoding="utf-8").split()[0])
    return total / 1e9


def memory_mb(pid: int) -> tuple[float, float]:
    """Give a process's proportional share (PSS) and what is its alone, in MB of 10^6 bytes."""
    sizes = {
        words[0]: int(words[1]) * 1024 / 1e6
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
        if (words := line.split())
    }
    return sizes["Pss:"], sizes["Private_Clean:"] + sizes["Private_Dirty:"]
