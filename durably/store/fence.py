"""The fence: whether runs are still held in the generation in which a worker claimed them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, select

from durably.store.tables import runs, workers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection

    from durably.errors import Reason
    from durably.store.intents import Verdict

_look: Final = select(runs.c.id, runs.c.status, runs.c.generation).where(
    runs.c.id.in_(bindparam("ids", expanding=True))
)
_LARGEST_LOOK: Final = 500
_state: Final = select(workers.c.state).where(workers.c.id == bindparam("worker_id"))


def look_at(connection: Connection, run_ids: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Read status and generation of runs, by id; a deleted one is missing."""
    ids = list(run_ids)
    return {
        run_id: (status, generation)
        for start in range(0, len(ids), _LARGEST_LOOK)
        for run_id, status, generation in connection.execute(_look, {"ids": ids[start : start + _LARGEST_LOOK]})
    }


def judge(connection: Connection, expected: Sequence[tuple[str, str, int]], worker_id: str | None) -> list[Verdict]:
    """
    Decide of each run why it is other than its holder's write leaves it.

    A run leaves the hands of a worker that lives by its cancellation alone, whatever became of it since: recovery
    declares the worker dead in the same transaction.

    Args:
        expected: Run ids, with the status and generation in which the holder's write leaves each.
        worker_id: The holder; None for one without a row.

    Returns:
        A verdict for each, None if it is as expected.
    """
    found = look_at(connection, {run_id for run_id, _, _ in expected})
    verdicts: list[Verdict] = []
    lives: bool | None = None
    for run_id, status, generation in expected:
        now = found.get(run_id)
        if now == (status, generation):
            verdicts.append(None)
            continue
        if lives is None:  # looked for after the runs: a recovery that they show shows here too
            lives = connection.execute(_state, {"worker_id": worker_id}).scalar() == "alive"
        verdicts.append("cancelled" if lives or (now is not None and now[0] == "cancelled") else "lease_lost")
    return verdicts


def find_lost(
    connection: Connection, held: Sequence[tuple[str, int]], worker_id: str | None
) -> list[tuple[str, int, Reason]]:
    """
    Find out which runs a worker no longer holds.

    Args:
        held: Run ids, and the generations in which the worker claimed them.
        worker_id: The worker.

    Returns:
        Those that it has lost, each with the reason.
    """
    verdicts = judge(connection, [(run_id, "running", generation) for run_id, generation in held], worker_id)
    return [
        (run_id, generation, reason)
        for (run_id, generation), reason in zip(held, verdicts, strict=True)
        if reason is not None
    ]
