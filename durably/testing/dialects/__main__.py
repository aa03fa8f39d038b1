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
    # Of its own, so that what the caller's folder says of its own tests changes nothing here.
    options = ["--import-mode=importlib", "--timeout=120", "--timeout-method=thread", "-ra", "-p", "no:cacheprovider"]
    own = ["-c", str(Path(folder, "pytest.ini")), "-p", "durably.testing.dialects.plugin"]
    given = sys.argv[1:]
    if not any(Path(argument.partition("::")[0]).suffix == ".py" for argument in given):
        given.append(folder)
    return int(pytest.main([*own, *options, *given]))


if __name__ == "__main__":
    sys.exit(main())
