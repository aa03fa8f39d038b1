"""
How a batch of intents is written: grouped by kind, one bulk statement per kind, in one transaction.

The fence is in each statement: it writes an intent only if its run is running in its generation. When a group has
changed as many rows as it has intents, all were written; only else does a look at the runs tell which were refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, Integer, String, Text, bindparam, insert, literal, select, update

from durably.store import claims, workers
from durably.store.dialects import FORESEEN
from durably.store.fence import find_lost, judge
from durably.store.intents import (
    Beat,
    BeatAnswer,
    Checkpoint,
    Claim,
    Completion,
    Failure,
    Fenced,
    Intent,
    LogLine,
    ProgressNote,
    Release,
    StepFailure,
)
from durably.store.tables import has_status, logs, now, runs, steps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlalchemy import Connection, Insert, Table

    from durably.store.claims import ClaimedRun
    from durably.store.intents import Verdict

_mine: Final = runs.c.id == bindparam("run"), has_status("running"), runs.c.generation == bindparam("fence")
_ended: Final = {"worker_id": None, "completed_at": now(), "updated_at": now()}
_error: Final = {
    "error": bindparam("message", type_=Text),
    "error_type": bindparam("kind", type_=String),
    "error_traceback": bindparam("trace", type_=Text),
}
_step: Final = {
    "run_id": runs.c.id,
    "name": bindparam("step", type_=String),
    "attempt": bindparam("number", type_=Integer),
    "position": bindparam("place", type_=Integer),
    "started_at": now() - bindparam("took", type_=BigInteger),
    "completed_at": now(),
}


def _insert_into(table: Table, values: Mapping[str, Any]) -> Insert:
    """Insert one row of *values*, if the run is mine; where the database locks rows, it stays mine until the commit."""
    mine = select(*values.values()).where(*_mine).with_for_update(key_share=True)
    return insert(table).from_select(list(values), mine, include_defaults=False)


def _of_run(intent: Fenced) -> dict[str, Any]:
    return {"run": intent.run_id, "fence": intent.generation}


def _of_step(intent: Checkpoint | StepFailure) -> dict[str, Any]:
    return {
        "run": intent.run_id,
        "fence": intent.generation,
        "step": intent.name,
        "number": intent.attempt,
        "place": intent.index,
        "took": int(intent.duration * 1e6),
    }


def _of_failure(intent: Failure | StepFailure) -> dict[str, Any]:
    return {"message": intent.error, "kind": intent.error_type[:512], "trace": intent.error_traceback}


# In the order of writing: what a run handed over before its end lands no later than its end.
_WRITES: Final[dict[type[Fenced], tuple[Any, Callable[[Any], dict[str, Any]]]]] = {
    LogLine: (
        _insert_into(
            logs,
            {
                "run_id": runs.c.id,
                "step_name": bindparam("step", type_=String),
                "attempt": bindparam("number", type_=Integer),
                "level": bindparam("rank", type_=String),
                "message": bindparam("text", type_=Text),
                "data": bindparam("value", type_=Text),
                "created_at": now(),
            },
        ),
        lambda i: (
            _of_run(i) | {"step": i.step_name, "number": i.attempt, "rank": i.level, "text": i.message, "value": i.data}
        ),
    ),
    ProgressNote: (
        update(runs).where(*_mine).values(progress=bindparam("value")),
        lambda i: _of_run(i) | {"value": i.progress},
    ),
    StepFailure: (
        _insert_into(steps, _step | _error | {"status": literal("failed")}),
        lambda i: _of_step(i) | _of_failure(i),
    ),
    Checkpoint: (
        _insert_into(steps, _step | {"status": literal("completed"), "output": bindparam("value", type_=Text)}),
        lambda i: _of_step(i) | {"value": i.output},
    ),
    Completion: (
        update(runs).where(*_mine).values(_ended | {"status": "completed", "output": bindparam("value")}),
        lambda i: _of_run(i) | {"value": i.output},
    ),
    Failure: (
        update(runs).where(*_mine).values(_ended | _error | {"status": "failed"}),
        lambda i: _of_run(i) | _of_failure(i),
    ),
    Release: (
        update(runs).where(*_mine).values(status="pending", worker_id=None, pending_at=now(), updated_at=now()),
        _of_run,
    ),
}
# Written one by one: what they leave behind, a recovery may have left too, so only the count tells them apart.
_SINGLY: Final = frozenset({Failure, Release})
_foreseen: Final = {FORESEEN: True}
_drop_outputs: Final = update(steps).where(steps.c.run_id == bindparam("run")).values(output=None)


def write_batch(
    connection: Connection, intents: Sequence[Intent], worker_id: str | None = None, *, foresees: bool = False
) -> list[Any]:
    """
    Write *intents*, in the order: fenced writes, heartbeats, claims.

    Args:
        connection: In a write transaction.
        worker_id: Whose they are.
        foresees: Whether to expect that no fence refuses, and to let a dialect send many statements at once.

    Returns:
        Their answers, in the order of *intents*: a `Verdict` for each that is fenced, a `BeatAnswer` for each
        heartbeat, a list of `ClaimedRun` for each claim.

    Raises:
        NotForeseenError: A fence does refuse, as a dialect says that had sent the statements later, which may also be
            at the end of the transaction. Write them again, without foreseeing.
    """
    answers: dict[int, Any] = {}
    fenced = [intent for intent in intents if isinstance(intent, Fenced)]
    if fenced:
        answers.update(_write_fenced(connection, fenced, worker_id, foresees=foresees))
    for intent in intents:
        if isinstance(intent, Beat):
            answers[id(intent)] = _write_beat(connection, intent)
    wanted = [intent for intent in intents if isinstance(intent, Claim)]
    if wanted:
        answers.update(_write_claims(connection, wanted))
    return [answers[id(intent)] for intent in intents]


def _write_fenced(
    connection: Connection, fenced: Sequence[Fenced], worker_id: str | None, *, foresees: bool
) -> dict[int, Verdict]:
    groups: dict[type[Fenced], list[Fenced]] = {}
    for intent in fenced:
        groups.setdefault(type(intent), []).append(intent)
    verdicts: dict[int, Verdict] = {id(intent): None for intent in fenced}
    for kind, (statement, values) in _WRITES.items():
        group = groups.get(kind, [])
        for part in [[intent] for intent in group] if kind in _SINGLY else [group] if group else []:
            rows = [values(intent) for intent in part]
            written = connection.execute(statement, rows, execution_options=_foreseen if foresees else None).rowcount
            if written != len(part):
                verdicts.update(_find_refused(connection, part, worker_id))
    slimmed = [
        {"run": i.run_id}
        for i in groups.get(Completion, ())
        if isinstance(i, Completion) and i.drop_outputs and verdicts[id(i)] is None
    ]
    if slimmed:
        connection.execute(_drop_outputs, slimmed)
    return verdicts


def _find_refused(connection: Connection, group: Sequence[Fenced], worker_id: str | None) -> dict[int, Verdict]:
    """
    Tell which of *group*, whose statement has just run, the fence refused.

    A run is in its intent's generation if nobody claimed it since, and completed only if the intent itself did it.
    """
    status = "completed" if isinstance(group[0], Completion) else "running"
    verdicts = judge(connection, [(intent.run_id, status, intent.generation) for intent in group], worker_id)
    return {id(intent): verdict for intent, verdict in zip(group, verdicts, strict=True)}


def _write_beat(connection: Connection, beat: Beat) -> BeatAnswer:
    accepted = workers.beat(
        connection,
        beat.worker_id,
        jobs=beat.jobs,
        loop_lag=beat.loop_lag,
        oldest_step_age=beat.oldest_step_age,
    )
    waits = accepted and claims.await_overdue_run(
        connection,
        worker_id=beat.worker_id,
        jobs=beat.jobs,
        isolate_after=beat.isolate_after,
        patience=beat.patience,
    )
    return BeatAnswer(
        accepted=accepted,
        lost=find_lost(connection, beat.held, beat.worker_id) if beat.held else (),
        run_waits_to_be_alone=waits,
    )


def _write_claims(connection: Connection, wanted: Sequence[Claim]) -> dict[int, list[ClaimedRun]]:
    """Claim for all of *wanted*, which are one worker's, at once, and share out."""
    first = wanted[0]
    claimed = claims.claim(
        connection,
        worker_id=first.worker_id,
        jobs=first.jobs,
        limit=sum(claim.limit for claim in wanted),
        isolate_after=first.isolate_after,
        company=first.company if len(wanted) == 1 else "beside",
    )
    shares: dict[int, list[ClaimedRun]] = {}
    for claim in wanted:
        shares[id(claim)], claimed = claimed[: claim.limit], claimed[claim.limit :]
    return shares
