"""`durably migrate`: bring a database to this durably's schema."""

from typing import Final

from durably.cli.options import AppArgument, DialectUrlOption

EPILOG: Final = """Examples
  durably migrate
  durably migrate --dialect-url sqlite:///jobs.db
"""


def migrate(app: AppArgument = None, *, dialect_url: DialectUrlOption = None) -> None:
    """Make durably's tables, or bring them to this version."""
    from durably.cli.application import database
    from durably.cli.output import emit

    with database(app, dialect_url) as durably:
        changed = durably.database.migrate()
        emit(f"{durably.database.dialect.safe_url}: {'migrated' if changed else 'is current'}\n")
