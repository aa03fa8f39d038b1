"""The level of each log line: what an event's type, or one of its fields, says about its weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, cast, get_args

from durably.errors import ValidationError
from durably.events import CATALOGUE, Severity
from durably.model import LOG_LEVELS

if TYPE_CHECKING:
    from collections.abc import Mapping

Level = Literal["debug", "info", "warning", "error", "critical"]
LEVELS: Final[tuple[Level, ...]] = get_args(Level)

_ORDERLY_EXITS: Final = ("stopped", "drain")
# Types whose lines differ in level, with the levels they can have.
_VARYING: Final[dict[str, tuple[Level, ...]]] = {
    "worker:exit": ("info", "warning"),
    "worker:error": get_args(Severity),
    "supervisor:error": get_args(Severity),
    "log:write": LOG_LEVELS,
    "log": LEVELS,
}
_FIXED: Final[dict[str, Level]] = {
    **{name: "info" for name in CATALOGUE if name not in _VARYING},
    "run:fail": "error",
    "step:fail": "warning",
    "run:recover": "warning",
    "worker:heartbeat": "debug",
    "worker:suspect": "warning",
    "worker:backoff": "warning",
    "run:progress": "debug",
}


def level_of(record: Mapping[str, Any]) -> Level:
    """
    Tell the level of a record's line.

    Args:
        record: A record of a known type, or of the type "log".

    Raises:
        ValidationError: The field that decides holds no level.
    """
    kind = record["type"]
    if (fixed := _FIXED.get(kind)) is not None:
        return fixed
    if kind == "worker:exit":
        return "info" if record["reason"] in _ORDERLY_EXITS else "warning"
    field = "level" if kind in {"log", "log:write"} else "severity"
    if (level := record[field]) not in _VARYING[kind]:
        raise ValidationError(field, f"{level!r} is none of {', '.join(_VARYING[kind])}")
    return cast("Level", level)


def levels_of(kind: str) -> tuple[Level, ...]:
    """List the levels that lines of a record type can have, the lowest first."""
    return _VARYING[kind] if kind in _VARYING else (_FIXED[kind],)
