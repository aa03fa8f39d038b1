"""What the supervisor hears from its children: events to tell on, and facts about the children themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from durably.errors import DatabaseUnavailableError, ValidationError

if TYPE_CHECKING:
    from durably import events
    from durably.supervisor.children import Child

_MOST_READS_A_ROUND = 8


class Listener(Protocol):
    """What the supervisor does about what was heard."""

    def tell(self, record: dict[str, Any]) -> None:
        """Tell an event or a log line on, to the log and to who subscribed."""

    def report(self, context: str, severity: events.Severity, error: str) -> None:
        """Tell of something that went wrong."""

    def events_were_lost(self, number: int) -> None:
        """Learn that so many events never came."""

    def keeper_is_ready(self, keeper: Child, record: dict[str, Any]) -> None:
        """Learn the application's settings and jobs, and that the database is migrated and recovered."""

    def nothing_is_active(self) -> None:
        """Learn that no run is pending or running."""

    def runs_are_pending(self, pools: dict[str, int]) -> None:
        """Learn how many runs became pending that other workers than the default pool's take."""

    def runs_were_cancelled(self) -> None:
        """Learn that somebody has cancelled runs."""

    def worker_is_ready(self, child: Child) -> None:
        """Learn that a worker has looked for runs."""

    def was_recovered(self, worker_id: str) -> None:
        """Learn that what a dead worker held is recovered."""

    def cannot_be_recovered(self, worker_id: str) -> None:
        """Learn that the keeper has told that it cannot recover a dead worker, and tries no more."""


def hear(child: Child, now: float, listener: Listener) -> None:
    """
    Read what has arrived from *child*, a bounded part of it, and act on it.

    Args:
        child: Any child, also one that has just died.
        now: Monotonic seconds.
        listener: The supervisor.
    """
    for _ in range(_MOST_READS_A_ROUND):
        records = child.channel.drain()
        if not records:
            return
        child.heard_at = now
        for record in records:
            _heed(child, record, listener)


def _heed(child: Child, record: dict[str, Any], listener: Listener) -> None:
    match record.get("type"):
        case "beat":
            _heed_beat(child, record)
            return
        case "ready":
            child.has_begun = True
            listener.worker_is_ready(child)
            return
        case str(note) if note.startswith("keeper:"):
            _heed_keeper(child, record, listener)
            return
        case "boot:failed":
            child.failure = record["traceback"] or record["error"]
            child.is_refused = record["error_type"] == ValidationError.__name__
            child.waits_for_database = record["error_type"] == DatabaseUnavailableError.__name__
            return
        case "unreadable":
            listener.report("channel", "warning", f"worker {child.id} sent an unreadable line: {record['error']}")
            return
        case "worker:start":
            child.has_row = True
        case "run:complete" | "run:fail":
            child.runs_ended += 1
        case "worker:exit":
            listener.was_recovered(str(record.get("lost_worker")))
    _look_for_gap(child, record, listener)
    listener.tell(record)


def _heed_beat(child: Child, record: dict[str, Any]) -> None:
    child.stuck_for, child.stuck_in = record.get("stuck_for", 0.0), record.get("stuck_in")
    if "idle_for" in record:  # the keeper has nothing to look for
        child.worked_at = child.heard_at - record["idle_for"]
        child.running = record["running"]


def _heed_keeper(keeper: Child, record: dict[str, Any], listener: Listener) -> None:
    match record["type"]:
        case "keeper:ready":
            keeper.has_begun = True
            listener.keeper_is_ready(keeper, record)
        case "keeper:idle":
            listener.nothing_is_active()
        case "keeper:pending":
            listener.runs_are_pending(record["pools"])
        case "keeper:cancelled":
            listener.runs_were_cancelled()
        case "keeper:gave-up":
            listener.cannot_be_recovered(record["worker_id"])


def _look_for_gap(child: Child, record: dict[str, Any], listener: Listener) -> None:
    sequence = record.get("sequence")
    if sequence is None:
        return
    missing = sequence - child.last_sequence - 1
    if missing > 0:
        listener.events_were_lost(missing)
        listener.report(
            "events-lost",
            "warning",
            f"{missing} events of worker {child.id} before its number {sequence} were lost",
        )
    child.last_sequence = sequence
