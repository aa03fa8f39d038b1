"""Prometheus metrics: what a supervisor has counted and a database tells, under the names of docs/metrics.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

    from durably.status import SystemStatus

# Name without its prefix, help, labels.
_COUNTERS: Final = (
    ("runs_started", "Runs that workers have begun to execute, again after each interruption", ("job_name",)),
    ("runs", "Runs that ended here, by how", ("job_name", "status")),
    ("runs_released", "Runs that a stopping worker handed back", ("job_name",)),
    ("runs_recovered", "Runs whose worker was lost, and that are pending again", ("job_name", "reason")),
    ("steps", "Steps that were executed, by how they ended", ("job_name", "status")),
    ("worker_restarts", "Workers that ended while the supervisor was not stopping", ("reason",)),
    ("events_lost", "Events of children that never came", ()),
)
_HISTOGRAMS: Final = (
    ("run_wait_seconds", "Time from pending to begun", ("job_name",)),
    ("run_seconds", "Duration of an execution that completed or failed", ("job_name",)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """
    What is measured at one moment.

    Args:
        counters: By name: labels and value of each series.
        histograms: By name: labels, number in each bucket, and sum of each series.
        buckets: Their upper bounds in seconds; the last bucket has none.
        workers: A supervisor's workers: state, seconds since each was heard of, loop lag, runs held, slots.
        status: What the database told; None if it does not answer.
    """

    counters: Mapping[str, Sequence[tuple[Sequence[str], int]]]
    histograms: Mapping[str, Sequence[tuple[Sequence[str], Sequence[int], float]]]
    buckets: Sequence[float]
    workers: Sequence[Mapping[str, Any]]
    status: SystemStatus | None


def render(measured: Measured, accept: str) -> tuple[bytes, str]:
    """
    Write metrics in the form that was asked for.

    Args:
        accept: The request's header.

    Returns:
        The body, and its content type.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Metrics(measured))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Metrics(Collector):
    def __init__(self, measured: Measured) -> None:
        self._measured = measured

    def collect(self) -> Iterator[Metric]:
        yield from _counted(self._measured)
        yield from _of_workers(self._measured.workers)
        yield _gauge("database_up", "Whether the database answered", [((), float(self._measured.status is not None))])
        if self._measured.status is not None:
            yield from _of_database(self._measured.status)


def _counted(measured: Measured) -> Iterator[Metric]:
    for name, purpose, labels in _COUNTERS:
        counter = CounterMetricFamily(f"durably_{name}", purpose, labels=labels)
        for values, number in measured.counters.get(name, ()):
            counter.add_metric(values, number)
        yield counter
    for name, purpose, labels in _HISTOGRAMS:
        histogram = HistogramMetricFamily(f"durably_{name}", purpose, labels=labels)
        for values, numbers, total in measured.histograms.get(name, ()):
            histogram.add_metric(values, _cumulate(measured.buckets, numbers), total)
        yield histogram


def _cumulate(bounds: Sequence[float], numbers: Sequence[int]) -> list[tuple[str, float]]:
    seen, buckets = 0, []
    for bound, number in zip([*map(str, bounds), "+Inf"], numbers, strict=True):
        seen += number
        buckets.append((bound, float(seen)))
    return buckets


def _of_workers(workers: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    states = {"starting": 0, "ready": 0, "draining": 0, "suspect": 0}
    for worker in workers:
        states[worker["state"]] = states.get(worker["state"], 0) + 1
    yield _gauge("workers", "Workers of this supervisor, by state", [((s,), n) for s, n in states.items()], "state")
    yield _gauge("slots", "Runs that the workers can execute at once", [((), sum(w["slots"] for w in workers))])
    yield _gauge("slots_used", "Runs that the workers hold", [((), sum(w["running"] for w in workers))])
    longest = max((w["loop_lag"] for w in workers), default=0.0)
    yield _gauge("worker_loop_lag_seconds", "How late the latest of the workers' event loops ran", [((), longest)])
    silence = max((w["silent_for"] for w in workers), default=0.0)
    yield _gauge("worker_silence_seconds", "Time since the most silent worker was heard of", [((), silence)])


def _of_database(status: SystemStatus) -> Iterator[Metric]:
    queues = status.queues
    pending = [((queue.job_name,), float(queue.pending)) for queue in queues]
    oldest = [((queue.job_name,), queue.oldest_seconds) for queue in queues]
    unknown = [((queue.job_name,), float(queue.pending)) for queue in queues if not queue.is_known]
    workers = {"alive": len(status.alive), "silent": len(status.silent)}
    yield _gauge("runs_pending", "Runs that wait, by job; at most 100,000 are counted", pending, "job_name")
    yield _gauge("oldest_pending_seconds", "How long the run that waits longest has waited, by job", oldest, "job_name")
    yield _gauge("runs_unknown_job", "Runs that wait for a worker that knows their job", unknown, "job_name")
    yield _gauge("runs_running", "Runs that are being executed", [((), status.counts["running"])])
    yield _gauge(
        "runs_waiting_for_key", "Runs whose concurrency key another run holds", [((), status.waiting_for_keys)]
    )
    yield _gauge(
        "database_workers",
        "Workers of all supervisors, by whether they are heard of",
        [((state,), number) for state, number in workers.items()],
        "state",
    )


def _gauge(name: str, purpose: str, series: Sequence[tuple[Sequence[str], float]], *labels: str) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(f"durably_{name}", purpose, labels=labels)
    for values, number in series:
        gauge.add_metric(values, number)
    return gauge
