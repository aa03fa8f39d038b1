"""The record of one look at everything: what waits, who executes, what failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from durably.model import Status, Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """
    What waits of one job.

    Args:
        pending: Its pending runs; of all jobs', the oldest 100,000 are counted.
        oldest_seconds: How long the one that waits longest has been pending.
        is_known: Whether a worker that is heard of knows the job.
    """

    job_name: str
    pending: int
    oldest_seconds: float
    is_known: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldKey:
    """
    A concurrency key that a running run holds and pending runs wait for.

    Args:
        waiting: Pending runs with the key.
        run_id: The run that holds it.
        worker_id: Who executes that run.
        held_seconds: Time since that run was first begun.
    """

    concurrency_key: str
    waiting: int
    run_id: str
    job_name: str
    worker_id: str
    held_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """
    A failed run, in short.

    Args:
        error: The first 500 characters.
    """

    run_id: str
    job_name: str
    error_type: str | None
    error: str
    failed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemStatus:
    """
    One look at a database. Everything is judged by the database's clock, and every count has a bound.

    Args:
        read_at: When, by the database's clock.
        counts: Runs by status.
        is_capped: Whether there are more runs than were counted: 100,000 pending, and 100,000 ended. Then there are at
            least so many as `counts` says, and the same of the other numbers.
        ended_last_minute: Runs that ended within the last 60 s: completed, failed, cancelled.
        queues: The jobs with pending runs, at most 200, most pending runs first.
        waiting_for_keys: Pending runs whose concurrency key is held by a running one.
        held_keys: Those keys, at most 20, most waiting runs first.
        alive: Workers that were heard of within stale_threshold, the latest first.
        silent: Workers that were not, and nobody has declared dead yet.
        dead_last_hour: Workers that were declared dead and last heard of within the hour.
        failures: The runs that failed last, at most five.
    """

    read_at: datetime
    counts: Mapping[Status, int]
    is_capped: bool
    ended_last_minute: Mapping[Status, int]
    queues: tuple[Queue, ...]
    waiting_for_keys: int
    held_keys: tuple[HeldKey, ...]
    alive: tuple[Worker, ...]
    silent: tuple[Worker, ...]
    dead_last_hour: int
    failures: tuple[Failure, ...]

    @property
    def oldest_pending_seconds(self) -> float | None:
        """How long the run that waits longest has been pending; None if none is."""
        return max((queue.oldest_seconds for queue in self.queues), default=None)

    @property
    def unknown_jobs(self) -> tuple[str, ...]:
        """The jobs with pending runs that no worker that is heard of knows."""
        return tuple(queue.job_name for queue in self.queues if not queue.is_known)
