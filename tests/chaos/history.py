"""What is left of a campaign: who was asked for what, the witnesses' lines, the tables, the logs, the faults."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sqlalchemy import Connection

    from durably import Durably


class Witness(NamedTuple):
    """
    A line that a job left outside of the database.

    Args:
        what: "called" (the job's function), "began" and "ended" (a step's function), "returned" (step.run, so the
            checkpoint is committed), "dying", "hanging", "devouring".
        generation: Of the execution that left it.
        step: Or "-".
        nonce: Of the step's execution; in "returned" of the one whose checkpoint it is. Or "-".
        at: On the host's monotonic clock, which is one for all processes.
    """

    what: str
    run: str
    generation: int
    step: str
    nonce: str
    pid: int
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """
    A run that was triggered.

    Args:
        fails_with: The error type that it must fail with; None if it must complete.
        is_sure: Whether the trigger returned; else the run may be there or not.
    """

    run: str
    job: str
    steps: int
    key: str | None = None
    fails_with: str | None = None
    is_sure: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Inflicted:
    """
    A fault that was inflicted.

    Args:
        pids: Of whom; empty if it hit no process of its own.
        at: On the monotonic clock.
    """

    kind: str
    at: float
    pids: tuple[int, ...] = ()

    @property
    def is_kill(self) -> bool:
        return self.kind.startswith("kill")

    @property
    def met_nobody(self) -> bool:
        """Whether it was meant for processes, and none was there."""
        return self.kind.startswith(("kill", "pause", "hup")) and not self.pids


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRun:
    """A row of the runs."""

    job: str
    status: str
    generation: int
    interruptions: int
    error_type: str | None = None
    output: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A completed row of the steps."""

    run: str
    step: str
    output: Any


@dataclass(slots=True, kw_only=True)
class History:
    """
    All that the checker judges.

    Args:
        logs: By family: the events, in the order of the log.
        exit_codes: Of the supervisors that were told to stop at the end.
        gave_up: What supervisors ended unasked.
        survivors: What processes live on when all supervisors are gone.
    """

    asked: list[Asked]
    runs: Mapping[str, StoredRun]
    checkpoints: list[Checkpoint]
    witnesses: list[Witness]
    faults: list[Inflicted] = field(default_factory=list)
    logs: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    gave_up: list[str] = field(default_factory=list)
    survivors: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Leave what is in no other file, for whoever looks into a violation."""
        for name, records in (("asked", self.asked), ("faults", self.faults), ("checkpoints", self.checkpoints)):
            lines = (json.dumps(asdict(record)) + "\n" for record in records)
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        runs = (json.dumps({"run": run} | asdict(row)) + "\n" for run, row in self.runs.items())
        (folder / "runs.jsonl").write_text("".join(runs), encoding="utf-8")


def read_witnesses(file: Path) -> list[Witness]:
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        what, run, generation, step, nonce, pid, at = line.split(" ")
        found.append(Witness(what, run, int(generation), step, nonce, int(pid), float(at)))
    return sorted(found, key=lambda witness: witness.at)


def read_tables(client: Durably) -> tuple[dict[str, StoredRun], list[Checkpoint]]:
    """Read past durably's own statements."""
    return client.database.read(_read_tables)


def _read_tables(connection: Connection) -> tuple[dict[str, StoredRun], list[Checkpoint]]:
    columns = "id, job_name, status, generation, interruptions, error_type, output"
    runs = {
        row.id: StoredRun(
            job=row.job_name,
            status=row.status,
            generation=row.generation,
            interruptions=row.interruptions,
            error_type=row.error_type,
            output=_decoded(row.output),
        )
        for row in connection.execute(text(f"SELECT {columns} FROM durably_runs"))
    }
    steps = connection.execute(text("SELECT run_id, name, output FROM durably_steps WHERE status = 'completed'"))
    return runs, [Checkpoint(run=row.run_id, step=row.name, output=_decoded(row.output)) for row in steps]


def read_log(file: Path) -> list[dict[str, Any]]:
    """Read the events of a log; other lines, and one that was cut off, are none."""
    events = []
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                read = json.loads(line)
            except ValueError:
                continue
            if "sequence" in read:
                events.append(read)
    return events


def _decoded(stored: str | None) -> Any:
    return None if stored is None else json.loads(stored)
