"""The suite's part of pytest: its options, and the fixtures that its tests share."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from durably import Durably
from durably.testing.dialects import databases
from durably.testing.dialects.suite.support import AppMaker, Lock, Wrap, as_sync, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from durably.testing.dialects.cable import Cable
    from durably.testing.dialects.databases import Databases


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the suite's options."""
    group = parser.getgroup("durably")
    group.addoption(
        "--url", help="an empty database, of which everything is dropped; by default each test has an SQLite file"
    )
    group.addoption(
        "--databases",
        metavar="MODULE:CLASS",
        help="what makes the databases, a durably.testing.dialects.Databases; called with --url if that is given",
    )
    group.addoption("--lives", type=int, default=100, help="how many random lives the property test tries")


def pytest_configure(config: pytest.Config) -> None:
    """Choose what makes the databases."""
    config.addinivalue_line("markers", "wakes: about those whom a commit wakes; skipped where only polling tells")
    config.addinivalue_line("markers", "long: the long form of a campaign; run it with DURABLY_TEST_LONG=1")
    url, maker = config.getoption("--url"), config.getoption("--databases")
    if url or maker:
        make: Callable[..., Databases] = _find(maker) if maker else databases.OneDatabase
        databases.make = lambda: make(url) if url else make()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse a database that is not the suite's to empty, before any test."""
    if session.config.getoption("--url"):
        databases.databases()


def pytest_unconfigure() -> None:
    """Drop what tests shared."""
    databases.close()


def _find(maker: str) -> Any:
    module, _, name = maker.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        message = f"--databases {maker}: {error}; it looks like my_package.testing:MyDatabases"
        raise pytest.UsageError(message) from error


@pytest.fixture(autouse=True)
def _clean_databases() -> Iterator[None]:
    """Drop a test's databases after everything else of it is gone."""
    yield
    if databases.is_open():
        databases.databases().clean()


@pytest.fixture
def url(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The URL of a database without tables; a file does not exist yet."""
    url = databases.databases().fresh_url(tmp_path)
    if request.node.get_closest_marker("wakes") and databases.only_polls(url):
        pytest.skip("only polling tells")
    return url


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
    # Or it would find the next test's runs, where tests share a database.
    eventually(lambda: not any(thread.name == "durably-worker" for thread in threading.enumerate()), timeout=60)


@pytest.fixture
def app(make_app: AppMaker) -> Durably:
    """One migrated instance."""
    return make_app()


@pytest.fixture
def locked(url: str) -> Lock:
    """What keeps everybody else from writing, as often as it is called; without it the test is skipped."""
    databases.databases().locked(url)  # here, before the test has begun anything
    return lambda: databases.databases().locked(url)


@pytest.fixture
def cable(url: str, tmp_path: Path) -> Iterator[tuple[Cable, str]]:
    """A way to the database that can be cut, and the URL that takes it."""
    databases.databases().fill(url)
    cable, near = databases.databases().cable(url, tmp_path)
    yield cable, near
    cable.close()


@pytest.fixture(params=["def", "async def"])
def either(request: pytest.FixtureRequest) -> Wrap:
    """Give a body the two forms of a job's function, one after the other."""
    return as_sync if request.param == "def" else lambda body: body


@pytest.fixture
def python(tmp_path: Path, url: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python processes that find the database's URL in `url`; what still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *args: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(  # noqa: S603 - this Python, with a test's code
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
