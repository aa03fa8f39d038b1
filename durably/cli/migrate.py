"""`durably migrate`: bring a database to this durably's schema."""

from typing import Final

from durably.cli.options import AppArgument, AppAsOption, DialectUrlOption, JsonOption, one_app

EPILOG: Final = """Examples
  durably migrate
  durably migrate jobs.py
  durably migrate --dialect-url sqlite:///jobs.db
"""


def migrate(
    app: AppArgument = None,
    *,
    app_option: AppAsOption = None,
    dialect_url: DialectUrlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make durably's tables, or bring them to this version."""
    from durably.cli.application import database
    from durably.cli.output import emit, emit_json

    with database(one_app(app, app_option), dialect_url) as durably:
        changed = durably.database.migrate()
        url = durably.database.dialect.safe_url
    if as_json:
        emit_json({"dialect_url": url, "migrated": changed})
    else:
        emit(f"{url}: {'migrated' if changed else 'is current'}\n")
