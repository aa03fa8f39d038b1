"""Fixtures: a fresh database, instances on it, and processes beside it."""

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from durably import Durably
from tests import databases
from tests.support import AppMaker, Wrap, as_sync


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--dialect", choices=databases.DIALECTS, default="sqlite", help="on which database the tests run")
    parser.addoption("--lives", type=int, default=100, help="of the short form of the property test: how many")


def pytest_configure(config: pytest.Config) -> None:
    databases.chosen = config.getoption("--dialect")


def pytest_unconfigure() -> None:
    databases.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On each dialect, run what is its own; on another than SQLite, else only what has to do with a database."""

    def is_chosen(item: pytest.Item) -> bool:
        if own := item.get_closest_marker("own"):
            return databases.chosen in own.args
        has_database = "url" in getattr(item, "fixturenames", ()) or "e2e" in item.path.parts
        return databases.chosen == "sqlite" or has_database

    chosen = [item for item in items if is_chosen(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
    if databases.chosen == "sqlite":
        return
    for item in items:
        if not databases.has_files() and (mark := item.get_closest_marker("sqlite_only")):
            item.add_marker(pytest.mark.skip(reason=f"SQLite files only: {mark.args[0]}"))
        if databases.only_polls() and item.get_closest_marker("wakes"):
            item.add_marker(pytest.mark.skip(reason="only polling tells"))


@pytest.fixture(autouse=True)
def _clean_databases() -> Iterator[None]:
    """Drop a test's databases after everything else of it is gone."""
    yield
    databases.clean()


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a database without tables; a file does not exist yet."""
    return databases.databases().fresh_url(tmp_path)


@pytest.fixture
def make_app(url: str) -> Iterator[AppMaker]:
    """Make instances on one database; at the end each is stopped and its connections are closed."""
    made: list[Durably] = []

    def make(*, migrated: bool = True, **settings: Any) -> Durably:
        given: dict[str, Any] = {"dialect_url": url, "polling_interval": 0.05} | settings
        app = Durably(**given)
        made.append(app)
        if migrated:
            databases.databases().fill(url)
            app.migrate()
        return app

    yield make
    for app in made:
        app.stop(timeout=5)
        app.database.close()


@pytest.fixture
def app(make_app: AppMaker) -> Durably:
    """One migrated instance."""
    return make_app()


@pytest.fixture(params=["def", "async def"])
def either(request: pytest.FixtureRequest) -> Wrap:
    """Give a body the two forms of a job's function, one after the other."""
    return as_sync if request.param == "def" else lambda body: body


@pytest.fixture
def python(tmp_path: Path, url: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python processes that find the database's URL in `url`; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", f"url = {url!r}\n{textwrap.dedent(code)}", *args],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
