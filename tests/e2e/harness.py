"""Runs a real supervisor in a process of its own, and reads what it logs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
from jsonschema import Draft202012Validator

from durably import Durably
from durably.telemetry.schema import load_schema
from durably.testing.dialects.databases import databases
from durably.testing.dialects.suite.support import eventually
from tests.databases import at_end

if TYPE_CHECKING:
    from types import TracebackType

APP = Path(__file__).with_name("app.py")


class Supervised:
    """
    A supervisor on a database, with its workers.

    Args:
        folder: For the database, the journal and the log.
        options: Of `durably supervise`.
        url: Of a database that another supervises too; else one of its own.
        prefix: What the command begins with, which executes the rest in its own place.
        settings: By name, through the environment.
    """

    def __init__(
        self,
        folder: Path,
        *options: str,
        app: Path = APP,
        workers: int | None = 2,
        url: str | None = None,
        prefix: tuple[str, ...] = (),
        **settings: Any,
    ) -> None:
        self.url = url or databases().fresh_url(folder, "runs")
        self.journal = folder / "journal"
        self.journal.touch()
        self._log = self._stdout = folder / "log.jsonl"
        self._rotated: Path | None = None
        self._errors = folder / "errors"
        self._command = [
            *prefix, sys.executable, "-m", "durably.cli.main", "supervise", str(app),
            "--dialect-url", self.url, *(() if workers is None else ("--workers", str(workers))), *options,
        ]  # fmt: skip
        self._environment = os.environ | {f"DURABLY_{k.upper()}": str(v) for k, v in settings.items()}
        self._environment |= {"JOURNAL": str(self.journal)}
        self.client = Durably(self.url, polling_interval=0.05)
        at_end(self.client.database.close)  # tests ask it also after the supervisor's end
        self.client.migrate()
        self.process: psutil.Popen

    def reads(self, log: Path) -> Self:
        """Read the log there, where the supervisor was told to write it; also what was rotated to PATH.1."""
        self._rotated, self._log = log.with_name(f"{log.name}.1"), log
        return self

    def within(self, group: Path) -> Self:
        """Begin in a control group."""
        join = 'echo $$ > "$0"/cgroup.procs && exec "$@"'
        self._command = ["sh", "-c", join, str(group), *self._command]
        return self

    def __enter__(self) -> Self:
        with self._stdout.open("ab") as log, self._errors.open("ab") as errors:
            self.process = psutil.Popen(
                self._command, stdout=log, stderr=errors, env=self._environment, stdin=subprocess.DEVNULL
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        family = [self.process, *self.children()]
        for member in family:
            try:
                member.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=10)
        self.client.database.close()
        if error is None:
            self.check_log()

    def trigger(self, job: str, *inputs: Any) -> list[str]:
        """Create runs as another process would, which need not know the job's function."""
        from durably.ids import new_id
        from durably.store.triggers import NewRun, trigger

        wanted = [NewRun(id=new_id(), job_name=job, input=json.dumps(value)) for value in inputs]
        database = self.client.database
        return [run.id for run in database.write(lambda c: trigger(c, wanted, database.dialect.lock), rings=True)]

    def children(self) -> list[psutil.Process]:
        """List the keeper and the workers that live."""
        try:
            return [child for child in self.process.children() if child.status() != psutil.STATUS_ZOMBIE]
        except psutil.NoSuchProcess:
            return []

    def ready_workers(self) -> dict[str, int]:
        """Give the workers that have told their start and not their end: worker id and pid."""
        started = {e["process"]["worker_id"]: e["process"]["pid"] for e in self.events("worker:start")}
        gone = {e["lost_worker"] for e in self.events("worker:exit")}
        return {worker_id: pid for worker_id, pid in started.items() if worker_id not in gone}

    def until_ready(self, workers: int) -> dict[str, int]:
        """Wait until so many workers are ready."""

        def ready() -> dict[str, int]:
            found = self.ready_workers()
            return found if len(found) >= workers else {}

        return eventually(ready, timeout=30)

    def lines(self) -> list[dict[str, Any]]:
        """Read the log so far."""
        parts = [path for path in (self._rotated, self._log) if path is not None and path.is_file()]
        text = "".join(path.read_text(encoding="utf-8") for path in parts)
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def lines_from(self, position: int) -> tuple[list[dict[str, Any]], int]:
        """Read the whole lines of the log behind a position; give them and the position behind them."""
        with self._log.open("rb") as log:
            log.seek(position)
            whole, newline, _ = log.read().rpartition(b"\n")
        return [json.loads(line) for line in whole.splitlines()], position + len(whole) + len(newline)

    def events(self, event_type: str) -> list[dict[str, Any]]:
        """Read the log's lines of one event."""
        return [line for line in self.lines() if line["event"] == event_type]

    def notes(self) -> list[list[str]]:
        """Read the journal: run id, step, pid and monotonic time of each line."""
        return [line.rsplit(" ", 3) for line in self.journal.read_text(encoding="utf-8").splitlines()]

    def errors(self) -> str:
        """Read what was written to stderr."""
        return self._errors.read_text(encoding="utf-8")

    def wait(self, timeout: float = 60) -> int:
        """Wait for the supervisor's end; give its exit code."""
        return int(self.process.wait(timeout))

    def check_log(self) -> None:
        """Hold every line of the log against the schema that the package ships."""
        for line in self.lines():
            problems = list(_validator().iter_errors(line))
            assert not problems, f"{line}: {problems[0].message}"


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(load_schema())
