"""What has been counted of the children's events since the supervisor began: the source of the counters in /metrics."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0)
"""Upper bounds in seconds, from a step of a millisecond's work to a run of an hour."""

_MOST_JOBS: Final = 200
_OTHER: Final = "other"


class Tally:
    """
    Counters by name and labels, and histograms; it only grows.

    Kept by the supervisor, so that neither a server of health that dies nor a worker takes any of it along. At most
    200 jobs have series of their own, the rest are counted together as "other".
    """

    def __init__(self) -> None:
        self.counters: dict[str, dict[tuple[str, ...], int]] = {}
        # The number in each bucket, the last of them unbounded, and the sum.
        self.histograms: dict[str, dict[tuple[str, ...], tuple[list[int], list[float]]]] = {}
        self._jobs: set[str] = set()
        self._by_type: Final[dict[str, Callable[[dict[str, Any]], None]]] = {
            "run:start": self._run_started,
            "run:complete": self._run_completed,
            "run:fail": self._run_failed,
            "run:cancel": self._run_cancelled,
            "run:release": self._run_released,
            "run:recover": self._run_recovered,
            "step:complete": self._step_completed,
            "step:fail": self._step_failed,
        }

    def take(self, record: dict[str, Any]) -> None:
        """Count an event, as it came through a channel; most are of no interest."""
        if (count := self._by_type.get(record["type"])) is not None:
            count(record)

    def worker_ended(self, reason: str) -> None:
        """Count a worker that another takes the place of."""
        self._count("worker_restarts", reason)

    def events_lost(self, number: int) -> None:
        """Count events that never came."""
        self._count("events_lost", number=number)

    def as_data(self) -> dict[str, Any]:
        """Give all of it as JSON data."""
        return {
            "counters": {name: [[labels, n] for labels, n in by.items()] for name, by in self.counters.items()},
            "histograms": {
                name: [[labels, numbers, total[0]] for labels, (numbers, total) in by.items()]
                for name, by in self.histograms.items()
            },
        }

    def _count(self, name: str, *labels: str, number: int = 1) -> None:
        series = self.counters.setdefault(name, {})
        series[labels] = series.get(labels, 0) + number

    def _observe(self, name: str, seconds: float, *labels: str) -> None:
        series = self.histograms.setdefault(name, {})
        if labels not in series:
            series[labels] = ([0] * (len(BUCKETS) + 1), [0.0])
        numbers, total = series[labels]
        numbers[bisect_left(BUCKETS, seconds)] += 1
        total[0] += seconds

    def _job(self, record: dict[str, Any]) -> str:
        job: str = record["job_name"]
        if job in self._jobs:
            return job
        if len(self._jobs) >= _MOST_JOBS:
            return _OTHER
        self._jobs.add(job)
        return job

    def _run_started(self, record: dict[str, Any]) -> None:
        job = self._job(record)
        self._count("runs_started", job)
        self._observe("run_wait_seconds", record["waited"], job)

    def _run_completed(self, record: dict[str, Any]) -> None:
        job = self._job(record)
        self._count("runs", job, "completed")
        self._observe("run_seconds", record["duration"], job)

    def _run_failed(self, record: dict[str, Any]) -> None:
        job = self._job(record)
        self._count("runs", job, "failed")
        if record["duration"] is not None:  # else it failed because it lost too many workers
            self._observe("run_seconds", record["duration"], job)

    def _run_cancelled(self, record: dict[str, Any]) -> None:
        self._count("runs", self._job(record), "cancelled")

    def _run_released(self, record: dict[str, Any]) -> None:
        self._count("runs_released", self._job(record))

    def _run_recovered(self, record: dict[str, Any]) -> None:
        self._count("runs_recovered", self._job(record), record["reason"])

    def _step_completed(self, record: dict[str, Any]) -> None:
        self._count("steps", self._job(record), "completed")

    def _step_failed(self, record: dict[str, Any]) -> None:
        self._count("steps", self._job(record), "failed")
