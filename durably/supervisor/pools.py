"""How many workers each pool has, and what is odd about that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from durably.jobs import DEFAULT_POOL
from durably.usable import usable_cores

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from durably.settings import Settings


def pools_of(settings: Settings) -> dict[str, int]:
    """Give how many workers each pool has: `pools`, and `workers` for the default one where that is not among them."""
    if settings.pools is None:
        return {DEFAULT_POOL: settings.workers or usable_cores()}
    if settings.workers is None:
        return dict(settings.pools)
    return {DEFAULT_POOL: settings.workers, **settings.pools}


def warnings_about(jobs: Mapping[str, str], pools: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """
    Say what an operator has to know at the start.

    Args:
        jobs: The application's: name and pool.
        pools: The supervisor's: name and workers.

    Returns:
        Contexts and messages.
    """
    if not jobs:
        yield "no-jobs", "the application registers no job, so nothing will be claimed"
        return
    for pool in sorted({*jobs.values()} - {*pools}):
        names = ", ".join(repr(name) for name, of in sorted(jobs.items()) if of == pool)
        yield (
            "no-workers",
            f"no worker here takes the jobs of the pool {pool!r} ({names}): give it some, --pool {pool}:1",
        )
    for pool in sorted({*pools} - {*jobs.values()}):
        yield "no-jobs", f"the application has no job in the pool {pool!r}, so its workers will claim nothing"
