"""The fence: whether runs are still held in the generation in which a worker claimed them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import bindparam, select

from durably.store.tables import runs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection

    from durably.errors import Reason
    from durably.store.intents import Verdict

_look: Final = select(runs.c.id, runs.c.status, runs.c.generation).where(
    runs.c.id.in_(bindparam("ids", expanding=True))
)
_LARGEST_LOOK: Final = 500


def look_at(connection: Connection, run_ids: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Read status and generation of runs, by id; a deleted one is missing."""
    ids = list(run_ids)
    return {
        run_id: (status, generation)
        for start in range(0, len(ids), _LARGEST_LOOK)
        for run_id, status, generation in connection.execute(_look, {"ids": ids[start : start + _LARGEST_LOOK]})
    }


def judge(found: tuple[str, int] | None, expected: tuple[str, int]) -> Verdict:
    """Decide why a run is *found* (status, generation) other than its holder's write leaves it; None if it is not."""
    if found == expected:
        return None
    return "cancelled" if found is not None and found[0] == "cancelled" else "lease_lost"


def find_lost(connection: Connection, held: Sequence[tuple[str, int]]) -> list[tuple[str, int, Reason]]:
    """
    Find out which runs a worker no longer holds.

    Args:
        held: Run ids, and the generations in which the worker claimed them.

    Returns:
        Those that it has lost, each with the reason.
    """
    found = look_at(connection, {run_id for run_id, _ in held})
    return [
        (run_id, generation, reason)
        for run_id, generation in held
        if (reason := judge(found.get(run_id), ("running", generation))) is not None
    ]
