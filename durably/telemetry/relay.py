"""From records to log lines: what workers and the supervisor tell, on one log."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import fields as fields_of
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import structlog

from durably.errors import ValidationError
from durably.events import CATALOGUE, Process
from durably.telemetry.levels import LEVELS, level_of
from durably.telemetry.units import cut_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from collections.abc import Set as AbstractSet

    from durably.events import Role

LOG_REQUIRED: Final = frozenset({"timestamp", "process", "level", "logger", "message"})
LOG_OPTIONAL: Final = frozenset({"exception", "run_id", "job_name", "step_name"})

_FIELDS: Final = {name: frozenset(f.name for f in fields_of(cls)) for name, cls in CATALOGUE.items()}
_NAME: Final = "durably.telemetry"
_MAX_SHOWN_BYTES: Final = 1_024


class LogRelay:
    """
    Log records, each as one line; called with a record, it never raises.

    A record is what `durably.events.as_record` gives, as it is or after its way through a channel as JSON; or
    it has the type "log" and is a line of the standard library's logging or of standard output. An event's
    line has the type as `event` and the record's fields under their own names; a "log" record's line has the
    message as `event`. A record that is neither is logged as an error that names what is wrong with it.

    Make it after `configure_log`.

    Args:
        role: What this process is to durably; told with the lines about malformed records.
    """

    def __init__(self, *, role: Role = "supervisor") -> None:
        self._role = role
        # The lazy logger is resolved here once, not at each of some ten thousand lines a second.
        logger = structlog.get_logger().bind()
        self._methods: dict[str, Callable[..., Any]] = {level: getattr(logger, level) for level in LEVELS}
        self._malformed = 0

    @property
    def malformed(self) -> int:
        """How many records could not be logged as what they should have been."""
        return self._malformed

    def __call__(self, record: Mapping[str, Any]) -> None:
        """
        Log a record.

        Args:
            record: It is not changed.
        """
        try:
            self._log(record)
        except Exception as error:  # noqa: BLE001 - whatever a record does to us, the supervisor lives
            self._malformed += 1
            with contextlib.suppress(Exception):
                self._report(record, error)

    def _log(self, record: Mapping[str, Any]) -> None:
        fields = dict(record)
        kind = fields.pop("type", None)
        if kind == "log":
            _check_names(kind, fields.keys(), LOG_REQUIRED, LOG_OPTIONAL)
            event = fields.pop("message")
            _check_type("message", event, str)
        else:
            if not isinstance(kind, str) or kind not in _FIELDS:
                raise ValidationError("type", f"{kind!r} is no type of event")
            if fields.keys() != _FIELDS[kind]:
                _check_names(kind, fields.keys(), _FIELDS[kind])
            event = kind
        _check_type("process", fields["process"], (dict, Process))
        _check_time(fields["timestamp"])
        level = level_of(record)
        fields.pop("level", None)
        self._methods[level](event, **fields)

    def _report(self, record: object, error: Exception) -> None:
        self._methods["error"](
            f"a record cannot be logged: {str(error) or type(error).__qualname__}",
            logger=_NAME,
            process=Process(host=socket.gethostname(), pid=os.getpid(), role=self._role),
            record=cut_text(ascii(record), _MAX_SHOWN_BYTES),
        )


def _check_names(
    kind: str, names: AbstractSet[Any], required: frozenset[str], optional: frozenset[str] = frozenset()
) -> None:
    if missing := required - names:
        raise ValidationError(min(missing), f"it is missing from a record of the type {kind!r}")
    if unknown := names - required - optional:
        raise ValidationError(str(min(unknown, key=str)), f"a record of the type {kind!r} has no such field")


def _check_type(name: str, value: object, types: type | tuple[type, ...]) -> None:
    if not isinstance(value, types):
        raise ValidationError(name, f"{cut_text(ascii(value), 200)} is a {type(value).__name__}")


def _check_time(timestamp: object) -> None:
    _check_type("timestamp", timestamp, (str, datetime))
    if isinstance(timestamp, str):
        try:
            datetime.fromisoformat(timestamp)
        except ValueError as error:
            raise ValidationError("timestamp", str(error)) from None
