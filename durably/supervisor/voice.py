"""What a supervisor says: its children's events and its own, and lines of its own, to the log and to who listens."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from durably import events
from durably.emitter import Emitter
from durably.telemetry import LogRelay, ensure_log

if TYPE_CHECKING:
    from durably.emitter import OnError
    from durably.events import Event, Severity


class Voice:
    """
    One supervisor's.

    Args:
        on_error: Called with (error, event) when a handler raises.
    """

    def __init__(self, on_error: OnError | None) -> None:
        self.emitter: Final = Emitter("supervisor", on_error)
        self._relay: LogRelay

    def begin(self) -> None:
        """Set the log up, where nobody has, and speak from now on."""
        ensure_log()
        self._relay = LogRelay(role="supervisor")
        self.emitter.become("supervisor")
        self.emitter.sink = lambda event: self._relay(events.as_record(event))

    def emit(self, event: Event) -> None:
        """Tell an event of the supervisor's own."""
        self.emitter.emit(event)

    def pass_on(self, record: dict[str, Any]) -> None:
        """Tell a child's event or log line on."""
        self._relay(record)
        if self.emitter.is_heard(record["type"]) and record["type"] in events.CATALOGUE:
            with contextlib.suppress(KeyError, TypeError, ValueError):  # the log has said what is wrong with it
                self.emitter.pass_on(events.from_record(record))

    def report(self, context: str, severity: Severity, error: str) -> None:
        """Tell of something that went wrong."""
        self.emit(events.SupervisorError(context=context, severity=severity, error=error, error_type=context))

    def note(self, message: str, stacks: str | None = None) -> None:
        """Log what was asked of the supervisor: a line, and no event."""
        line: dict[str, Any] = {"level": "info", "logger": "durably.supervisor", "message": message}
        if stacks is not None:
            line["exception"] = stacks
        self._relay({"type": "log", "timestamp": datetime.now(UTC), "process": self.emitter.process, **line})
