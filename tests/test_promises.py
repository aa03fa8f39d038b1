"""docs/promises.md: what defends each promise is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.chaos import checker

DOCS = Path(__file__).parents[1] / "docs"
PROMISE = re.compile(r"^\| (?P<promise>[A-Z].*?\.) \| (?P<checks>.*?) \| (?P<tests>.*?) \|$", re.MULTILINE)
PROMISES = [each.group("promise", "checks", "tests") for each in PROMISE.finditer((DOCS / "promises.md").read_text())]


@pytest.mark.parametrize(("promise", "checks", "tests"), PROMISES, ids=[promise for promise, _, _ in PROMISES])
def test_a_promise_is_defended_by_tests_that_there_are(promise: str, checks: str, tests: str) -> None:
    assert set(re.findall(r"`(\w+)`", checks)) <= {check.__name__ for check in checker.CHECKS}, promise
    links = re.findall(r"\[(\w+)\]\(([\w/.]+)\)", tests)
    assert links, promise
    for name, path in links:
        tree = ast.parse((DOCS / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, path


def test_all_that_the_campaign_checks_is_promised() -> None:
    named = {name for _, checks, _ in PROMISES for name in re.findall(r"`(\w+)`", checks)}
    assert named == {check.__name__ for check in checker.CHECKS}
