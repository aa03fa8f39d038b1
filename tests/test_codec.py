"""Encoding: values to stored JSON and back, and what is refused with its path."""

import enum
import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import TypedDict

from durably.codec import PLAIN, Unfit, check_input, check_output, codec_for, encode_step
from durably.errors import EncodingError, PayloadTooLargeError, ValidationError
from durably.testing.dialects.suite.support import spelled

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@given(JSON)
def test_plain_json_comes_back_as_it_was(value: Any) -> None:
    # contract 25, 74
    encoded = PLAIN.encode(value)
    assert repr(PLAIN.decode(encoded.text)) == repr(value) == repr(encoded.data)


@given(
    st.one_of(
        st.tuples(st.just(datetime), st.datetimes(timezones=st.just(UTC))),
        st.tuples(st.just(datetime), st.datetimes()),
        st.tuples(st.just(date), st.dates()),
        st.tuples(st.just(time), st.times()),
        st.tuples(st.just(timedelta), st.timedeltas(timedelta(days=-10_000_000), timedelta(days=10_000_000))),
        st.tuples(st.just(Decimal), st.decimals(allow_nan=False, allow_infinity=False)),
        st.tuples(st.just(UUID), st.uuids()),
        st.tuples(st.just(float), st.floats(allow_nan=False, allow_infinity=False)),
        st.tuples(st.just(int), st.integers()),
        st.tuples(st.just(set[int]), st.sets(st.integers())),
        st.tuples(st.just(tuple[int, bool, str | None]), st.tuples(st.integers(), st.booleans(), st.none())),
        st.tuples(st.just(dict[date, Decimal]), st.dictionaries(st.dates(), st.decimals(-9, 9))),
    )
)
def test_declared_types_come_back_as_themselves(typed: tuple[Any, Any]) -> None:
    # contract 20, 74
    declared, value = typed
    codec = codec_for(declared)
    back = codec.decode(codec.encode(value).text)
    assert back == value
    assert type(back) is type(value)
    assert not isinstance(value, float | Decimal) or repr(back) == repr(value)


class Level(enum.IntEnum):
    LOW = 1


class Cat(pydantic.BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(pydantic.BaseModel):
    kind: Literal["dog"] = "dog"
    lives: int = 1


class Zoo(pydantic.BaseModel):
    animals: list[Cat | Dog]
    name: str = pydantic.Field(alias="zoo_name")

    model_config = pydantic.ConfigDict(populate_by_name=True)


@dataclass
class Node:
    value: int
    next: "Node | None" = None


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (Level, Level.LOW),
        (list[Cat | Dog], [Dog(lives=9), Cat()]),
        (Node, Node(1, Node(2))),
        (Literal["a", 1], 1),
        (bytes, b"text"),
        (None, None),
        (int | float, 1),
        (int | float, 1.0),
        (bool | int, 1),
        (bool | int, True),
    ],
    ids=spelled,
)
def test_unions_enums_and_recursive_types_come_back_as_themselves(declared: Any, value: Any) -> None:
    # contract 20, 74
    codec = codec_for(declared)
    back = codec.decode(codec.encode(value).text)
    assert (back, type(back)) == (value, type(value))


def test_a_model_with_an_alias_comes_back(  # contract 20, 74
) -> None:
    zoo = Zoo(animals=[Cat()], zoo_name="Zoo")
    codec = codec_for(Zoo)
    assert codec.decode(codec.encode(zoo).text) == zoo


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (float("nan"), "$"),
        ([1, float("-inf")], "$[1]"),
        ({"a": [{"b": b""}]}, "$.a[0].b"),
        ({"a": {1: 2}}, "$.a"),
        ({"a": {(1,): 2}}, "$.a"),
        ((1, {2}), "$[1]"),
        (["\ud800"], "$[0]"),
        (Level.LOW, "$"),
        (datetime(2024, 1, 1, tzinfo=UTC), "$"),
        (Cat(), "$"),
    ],
    ids=spelled,
)
@pytest.mark.parametrize("declared", [Any, object])
def test_what_is_no_json_is_refused_with_its_path(value: Any, path: str, declared: Any) -> None:
    # contract 25, 76
    with pytest.raises(Unfit) as refused:
        codec_for(declared).encode(value)
    assert refused.value.path == path


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("declared", [float, list[float], float | None, tuple[float, ...]])
def test_a_float_that_json_lacks_is_refused_inside_declared_types(declared: Any, value: float) -> None:
    # contract 74, 76
    with pytest.raises(Unfit):
        codec_for(declared).encode(value if declared in (float, float | None) else [value])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, {1, 2}, b"x"], ids=spelled)
@pytest.mark.parametrize("declared", [dict[str, Any], dict])
def test_what_json_lacks_is_refused_below_any_in_a_declared_type(declared: Any, value: Any) -> None:
    # contract 25, 25a
    with pytest.raises(Unfit):
        codec_for(declared).encode({"a": value})


@dataclass
class Envelope:
    """Fields named like parts of pydantic's own schemas, with anything in them."""

    type: str
    schema: dict[str, Any]
    default: list[Any] = field(default_factory=list)


class Tree(TypedDict):
    """A type that refers to itself."""

    value: Any
    children: "list[Tree]"


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (Envelope, Envelope("any", {"type": "any", "n": [1, None]}, [{"a": 1.5}])),
        (Tree, {"value": {"a": 1}, "children": [{"value": "leaf", "children": []}]}),
        (dict[str, Any], {"when": "text", "n": 2**70}),
        (list[dict[str, Any]] | None, [{"a": [True]}]),
        (dict[int, Any], {1: "a"}),
        (tuple[Any, int], ({"a": 1}, 2)),
    ],
    ids=spelled,
)
def test_plain_data_below_any_comes_back_as_it_was(declared: Any, value: Any) -> None:
    # contract 20, 25, 74
    codec = codec_for(declared)
    assert codec.decode(codec.encode(value).text) == value


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        (Envelope, Envelope("a", {"when": datetime.now(UTC)})),
        (Tree, {"value": None, "children": [{"value": {1, 2}, "children": []}]}),
        (tuple[Any, int], (float("nan"), 2)),
        (dict[str, list[Any] | None], {"a": [b"x"]}),
    ],
    ids=["dataclass", "recursive", "tuple", "union"],
)
def test_what_json_lacks_is_refused_however_deep_it_is_below_any(declared: Any, value: Any) -> None:
    # contract 25, 25a
    with pytest.raises(Unfit):
        codec_for(declared).encode(value)


def test_depth_is_bounded() -> None:
    # contract 76
    value: list[Any] = []
    for _ in range(199):
        value = [value]
    assert PLAIN.decode(PLAIN.encode(value).text) == value
    deep = value
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Unfit, match="nested deeper"):
        PLAIN.encode(deep)


def test_the_three_uses_name_what_is_wrong_in_their_own_words() -> None:
    # contract 24, 27, 29, 76, 185
    codec = codec_for(dict[str, int])
    with pytest.raises(ValidationError, match=r"^input\.a: ") as wrong_input:
        check_input(codec, {"a": "x"}, 1024)
    assert wrong_input.value.field == "input.a"
    with pytest.raises(ValidationError, match=r"^output\.a: "):
        check_output(codec, {"a": "x"}, 1024)
    with pytest.raises(EncodingError, match=r"step 'load' returned a dict .*: \$\.a: ") as wrong_step:
        encode_step(codec, {"a": "x"}, "load", 1024)
    assert wrong_step.value.path == "$.a"
    with pytest.raises(PayloadTooLargeError, match="'load'"):
        encode_step(PLAIN, "x" * 1024, "load", 1024)


# contract 185
def test_every_wrong_field_is_named_up_to_ten_and_the_rest_counted() -> None:
    class Order(pydantic.BaseModel):
        id: int
        lines: list[int]
        note: str = ""

    with pytest.raises(ValidationError) as wrong:
        check_input(codec_for(Order), {"id": "x", "lines": [1, "y"], "note": 3}, 1024)
    assert wrong.value.field == "input.id"
    assert re.search(
        r"^input\.id: .* integer, .*; lines\[1\]: .* integer, .*; note: .* valid string$", str(wrong.value)
    )
    with pytest.raises(ValidationError) as many:
        check_input(codec_for(list[int]), ["x"] * 25, 1024)
    assert re.findall(r"\[(\d+)\]: ", str(many.value)) == [str(n) for n in range(10)]
    assert str(many.value).endswith("; and 15 more")


# contract 185
def test_an_error_without_words_ends_in_no_comma_or_colon() -> None:
    def refuse(value: Any) -> Any:
        raise ValueError

    with pytest.raises(Unfit, match=r"^\$: Value error$"):
        codec_for(Annotated[int, pydantic.BeforeValidator(refuse)]).encode(1)
    with pytest.raises(Unfit, match=r"^\$: .*ValueError$"):
        codec_for(Annotated[int, pydantic.PlainSerializer(refuse)]).encode(1)


# contract 185
def test_a_long_path_is_cut_in_its_middle() -> None:
    deep: Any = None
    for _ in range(300):
        deep = [deep]
    with pytest.raises(Unfit) as refused:
        PLAIN.encode(deep)
    assert len(refused.value.path) == 200
    assert re.fullmatch(r"\$(\[0\])+(\[0?)?…0?\]?(\[0\])+", refused.value.path)


@pytest.mark.parametrize(("text", "size"), [("x" * 1022, 1024), ("ü" * 511, 1024), ("\U0001f600" * 255, 1022)])
def test_the_limit_counts_bytes_as_stored(text: str, size: int) -> None:
    # contract 29
    assert len(check_input(PLAIN, text, 1024).text.encode()) == size
    with pytest.raises(PayloadTooLargeError) as refused:
        check_input(PLAIN, text + "xyz", 1024)
    assert refused.value.size == size + 3


@pytest.mark.parametrize("text", ['{"a": 1}', '{"animals": [{"kind": "cow"}], "zoo_name": "x"}', "[]", "null"])
def test_a_stored_form_that_does_not_fit_is_refused(text: str) -> None:
    # contract 77
    with pytest.raises(Unfit):
        codec_for(Zoo).decode(text)
