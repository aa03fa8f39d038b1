"""
Judges a campaign's history without asking durably: from the witnesses' lines, the tables' rows and the log.

What it concludes from witnesses rests on one thing: a checkpoint's value names the generation and the execution that
made it. So an execution whose checkpoint is in the table held its run until the step's function had ended, and one of a
later generation that began the step did so although it had been committed. No clock but the host's monotonic one is
compared.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tests.chaos.sequences import check_sequences
from tests.chaos.transitions import check_transitions
from tests.chaos.violation import Violation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.chaos.history import Asked, History, StoredRun, Witness

_SUSPECTED_IN_THE_RIGHT: Final = ("pause",)
_ENDS_IN_PEACE: Final = ("stopped",)


class Span(NamedTuple):
    """From when to when an execution held its run, as far as that is proven."""

    run: str
    generation: int
    called: float
    ended: float


def check(history: History) -> list[Violation]:
    """Hold a history against what durably promises."""
    return [violation for one in CHECKS for violation in one(history)]


def check_outcomes(history: History) -> Iterator[Violation]:
    """Every run that was asked for is there and has ended as it must; no other is there."""
    asked = {each.run: each for each in history.asked}
    for run in history.runs.keys() - asked.keys():
        yield Violation("lost", run, "nobody has asked for it")
    for each in history.asked:
        stored = history.runs.get(each.run)
        if stored is None:
            if each.is_sure:
                yield Violation("lost", each.run, "it was triggered and is not there")
        elif problem := _outcome_problem(each, stored):
            yield Violation("lost" if stored.status in ("pending", "running") else "outcome", each.run, problem)


def _outcome_problem(asked: Asked, stored: StoredRun) -> str | None:
    if asked.fails_with is None:
        return None if stored.status == "completed" else f"{stored.status} ({stored.error_type}), not completed"
    if (stored.status, stored.error_type) != ("failed", asked.fails_with):
        return f"{stored.status} ({stored.error_type}), not failed with {asked.fails_with}"
    return None


def check_checkpoints(history: History) -> Iterator[Violation]:
    """One checkpoint for each step, as it was first returned; the output is made of them."""
    stored: dict[tuple[str, str], str] = {}
    for checkpoint in history.checkpoints:
        place = checkpoint.run, checkpoint.step
        if place in stored:
            yield Violation("checkpoint", checkpoint.run, f"step {checkpoint.step} has two")
        stored[place] = checkpoint.output["nonce"]
    ended = {witness.nonce for witness in history.witnesses if witness.what == "ended"}
    for (run, step), nonce in stored.items():
        if nonce not in ended:
            yield Violation("checkpoint", run, f"step {step}: no execution has made it")
    for witness in history.witnesses:
        if witness.what == "returned" and stored.get((witness.run, witness.step)) != witness.nonce:
            yield Violation("checkpoint", witness.run, f"step {witness.step}: what was returned is not what is stored")
    for each in history.asked:
        row = history.runs.get(each.run)
        if row is not None and row.status == "completed":
            wanted = [stored.get((each.run, f"{n}")) for n in range(each.steps)]
            if None in wanted or row.output["nonces"] != wanted:
                yield Violation("checkpoint", each.run, "its output is not that of its checkpoints")


def check_doubled(history: History) -> Iterator[Violation]:
    """No step begins again once its checkpoint is committed, and none twice in one execution."""
    made_by = {(each.run, each.step): each.output["generation"] for each in history.checkpoints}
    begun: Counter[tuple[str, int, str]] = Counter()
    for witness in history.witnesses:
        if witness.what != "began":
            continue
        begun[witness.run, witness.generation, witness.step] += 1
        maker = made_by.get((witness.run, witness.step))
        if maker is not None and witness.generation > maker:
            detail = f"step {witness.step} of generation {maker} began in generation {witness.generation}"
            yield Violation("doubled", witness.run, detail)
    for (run, generation, step), times in begun.items():
        if times > 1:
            yield Violation("doubled", run, f"step {step} began {times} times in generation {generation}")


def check_fence(history: History) -> Iterator[Violation]:
    """What a generation wrote, it wrote before the next one; and that which has ended the run was the last."""
    newest: dict[str, tuple[int, int]] = {}
    for each in sorted(history.checkpoints, key=lambda each: (each.run, int(each.step))):
        step, generation = int(each.step), each.output["generation"]
        before = newest.get(each.run, (0, 0))
        if generation < before[1]:
            yield Violation("fence", each.run, f"step {step} of generation {generation} is behind one of {before[1]}")
        newest[each.run] = step, generation
    for run, stored in history.runs.items():
        if stored.status == "completed" and stored.output["generation"] != stored.generation:
            detail = f"completed by generation {stored.output['generation']} of {stored.generation}"
            yield Violation("fence", run, detail)
    holders: dict[tuple[str, int], int] = {}
    for witness in history.witnesses:
        known = history.runs.get(witness.run)
        if known is not None and witness.generation > known.generation:
            yield Violation("fence", witness.run, f"generation {witness.generation} of {known.generation} was executed")
        pid = holders.setdefault((witness.run, witness.generation), witness.pid)
        if pid != witness.pid:
            yield Violation("fence", witness.run, f"two processes have generation {witness.generation}")


def late_beginnings(history: History) -> dict[tuple[str, int], list[Witness]]:
    """
    Give the steps that began in an execution when a later one of the run had been called.

    One for each execution may be: its process was stopped after the last look and before the call.
    """
    newest: dict[str, int] = {}
    late: dict[tuple[str, int], list[Witness]] = defaultdict(list)
    for witness in history.witnesses:
        if witness.what == "called":
            newest[witness.run] = max(witness.generation, newest.get(witness.run, 0))
        elif witness.what == "began" and witness.generation < newest.get(witness.run, 0):
            late[witness.run, witness.generation].append(witness)
    return late


def check_overlaps(history: History) -> Iterator[Violation]:
    """An execution that has lost its run begins no more than one step, whose value is refused."""
    stored = {each.output["nonce"] for each in history.checkpoints}
    for (run, generation), late in late_beginnings(history).items():
        if len(late) > 1:
            yield Violation("overlap", run, f"generation {generation} began {len(late)} steps when it was superseded")
        if any(witness.nonce in stored for witness in late):
            yield Violation("overlap", run, f"generation {generation} has a checkpoint of when it was superseded")
    for spans in _by(proven_spans(history), lambda span: span.run).values():
        for before, after in pairwise(sorted(spans, key=lambda span: span.generation)):
            if after.called < before.ended:
                detail = f"generation {after.generation} was called while {before.generation} held the run"
                yield Violation("overlap", before.run, detail)


def check_keys(history: History) -> Iterator[Violation]:
    """Of all runs with one key one is executed at a time."""
    keys = {each.run: each.key for each in history.asked if each.key is not None}
    keyed = [span for span in proven_spans(history) if span.run in keys]
    for key, spans in _by(keyed, lambda span: keys[span.run]).items():
        for before, after in pairwise(sorted(spans, key=lambda span: span.called)):
            if after.called < before.ended and after.run != before.run:
                yield Violation("key", after.run, f"executed beside {before.run}, which has the key {key!r} too")


def proven_spans(history: History) -> list[Span]:
    """Give for each execution that has made a checkpoint from its call to the end of the last step that it has made."""
    stored = {each.output["nonce"] for each in history.checkpoints}
    called: dict[tuple[str, int], float] = {}
    ended: dict[tuple[str, int], float] = {}
    for witness in history.witnesses:
        execution = witness.run, witness.generation
        if witness.what == "called":
            called.setdefault(execution, witness.at)
        elif witness.what == "ended" and witness.nonce in stored:
            ended[execution] = witness.at
    return [Span(*execution, called[execution], at) for execution, at in ended.items() if execution in called]


def check_counts(history: History) -> Iterator[Violation]:
    """Each claim is counted once, each interruption is one of them, and each execution is a claim."""
    calls = Counter((each.run, each.generation) for each in history.witnesses if each.what == "called")
    for (run, generation), times in calls.items():
        if times > 1:
            yield Violation("count", run, f"generation {generation} was called {times} times")
    for run, stored in history.runs.items():
        lost = stored.generation - (stored.status == "completed")
        if stored.interruptions > lost:
            yield Violation("count", run, f"{stored.interruptions} interruptions of {stored.generation} claims")


def check_workers(history: History) -> Iterator[Violation]:
    """Nobody is suspected who was neither stopped nor hung; no supervisor ends unasked, or badly."""
    hung = {witness.pid for witness in history.witnesses if witness.what == "hanging"}
    stopped = {pid for fault in history.faults if fault.kind.startswith(_SUSPECTED_IN_THE_RIGHT) for pid in fault.pids}
    for name, log in history.logs.items():
        for event in log:
            if event["event"] == "worker:suspect" and event["worker_pid"] not in hung | stopped:
                detail = (
                    f"worker {event['worker']} (pid {event['worker_pid']}): {event['reason']}, {event['seconds']} s"
                )
                yield Violation("suspect", name, detail)
    for what in history.gave_up:
        yield Violation("supervisor", what, "it ended unasked")
    for who in history.survivors:
        yield Violation("orphan", who, "it lives on, and its supervisor is gone")
    for code in history.exit_codes:
        if code != 0:
            yield Violation("supervisor", "exit", f"with nothing to do it stopped with exit code {code}")


def check_calm(history: History) -> Iterator[Violation]:
    """Where no fault was inflicted nothing happens: no run is interrupted, no worker ends before it is told to."""
    if history.faults:
        return
    for run, stored in history.runs.items():
        if stored.interruptions or stored.generation > 1:
            yield Violation("calm", run, f"{stored.generation} claims, {stored.interruptions} interruptions")
    for name, log in history.logs.items():
        for event in log:
            if event["event"] == "worker:exit" and event["reason"] not in _ENDS_IN_PEACE:
                yield Violation("calm", name, f"worker {event['lost_worker']} ended: {event['reason']}")
            if event["event"] in ("supervisor:error", "worker:error"):
                yield Violation("calm", name, f"{event['event']}, {event['context']}: {event['error']}")


def _by(spans: list[Span], key: Callable[[Span], Any]) -> Mapping[Any, list[Span]]:
    groups: dict[Any, list[Span]] = defaultdict(list)
    for span in spans:
        groups[key(span)].append(span)
    return groups


CHECKS: Final[tuple[Callable[[History], Iterator[Violation]], ...]] = (
    check_outcomes,
    check_checkpoints,
    check_doubled,
    check_fence,
    check_overlaps,
    check_keys,
    check_counts,
    check_transitions,
    check_sequences,
    check_workers,
    check_calm,
)
