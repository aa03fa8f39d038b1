"""
Alembic's environment for durably's tables.

`durably migrate` hands a connection over, already in its transaction. From the repository root `alembic` works too:
it takes the database from `-x dialect_url=...` or DURABLY_DIALECT_URL.
"""

import os

from alembic import context
from durably.settings import load_settings
from durably.store.database import Database
from durably.store.indexes import metadata
from durably.store.tables import VERSION_TABLE


def run(connection):
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        transaction_per_migration=False,
        transactional_ddl=True,
        # An application's tables in the same database are its own affair.
        include_name=lambda name, kind, _parents: kind != "table" or (name or "").startswith("durably_"),
        # A batch on a parent table with foreign keys on would delete its children: never recreate one.
        render_as_batch=False,
    )
    with context.begin_transaction():
        context.run_migrations()


handed_over = context.config.attributes.get("connection")
if handed_over is not None:
    run(handed_over)
else:
    url = context.get_x_argument(as_dictionary=True).get("dialect_url") or os.environ.get("DURABLY_DIALECT_URL")
    database = Database(load_settings(dialect_url=url))
    database.dialect.prepare(database.engine())
    with database.engine().connect() as own, database.dialect.writing(own, timeout=database.timeout):
        database.dialect.migration_lock(own)
        run(own)
