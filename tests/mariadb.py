"""MariaDB for the tests of the dialect in docs/examples/durably-mariadb: a server of their own, by Debian's package."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sqlalchemy import make_url

from durably import Durably
from durably.testing.dialects import Cable, lay_by_tcp

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

_SECONDS_TO_BEGIN = 60


def is_there() -> bool:
    """Tell whether there is a server to test with, or a program that would be one."""
    return "DURABLY_TEST_MARIADB_URL" in os.environ or shutil.which("mariadbd") is not None


class MariaDBServer:
    """A database each, on a server of the tests' own, or on the one of DURABLY_TEST_MARIADB_URL."""

    def __init__(self) -> None:
        given = os.environ.get("DURABLY_TEST_MARIADB_URL")
        self._own = None if given else _OwnServer()
        self.url = make_url(given or self._own.url)  # type: ignore[union-attr]
        self._made: list[str] = []

    def execute(self, statement: str, database: str | None = None) -> Any:
        """Execute one statement on the server, outside a transaction; give the rows, if there are any."""
        with self._connect(database) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else ()

    def _connect(self, database: str | None = None) -> Any:
        import pymysql

        where = self.url.translate_connect_args(username="user")
        return pymysql.connect(**(where | ({"database": database} if database else {})), autocommit=True)

    def fresh_url(self, folder: Path, name: str = "durably") -> str:  # noqa: ARG002 - for those that are files
        database = f"durably_test_{uuid4().hex}"
        self.execute(f"CREATE DATABASE {database}")
        self._made.append(database)
        url = self.url.set(drivername="mariadb+pymysql", database=database)
        return url.render_as_string(hide_password=False)

    def fill(self, url: str) -> None:
        app = Durably(url)
        app.migrate()
        app.database.close()

    def is_free(self, url: str) -> bool:
        database = make_url(url).database
        busy = (
            "SELECT count(*) FROM information_schema.innodb_trx t JOIN information_schema.processlist p "
            f"ON p.id = t.trx_mysql_thread_id WHERE p.db = '{database}'"
        )
        return bool(self.execute(busy)[0][0] == 0)

    @contextlib.contextmanager
    def locked(self, url: str) -> Iterator[None]:
        tables = ", ".join(f"durably_{name} READ" for name in ("workers", "runs", "steps", "logs", "labels"))
        with self._connect(make_url(url).database) as stranger, stranger.cursor() as cursor:
            cursor.execute(f"LOCK TABLES {tables}")
            yield
            cursor.execute("UNLOCK TABLES")

    def hurry(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr("durably_mariadb._LOCK_WAIT_SECONDS", 0)

    def cable(self, url: str, folder: Path) -> tuple[Cable, str]:  # noqa: ARG002 - for a socket in it
        return lay_by_tcp(url)

    def clean(self) -> None:
        while self._made:
            self.execute(f"DROP DATABASE IF EXISTS {self._made.pop()}")

    def close(self) -> None:
        if self._own is not None:
            self._own.close()


class _OwnServer:
    """mariadbd in a temporary folder, on a free port of the loopback."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="durably-mariadb-"))
        user = f"--user={getpass.getuser()}"
        subprocess.run(
            ["mariadb-install-db", "--no-defaults", f"--datadir={self._folder}", user, "--skip-test-db",
             "--auth-root-authentication-method=normal"],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"mariadb+pymysql://root@127.0.0.1:{port}/"
        self._process = subprocess.Popen(
            ["mariadbd", "--no-defaults", f"--datadir={self._folder}", user, f"--port={port}",
             "--bind-address=127.0.0.1", f"--socket={self._folder}/socket", "--skip-name-resolve",
             "--innodb-flush-log-at-trx-commit=0", "--max-connections=300"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + _SECONDS_TO_BEGIN
        while not self._answers(port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"mariadbd did not begin in {self._folder}")
            time.sleep(0.05)

    @staticmethod
    def _answers(port: int) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        shutil.rmtree(self._folder)
