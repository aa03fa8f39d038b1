"""An example of a job's input, for who has to write one as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import pydantic

from durably.codec import Unfit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from durably.jobs import Job

_MOST_LEVELS: Final = 6
_MOST_CHARACTERS: Final = 300
# Of JSON Schema's types, those whose values need no look at the rest of the schema.
_PLAIN: Final[Mapping[str, Any]] = {"integer": 1, "number": 1.5, "boolean": True, "null": None}
_TEXTS: Final = {
    "date": "2026-01-31",
    "time": "12:00:00",
    "date-time": "2026-01-31T12:00:00Z",
    "duration": "PT5M",
    "uuid": "12345678-1234-4234-8234-123456789abc",
    "email": "ada@example.com",
    "uri": "https://example.com/",
    "path": "/tmp/file",  # noqa: S108 - a text, which nobody opens
}


def input_example(job: Job) -> str | None:
    """
    Write an input that a job takes, as JSON text.

    Returns:
        None if the job declares no type, or one of which no short example is found.
    """
    declared, _ = job.declared
    if declared is Any:
        return None
    try:
        schema = pydantic.TypeAdapter(declared).json_schema()
        text = json.dumps(_example(schema, schema.get("$defs", {}), 0), ensure_ascii=False)
        job.input.decode(text)
    except (Unfit, ValueError, pydantic.errors.PydanticUserError):  # too deep, or of a form that only its author knows
        return None
    return text if len(text) <= _MOST_CHARACTERS else None


def _example(schema: Mapping[str, Any], known: Mapping[str, Any], level: int) -> Any:
    if level > _MOST_LEVELS:
        raise ValueError("nested too deep for an example")
    if (name := schema.get("$ref")) is not None:
        return _example(known[name.rpartition("/")[2]], known, level + 1)
    for given in ("const", "default"):
        if given in schema:
            return schema[given]
    for several in ("examples", "enum"):
        if schema.get(several):
            return schema[several][0]
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            return _example(_first_that_says_something(schema[choice]), known, level + 1)
    return _example_of_type(schema, known, level)


def _first_that_says_something(choices: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next((choice for choice in choices if choice.get("type") != "null"), choices[0])


def _example_of_type(schema: Mapping[str, Any], known: Mapping[str, Any], level: int) -> Any:
    match schema.get("type"):
        case "object":
            fields = schema.get("properties", {})
            wanted = schema.get("required") or fields
            shown = {name: _example(fields[name], known, level + 1) for name in wanted if name in fields}
            more = schema.get("additionalProperties")
            return {"key": _example(more, known, level + 1)} if not fields and isinstance(more, dict) else shown
        case "array":
            parts = schema.get("prefixItems") or ([schema["items"]] if isinstance(schema.get("items"), dict) else [])
            return [_example(part, known, level + 1) for part in parts]
        case "string":
            return _TEXTS.get(schema.get("format", ""), "text")
        case "integer" | "number" as kind:
            return schema.get("minimum", _PLAIN[kind])
        case kind:
            return _PLAIN.get(str(kind), {})
