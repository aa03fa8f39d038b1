"""Which tests run on which database, and what they leave behind."""

from collections.abc import Iterator

import pytest

from tests import databases


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "own(*dialects): about what is these dialects' own; run with one of them only")
    if maker := config.getoption("--databases", None):
        databases.chosen = maker.rpartition(":")[2]


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


@pytest.fixture(autouse=True)
def _clean_databases_beside() -> Iterator[None]:
    """Drop the databases of other dialects than the session's."""
    yield
    databases.clean()
