"""The log for people: one short line for each event, in columns and colours."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import orjson

from durably.model import Progress
from durably.telemetry.units import human_duration, human_size, shorten
from durably.words import in_words

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

_DIM, _BOLD, _RED, _GREEN, _YELLOW, _BLUE, _MAGENTA, _CYAN = (2, 1, 31, 32, 33, 34, 35, 36)
_LEVEL_COLOURS: Final = {"debug": _DIM, "warning": _YELLOW, "error": _RED, "critical": _RED}
_EVENT_COLOURS: Final = {"run:complete": _GREEN, "run:cancel": _YELLOW, "step:cancel": _YELLOW}
_NOUN_COLOURS: Final = {"run": _CYAN, "step": _BLUE, "worker": _MAGENTA, "supervisor": _MAGENTA}

_EVENT_WIDTH: Final = 16
_WHO_WIDTH: Final = len("supervisor")
_WORKER_LETTERS: Final = 4
_RUN_LETTERS: Final = 6
_MAX_VALUE: Final = 60
# A message, or an error, is what its line is for; the bound is for a print of everything.
_MAX_MESSAGE: Final = 1_000

_FIRST_RESUMPTION: Final = 2
"""The generation of a run's second claim."""

_DURATIONS: Final = frozenset({"duration", "waited", "oldest_step_age", "loop_lag", "seconds", "pause"})
# The letters of an id that tell it from others: its end, for its beginning is the time.
_IDS: Final = {"lost_worker": _WORKER_LETTERS, "worker": _WORKER_LETTERS, "retriggered_from": _RUN_LETTERS}
# Shown last, because they may fill the line.
_LONG: Final = frozenset({"output", "data", "error"})
# Shown in columns of their own, or not worth a person's line.
_HIDDEN: Final = frozenset({
    "timestamp", "sequence", "process", "event", "level", "logger", "run_id", "job_name", "labels",
    "step_name", "step_index", "generation", "input", "skipped_input", "skipped_labels", "error_type",
    "message", "exception", "stacks", "severity",
})  # fmt: skip


class ConsoleLines:
    """
    Render lines for a person who watches a terminal. The last processor of structlog's chain.

    Args:
        is_coloured: Whether the terminal shows colours and the person wants them.
        encoding: The terminal's; what it cannot show is escaped.
    """

    def __init__(self, *, is_coloured: bool, encoding: str = "utf-8") -> None:
        self._paint = _coloured if is_coloured else _plain
        self._encoding = encoding

    def __call__(self, _logger: object, level: str, line: MutableMapping[str, Any]) -> bytes:
        """
        Render one line.

        Args:
            level: The logger's method, which is the line's level.
            line: The line's fields.

        Returns:
            The line with its newline; an exception's text, or stacks, follow, indented.
        """
        text = " ".join(part for part in self._parts(level, line) if part).rstrip() + "\n"
        for row in str(line.get("exception") or line.get("stacks") or "").splitlines():
            text += self._paint(_DIM, f"    {_printable(row)}") + "\n"
        return text.encode(self._encoding, "backslashreplace")

    def _parts(self, level: str, line: MutableMapping[str, Any]) -> Iterator[str]:
        paint = self._paint
        name = str(line.get("logger") or line.get("event", ""))
        yield paint(_DIM, _clock(line.get("timestamp")))
        yield paint(_LEVEL_COLOURS.get(level, 0), level[:1].upper())
        yield paint(_event_colour(name, level), f"{shorten(_printable(name), _EVENT_WIDTH):<{_EVENT_WIDTH}}")
        yield paint(_DIM, f"{_who(line.get('process')):<{_WHO_WIDTH}}")
        yield paint(_BOLD, _printable(line.get("job_name")))
        yield paint(_DIM, _printable(line.get("run_id"))[-_RUN_LETTERS:])
        yield _printable(line.get("step_name"))
        if (claims := line.get("generation", 1)) > 1:
            yield paint(_YELLOW, "resumed" if claims == _FIRST_RESUMPTION else f"resumed {claims - 1} times")
        if message := line.get("event" if "logger" in line else "message"):
            yield paint(_DIM, "| ") + shorten(_printable(message), _MAX_MESSAGE)
        for key in sorted(line, key=_LONG.__contains__):
            if key not in _HIDDEN and not _is_dull(key, line[key], line):
                limit = _MAX_MESSAGE if key == "error" else _MAX_VALUE
                yield paint(_DIM, f"{key}=") + shorten(_printable(_spell(key, line[key], line)), limit)


def _spell(key: str, value: Any, line: MutableMapping[str, Any]) -> str:
    match value:
        case int() | float() if key in _DURATIONS:
            return human_duration(value)
        case {"omitted_bytes": int(size)}:
            return f"({human_size(size)})"
        case Progress(current=current, total=total, message=message) | {
            "current": current,
            "total": total,
            "message": message,
        }:
            return _spell_progress(current, total, message)
        case str() if key in _IDS:
            return value[-_IDS[key] :]
        case str():
            kind = line.get("error_type")
            return in_words(None if kind == line.get("context") else kind, value) if key == "error" else value
        case _:
            return _compact(value)


def _spell_progress(current: Any, total: Any, message: Any) -> str:
    amount = f"{current:g}" if total is None else f"{current:g}/{total:g}"
    return f"{amount} {message}" if message else amount


def _compact(value: Any) -> str:
    try:
        return orjson.dumps(value, default=repr).decode()
    except TypeError:
        return repr(value)


def _is_dull(key: str, value: Any, line: MutableMapping[str, Any]) -> bool:
    """Tell whether a value says nothing: absent, empty, 0, the first attempt; but an output of 0 does not."""
    if value is None or (key == "attempt" and value == 1):
        return True
    if key == "error" and line.get("error_type"):
        return False
    return key != "output" and value in (0, "", [], {}, ())


def _who(process: Any) -> str:
    """Name a process in a few letters; the end of a worker's id is the part that is its own."""
    if process is None:
        return ""
    known = process if isinstance(process, dict) else {"worker_id": process.worker_id, "role": process.role}
    return (known.get("worker_id") or "")[-_WORKER_LETTERS:] or str(known.get("role", ""))


def _clock(timestamp: Any) -> str:
    """Give the time of day where the terminal is."""
    if isinstance(timestamp, str):
        timestamp = datetime.fromisoformat(timestamp)
    return f"{timestamp.astimezone():%H:%M:%S.%f}"[:-3]


def _event_colour(name: str, level: str) -> int:
    if level in _LEVEL_COLOURS:
        return _LEVEL_COLOURS[level]
    return _EVENT_COLOURS.get(name) or _NOUN_COLOURS.get(name.partition(":")[0], 0)


def _printable(value: Any) -> str:
    """Escape what would move a terminal's cursor or colour it: the text may be anybody's."""
    text = "" if value is None else str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _coloured(code: int, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if code and text else text


def _plain(_code: int, text: str) -> str:
    return text
