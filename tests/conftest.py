"""Fixtures: a fresh database, instances on it, and processes beside it."""

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from durably import Durably
from tests.support import AppMaker, Wrap, as_sync


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a database that does not exist yet."""
    return f"sqlite:///{tmp_path / 'durably.db'}"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a migrated SQLite file to copy: Alembic takes a tenth of a second each time."""
    path = tmp_path_factory.mktemp("template") / "durably.db"
    app = Durably(f"sqlite:///{path}")
    app.migrate()
    app.database.close()
    return path


@pytest.fixture
def make_app(url: str, template: Path) -> Iterator[AppMaker]:
    """Make instances on one database; at the end each is stopped and its connections are closed."""
    made: list[Durably] = []

    def make(*, migrated: bool = True, **settings: Any) -> Durably:
        given: dict[str, Any] = {"dialect_url": url, "polling_interval": 0.05} | settings
        app = Durably(**given)
        made.append(app)
        if migrated:
            path = Path(url.removeprefix("sqlite:///"))
            if not path.exists():
                shutil.copyfile(template, path)
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
