"""The schema's revision: checked by everybody, raised by `migrate` alone, through Alembic."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, column, inspect, select, table, update
from sqlalchemy.exc import SQLAlchemyError

from durably.errors import CopyUnfinishedError, DatabaseUnavailableError, SchemaOutdatedError, SchemaTooNewError
from durably.store.tables import REVISION, VERSION_TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from durably.store.dialects import Dialect

UNFINISHED_COPY: Final = "copying"
"""The revision of a database into which a copy has not ended; a durably that knows no copies refuses it too."""

_PACKAGED: Final = Path(__file__).parent / "alembic_scripts"
_IN_THE_REPOSITORY: Final = Path(__file__).parents[2] / "alembic"
# Grows by one with each migration; the newest is REVISION.
_KNOWN_REVISIONS: Final = (REVISION,)
_logger: Final = logging.getLogger("durably")
_version = table(VERSION_TABLE, column("version_num"))


def scripts_folder() -> Path:
    """Find Alembic's environment: beside this file in an installed wheel, at the root in an editable tree."""
    return _PACKAGED if _PACKAGED.is_dir() else _IN_THE_REPOSITORY


def current_revision(connection: Connection) -> str | None:
    """Read the database's revision; None if durably never migrated it."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(select(_version.c.version_num)).scalar_one_or_none()


def replace_revision(connection: Connection, expected: str, new: str) -> bool:
    """
    Write another revision in the place of *expected*.

    Returns:
        Whether it was there.
    """
    found = update(_version).where(_version.c.version_num == expected).values(version_num=new)
    return connection.execute(found).rowcount > 0


def check_schema(connection: Connection, safe_url: str) -> None:
    """
    Compare the database's revision with the code's.

    Args:
        connection: To the database.
        safe_url: Names it in errors.

    Raises:
        SchemaOutdatedError: It is missing or behind.
        SchemaTooNewError: The code does not know it.
        CopyUnfinishedError: There is none until the copy into it has ended.
    """
    found = current_revision(connection)
    if found == UNFINISHED_COPY:
        raise CopyUnfinishedError(safe_url)
    if found is not None and found not in _KNOWN_REVISIONS:
        raise SchemaTooNewError(found, REVISION)
    if found != REVISION:
        raise SchemaOutdatedError(found, REVISION, url=safe_url)


def migrate(engine: Engine, dialect: Dialect, *, timeout: float) -> bool:
    """
    Bring the database to the code's revision, in one transaction that looks only once it holds the lock.

    Args:
        engine: Of a database that may not exist yet.
        dialect: Prepares it and gives the lock.
        timeout: Seconds to queue behind others, who may be migrating too.

    Returns:
        Whether anything had to be done.

    Raises:
        SchemaTooNewError: The code does not know the database's revision; nothing was written.
        CopyUnfinishedError: A copy into it has not ended; nothing was written.
    """
    if _is_current(engine, dialect):
        return False
    dialect.prepare(engine)
    with engine.connect() as connection, dialect.writing(connection, timeout=timeout):
        dialect.migration_lock(connection)
        try:
            check_schema(connection, dialect.safe_url)
            return False
        except SchemaOutdatedError:
            _upgrade(connection)
    _logger.info("migrated %s to revision %s", dialect.safe_url, REVISION)
    return True


def _is_current(engine: Engine, dialect: Dialect) -> bool:
    """Look without a lock first: a current database needs neither the lock nor Alembic, which takes 0.3 s to import."""
    try:
        dialect.check_reachable()
        with engine.connect() as connection:
            check_schema(connection, dialect.safe_url)
    except (SchemaOutdatedError, DatabaseUnavailableError):
        return False
    except SQLAlchemyError as error:
        if dialect.is_transient(error):
            return False
        raise
    return True


def _upgrade(connection: Connection) -> None:
    with _quiet("alembic"):  # it tells each of its steps, and lists its own parts when it is imported
        from alembic.config import Config

        from alembic import command

        config = Config()
        config.set_main_option("script_location", str(scripts_folder()).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


@contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    """Let a logger tell no less than warnings, unless somebody has set its level."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    if level == logging.NOTSET:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
