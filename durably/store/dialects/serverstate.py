"""What is looked at of a PostgreSQL server: its version, role and safety, its connections, and who holds vacuum up."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from durably.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from durably.findings import Level

_OLDEST_VERSION: Final = 130_000
_NEARLY_ALL: Final = 0.8
_LONG_TRANSACTION_SECONDS: Final = 600

_server: Final = text(
    "SELECT current_setting('server_version_num')::int AS number, current_setting('server_version') AS version, "
    "pg_is_in_recovery() AS is_replica, current_setting('fsync') AS fsync, "
    "current_setting('synchronous_commit') AS synchronous_commit, current_setting('max_connections')::int AS most, "
    "(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used"
)
_oldest_transaction: Final = text(
    "SELECT pid, coalesce(application_name, '') AS name, "
    "CAST(extract(epoch FROM clock_timestamp() - xact_start) AS float) AS age FROM pg_stat_activity "
    "WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid() "
    "ORDER BY xact_start LIMIT 1"
)


def diagnose_server(connection: Connection, *, is_pooled: bool) -> Iterator[Finding]:
    """
    Look at a server.

    Args:
        connection: To it.
        is_pooled: Whether it goes through a transaction pooler.
    """
    server = connection.execute(_server).one()
    yield _version(server)
    yield _role(server)
    yield _safety(server)
    yield _connections(server)
    yield _transactions(connection.execute(_oldest_transaction).first())
    yield Finding(
        check="wake-ups",
        level="ok",
        message=(
            "by polling, because listening does not pass a transaction pooler" if is_pooled else "by LISTEN and NOTIFY"
        ),
    )


def _version(server: Any) -> Finding:
    is_old = server.number < _OLDEST_VERSION
    return Finding(
        check="PostgreSQL",
        level="error" if is_old else "ok",
        message=f"{server.version}, over psycopg {version('psycopg')}",
        remedy="use PostgreSQL 13 or later" if is_old else None,
    )


def _role(server: Any) -> Finding:
    if server.is_replica:
        return Finding(
            check="role",
            level="error",
            message="a read-only replica",
            remedy="name the primary in the URL, or all hosts and target_session_attrs=read-write",
        )
    return Finding(check="role", level="ok", message="the primary")


def _safety(server: Any) -> Finding:
    if server.fsync != "on":
        return Finding(
            check="commits",
            level="warning",
            message="fsync is off: a crash of the server's host can ruin the whole database",
            remedy="fsync = on in postgresql.conf",
        )
    if server.synchronous_commit == "off":
        return Finding(
            check="commits",
            level="warning",
            message="synchronous_commit is off: a crash of the server loses the last checkpoints",
            remedy="synchronous_commit = on, for this role or database",
        )
    return Finding(check="commits", level="ok", message=f"synchronous_commit is {server.synchronous_commit}")


def _connections(server: Any) -> Finding:
    level: Level = "warning" if server.used > _NEARLY_ALL * server.most else "ok"
    return Finding(
        check="connections",
        level=level,
        message=f"{server.used} of {server.most} in use",
        remedy=None if level == "ok" else "raise max_connections, run fewer workers, or put a pooler between",
    )


def _transactions(oldest: Any) -> Finding:
    if oldest is None or oldest.age < _LONG_TRANSACTION_SECONDS:
        return Finding(check="transactions", level="ok", message="none is open for long")
    return Finding(
        check="transactions",
        level="warning",
        message=f"one of {oldest.name or 'an unnamed program'} (pid {oldest.pid}) is open for {oldest.age:,.0f} s, and "
        "keeps vacuum from clearing the tables",
        remedy=f"end it in its program, or: SELECT pg_terminate_backend({oldest.pid})",
    )
