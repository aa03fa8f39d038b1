"""The log for machines: one line of JSON for each event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import MutableMapping

_OPTIONS: Final = orjson.OPT_APPEND_NEWLINE
_MAX_REPR: Final = 1_024


def render_json(_logger: object, level: str, fields: MutableMapping[str, Any]) -> bytes:
    """
    Render a line as JSON, time, level and event first. The last processor of structlog's chain.

    Args:
        level: The logger's method, which is the line's level.
        fields: The line, with `timestamp`; `event` and `timestamp` are taken out of it.

    Returns:
        The line with its newline. A value that JSON cannot hold is in it as its repr.
    """
    line = {"timestamp": fields.pop("timestamp"), "level": level, "event": fields.pop("event", ""), **fields}
    try:
        return orjson.dumps(line, default=_plain, option=_OPTIONS)
    except TypeError:
        return orjson.dumps({key: _encodable(value) for key, value in line.items()}, option=_OPTIONS)


def _plain(value: Any) -> Any:
    """Give JSON what it has no form for itself."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, (set, frozenset)) else repr(value)


def _encodable(value: Any) -> Any:
    """Keep a value that can be encoded; make ASCII of one that cannot, such as half a character."""
    try:
        return orjson.Fragment(orjson.dumps(value, default=_plain))
    except TypeError:
        pass
    try:
        return ascii(value)[:_MAX_REPR]
    except Exception:  # noqa: BLE001 - the repr is anybody's code, and the rest of the line matters more
        return f"<{type(value).__name__} without a repr>"
