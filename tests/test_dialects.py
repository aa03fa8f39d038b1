"""Dialects differ in what they promise, never in who asks which one it is."""

from __future__ import annotations

import ast
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import durably

PACKAGE = Path(durably.__file__).parent
DIALECTS = PACKAGE / "store" / "dialects"
TESTING = PACKAGE / "testing"
# What it says to SQLAlchemy about types and clocks is a declaration: nothing there depends on the name.
DECLARATIONS = PACKAGE / "store" / "tables.py"
NAMES = {"sqlite", "mysql", "mariadb"} | {point.name for point in entry_points(group="durably.dialects")}


def asks_for_a_name(node: ast.AST) -> bool:
    """Whether it is a dialect's name as a constant, or decides by one (`if database.dialect.name == ...`)."""
    if isinstance(node, ast.Constant):
        return node.value in NAMES
    decides = isinstance(node, ast.Compare | ast.Subscript | ast.Match)
    return decides and any(is_a_name(part) for part in ast.walk(node))


def is_a_name(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "name" and "dialect" in ast.unparse(node.value)


def lines_that_ask(path: Path) -> list[str]:
    return [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"  # type: ignore[attr-defined] # both have one
        for node in ast.walk(ast.parse(path.read_text()))
        if asks_for_a_name(node)
    ]


def test_only_dialects_know_their_names() -> None:
    others = [p for p in PACKAGE.rglob("*.py") if not {DIALECTS, TESTING} & {*p.parents} and p != DECLARATIONS]
    assert len(others) > 50
    assert [line for path in others for line in lines_that_ask(path)] == []


@pytest.mark.parametrize(
    "code", ["if engine.dialect.name == wanted: pass", "if make_url(url).drivername == 'postgresql': pass"]
)
def test_a_line_that_asks_is_found(code: str) -> None:
    assert any(asks_for_a_name(node) for node in ast.walk(ast.parse(code)))
