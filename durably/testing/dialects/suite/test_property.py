"""
Random lives of runs on a real database, held against the model in tests/run_model.py after every step.

The machine needs nothing but a migrated instance, so every dialect can be put through it.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, delete

from durably import BatchItem, ConflictError, DatabaseUnavailableError, Durably, NotFoundError, StepContext, define_job
from durably import Run as StoredRun
from durably.model import STATUSES, Status
from durably.store import runs, tables, workers
from durably.store.claims import ClaimedRun, Company
from durably.store.intents import (
    Beat,
    Checkpoint,
    Claim,
    Completion,
    Failure,
    Fenced,
    LogLine,
    ProgressNote,
    Release,
    StepFailure,
)
from durably.store.rows import to_run
from durably.testing.dialects.suite.run_model import (
    CANCELLABLE,
    ISOLATE_AFTER,
    JOBS,
    MAX_INTERRUPTIONS,
    RETRIABLE,
    SLIMMED,
    STALE_THRESHOLD,
    TERMINAL,
    TRANSITIONS,
    Hold,
    Model,
    Run,
    Step,
    Worker,
)
from durably.testing.dialects.suite.support import add_worker, sql, write

IS_LONG = bool(os.environ.get("DURABLY_TEST_LONG"))
T = TypeVar("T")

STEPS = ("a", "b", "c")
ENDS = ("complete", "fail", "release")
ACTS = ("log", "progress", "fail step", "checkpoint", *ENDS)
"""What a worker writes to a run, in the order in which one commit writes them."""


class Wish(NamedTuple):
    """What a worker wants written for a claim of its own; `step` is a name, where the act is about a step."""

    hold: Hold
    act: str
    step: str = "a"


class Life(NamedTuple):
    """What may only change in certain ways; times as if the clock had never been moved."""

    status: Status
    generation: int
    attempt: int
    created_at: datetime
    started_at: datetime | None
    updated_at: datetime


class Stored(NamedTuple):
    """All that the database holds, as one transaction sees it; runs as records, newest first, the others as rows."""

    runs: list[StoredRun]
    counts: dict[str, int]
    steps: Sequence[Any]
    logs: Sequence[Any]
    labels: Sequence[Any]
    workers: Sequence[Any]


def read_all(connection: Connection) -> Stored:
    # Plain text, as this is done thousands of times; what callers are given is looked at by the rule `look`.
    def rows(query: str) -> Sequence[Any]:
        return connection.exec_driver_sql(query).all()

    return Stored(
        [to_run(row) for row in rows("SELECT * FROM durably_runs ORDER BY created_at DESC, id DESC")],
        runs.count_by_status(connection),
        rows("SELECT run_id, name, attempt, position, status, output, error_type FROM durably_steps"),
        rows("SELECT run_id, message FROM durably_logs ORDER BY id"),
        rows("SELECT * FROM durably_labels"),
        rows("SELECT id, jobs, state FROM durably_workers ORDER BY id"),
    )


def delete_all(connection: Connection) -> None:
    for table in reversed(tables.metadata.sorted_tables):
        connection.execute(delete(table))


def pick(choices: Callable[[Any], Sequence[T]]) -> st.SearchStrategy[T]:
    """Draw one of what the machine has just now; the rule's precondition makes sure that there is one."""
    return st.runner().flatmap(lambda machine: st.sampled_from(choices(machine)))


ITEMS = st.builds(
    lambda coalesce, **rest: BatchItem(coalesce=coalesce if rest["concurrency_key"] else None, **rest),
    input=st.integers(0, 9),
    idempotency_key=st.sampled_from([None, None, "i", "j"]),
    concurrency_key=st.sampled_from([None, None, "k", "l"]),
    coalesce=st.sampled_from([None, None, "skip", "active"]),
    labels=st.sampled_from([None, {"org": "a"}, {"org": "b"}, {"org": "a", "of": "x"}]),
)
ATTEMPTS = st.lists(st.tuples(st.sampled_from(["checkpoint", "fail step"]), st.sampled_from(STEPS)), max_size=3)
KNOWN = st.sampled_from([JOBS, JOBS, JOBS[:1], JOBS[1:]])
"""The jobs that a worker knows."""
ANY_RUN = pick(lambda machine: range(machine.model.born_runs))
ANY_WORKER = pick(lambda machine: range(machine.model.born_workers))
LIVING_WORKER = pick(lambda machine: machine.model.living())
ENDED_RUN = pick(lambda machine: [number for number, _ in machine.model.with_status(*TERMINAL)] or [0])
BUSY_WORKER = pick(lambda machine: machine.model.busy() or machine.model.living())
ANY_HOLD = pick(lambda machine: list(machine.model.claims))
GOOD_HOLD = pick(lambda machine: machine.model.holds(lost=False))
LOST_HOLD = pick(lambda machine: machine.model.holds(lost=True))
there_was_a_claim = precondition(lambda machine: len(machine.model.claims) > 0)
there_is_a_good_hold = precondition(lambda machine: len(machine.model.holds(lost=False)) > 0)
there_is_a_lost_hold = precondition(lambda machine: len(machine.model.holds(lost=True)) > 0)


def nothing(step: StepContext, input: int) -> None:
    """Do nothing, as a job."""


TIMES = {
    "durably_runs": ("created_at", "pending_at", "started_at", "completed_at", "updated_at"),
    "durably_workers": ("started_at", "heartbeat_at"),
}


class LivesOfRuns(RuleBasedStateMachine):
    """
    Callers, workers, supervisors and time, in any order, on one database.

    Args:
        app: A migrated instance on a database of its own: whatever is in it is deleted.
    """

    def __init__(self, app: Durably) -> None:
        super().__init__()
        self.app = app
        self.model = Model()
        # The model's numbers are positions in these.
        self.run_ids: list[str] = []
        self.worker_ids: list[str] = []
        self.values = 0
        self.lives: dict[str, Life] = {}
        self.checkpoints: dict[tuple[str, str], int] = {}
        app.database.write(delete_all)
        for job in JOBS:
            if app.get_job(job) is None:
                app.register(define_job(job, nothing))

    @initialize(items=st.lists(ITEMS, min_size=2, max_size=6), slots=st.integers(1, 3), jobs=KNOWN, crash=st.booleans())
    def all_begins(self, items: list[BatchItem], slots: int, jobs: tuple[str, ...], crash: bool) -> None:
        """Begin where something is going on: runs are held, and in every other life one worker was lost already."""
        for job in JOBS:
            self.trigger(job, items)
        for worker, known in enumerate((JOBS, jobs)):
            self.begin_worker(known)
            self.claim(worker, slots, lets_slots_run_empty=False)
        if crash:
            self.recover(0)
            self.begin_worker(JOBS)

    # --- callers --------------------------------------------------------------------------------------------

    @rule(job=st.sampled_from(JOBS), items=st.lists(ITEMS, min_size=1, max_size=3))
    def trigger(self, job: str, items: list[BatchItem]) -> None:
        handle = self.app.get_job(job)
        assert handle is not None
        for run, item in zip(handle.batch_trigger(items), items, strict=True):
            number, disposition = self.model.trigger(job, item)
            if disposition == "created":
                self.is_born(run)
            assert (run.id, run.disposition) == (self.run_ids[number], disposition)

    @rule(run=ENDED_RUN | ANY_RUN, what=st.sampled_from(["cancel", "retry", "retrigger", "delete"]))
    def call(self, run: int, what: str) -> None:
        """Make a caller's call; where the status forbids it, it must say so."""
        calls = {
            "cancel": (self.app.cancel, self.model.cancel, CANCELLABLE),
            "retry": (self.app.retry, self.model.retry, RETRIABLE),
            "retrigger": (lambda run_id: self.is_born(self.app.retrigger(run_id)), self.model.retrigger, TERMINAL),
            "delete": (self.app.delete_run, self.model.delete, TERMINAL),
        }
        call, happens, allowed = calls[what]
        status = self.model.status(run)
        if status in allowed:
            call(self.run_ids[run])
            happens(run)
            return
        with pytest.raises(NotFoundError if status is None else ConflictError) as refused:
            call(self.run_ids[run])
        assert getattr(refused.value, "status", None) == status

    @rule(
        statuses=st.sets(st.sampled_from(STATUSES), max_size=2),
        job=st.sampled_from([None, *JOBS]),
        labels=st.sampled_from([{}, {"org": "a"}, {"org": "a", "of": "x"}, {"org": "none"}]),
        limit=st.sampled_from([None, 0, 2]),
        offset=st.integers(0, 3),
    )
    def look(
        self, statuses: set[Status], job: str | None, labels: dict[str, str], limit: int | None, offset: int
    ) -> None:
        matching = [
            (number, run)
            for number, run in reversed(self.model.runs.items())
            if run.status in (statuses or STATUSES) and job in (None, run.job) and labels.items() <= run.labels.items()
        ]
        expected = matching[offset:][:limit]
        query: dict[str, Any] = {"status": sorted(statuses), "job_name": job, "labels": labels, "limit": limit}
        page = self.app.get_runs(**query, offset=offset)
        assert [self.run_ids.index(run.id) for run in page] == [number for number, _ in expected]
        for stored, (_, run) in zip(page, expected, strict=True):
            indexes = [step.index for step in run.steps.values() if step.status == "completed"]
            assert stored.completed_step_count == len(indexes)
            assert stored.current_step_index == max(indexes, default=-1) + 1
        if 0 < offset <= len(matching):
            assert self.app.get_runs(**query, before=self.run_ids[matching[offset - 1][0]]) == page
        found = {self.worker_ids.index(w.id): w for w in self.app.database.read(workers.get_workers)}
        assert {n: Worker(w.jobs, w.state) for n, w in found.items()} == self.model.workers
        assert [w.running for w in found.values()] == [len(self.model.held_by(n)) for n in found]

    def is_born(self, run: StoredRun) -> None:
        assert all(run.id > older for older in self.run_ids)
        self.run_ids.append(run.id)

    # --- workers --------------------------------------------------------------------------------------------

    def begin_worker(self, jobs: tuple[str, ...]) -> None:
        self.model.begin_worker(jobs)
        self.worker_ids.append(add_worker(self.app, *jobs))

    @rule(worker=LIVING_WORKER, slots=st.integers(1, 3), lets_slots_run_empty=st.booleans())
    def claim(self, worker: int, slots: int, lets_slots_run_empty: bool) -> None:
        company = self.company(worker)
        if company == "alone" and lets_slots_run_empty:
            company = "isolated"
        if company is not None:
            self.commit(claim=self.claim_by(worker, slots, company))

    @there_is_a_good_hold
    @rule(hold=GOOD_HOLD, attempts=ATTEMPTS)
    def attempt_steps(self, hold: Hold, attempts: list[tuple[str, str]]) -> None:
        for act, step in attempts:
            if self.model.has_completed(hold.run, step):
                with pytest.raises(DatabaseUnavailableError):  # the schema refuses a second checkpoint
                    write(self.app, Checkpoint(**self.of_run(hold), **self.of_step(hold.run, step), output='"twice"'))
            else:
                self.commit(Wish(hold, act, step))

    @there_is_a_good_hold
    @rule(hold=GOOD_HOLD, act=st.sampled_from(ENDS), refills=st.booleans())
    def finish(self, hold: Hold, act: str, refills: bool) -> None:
        self.commit(Wish(hold, act), refills=self.model.claims[hold] if refills else None)

    @rule(worker=LIVING_WORKER, slots=st.integers(1, 3), attempts=ATTEMPTS, act=st.sampled_from(ENDS))
    def claim_and_execute(self, worker: int, slots: int, attempts: list[tuple[str, str]], act: str) -> None:
        self.claim(worker, slots, lets_slots_run_empty=False)
        self.all_is_well()
        for hold in self.model.holds(lost=False):
            if self.model.claims[hold] == worker:
                self.attempt_steps(hold, attempts)
                self.finish(hold, act, refills=False)

    @there_was_a_claim
    @rule(
        wishes=st.lists(
            st.builds(Wish, ANY_HOLD, st.sampled_from(ACTS), st.sampled_from(STEPS)), min_size=2, max_size=6
        )
    )
    def commit_for_many(self, wishes: list[Wish]) -> None:
        self.commit(*wishes)

    @there_is_a_lost_hold
    @rule(hold=LOST_HOLD)
    def zombie_returns(self, hold: Hold) -> None:
        """Go on as if nothing had happened: write all there is to write, give a sign of life, claim more."""
        worker = self.model.claims[hold]
        self.commit(*(Wish(hold, act) for act in ACTS))
        self.beat(worker)
        self.claim(worker, 3, lets_slots_run_empty=False)

    def beat(self, worker: int) -> None:
        held = [hold for hold, holder in self.model.claims.items() if holder == worker]
        accepted, lost, must_run_empty = self.model.beat(worker)
        (answer,) = write(
            self.app,
            Beat(
                worker_id=self.worker_ids[worker],
                jobs=self.model.jobs_of(worker),
                held=[(self.run_ids[run], generation) for run, generation in held],
                loop_lag=0.0,
                oldest_step_age=None,
                isolate_after=ISOLATE_AFTER,
                patience=STALE_THRESHOLD,
            ),
        )
        assert (answer.accepted, answer.run_waits_to_be_alone) == (accepted, must_run_empty)
        told = {(self.run_ids[run], generation): reason for (run, generation), reason in lost.items()}
        assert {(run_id, generation): reason for run_id, generation, reason in answer.lost} == told

    def company(self, worker: int) -> Company | None:
        """Decide as a worker does in what company its next run would be; None while it holds one that must be alone."""
        held = self.model.held_by(worker)
        if any(run.must_be_alone for run in held):
            return None
        return "beside" if held else "alone"

    def claim_by(self, worker: int, limit: int, company: Company) -> Claim:
        return Claim(
            worker_id=self.worker_ids[worker],
            jobs=self.model.jobs_of(worker),
            limit=limit,
            isolate_after=ISOLATE_AFTER,
            company=company,
        )

    def commit(self, *wishes: Wish, claim: Claim | None = None, refills: int | None = None) -> None:
        """
        Write in one transaction what workers want of their runs, and what one claims.

        Args:
            claim: To be made after the wishes.
            refills: A worker that claims into the slot which its wish frees.
        """
        intents: dict[int, Fenced] = {}
        verdicts: dict[int, str | None] = {}
        for position, wish in sorted(enumerate(wishes), key=lambda each: ACTS.index(each[1].act)):
            if wish.act == "checkpoint" and self.model.has_completed(wish.hold.run, wish.step):
                continue  # a worker replays it
            intents[position], verdicts[position] = self.intend(wish)
        if refills is not None and (company := self.company(refills)) is not None:
            claim = self.claim_by(refills, 1, company)
        ordered = sorted(intents)
        answers = write(self.app, *(intents[position] for position in ordered), *([claim] if claim else []))
        assert answers[: len(ordered)] == [verdicts[position] for position in ordered]
        if claim is not None:
            self.check_claimed(claim, answers[-1])

    def intend(self, wish: Wish) -> tuple[Fenced, str | None]:  # noqa: PLR0911 - one for each kind
        """Make the intent of a wish, different from every other; and have the model do it, for the verdict."""
        hold, act, model = wish.hold, wish.act, self.model
        self.values += 1
        value = f"value {self.values}"
        mine, step = self.of_run(hold), self.of_step(hold.run, wish.step)
        error: dict[str, Any] = {"error": "message", "error_type": value, "error_traceback": "trace"}
        if act == "log":
            line = LogLine(**mine, step_name=None, attempt=1, level="info", message=value, data="{}")
            return line, model.log(hold, value)
        if act == "progress":
            return ProgressNote(**mine, progress=f'{{"current": {self.values}}}'), model.progress(hold, self.values)
        if act == "fail step":
            return StepFailure(**mine, **step, **error), model.fail_step(hold, wish.step, value)
        if act == "checkpoint":
            return Checkpoint(**mine, **step, output=f'"{value}"'), model.checkpoint(hold, wish.step, value)
        if act == "complete":
            slims = model.is_of(hold.run, SLIMMED)
            return Completion(**mine, output=f'"{value}"', drop_outputs=slims), model.complete(hold, value)
        if act == "fail":
            return Failure(**mine, **error), model.fail(hold, value)
        return Release(**mine), model.release(hold)

    def of_run(self, hold: Hold) -> dict[str, Any]:
        return {"run_id": self.run_ids[hold.run], "generation": hold.generation}

    def of_step(self, run: int, name: str) -> dict[str, Any]:
        number, index = self.model.next_attempt(run, name)
        return {"name": name, "index": index, "attempt": number, "duration": 0.001}

    def check_claimed(self, claim: Claim, claimed: list[ClaimedRun]) -> None:
        worker = self.worker_ids.index(claim.worker_id)
        expected = self.model.claim(worker, claim.limit, claim.company)
        assert [(self.run_ids.index(run.id), run.generation) for run in claimed] == expected
        for found, hold in zip(claimed, expected, strict=True):
            run = self.model.runs[hold.run]
            assert (found.job_name, found.attempt, found.interruptions) == (run.job, run.attempt, run.interruptions)
            assert round(found.waited, -3) == self.model.now - run.pending_since
            known = {name: (s.index, s.attempts, s.output) for name, s in found.steps.items()}
            assert known == {
                name: (attempts[-1].index, len(attempts), attempts[-1].output and f'"{attempts[-1].output}"')
                for name in STEPS
                if (attempts := run.attempts_at(name))
            }

    # --- supervisors, and time ------------------------------------------------------------------------------

    @rule(
        worker=BUSY_WORKER | ANY_WORKER,
        way=st.sampled_from(["killed", "killed", "killed in a drain", "stopped"]),
        successor=KNOWN,
    )
    def worker_ends(self, worker: int, way: str, successor: tuple[str, ...]) -> None:
        """Lose a worker, perhaps one that has been lost before; and begin another when few are left."""
        if way == "stopped":
            closed = self.app.database.write(lambda connection: workers.close(connection, self.worker_ids[worker]))
            assert closed == self.model.close(worker)
        else:
            self.recover(worker, interrupts=way == "killed")
        if len(self.model.living()) < 2:
            self.begin_worker(successor)
        self.beat(self.model.living()[0])

    @rule(seconds=st.sampled_from([1_000, 2_000, 90_000]), beating=st.integers(0, 2))
    def time_passes(self, seconds: int, beating: int) -> None:
        """
        Move all that is stored into the past; then some workers beat, and those that ended a day ago are forgotten.

        By thousands of seconds, and every threshold lies between two thousands, so that it makes no difference how
        long the machine itself takes.
        """
        self.model.now += seconds
        for table, columns in TIMES.items():
            moves = ", ".join(f"{column} = {column} - :passed" for column in columns)
            sql(self.app, f"UPDATE {table} SET {moves}", passed=seconds * 1_000_000)
        assert self.app.database.write(workers.forget_old) == self.model.forget_old_workers()
        for worker in self.model.living()[:beating]:
            self.beat(worker)

    @rule(suspect=ANY_WORKER, older_than=st.sampled_from([500, 3_500]), limit=st.integers(0, 2))
    def upkeep(self, suspect: int, older_than: int, limit: int) -> None:
        """Recover what silent workers held, also of one that may have been silent when somebody looked; and purge."""
        silent = self.model.silent()
        found = self.app.database.read(lambda connection: workers.find_silent(connection, STALE_THRESHOLD))
        assert sorted(map(self.worker_ids.index, found)) == silent
        for worker in {*silent, suspect}:
            self.recover(worker, silent_for=STALE_THRESHOLD)
        self.purge(older_than, limit)
        if not self.model.living():
            self.begin_worker(JOBS)

    def purge(self, older_than: int, limit: int) -> None:
        def purge_runs(connection: Connection) -> list[str]:
            before = runs.read_clock(connection) - older_than * 1_000_000
            return [run_id for run_id, _, _ in runs.purge_runs(connection, before=before, limit=limit)]

        due = self.model.purgeable(older_than)
        purged = [self.run_ids.index(run_id) for run_id in self.app.database.write(purge_runs)]
        # Of those that ended at one time of the model's clock, either may have been first by the database's.
        assert [due.get(run) for run in purged] == sorted(due.values())[:limit]
        for run in purged:
            self.model.delete(run)

    def recover(self, worker: int, *, interrupts: bool = True, silent_for: int | None = None) -> None:
        expected = self.model.recover(worker, interrupts=interrupts, silent_for=silent_for)
        declared, recovered = self.app.database.write(
            lambda connection: workers.recover(
                connection,
                self.worker_ids[worker],
                ending="ended",
                max_interruptions=MAX_INTERRUPTIONS,
                interrupts=interrupts,
                silent_for=silent_for,
            )
        )
        found = [(self.run_ids.index(run.id), run.interruptions, run.failed) for run in recovered]
        assert (declared, found) == expected

    # --- what holds after each step -------------------------------------------------------------------------

    @invariant()
    def all_is_well(self) -> None:
        stored = self.app.database.read(read_all)
        assert self.as_model(stored) == (self.model.runs, self.model.workers)
        self.check_rows(stored)
        self.check_lives(stored)

    def as_model(self, stored: Stored) -> tuple[dict[int, Run], dict[int, Worker]]:
        """Put into the model's words what is stored, to be compared with it."""
        numbers = {run_id: number for number, run_id in enumerate(self.run_ids)}
        found = {
            numbers[run.id]: Run(
                job=run.job_name,
                input=run.input,
                labels=dict(run.labels),
                concurrency_key=run.concurrency_key,
                idempotency_key=run.idempotency_key,
                status=run.status,
                attempt=run.attempt,
                generation=run.generation,
                interruptions=run.interruptions,
                worker=None if run.worker_id is None else self.worker_ids.index(run.worker_id),
                output=run.output,
                error=run.error_type,
                progress=None if run.progress is None else int(run.progress.current),
            )
            for run in stored.runs
        }
        for row in stored.steps:
            output = None if row.output is None else row.output.strip('"')
            found[numbers[row.run_id]].steps[row.name, row.attempt] = Step(
                row.position, row.status, output, row.error_type
            )
        for row in stored.logs:
            found[numbers[row.run_id]].logs.append(row.message)
        return found, {
            self.worker_ids.index(row.id): Worker(tuple(json.loads(row.jobs)), row.state) for row in stored.workers
        }

    def check_rows(self, stored: Stored) -> None:
        """Check what is true of the rows whatever happened before."""
        assert [run.id for run in stored.runs] == [self.run_ids[number] for number in reversed(self.model.runs)]
        assert stored.counts == Counter(run.status for run in stored.runs)
        assert {(row.run_id, row.key, row.value) for row in stored.labels} == {
            (run.id, key, value) for run in stored.runs for key, value in run.labels.items()
        }
        for run in stored.runs:
            assert (run.worker_id is not None) == (run.status == "running")  # contract 36
            assert (run.completed_at is not None) == (run.status in TERMINAL)  # contract 36
            assert (run.started_at is not None) == (run.generation > 0)  # contract 37, 49
            assert (run.error is not None) == (run.error_type is not None) == (run.status == "failed")
            assert run.interruptions <= min(run.generation, MAX_INTERRUPTIONS + 1)  # contract 40, 69
        running = [run for run in stored.runs if run.status == "running"]
        by_key = Counter(run.concurrency_key for run in running if run.concurrency_key is not None)
        assert set(by_key.values()) <= {1}  # contract 110
        by_worker = Counter(run.worker_id for run in running)
        assert all(
            by_worker[run.worker_id] == 1 for run in running if run.interruptions >= ISOLATE_AFTER
        )  # contract 67

    def check_lives(self, stored: Stored) -> None:
        """Check that each run became, since the step before, what it may become of what it was."""
        passed = timedelta(seconds=self.model.now)
        lives = {
            run.id: Life(
                run.status,
                run.generation,
                run.attempt,
                run.created_at + passed,
                None if run.started_at is None else run.started_at + passed,
                run.updated_at + passed,
            )
            for run in stored.runs
        }
        for run_id, old in self.lives.items():
            new = lives.get(run_id, old)
            assert new.status == old.status or (old.status, new.status) in TRANSITIONS  # contract 35
            assert (new.generation, new.attempt) >= (old.generation, old.attempt)  # contract 40
            assert new.created_at == old.created_at  # contract 37
            assert old.started_at in (None, new.started_at)  # contract 37
            assert new.updated_at >= old.updated_at  # contract 36
        completed = [(row.run_id, row.name) for row in stored.steps if row.status == "completed"]
        assert len(completed) == len(set(completed))  # contract 73
        attempts = {(row.run_id, row.name): row.attempt for row in stored.steps if row.status == "completed"}
        for checkpoint, attempt in self.checkpoints.items():
            assert checkpoint[0] not in lives or attempts.get(checkpoint) == attempt  # contract 99, 100
        self.lives, self.checkpoints = lives, attempts


def live(app: Durably, *, lives: int) -> None:
    """
    Put a database through random lives.

    The short form draws the same lives each time, so that a change that turns it red is to blame for it; the long
    form draws others each time, keeps those that fail in .hypothesis, and begins with them the next time.

    Args:
        app: A migrated instance on a database of its own: whatever is in it is deleted.
        lives: In the short form; the long one has 50 times as many, and longer ones.
    """
    run_state_machine_as_test(
        lambda: LivesOfRuns(app),  # type: ignore[arg-type] # it takes what makes a machine, too
        settings=settings(
            max_examples=lives * 50 if IS_LONG else lives,
            stateful_step_count=60 if IS_LONG else 30,
            deadline=None,
            derandomize=not IS_LONG,
            report_multiple_bugs=False,  # one, shrunk to its essence, tells more than four
        ),
    )


# Long enough to shrink a failure to its essence, for which Hypothesis takes 5 minutes at most.
@pytest.mark.timeout(7200 if IS_LONG else 600)
def test_whatever_happens_the_database_holds_what_the_model_does(app: Durably, pytestconfig: pytest.Config) -> None:
    # contract 35, 36, 37, 40, 50, 51, 56, 57, 73, 92, 99, 100, 104, 107, 110, 111, 112, 127, 130
    live(app, lives=pytestconfig.getoption("--lives"))


@pytest.mark.timeout(7200 if IS_LONG else 600)
def test_it_does_so_too_where_an_update_cannot_return_what_it_changed(
    app: Durably, pytestconfig: pytest.Config
) -> None:
    # contract 35, 43, 47, 56, 66
    app.database.engine().dialect.update_returning = False
    live(app, lives=pytestconfig.getoption("--lives") * 3 // 10)
