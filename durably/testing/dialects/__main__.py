"""`python -m durably.testing.dialects --url URL`: hold a dialect to the contract. Other arguments are pytest's."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from durably.testing.dialects import suite

_NEEDED = ("hypothesis", "psutil", "pytest", "pytest_timeout")


def main() -> int:
    """Run the suite, or what of it the arguments choose; give pytest's exit code."""
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
