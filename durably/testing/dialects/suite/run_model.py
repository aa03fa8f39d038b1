"""
What durably promises of runs and workers, in memory: what tests/test_property.py holds a database against.

Written to be read beside the contract, whose numbers it cites. It knows no SQL, no ids and no clock: runs and workers
are numbered in the order of their birth, which is the order in which runs are claimed, and `now` moves when it is told.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from durably import BatchItem
from durably.model import Disposition, Status, WorkerState

ISOLATE_AFTER = 1
MAX_INTERRUPTIONS = 1
STALE_THRESHOLD = 1_500
"""Seconds of silence after which a worker is stale, and of waiting after which a run must get its turn alone."""
DAY = 24 * 3600
JOBS = ("kept", "slimmed")
SLIMMED = "slimmed"
"""The job that is executed with preserve_steps off."""
POISON = "TooManyInterruptions"

CANCELLABLE: tuple[Status, ...] = ("pending", "running")
RETRIABLE: tuple[Status, ...] = ("failed", "cancelled")
TERMINAL: tuple[Status, ...] = ("completed", "failed", "cancelled")

TRANSITIONS: set[tuple[Status, Status]] = {
    ("pending", "running"),
    ("running", "completed"),
    ("running", "failed"),
    ("running", "pending"),
    ("pending", "cancelled"),
    ("running", "cancelled"),
    ("failed", "pending"),
    ("cancelled", "pending"),
}
"""The legal ones, and no others; a run is born pending."""


class Hold(NamedTuple):
    """A claim, as the worker remembers it that made it: the right to write, until somebody takes it away."""

    run: int
    generation: int


@dataclass
class Step:
    """One attempt at a step; `output` is None for a failed one, and once outputs were dropped."""

    index: int
    status: str
    output: str | None = None
    error: str | None = None


@dataclass
class Worker:
    """A worker's row."""

    jobs: tuple[str, ...]
    state: WorkerState = "alive"
    beat_at: int = field(default=0, compare=False)


@dataclass
class Run:
    """A run, its steps by name and attempt, and its logs in order. What only time decides is not compared."""

    job: str
    input: int
    labels: dict[str, str]
    concurrency_key: str | None
    idempotency_key: str | None
    status: Status = "pending"
    attempt: int = 1
    generation: int = 0
    interruptions: int = 0
    worker: int | None = None
    output: str | None = None
    error: str | None = None
    progress: int | None = None
    steps: dict[tuple[str, int], Step] = field(default_factory=dict)
    logs: list[str] = field(default_factory=list)
    pending_since: int = field(default=0, compare=False)
    ended_at: int = field(default=0, compare=False)
    awaited_by: int | None = field(default=None, compare=False)

    @property
    def must_be_alone(self) -> bool:
        """Whether it was interrupted so often that its next death must be its own."""
        return self.interruptions >= ISOLATE_AFTER

    def attempts_at(self, name: str) -> list[Step]:
        """List the attempts at a step, in order."""
        return [step for (other, _), step in sorted(self.steps.items()) if other == name]


class Model:
    """All runs and workers that there are, by number. Each method is one operation, and gives what it is answered."""

    def __init__(self) -> None:
        self.now = 0
        self.runs: dict[int, Run] = {}
        self.workers: dict[int, Worker] = {}
        self.born_runs = 0
        self.born_workers = 0
        self.claims: dict[Hold, int] = {}
        """Every claim ever made, and its worker."""

    # --- looking --------------------------------------------------------------------------------------------

    def status(self, run: int) -> Status | None:
        """Give a run's status; None if it was deleted."""
        return self.runs[run].status if run in self.runs else None

    def with_status(self, *statuses: Status) -> Iterator[tuple[int, Run]]:
        """Go through the runs in these statuses, oldest first."""
        return ((number, run) for number, run in self.runs.items() if run.status in statuses)

    def held_by(self, worker: int) -> list[Run]:
        """List what a worker holds."""
        return [run for _, run in self.with_status("running") if run.worker == worker]

    def refusal(self, hold: Hold) -> str | None:
        """Give the fence's verdict: None for the run's holder, else why it is no longer that (50, 51)."""
        run = self.runs.get(hold.run)
        if run is not None and run.status == "running" and run.generation == hold.generation:
            return None
        return "cancelled" if run is not None and run.status == "cancelled" else "lease_lost"

    def holds(self, *, lost: bool) -> list[Hold]:
        """List the claims that are still good, or those that are not."""
        return [hold for hold in self.claims if (self.refusal(hold) is not None) == lost]

    def is_of(self, run: int, job: str) -> bool:
        """Tell whether a run is there, and of this job."""
        return run in self.runs and self.runs[run].job == job

    def jobs_of(self, worker: int) -> tuple[str, ...]:
        """Give the jobs that a worker knows, also one whose row was forgotten."""
        return self.workers[worker].jobs if worker in self.workers else JOBS

    def has_completed(self, run: int, step: str) -> bool:
        """Tell whether a run has the checkpoint of a step."""
        return run in self.runs and any(s.status == "completed" for s in self.runs[run].attempts_at(step))

    def next_attempt(self, run: int, step: str) -> tuple[int, int]:
        """Number the next attempt at a step (82), and give the step's index: by first start (83)."""
        steps = self.runs[run].steps if run in self.runs else {}
        indexes = {name: attempt.index for (name, _), attempt in steps.items()}
        return 1 + sum(name == step for name, _ in steps), indexes.get(step, len(indexes))

    # --- callers --------------------------------------------------------------------------------------------

    def trigger(self, job: str, item: BatchItem) -> tuple[int, Disposition]:
        """Create a run, or be answered with one that there is; an idempotency key goes first (106, 107)."""
        if item.idempotency_key is not None:
            for number, run in self.runs.items():
                if (run.job, run.idempotency_key) == (job, item.idempotency_key):
                    return number, "idempotent"
        for status in {"skip": ("pending",), "active": ("pending", "running")}.get(item.coalesce or "", ()):
            for number, run in self.with_status(status):  # type: ignore[arg-type]
                if (run.job, run.concurrency_key) == (job, item.concurrency_key):
                    return number, "coalesced"  # 114, 115
        return self._create(job, item), "created"

    def _create(self, job: str, item: BatchItem) -> int:
        number, self.born_runs = self.born_runs, self.born_runs + 1
        self.runs[number] = Run(
            job,
            item.input,
            dict(item.labels or {}),
            item.concurrency_key,
            item.idempotency_key,
            pending_since=self.now,
        )
        return number

    def cancel(self, number: int) -> None:
        """End a pending or running run (90)."""
        self._end(self.runs[number], "cancelled")

    def retry(self, number: int) -> None:
        """Put a failed or cancelled run back to pending; what it has done stays (100)."""
        run = self.runs[number]
        run.attempt += 1
        run.interruptions = 0
        run.error = None
        self._put_back(run)

    def retrigger(self, number: int) -> int:
        """Create a run with the input, labels and concurrency key of one that has ended (104)."""
        run = self.runs[number]
        return self._create(run.job, BatchItem(run.input, None, run.concurrency_key, None, run.labels))

    def delete(self, number: int) -> None:
        """Forget a run that has ended, and all that it has (127)."""
        del self.runs[number]

    def purgeable(self, age: int) -> dict[int, int]:
        """Give the runs that ended more than so many seconds ago, and when (129, 130)."""
        return {n: run.ended_at for n, run in self.with_status(*TERMINAL) if run.ended_at < self.now - age}

    # --- workers --------------------------------------------------------------------------------------------

    def begin_worker(self, jobs: Sequence[str]) -> int:
        """Add a living worker that knows these jobs."""
        number, self.born_workers = self.born_workers, self.born_workers + 1
        self.workers[number] = Worker(tuple(jobs), beat_at=self.now)
        return number

    def living(self) -> list[int]:
        """List the workers that are alive."""
        return [number for number in self.workers if self.is_alive(number)]

    def busy(self) -> list[int]:
        """List the workers that hold runs."""
        return sorted({run.worker for _, run in self.with_status("running") if run.worker is not None})

    def is_alive(self, worker: int) -> bool:
        """Tell whether a worker's row is there, and alive."""
        return worker in self.workers and self.workers[worker].state == "alive"

    def claim(self, worker: int, limit: int, company: str) -> list[Hold]:
        """Make the oldest claimable runs a living worker's (41 to 48, 67, 110, 111)."""
        taken: list[Hold] = []
        waiting_keys: set[str | None] = set()
        for number, run in self.with_status("pending") if self.is_alive(worker) else ():
            if run.job not in self.workers[worker].jobs or run.concurrency_key in waiting_keys:
                continue
            if company == "isolated" and not run.must_be_alone:
                waiting_keys |= {run.concurrency_key} - {None}  # it goes before a younger one with its key
                continue
            if run.must_be_alone and (company == "beside" or taken):
                continue
            if self._key_is_taken(run.concurrency_key):
                continue
            taken.append(self._start(number, worker))
            if run.must_be_alone or len(taken) == limit:
                break
        return taken

    def _key_is_taken(self, key: str | None) -> bool:
        return key is not None and any(run.concurrency_key == key for _, run in self.with_status("running"))

    def _start(self, number: int, worker: int) -> Hold:
        run = self.runs[number]
        run.status, run.worker, run.awaited_by = "running", worker, None
        run.generation += 1
        hold = Hold(number, run.generation)
        assert hold not in self.claims
        self.claims[hold] = worker
        return hold

    def beat(self, worker: int) -> tuple[bool, dict[Hold, str | None], bool]:
        """Give a worker's sign of life: is it accepted, what has it lost, must it let its slots run empty (57, 68)."""
        accepted = self.is_alive(worker)
        if accepted:
            self.workers[worker].beat_at = self.now
        # A worker that lives loses runs by their cancellation alone.
        lost = {
            hold: "cancelled" if accepted else self.refusal(hold)
            for hold in self.holds(lost=True)
            if self.claims[hold] == worker
        }
        return accepted, lost, accepted and self._promise_to_wait(worker)

    def _promise_to_wait(self, worker: int) -> bool:
        """Let a worker wait for the oldest run that must and could be alone, was passed over, and nobody awaits."""
        older_keys: set[str | None] = set()
        for _, run in self.with_status("pending"):
            if run.job not in self.workers[worker].jobs:
                continue
            is_next = run.concurrency_key not in older_keys and not self._key_is_taken(run.concurrency_key)
            older_keys |= {run.concurrency_key} - {None}
            is_overdue = run.must_be_alone and run.pending_since < self.now - STALE_THRESHOLD
            is_free = run.awaited_by in (None, worker) or not self.is_alive(run.awaited_by)
            if is_next and is_overdue and is_free:
                run.awaited_by = worker
                return True
        return False

    def close(self, worker: int) -> bool:
        """Stop a worker, if it is alive and holds nothing; tell whether it was."""
        is_stopping = self.is_alive(worker) and worker not in self.busy()
        if is_stopping:
            self.workers[worker].state = "stopped"
            self.workers[worker].beat_at = self.now
        return is_stopping

    def silent(self) -> list[int]:
        """List the living workers that have not beaten for too long (55)."""
        return [worker for worker in self.living() if self.is_silent(worker, STALE_THRESHOLD)]

    def is_silent(self, worker: int, threshold: int) -> bool:
        """Tell whether a worker is alive and has not beaten for so many seconds."""
        return self.is_alive(worker) and self.workers[worker].beat_at < self.now - threshold

    def recover(
        self, worker: int, *, interrupts: bool, silent_for: int | None
    ) -> tuple[bool, list[tuple[int, int, bool]]]:
        """
        Declare a worker dead; each run that it held is pending again, or failed as poison (56, 65, 66, 170).

        Returns:
            Whether it was alive; and what it held, with its interruptions, and whether it failed.
        """
        if silent_for is not None and not self.is_silent(worker, silent_for):
            return False, []
        was_alive = self.is_alive(worker)
        if was_alive:
            self.workers[worker].state = "dead"
        recovered = []
        for number, run in list(self.with_status("running")):
            if run.worker == worker:
                run.interruptions += interrupts
                is_poison = interrupts and run.interruptions > MAX_INTERRUPTIONS
                if is_poison:
                    run.error = POISON
                    self._end(run, "failed")
                else:
                    self._put_back(run)
                recovered.append((number, run.interruptions, is_poison))
        return was_alive, recovered

    def forget_old_workers(self) -> int:
        """Forget those that ended a day ago and hold nothing (188)."""
        old = [
            number
            for number, worker in self.workers.items()
            if worker.state != "alive" and worker.beat_at < self.now - DAY and not self.held_by(number)
        ]
        for number in old:
            del self.workers[number]
        return len(old)

    # --- what a worker writes to a run, behind the fence ------------------------------------------------------

    def log(self, hold: Hold, message: str) -> str | None:
        """Add to the run's log."""
        if reason := self.refusal(hold):
            return reason
        self.runs[hold.run].logs.append(message)
        return None

    def progress(self, hold: Hold, current: int) -> str | None:
        """Say how far the run is."""
        if reason := self.refusal(hold):
            return reason
        self.runs[hold.run].progress = current
        return None

    def checkpoint(self, hold: Hold, name: str, output: str) -> str | None:
        """Store what a step returned."""
        return self._add_attempt(hold, name, "completed", output=output)

    def fail_step(self, hold: Hold, name: str, error: str) -> str | None:
        """Store a failed attempt at a step (81, 82)."""
        return self._add_attempt(hold, name, "failed", error=error)

    def _add_attempt(self, hold: Hold, name: str, status: str, **result: str) -> str | None:
        if reason := self.refusal(hold):
            return reason
        number, index = self.next_attempt(hold.run, name)
        self.runs[hold.run].steps[name, number] = Step(index, status, **result)
        return None

    def complete(self, hold: Hold, output: str) -> str | None:
        """End the run as its function returned; said again, it is answered as the first time and changes nothing."""
        run = self.runs.get(hold.run)
        if run is not None and (run.status, run.generation) == ("completed", hold.generation):
            return None
        if reason := self.refusal(hold):
            return reason
        run = self.runs[hold.run]
        run.output = output
        if run.job == SLIMMED:
            for step in run.steps.values():
                step.output = None  # 88
        self._end(run, "completed")
        return None

    def fail(self, hold: Hold, error: str) -> str | None:
        """End the run as its function raised."""
        if reason := self.refusal(hold):
            return reason
        self.runs[hold.run].error = error
        self._end(self.runs[hold.run], "failed")
        return None

    def release(self, hold: Hold) -> str | None:
        """Hand the run back; that costs it no interruption (158)."""
        if reason := self.refusal(hold):
            return reason
        self._put_back(self.runs[hold.run])
        return None

    def _end(self, run: Run, status: Status) -> None:
        run.status, run.worker, run.awaited_by, run.ended_at = status, None, None, self.now

    def _put_back(self, run: Run) -> None:
        run.status, run.worker, run.pending_since = "pending", None, self.now
