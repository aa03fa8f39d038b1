"""What a supervisor says of the database's absence while it lasts: a line a minute, however many processes wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from durably.telemetry.units import human_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from durably.events import Severity

_SECONDS_BETWEEN_REMINDERS: Final = 60.0


class Outage:
    """
    Who waits for the database, as far as they have told; its beginning and its end each of them tells itself.

    Args:
        report: Tells the reminder.
    """

    def __init__(self, report: Callable[[str, Severity, str], None]) -> None:
        self._report = report
        # By pid, in the order in which they told it.
        self._since: dict[int, float] = {}
        self._told_at = 0.0

    def take(self, record: dict[str, Any], now: float) -> None:
        """
        Look whether a child tells that it waits, or that it waits no longer.

        Args:
            record: Any event or log line.
            now: Monotonic seconds.
        """
        if record.get("type") != "worker:error" or record["context"] != "database":
            return
        pid = record["process"]["pid"]
        if record["severity"] == "info":
            self.forget(pid)
            return
        if not self._since:
            self._told_at = now
        self._since.setdefault(pid, now)

    def forget(self, pid: int) -> None:
        """Count a process no longer: it has ended, or has its answer."""
        self._since.pop(pid, None)

    def tell(self, now: float) -> None:
        """
        Remind of it, if a minute has passed.

        Args:
            now: Monotonic seconds.
        """
        if self._since and now >= self._told_at + _SECONDS_BETWEEN_REMINDERS:
            self._told_at = now
            lasted = human_duration(now - min(self._since.values()))
            error = f"the database has been away for {lasted}; {len(self._since)} of our processes wait"
            self._report("database", "warning", error)
