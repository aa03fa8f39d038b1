"""
Values to stored JSON and back, to the type.

What a step or job returns is encoded, stored, and decoded for the caller the first time too, so that a live
value and a replayed one cannot differ. Declared types go through pydantic; without one a value is plain JSON data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
import pydantic
from pydantic import TypeAdapter
from pydantic_core import SchemaSerializer, from_json

from durably.errors import EncodingError, PayloadTooLargeError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.plugin._schema_validator import PluggableSchemaValidator
    from pydantic_core import SchemaValidator

_MAX_DEPTH: Final = 200
_LONGEST_PATH: Final = 200
_MOST_TOLD: Final = 10


@dataclass(frozen=True, slots=True)
class Encoded:
    """
    A value in its stored form.

    Args:
        text: JSON, as stored.
        data: The same as plain JSON data, for events.
    """

    text: str
    data: Any


class Unfit(ValueError):  # noqa: N818 - what a value is, not an error of ours
    """
    A value does not fit a codec's type.

    Args:
        path: Where, starting with "$"; a long one is cut in its middle.
        message: What is wrong there.
    """

    def __init__(self, path: str, message: str) -> None:
        if len(path) > _LONGEST_PATH:
            path = f"{path[: _LONGEST_PATH // 2]}…{path[-_LONGEST_PATH // 2 + 1 :]}"
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


class Coder(NamedTuple):
    """pydantic's two halves for a declared type."""

    validator: SchemaValidator | PluggableSchemaValidator
    serializer: SchemaSerializer


class Codec:
    """
    One type's way into the database and back.

    Args:
        coder: pydantic's, of a declared type; None for plain JSON data.
        as_is: A declared type whose values are JSON already, so that pydantic need not look at them.
    """

    __slots__ = ("_as_is", "_coder")

    def __init__(self, coder: Coder | None, as_is: type | None = None) -> None:
        self._coder = coder
        self._as_is = as_is

    def encode(self, value: Any) -> Encoded:
        """
        Check *value* and write it as JSON.

        Raises:
            Unfit: It does not fit the type, or is not JSON data.
        """
        is_plain = self._coder is None or type(value) is self._as_is
        data = value if is_plain else self._dump(self._coder, value)
        plain = _plain(data, "$", 0)
        try:
            return Encoded(write_json(plain), plain)
        except ValueError as error:  # Python spells no integer of more than 4,300 digits
            raise Unfit("$", str(error)) from error

    def decode(self, text: str) -> Any:
        """
        Read the stored form.

        Raises:
            Unfit: It does not fit the type any more.
        """
        if self._coder is None:
            return read_json(text)
        try:
            return self._coder.validator.validate_json(text)
        except pydantic.ValidationError as error:
            raise _unfit(error) from error

    @staticmethod
    def _dump(coder: Coder | None, value: Any) -> Any:
        assert coder is not None
        try:
            checked = coder.validator.validate_python(value)
            return coder.serializer.to_python(checked, mode="json", warnings="error")
        except pydantic.ValidationError as error:
            raise _unfit(error) from error
        except (
            ValueError,
            TypeError,
        ) as error:  # pydantic_core's serialization errors, and those of own serializers
            raise Unfit("$", str(error).rstrip(": ") or type(error).__qualname__) from error


def write_json(plain: Any) -> str:
    """Write checked JSON data, compactly."""
    try:
        return orjson.dumps(plain).decode()
    except TypeError:  # an integer of more than 64 bits
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def read_json(text: str) -> Any:
    """Read stored JSON as plain data."""
    return from_json(text)


PLAIN: Final = Codec(None)


def codec_for(declared: Any) -> Codec:
    """
    Find the codec of a declared type.

    Args:
        declared: A type that pydantic can check and write as JSON; `Any` for plain JSON data.

    Raises:
        TypeError: The type cannot be coded.
    """
    try:
        return _codec_for(declared)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return _build(declared)


@lru_cache(maxsize=1024)
def _codec_for(declared: Any) -> Codec:
    return _build(declared)


def _build(declared: Any) -> Codec:
    if declared is Any or declared is object:
        return PLAIN
    try:
        adapter = TypeAdapter(declared)
        adapter.json_schema(mode="serialization")
        serializer = SchemaSerializer(_plain_below_any(adapter.core_schema))
    except pydantic.errors.PydanticInvalidForJsonSchema as error:
        raise TypeError(f"{declared!r} cannot be written as JSON: {error.message.splitlines()[0]}") from error
    except pydantic.errors.PydanticUserError as error:
        raise TypeError(
            f"{declared!r} cannot be checked and written as JSON: {error.message.splitlines()[0]}"
        ) from error
    return Codec(Coder(adapter.validator, serializer), declared if declared in (bool, int, float, str) else None)


# pydantic writes what is below Any as it sees fit: NaN as null, a set as a list. There our own rule for plain JSON data
# holds; a pydantic model writes its fields itself, as its author configured it.
_CONTAINERS: Final = {
    "list": ("items_schema",),
    "set": ("items_schema",),
    "frozenset": ("items_schema",),
    "dict": ("keys_schema", "values_schema"),
}
_NO_SCHEMAS: Final = frozenset({"metadata", "default", "expected", "members"})
_NEVER_JSON: Final = frozenset({"is-subclass"})


def _plain_below_any(schema: Any) -> Any:
    """
    Copy a core schema of pydantic's, in which what is below Any is written as plain JSON data.

    Raises:
        TypeError: It has a part whose values are no JSON, for which pydantic has a JSON schema all the same.
    """
    if isinstance(schema, list):
        return [_plain_below_any(part) for part in schema]
    if not isinstance(schema, dict) or schema.get("type") == "model":
        return schema
    kind = str(schema.get("type"))  # of a dict of fields, it may be the field of that name
    if kind in _NEVER_JSON:
        raise TypeError("a class cannot be written as JSON")
    if kind == "any" and "serialization" not in schema:
        return {**schema, "serialization": _PLAIN_SERIALIZATION}
    copied = {key: value if key in _NO_SCHEMAS else _plain_below_any(value) for key, value in schema.items()}
    for part in _CONTAINERS.get(kind, ()):
        copied.setdefault(part, {"type": "any", "serialization": _PLAIN_SERIALIZATION})
    return copied


def check_input(codec: Codec, value: Any, limit: int) -> Encoded:
    """
    Encode a trigger's input.

    Args:
        codec: The job's input codec.
        value: What the caller gave.
        limit: max_payload_bytes.

    Raises:
        ValidationError: It does not fit; `field` is "input" or a path below it.
        PayloadTooLargeError: It is larger than *limit* when encoded.
    """
    try:
        encoded = codec.encode(value)
    except Unfit as error:
        raise ValidationError("input" + error.path.removeprefix("$"), error.message) from error
    return check_size(encoded, "input", limit)


def check_output(codec: Codec, value: Any, limit: int) -> Encoded:
    """
    Encode a job's return value; as `check_input`, with the field "output".

    Raises:
        ValidationError: It does not fit; `field` is "output" or a path below it.
        PayloadTooLargeError: It is larger than *limit* when encoded.
    """
    try:
        encoded = codec.encode(value)
    except Unfit as error:
        raise ValidationError("output" + error.path.removeprefix("$"), error.message) from error
    return check_size(encoded, "output", limit)


def encode_step(codec: Codec, value: Any, step_name: str, limit: int) -> Encoded:
    """
    Encode a step's result.

    Raises:
        EncodingError: It cannot be encoded; names the step, the type and the path inside the value.
        PayloadTooLargeError: It is larger than *limit* when encoded.
    """
    try:
        encoded = codec.encode(value)
    except Unfit as error:
        raise EncodingError(
            f"step {step_name!r} returned a {type(value).__qualname__} that cannot be stored",
            error.path,
            error.message,
        ) from error
    return check_size(encoded, f"step {step_name!r}", limit)


def check_size(encoded: Encoded, field: str, limit: int) -> Encoded:
    """Refuse an encoded value of more than *limit* bytes, with a PayloadTooLargeError on *field*."""
    # A character is at most 4 bytes, so most values need not be encoded to be measured.
    if len(encoded.text) * 4 > limit and (size := len(encoded.text.encode())) > limit:
        raise PayloadTooLargeError(field, size, limit)
    return encoded


def _plain(value: Any, path: str, depth: int) -> Any:
    """Copy plain JSON data, refusing with its path whatever JSON cannot give back as it was."""
    kind = type(value)
    if kind is str:
        return value if value.isascii() else _encodable(value, path)
    if kind is int or kind is bool or value is None:
        return value
    if kind is float:
        if not math.isfinite(value):
            raise Unfit(path, f"{value} is no JSON number")
        return value
    if depth > _MAX_DEPTH:
        raise Unfit(path, f"nested deeper than {_MAX_DEPTH} levels, or refers to itself")
    if kind is dict:
        return {_key(k, path): _plain(v, f"{path}.{k}", depth + 1) for k, v in value.items()}
    if kind is list or kind is tuple:
        return [_plain(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(value)]
    if isinstance(value, Coroutine):
        value.close()  # or Python would warn that nobody has awaited it
        raise Unfit(
            path,
            "it is a coroutine, which nobody has awaited: give the `async def` function itself, not one that calls it, "
            "or await the call",
        )
    raise Unfit(
        path,
        f"{kind.__qualname__} is no JSON data (None, bool, int, finite float, str, list, dict with str keys); "
        "declare its type, as the annotation of the job's input or of what the function returns, and it comes back as "
        "itself",
    )


def _key(key: Any, path: str) -> str:
    if type(key) is not str:
        raise Unfit(path, f"the key {key!r:.80} is a {type(key).__qualname__}, and JSON has only str keys")
    return key if key.isascii() else _encodable(key, path)


def _encodable(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Unfit(path, f"holds a lone surrogate, which no database stores ({error.reason})") from error
    return text


def _unfit(error: pydantic.ValidationError) -> Unfit:
    """Name every wrong part of a value: the first by its path, some others in the message, the rest by their number."""
    wrong = [
        Unfit("$" + "".join(_spell(one["loc"])), one["msg"].strip().removesuffix(","))  # "Value error, " of no text
        for one in islice(error.errors(include_url=False, include_context=False, include_input=False), _MOST_TOLD)
    ]
    first, *others = wrong
    told = [
        first.message,
        *(f"{one.path.removeprefix('$').removeprefix('.') or 'the whole'}: {one.message}" for one in others),
    ]
    if left := error.error_count() - len(wrong):
        told.append(f"and {left} more")
    return Unfit(first.path, "; ".join(told))


def _spell(location: tuple[int | str, ...]) -> Iterator[str]:
    for part in location:
        yield f"[{part}]" if isinstance(part, int) else f".{part}"


def _serialize_plain(value: Any) -> Any:
    return _plain(value, "$", 0)


_PLAIN_SERIALIZATION: Final = {"type": "function-plain", "function": _serialize_plain}
