"""
The contract as a suite of tests, for whoever writes a dialect: `python -m durably.testing.dialects --url URL`.

It holds a dialect to every statement of the contract that touches the database: with real processes that race, fork
and are killed, with random lives of runs that are compared with a model, and with a connection that is cut at any
moment. It needs the extra ``durably[conformance]``.

With a URL alone it empties that one database before each test. A class that makes databases (`Databases`), named by
``--databases module:Class``, lets it also try a stranger's locks and a way to the server that breaks.
"""

from durably.testing.dialects.cable import Cable, lay_by_tcp
from durably.testing.dialects.databases import Databases, OneDatabase, SQLiteFiles

__all__ = ["Cable", "Databases", "OneDatabase", "SQLiteFiles", "lay_by_tcp"]
