"""`python -m durably.testing.dialects --url URL`: hold a dialect to the contract. Other arguments are pytest's."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from durably.testing.dialects import suite

HELP = """\
Hold a dialect of durably to the contract: every statement of it that touches the database.

usage: python -m durably.testing.dialects [--url URL] [--databases MODULE:CLASS] [--lives N] [pytest's own ...]

  --url URL                 an empty database; EVERYTHING in it is dropped before each test.
                            By default each test has an SQLite file of its own.
  --databases MODULE:CLASS  what makes the databases, a durably.testing.dialects.Databases: then a stranger's locks and
                            a broken connection are tried too. Called with the URL, if one is given.
  --lives N                 random lives that the property test tries (100)

Other arguments are pytest's: -k races, -x, -v, --durations 10.

examples
  python -m durably.testing.dialects --url mariadb://app@127.0.0.1:3306/empty
  python -m durably.testing.dialects --databases my_package.testing:MyDatabases -n 2
"""
_NEEDED = ("hypothesis", "psutil", "pytest", "pytest_timeout")


def main() -> int:
    """Run the suite, or what of it the arguments choose; give pytest's exit code."""
    if {"-h", "--help"} & {*sys.argv[1:]}:
        sys.stdout.write(HELP)
        return 0
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        sys.stderr.write(f"the suite needs {', '.join(missing)}: pip install 'durably[conformance]'\n")
        return 4  # as pytest, for being called wrongly
    import pytest

    (folder,) = suite.__path__
    given = sys.argv[1:]
    if not any(argument.partition("::")[0].endswith(".py") for argument in given):
        given.append(folder)
    return int(pytest.main(["-c", str(Path(folder, "conformance.ini")), *given]))


if __name__ == "__main__":
    sys.exit(main())
