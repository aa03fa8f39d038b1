"""The judge of the fault campaign lets a true history pass and finds what is false in any other."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos import campaign, figures, runs
from tests.chaos.checker import check
from tests.chaos.faults import KINDS, draw_schedule
from tests.chaos.history import Asked, Checkpoint, History, Inflicted, StoredRun, Witness
from tests.chaos.sequences import count_of
from tests.databases import NAMES

BAD = ("exit-in-step", "exit-in-commit", "poison", "hang", "hang-with-gil", "overrun", "out-of-memory")
SUPERVISOR, KEEPER, FIRST, SECOND = 10, 11, 12, 13
Falsify = Callable[[History], None]


def value(generation: int, nonce: str) -> dict[str, Any]:
    return {"generation": generation, "nonce": nonce}


class Told:
    """A log as a supervisor writes it: each process counts its events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._last: dict[int, int] = {}

    def tell(self, pid: int, event: str, **fields: Any) -> None:
        self._last[pid] = self._last.get(pid, 0) + 1
        role = {SUPERVISOR: "supervisor", KEEPER: "keeper"}.get(pid, "worker")
        worker_id = f"worker {pid}" if role == "worker" else None
        process = {"pid": pid, "role": role, "worker_id": worker_id}
        self.events.append({"event": event, "sequence": self._last[pid], "process": process, **fields})


def true_history() -> History:
    """
    Give what two runs with one key leave: the first is killed in its second step and goes on in another worker.

    There is a third, which was to fail.
    """
    log = Told()
    log.tell(SUPERVISOR, "supervisor:start")
    log.tell(FIRST, "run:start", run_id="a", generation=1)
    log.tell(FIRST, "step:complete", run_id="a", step_name="0")
    log.tell(KEEPER, "run:recover", run_id="a", lost_worker=f"worker {FIRST}")
    lost = f"the last 2 events of worker worker {FIRST} were lost with it"
    log.tell(SUPERVISOR, "supervisor:error", context="events-lost", error=lost)
    log.tell(SECOND, "run:start", run_id="a", generation=2)
    log.tell(SECOND, "step:complete", run_id="a", step_name="1")
    log.tell(SECOND, "run:complete", run_id="a")
    log.tell(SECOND, "run:start", run_id="b", generation=1)
    log.tell(SECOND, "step:complete", run_id="b", step_name="0")
    log.tell(SECOND, "run:complete", run_id="b")
    log.tell(SECOND, "run:start", run_id="c", generation=1)
    log.tell(SECOND, "run:fail", run_id="c")
    log.tell(SUPERVISOR, "supervisor:stop")
    said = [
        ("called", "a", 1, "-", "-", FIRST),
        ("began", "a", 1, "0", "a0", FIRST),
        ("ended", "a", 1, "0", "a0", FIRST),
        ("returned", "a", 1, "0", "a0", FIRST),
        ("began", "a", 1, "1", "lost", FIRST),
        ("called", "a", 2, "-", "-", SECOND),
        ("returned", "a", 2, "0", "a0", SECOND),
        ("began", "a", 2, "1", "a1", SECOND),
        ("ended", "a", 2, "1", "a1", SECOND),
        ("returned", "a", 2, "1", "a1", SECOND),
        ("called", "b", 1, "-", "-", SECOND),
        ("began", "b", 1, "0", "b0", SECOND),
        ("ended", "b", 1, "0", "b0", SECOND),
        ("returned", "b", 1, "0", "b0", SECOND),
        ("called", "c", 1, "-", "-", SECOND),
        ("hanging", "c", 1, "-", "-", SECOND),
    ]
    return History(
        asked=[
            Asked(run="a", job="work", steps=2, key="k"),
            Asked(run="b", job="work", steps=1, key="k"),
            Asked(run="c", job="overrun", steps=0, fails_with="StepTimeoutError"),
        ],
        runs={
            "a": completed(2, "a0", "a1", interruptions=1),
            "b": completed(1, "b0"),
            "c": StoredRun(
                job="overrun", status="failed", generation=1, interruptions=0, error_type="StepTimeoutError"
            ),
        },
        checkpoints=[
            Checkpoint(run="a", step="0", output=value(1, "a0")),
            Checkpoint(run="a", step="1", output=value(2, "a1")),
            Checkpoint(run="b", step="0", output=value(1, "b0")),
        ],
        witnesses=[Witness(*line, at=float(n)) for n, line in enumerate(said)],
        faults=[Inflicted(kind="kill-worker", at=4.5, pids=(FIRST,))],
        logs={"family": log.events},
        exit_codes=[0],
    )


def completed(generation: int, *nonces: str, interruptions: int = 0) -> StoredRun:
    output = {"generation": generation, "nonces": list(nonces)}
    return StoredRun(job="work", status="completed", generation=generation, interruptions=interruptions, output=output)


def with_run(run: str, **changes: Any) -> Falsify:
    def falsify(history: History) -> None:
        history.runs = {**history.runs, run: replace(history.runs[run], **changes)}

    return falsify


def without_run(run: str) -> Falsify:
    def falsify(history: History) -> None:
        history.runs = {key: row for key, row in history.runs.items() if key != run}

    return falsify


def went_on(history: History) -> None:
    for step, at in (("2", 7.5), ("3", 7.6)):
        with_witness("began", "a", 1, step, f"late {step}", FIRST, at)(history)


def not_asked_for(history: History) -> None:
    history.asked = [each for each in history.asked if each.run != "b"]


def with_witness(what: str, run: str, generation: int, step: str, nonce: str, pid: int, at: float) -> Falsify:
    def falsify(history: History) -> None:
        history.witnesses.append(Witness(what, run, generation, step, nonce, pid, at))
        history.witnesses.sort(key=lambda witness: witness.at)

    return falsify


def moved(what: str, run: str, generation: int, at: float) -> Falsify:
    """Let a line have been left at another time."""

    def falsify(history: History) -> None:
        history.witnesses = sorted(
            (w._replace(at=at) if (w.what, w.run, w.generation) == (what, run, generation) else w)
            for w in history.witnesses
        )
        history.witnesses.sort(key=lambda witness: witness.at)

    return falsify


def with_checkpoint(run: str, step: str, generation: int, nonce: str, *, instead: bool = True) -> Falsify:
    def falsify(history: History) -> None:
        kept = [each for each in history.checkpoints if not instead or (each.run, each.step) != (run, step)]
        history.checkpoints = [*kept, Checkpoint(run=run, step=step, output=value(generation, nonce))]

    return falsify


def without_checkpoint(history: History) -> None:
    del history.checkpoints[0]


def twice(event: str) -> Falsify:
    """Let the first event of a type have been told once more, by another process that has not lost count."""

    def falsify(history: History) -> None:
        log = history.logs["family"]
        (first, *_) = [each for each in log if each["event"] == event]
        again = deepcopy(first)
        again["sequence"] = max(e["sequence"] for e in log if e["process"]["pid"] == first["process"]["pid"]) + 1
        log.insert(len(log) - 1, again)

    return falsify


def without_event(event: str) -> Falsify:
    def falsify(history: History) -> None:
        log = history.logs["family"]
        log.remove(next(each for each in log if each["event"] == event))

    return falsify


def out_of_order(history: History) -> None:
    log = history.logs["family"]
    places = [n for n, each in enumerate(log) if each["process"]["pid"] == SECOND]
    first, second = places[3:5]
    log[first], log[second] = log[second], log[first]


def lost_more(history: History) -> None:
    """Take more of a worker's events than were counted."""
    log = history.logs["family"]
    log[:] = [each for each in log if each["process"]["pid"] != SECOND or each["event"] == "run:fail"]


def suspected(history: History) -> None:
    log = history.logs["family"]
    fields = {"worker": "w", "worker_pid": FIRST, "reason": "silent", "seconds": 30.0}
    sequence = log[-1]["sequence"] + 1
    log.append({"event": "worker:suspect", "sequence": sequence, "process": log[-1]["process"], **fields})


def gave_up(history: History) -> None:
    history.gave_up.append("family")


def lived_on(history: History) -> None:
    history.survivors.append("family, pid 12")


def in_peace(history: History) -> None:
    """Let all of it have happened although no fault was inflicted."""
    history.faults = []


def with_event(**event: Any) -> Falsify:
    """Let another event have been told where no fault was inflicted, and nothing that it could come from happened."""

    def falsify(history: History) -> None:
        history.faults = []
        history.runs = {run: replace(row, generation=1, interruptions=0) for run, row in history.runs.items()}
        history.logs = {"family": [event | {"sequence": 1, "process": {"pid": SUPERVISOR, "role": "supervisor"}}]}

    return falsify


def badly_stopped(history: History) -> None:
    history.exit_codes.append(3)


def draw_each_bad(chance: random.Random) -> runs.Wanted:
    """Draw a run that a fault asks for."""
    return runs.draw_bad(chance, chance.choice(BAD))


FALSE: dict[str, tuple[str, Falsify]] = {
    "a run is gone": ("lost", without_run("a")),
    "a run hangs": ("lost", with_run("b", status="running")),
    "a run waits for ever": ("lost", with_run("b", status="pending")),
    "a run came from nowhere": ("lost", not_asked_for),
    "a run failed": ("outcome", with_run("b", status="failed", error_type="TooManyInterruptions")),
    "a run that was to fail completed": (
        "outcome",
        with_run("c", status="completed", output={"generation": 1, "nonces": []}),
    ),
    "a run failed with another error": ("outcome", with_run("c", error_type="builtins.OSError")),
    "a checkpoint is gone": ("checkpoint", without_checkpoint),
    "a step has two checkpoints": ("checkpoint", with_checkpoint("a", "0", 1, "a0", instead=False)),
    "a checkpoint was overwritten": ("checkpoint", with_checkpoint("a", "1", 2, "lost")),
    "a checkpoint was made by nobody": ("checkpoint", with_checkpoint("b", "0", 1, "b0-other")),
    "a replay gave another value": ("checkpoint", with_witness("returned", "a", 2, "0", "other", SECOND, 6.5)),
    "an output is not its checkpoints'": ("checkpoint", with_run("b", output={"generation": 1, "nonces": ["x"]})),
    "a step ran again after its checkpoint": ("doubled", with_witness("began", "a", 2, "0", "again", SECOND, 6.1)),
    "a step ran twice in one execution": ("doubled", with_witness("began", "b", 1, "0", "again", SECOND, 11.5)),
    "a superseded generation wrote": ("fence", with_checkpoint("a", "0", 3, "a0")),
    "a superseded generation completed": ("fence", with_run("b", generation=2)),
    "a generation was executed that nobody claimed": (
        "fence",
        with_witness("called", "b", 7, "-", "-", SECOND, 13.5),
    ),
    "two processes execute one generation": ("fence", with_witness("began", "b", 1, "1", "x", FIRST, 12.5)),
    "a superseded execution went on": ("overlap", went_on),
    "a superseded execution's step was stored": ("overlap", with_witness("began", "a", 1, "1", "a1", FIRST, 7.5)),
    "a run was called while it was held": ("overlap", moved("called", "a", 2, 1.5)),
    "two runs of a key at once": ("key", moved("called", "b", 1, 6.5)),
    "one claim was executed twice": ("count", with_witness("called", "b", 1, "-", "-", SECOND, 13.5)),
    "interruptions without claims": ("count", with_run("a", interruptions=2)),
    "a run started twice in one generation": ("transition", twice("run:start")),
    "a run completed twice": ("transition", twice("run:complete")),
    "a run was recovered twice": ("transition", twice("run:recover")),
    "a step was told complete twice": ("transition", twice("step:complete")),
    "a completed run failed": ("transition", with_run("b", status="failed", error_type="x")),
    "a run was claimed after its end": ("transition", with_run("b", generation=2)),
    "an event vanished uncounted": ("sequence", lost_more),
    "events overtook each other": ("sequence", out_of_order),
    "a healthy worker was suspected": ("suspect", suspected),
    "a supervisor gave up": ("supervisor", gave_up),
    "an orphan lives on": ("orphan", lived_on),
    "a run was interrupted in peace": ("calm", in_peace),
    "a worker ended in peace": ("calm", with_event(event="worker:exit", lost_worker="w", reason="silent")),
    "something went wrong in peace": ("calm", with_event(event="supervisor:error", context="silent", error="who?")),
    "a supervisor could not stop": ("supervisor", badly_stopped),
}


def test_a_true_history_passes() -> None:
    assert check(true_history()) == []


@pytest.mark.parametrize("what", FALSE)
def test_a_false_history_is_found_out(what: str) -> None:
    history = true_history()
    promise, falsify = FALSE[what]
    falsify(history)
    assert promise in {violation.promise for violation in check(history)}


def test_one_late_beginning_of_a_process_that_was_stopped_is_no_violation() -> None:
    history = true_history()
    # It is stopped before it calls the step, and goes on when the run has another owner.
    history.witnesses = [w for w in history.witnesses if w.nonce != "lost"]
    with_witness("began", "a", 1, "1", "late", FIRST, 7.5)(history)
    assert check(history) == []
    assert figures.figures_of(history, [])["steps begun by a superseded execution, and refused"] == 1


def test_a_loss_that_was_counted_is_none_that_is_hidden() -> None:
    history = true_history()
    without_event("step:complete")(history)  # of the worker that died: 2 were counted
    assert check(history) == []
    assert figures.figures_of(history, [])["events missing in sequences"] == 0  # nothing of it came later


def test_a_keeper_that_is_heard_before_its_supervisor_leaves_no_gap() -> None:
    log = Told()
    log.tell(KEEPER, "worker:exit", lost_worker="of an earlier supervisor")
    log.tell(SUPERVISOR, "supervisor:start")
    log.tell(KEEPER, "worker:exit", lost_worker="another")
    log.tell(SUPERVISOR, "supervisor:stop")
    history = true_history()
    history.logs = {"another family": log.events}
    assert check(history) == []
    del log.events[0]
    assert "sequence" in {violation.promise for violation in check(history)}


def test_recovery_is_counted_from_the_kill_to_the_next_call() -> None:
    assert figures.recoveries(true_history()) == {"kill-worker": [0.5]}


@pytest.mark.parametrize("at", [-1.0, 20.0])
def test_the_end_of_another_process_with_the_same_number_is_no_kill_of_this_one(at: float) -> None:
    history = true_history()
    history.faults.append(Inflicted(kind="kill-family", at=at, pids=(FIRST,)))
    assert figures.recoveries(history) == {"kill-worker": [0.5]}


def test_counts_of_lost_events_are_read_from_both_lines_that_tell_them() -> None:
    assert count_of("3 events of worker 01JN before its number 9 were lost") == 3
    assert count_of("the last 12 events of worker 01JN were lost with it") == 12
    with pytest.raises(ValueError, match="no count"):
        count_of("some events were lost")


def test_a_worker_that_stops_as_it_is_told_disturbs_no_peace() -> None:
    history = true_history()
    with_event(event="worker:exit", lost_worker="w", reason="stopped")(history)
    assert "calm" not in {violation.promise for violation in check(history)}


def test_a_seed_gives_one_schedule() -> None:
    drawn = [draw_schedule(seed, 60, 0.5, 2, list(KINDS)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_schedule_has_each_kind_once_before_any_comes_again() -> None:
    kinds = [fault.kind for fault in draw_schedule(1, 600, 0.5, 2, list(KINDS))]
    assert sorted(kinds[: len(KINDS)]) == sorted(KINDS)
    assert Counter(kinds)["kill-worker"] > 2 * Counter(kinds)["kill-keeper"] > 2


def test_without_kinds_there_is_nothing_to_draw() -> None:
    plan = campaign.Plan(seed=1, seconds=60, kinds=())
    assert plan.schedule() == []
    assert plan.settings.keys() == {"concurrency"}


@pytest.mark.parametrize("draw", [runs.draw_short, runs.draw_steady, draw_each_bad], ids=lambda draw: draw.__name__)
def test_a_seed_gives_the_same_runs(
    draw: Callable[[random.Random], runs.Wanted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all that they are to do is known to the application under fire."""
    monkeypatch.setenv("DURABLY_DIALECT_URL", "sqlite:///nowhere.db")  # which nobody opens
    from tests.chaos import load

    drawn = []
    for seed in (1, 1, 2):
        chance = random.Random(seed)
        wanted = [draw(chance) for _ in range(200)]
        drawn.append([(each.new.job_name, each.new.input, each.new.concurrency_key) for each in wanted])
    assert drawn[0] == drawn[1] != drawn[2]
    assert {job for job, _, _ in drawn[0]} <= {job.name for job in load.durably.registry}
    ways = {how for _, plan, _ in drawn[0] for how, _ in json.loads(str(plan))["acts"]}
    assert ways <= {*load.WAYS, "await"}


def test_the_campaign_knows_each_database_by_name() -> None:
    assert {"sqlite", "postgresql", "libsql_file", "libsql_server"} <= set(NAMES)
    assert campaign.SETTINGS["stale_threshold"] >= 2 * campaign.SETTINGS["heartbeat_interval"]
