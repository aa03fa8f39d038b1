"""What is shipped works where it is installed, and the migrations are those of the tables."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect

ROOT = Path(__file__).parents[1]
MIGRATE = "from durably import Durably; import durably; Durably().migrate(); print(durably.__file__)"


def tables_of(database: Path) -> set[str]:
    engine = create_engine(f"sqlite:///{database}")
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = f"from hatchling.build import build_wheel; print(build_wheel({str(folder)!r}))"
    built = subprocess.run([sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True, check=True)
    return folder / built.stdout.split()[-1]


def test_an_installed_wheel_carries_what_it_needs_and_migrates(tmp_path: Path, wheel: Path) -> None:
    installed = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert "durably/store/alembic_scripts/env.py" in files
    assert "durably/telemetry/log-line.schema.json" in files
    assert "durably/py.typed" in files
    assert not [file for file in files if file.startswith(("alembic/", "tests/"))]
    environment = os.environ | {"PYTHONPATH": str(installed), "DURABLY_DIALECT_URL": f"sqlite:///{tmp_path / 'a.db'}"}
    told = subprocess.run(
        [sys.executable, "-c", MIGRATE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert told.stdout.startswith(str(installed))
    assert "durably_runs" in tables_of(tmp_path / "a.db")


def test_alembic_works_from_the_root_of_the_repository_and_finds_nothing_to_add(tmp_path: Path) -> None:
    url = f"dialect_url=sqlite:///{tmp_path / 'a.db'}"
    for command in (["upgrade", "head"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "alembic", "-x", url, *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert {"durably_runs", "durably_alembic_version"} <= tables_of(tmp_path / "a.db")
    assert "alembic_version" not in tables_of(tmp_path / "a.db")


def test_no_init_file_hides_the_library_alembic() -> None:
    assert not (ROOT / "alembic" / "__init__.py").exists()
