"""
The JSON Schema of the log's lines, made from the catalogue of events.

The package ships it as log-line.schema.json. `python -m durably.telemetry.schema` prints it anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from importlib.resources import files
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from durably.events import CATALOGUE, Event, Process
from durably.model import LogLevel, Progress, Status
from durably.telemetry.levels import LEVELS, levels_of

FILE_NAME: Final = "log-line.schema.json"

# A value of one of these fields that is larger than 16 KiB crosses a channel as its size only.
OMITTABLE: Final = frozenset({"input", "output", "data", "skipped_input", "error"})
_OMITTED: Final = {"$ref": "#/$defs/omitted"}
_PROCESS: Final = {"$ref": "#/$defs/process"}
_TIME: Final = {"type": "string", "format": "date-time"}
_TEXT: Final = {"type": "string"}

# What events.py imports for the type checker only.
_NAMES: Final = {"Mapping": Mapping, "LogLevel": LogLevel, "Progress": Progress, "Status": Status}
_PLAIN: Final = {str: "string", int: "integer", float: "number", NoneType: "null", datetime: "string"}

Schema = dict[str, Any]


def load_schema() -> Schema:
    """Read the schema as shipped (JSON Schema, draft 2020-12)."""
    text = files("durably.telemetry").joinpath(FILE_NAME).read_text(encoding="utf-8")
    schema: Schema = json.loads(text)
    return schema


def make_schema() -> Schema:
    """
    Make the schema from the catalogue.

    A line with a `logger` is judged as a log line; any other by the schema of its `event`, so that an error
    is about that event and not about all of them.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of durably's log",
        "type": "object",
        "required": ["timestamp", "level", "event"],
        "if": {"required": ["logger"]},
        "then": {"$ref": "#/$defs/log"},
        "else": {
            "properties": {"event": {"enum": list(CATALOGUE)}},
            "allOf": [_if_event(name) for name in CATALOGUE],
        },
        "$defs": {
            "omitted": {
                "description": "Stands for a value larger than 16 KiB: its size in bytes as JSON.",
                **_closed({"omitted_bytes": {"type": "integer", "minimum": 0}}),
            },
            "process": {"description": _summary(Process), **_closed(_properties(Process))},
            "log": _log_line(),
            **{name: _event_line(cls) for name, cls in CATALOGUE.items()},
        },
    }


def print_schema() -> None:
    """Print the schema as its file holds it."""
    sys.stdout.write(json.dumps(make_schema(), indent=2) + "\n")


def _if_event(name: str) -> Schema:
    return {
        "if": {"properties": {"event": {"const": name}}, "required": ["event"]},
        "then": {"$ref": f"#/$defs/{name}"},
    }


def _event_line(cls: type[Event]) -> Schema:
    levels = levels_of(cls.type)
    first = {
        "timestamp": _TIME,
        "level": {"const": levels[0]} if len(levels) == 1 else {"enum": list(levels)},
        "event": {"const": cls.type},
    }
    rest = {name: schema for name, schema in _properties(cls).items() if name not in first}
    return {"description": _summary(cls), **_closed(first | rest)}


def _log_line() -> Schema:
    return {
        "description": "A line that is no event: the standard library's logging, a print, durably itself.",
        "type": "object",
        "properties": {
            "timestamp": _TIME,
            "level": {"enum": list(LEVELS)},
            "event": {"description": "The message.", **_TEXT},
            "logger": {"description": 'Who logged: a logger\'s name, or "stdout".', **_TEXT},
            "process": _PROCESS,
            "exception": {"description": "A traceback.", **_TEXT},
            "run_id": _TEXT,
            "job_name": _TEXT,
            "step_name": _TEXT,
        },
        "required": ["timestamp", "level", "event", "logger"],
    }


def _closed(properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _properties(cls: type[Any]) -> Schema:
    hints = get_type_hints(cls, localns=_NAMES)
    return {f.name: _property(f.name, hints[f.name]) for f in fields(cls)}


def _property(name: str, hint: Any) -> Schema:
    if name not in OMITTABLE:
        return _of(hint)
    plain = _of(hint)
    # Alternatives where they differ; any JSON and any object take the substitute as they are.
    if plain == {"type": "string"}:
        return {"anyOf": [plain, _OMITTED]}
    return {"description": 'May be {"omitted_bytes": n}.', **plain}


def _of(hint: Any) -> Schema:
    if hint is Any:
        return {}
    if hint is Process:
        return _PROCESS
    if is_dataclass(hint):
        return _closed(_properties(hint))  # type: ignore[arg-type]  # a hint is a class, never an instance
    return _TIME if hint is datetime else _of_parts(hint, get_origin(hint), get_args(hint))


def _of_parts(hint: Any, origin: Any, parts: tuple[Any, ...]) -> Schema:
    if origin is Literal:
        return {"enum": list(parts)}
    if origin in (Union, UnionType) and any(get_origin(part) is Literal for part in parts):
        return {"enum": [value for part in parts for value in (get_args(part) or [None])]}
    if origin in (Union, UnionType):
        return {"type": [_PLAIN[part] for part in parts]}
    if origin is tuple:
        return {"type": "array", "items": _of(parts[0])}
    if origin is Mapping:
        values = _of(parts[1])
        return {"type": "object"} | ({"additionalProperties": values} if values else {})
    return {"type": _PLAIN[hint]}


def _summary(cls: type[Any]) -> str:
    return (cls.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


if __name__ == "__main__":
    print_schema()
