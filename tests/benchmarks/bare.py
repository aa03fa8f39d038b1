"""The reference: the same work by a database's driver alone, on one connection, one transaction a write."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SCHEMA = """
CREATE TABLE runs (id TEXT PRIMARY KEY, job_name TEXT NOT NULL, status TEXT NOT NULL, input TEXT NOT NULL, output TEXT,
                   created_at INTEGER NOT NULL, generation INTEGER NOT NULL, worker_id TEXT);
CREATE INDEX runs_by_status ON runs (status, created_at, id);
CREATE TABLE steps (run_id TEXT NOT NULL, name TEXT NOT NULL, output TEXT, PRIMARY KEY (run_id, name));
"""
_CLAIM = """
UPDATE runs SET status = 'running', worker_id = 'w', generation = generation + 1
WHERE id = (SELECT id FROM runs WHERE status = 'pending' ORDER BY created_at, id LIMIT 1) RETURNING id, generation
"""
_CHECKPOINT = "INSERT INTO steps VALUES (?, ?, '1')"
_FINISH = "UPDATE runs SET status = 'completed', output = '1' WHERE id = ? AND generation = ?"


class Bare:
    """
    One connection to a database of its own.

    Args:
        file: Made here.
        synchronous: As durably's setting of that name.
    """

    def __init__(self, file: Path, synchronous: str = "normal") -> None:
        self.connection: Any = sqlite3.connect(file, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute(f"PRAGMA synchronous={synchronous}")
        self.connection.executescript(_SCHEMA)

    @contextmanager
    def writing(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        yield
        self.connection.execute("COMMIT")

    def trigger(self, first: int, count: int) -> None:
        with self.writing():
            self.connection.executemany(
                "INSERT INTO runs VALUES (?, 'job', 'pending', '1', NULL, ?, 0, NULL)",
                [(f"{number:026d}", number) for number in range(first, first + count)],
            )

    def claim(self) -> tuple[str, int]:
        with self.writing():
            run_id, generation = self.connection.execute(_CLAIM).fetchone()
        return run_id, generation

    def execute_one(self, steps: int) -> None:
        run_id, generation = self.claim()
        for index in range(steps):
            with self.writing():
                self.connection.execute(_CHECKPOINT, (run_id, f"step-{index}"))
        with self.writing():
            self.connection.execute(_FINISH, (run_id, generation))

    def close(self) -> None:
        self.connection.close()


class BareLibSQLFile(Bare):
    """
    One connection to a file, by libSQL's own driver.

    Args:
        file: Made here.
    """

    def __init__(self, file: Path) -> None:
        import libsql_experimental

        self.connection: Any = libsql_experimental.connect(str(file), isolation_level=None)
        for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=normal"):
            self.connection.execute(statement).fetchall()
        self.connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Leave it to the driver, which closes what nobody refers to."""
        del self.connection


class BareLibSQLServer(Bare):
    """
    One connection to an empty database of a server, by the client beneath durably's dialect; there is no other.

    Args:
        connection: Of that client.
    """

    def __init__(self, connection: Any) -> None:
        self.connection: Any = _Cursors(connection)
        for statement in _SCHEMA.split(";")[:-1]:
            self.connection.execute(statement)


class BarePostgreSQL(Bare):
    """
    One connection to an empty database, by psycopg.

    Args:
        url: Of the database.
    """

    def __init__(self, url: str) -> None:
        import psycopg

        self.connection: Any = _Placeholders(psycopg.connect(url, autocommit=True))
        for statement in _SCHEMA.split(";")[:-1]:
            self.connection.execute(statement.replace("INTEGER", "BIGINT"))

    @contextmanager
    def writing(self) -> Iterator[None]:
        with self.connection.driver.transaction():
            yield


class _Cursors:
    """A connection that executes by itself, as sqlite3's does."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self.close = driver.close

    def execute(self, statement: str, values: Any = ()) -> Any:
        cursor = self._driver.cursor()
        cursor.execute(statement, values)
        return cursor

    def executemany(self, statement: str, rows: Any) -> None:
        self._driver.cursor().executemany(statement, rows)


class _Placeholders:
    """A psycopg connection that takes statements as sqlite3 writes them."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self.close = driver.close

    def execute(self, statement: str, values: Any = ()) -> Any:
        return self.driver.execute(statement.replace("?", "%s"), values)

    def executemany(self, statement: str, rows: Any) -> None:
        self.driver.cursor().executemany(statement.replace("?", "%s"), rows)


def runs_per_second(file: Path, synchronous: str, count: int, steps: int) -> float:
    """Execute a backlog in this process: claim, checkpoints and finish, a transaction each."""
    with closing(Bare(file, synchronous)) as bare:
        return execute_backlog(bare, count, steps)


def execute_backlog(bare: Bare, count: int, steps: int) -> float:
    """Trigger so many runs and execute them; give the runs a second, without the triggering."""
    bare.trigger(0, count)
    began = time.perf_counter()
    for _ in range(count):
        bare.execute_one(steps)
    return count / (time.perf_counter() - began)
