"""The API reference is what the docstrings say now, and they say what a caller has to know."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

import durably
from tests.reference import FOLDER, PAGES, members, pages, parse

MEASURED = re.compile(
    r"timeout|.*_(timeout|interval|threshold|seconds|bytes)|limit|offset|before|older_than|max_runs|number|size"
)


def public() -> Iterator[tuple[str, Any]]:
    """List every public callable and property, by its name."""
    for thing in (thing for page in PAGES for thing in page.objects):
        yield thing.__name__, thing
        if isinstance(thing, type):
            yield from ((f"{thing.__name__}.{name}", value) for name, value in members(thing))


PUBLIC = dict(public())


@pytest.mark.parametrize("name", pages())
def test_the_reference_is_up_to_date(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == pages()[name], "run: python -m tests.reference"


def test_no_page_is_left_over() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(pages())


def test_everything_that_is_exported_is_in_the_reference() -> None:
    described = {id(thing) for page in PAGES for thing in page.objects}
    missing = [name for name in durably.__all__ if id(getattr(durably, name)) not in described]
    assert missing == ["create_durably"] or not missing  # the same object under its old name


@pytest.mark.parametrize("name", PUBLIC)
def test_it_has_a_docstring_whose_first_line_is_a_sentence(name: str) -> None:
    docstring = inspect.getdoc(PUBLIC[name]) or ""
    first, *_ = docstring.strip().partition("\n\n")
    assert first.rstrip("`").endswith((".", ":")), repr(first)


@pytest.mark.parametrize("name", [name for name, thing in PUBLIC.items() if inspect.isfunction(thing)])
def test_its_times_sizes_and_counts_are_explained(name: str) -> None:
    docstring = inspect.getdoc(PUBLIC[name]) or ""
    if re.search(r"[Aa]s `|see `|Await", docstring):  # it refers to the one that explains them
        return
    given = {p for p in inspect.signature(PUBLIC[name]).parameters if MEASURED.fullmatch(p)}
    explained = {
        item.name for section in parse(PUBLIC[name]) if section.kind.value == "parameters" for item in section.value
    }
    assert given <= explained
