"""
What differs between databases, behind one small protocol; and how a URL finds its dialect.

A third party adds a dialect through the entry-point group ``durably.dialects``: the entry's name is the URL's
scheme without its driver ("postgresql"), or with it ("sqlite+libsql"), its object a callable that takes
(url, settings) and returns a `Dialect`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from durably.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection, Engine, Table

    from durably.findings import Finding
    from durably.settings import Settings

GROUP = "durably.dialects"

FORESEEN = "durably_foreseen"
"""
Execution option of a statement that is expected to change just one row for each set of parameters.

A dialect may send it together with what follows, and report the expected number meanwhile; it must then commit only
if the expectation was met, and else raise `NotForeseenError`. One that sends each statement at once ignores it.
"""


class InDoubtError(ConnectionError):
    """
    The connection was lost between a commit and its answer.

    Args:
        reason: Why.
        was_committed: Asks the database, once it answers again; raises what `is_transient` knows while it does not.
    """

    def __init__(self, reason: str, was_committed: Callable[[], bool]) -> None:
        super().__init__(f"the connection was lost while a commit was under way: {reason}")
        self.was_committed = was_committed


class NotForeseenError(Exception):
    """A statement that was `FORESEEN` changed another number of rows. Nothing of its transaction was committed."""


class Watch(Protocol):
    """One process's way to learn, without asking the database all the time, that another process has committed."""

    def fileno(self) -> int:
        """Give a descriptor that turns readable when something may have been committed."""

    def changed(self) -> bool:
        """
        Tell whether another connection has committed since the last call, and consume what made it readable.

        Raises:
            DBAPIError: The database does not answer.
        """

    def let_go(self) -> None:
        """
        Close the connection, before the process forks; `fileno` stays, and the next `changed` opens another.

        Called while nobody is in `changed`.
        """

    def close(self) -> None:
        """Free the descriptor and the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """
    What a dialect can do, for those few places that do otherwise where it cannot.

    Args:
        wakes: What a watch turns readable by: any "commit", a "ring" by who commits, or nothing ("polling").
        hosts: Whether processes of "one" host or of "many" may share the database.
    """

    wakes: Literal["commit", "ring", "polling"]
    hosts: Literal["one", "many"]


class Dialect(Protocol):
    """
    What differs between databases. Holds no connection; may be used by several threads.

    Attributes:
        name: The word for it in events and messages.
        safe_url: The URL without its password.
        capabilities: What it can do.
    """

    name: str
    safe_url: str
    capabilities: Capabilities

    def create_engine(self) -> Engine:
        """Make the engine of this process, configured for each connection that it will open; open none."""

    def check_reachable(self) -> None:
        """
        Find out cheaply, before an engine is used, what would make every connection fail.

        Raises:
            DatabaseUnavailableError: It cannot be opened; says what would help.
            SchemaOutdatedError: There is no such database yet.
        """

    def prepare(self, engine: Engine) -> None:
        """
        Do what is done once per database, before the migration: make it, set its journal mode.

        Raises:
            DatabaseUnavailableError: It cannot be made; says what would help.
        """

    def writing(self, connection: Connection, *, timeout: float) -> AbstractContextManager[None]:
        """
        Hold one write transaction: begun on entry with the right to write, committed on exit, rolled back on error.

        Args:
            connection: Outside a transaction.
            timeout: Seconds to queue behind other writers.

        Raises:
            DBAPIError, OSError: With an error that `is_transient` knows, when the wait was in vain.
            InDoubtError: On exit, where a server may have committed and could not say so.
            NotForeseenError: On exit, where statements that were `FORESEEN` are sent later.
        """

    def migration_lock(self, connection: Connection) -> None:
        """Take, within a write transaction, the lock that makes migrations of one database follow each other."""

    def settle(self, connection: Connection, table: Table) -> None:
        """
        Do what a table needs that rows were copied into, with ids of their own, in a write transaction.

        The ids that the database gives then go on after the greatest, and its planner knows how many rows there are.
        """

    def lock(self, connection: Connection, name: str) -> None:
        """Hold *name*, until the end of a write transaction, against every other that wants it."""

    def is_transient(self, error: BaseException) -> bool:
        """Tell whether *error* may pass by itself: contention, a dropped connection, a full disk."""

    def watch(self, engine: Engine) -> Watch | None:
        """Open this process's watch on commits by others, or None where only polling tells."""

    def ring(self, connection: Connection) -> None:
        """
        Make every process's watch on this database readable, where a commit alone does not.

        Called only where `capabilities.wakes` is "ring", after a commit, outside a transaction: once by each
        call of a caller that others may wait for, and at most a hundred times a second by a worker.
        """

    def upkeep(self, engine: Engine) -> None:
        """Do what this database needs done every few seconds, without holding up a writer."""

    def diagnose(self, connection: Connection) -> Sequence[Finding]:
        """
        Look at what only this dialect knows of, for a person who asks: its version, its mode, its room.

        Args:
            connection: In a transaction that only reads.
        """


def find_dialect(settings: Settings) -> Dialect:
    """
    Find the dialect of the settings' URL.

    Raises:
        ValidationError: On `dialect_url`: there is none, it cannot be read, or its dialect is not installed.
    """
    if not settings.dialect_url:
        raise ValidationError(
            "dialect_url",
            "no database given: pass it, set DURABLY_DIALECT_URL, or set dialect_url in [tool.durably] of "
            "pyproject.toml; for a file in this folder it is 'sqlite:///durably.db'",
        )
    try:
        url = make_url(settings.dialect_url)
    except (ArgumentError, ValueError):  # a port that is none is a ValueError
        raise ValidationError(
            "dialect_url",
            "not a database URL; it looks like 'sqlite:///file.db', 'sqlite:////absolute/path/to/file.db' or "
            "'postgresql://user@host/name'",
        ) from None
    if url.drivername == "postgres":
        url = url.set(drivername="postgresql")  # libpq takes both, and hosts give out this one
    entry = _entry(url)
    dialect: Dialect = entry.load()(url, settings)
    return dialect


def without_secrets(url: URL, *options: str) -> str:
    """Write a URL for messages, with three stars in the place of its password and of *options* of its query."""
    starred = url.update_query_dict(dict.fromkeys(options, "***")).render_as_string(hide_password=True)
    return starred.replace("%2A%2A%2A", "***")


def _entry(url: URL) -> EntryPoint:
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    for name in (url.drivername, url.get_backend_name()):
        if name in installed and (name == url.drivername or "+" not in url.drivername or _default_driver(url)):
            return installed[name]
    backend = url.get_backend_name()
    raise ValidationError(
        "dialect_url",
        f"no dialect for {url.drivername!r} is installed; installed: {', '.join(sorted(installed)) or 'none'}"
        + _other_form(backend, installed),
    )


def _other_form(backend: str, installed: Collection[str]) -> str:
    """Guess what a URL of an unknown form was meant to be."""
    if backend in installed:
        return f"; leave the driver to durably, as in '{backend}://...'"
    if backend == "libsql":  # as Turso writes it
        return "; a libSQL server is 'sqlite+libsql://host/?secure=true&authToken=...'"
    return ""


def _default_driver(url: URL) -> bool:
    """Tell whether the URL's driver is the one that its database has without a driver named."""
    plain: Any = make_url(f"{url.get_backend_name()}://").get_driver_name()
    return bool(url.get_driver_name() == plain)
