"""SQLAlchemy's own tests of a dialect; tests/libsql/test_suite.py runs them, in processes of their own."""

from sqlalchemy.testing.suite import *  # noqa: F403 - classes for pytest to find

# 749 tests of how SQLAlchemy reads PRAGMAs, nearly half of which need an attached database. What a driver has to do
# with reflection is in the other classes.
del ComponentReflectionTest  # noqa: F821 - of the star
