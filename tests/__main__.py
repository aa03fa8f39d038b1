"""All checks with one command: `python -m tests`. Arguments go to pytest, which then runs once."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import mariadb

ROOT = Path(__file__).parents[1]
FOLDERS = ("durably", "alembic", "tests", "docs/examples")
CHECKS = (
    ("ruff", "check", *FOLDERS),
    ("ruff", "format", "--check", "--quiet", *FOLDERS),
    ("mypy",),
    ("importlinter",),
)

# Two files at a time: tests wait for processes, locks and deadlines more than they compute.
TWO_AT_ONCE = ("-n", "2", "--dist", "loadfile", "--durations=12")
SUITE = "durably/testing/dialects/suite"
# The whole suite passes on each dialect: `pytest --databases tests.databases:postgresql`. These are the ones that a
# dialect can spoil: who wins a race, what is whole after a death, what a commit leaves behind that was refused, cut off
# or forked away, who is woken.
CORE = (
    f"{SUITE}/test_claims.py",
    f"{SUITE}/test_committer.py",
    f"{SUITE}/test_faults.py",
    f"{SUITE}/test_forks.py",
    f"{SUITE}/test_migrations.py",
    f"{SUITE}/test_property.py",
    f"{SUITE}/test_races.py",
    "--lives=10",
)
MORE = (
    *CORE,
    f"{SUITE}/test_instance.py",
    f"{SUITE}/test_recovery.py",
    f"{SUITE}/test_state_machine.py",
    f"{SUITE}/test_trigger.py",
    "tests/test_copy.py",
    "tests/test_families.py",
    "tests/test_postgresql.py",
    "tests/test_restarts.py",
    "tests/libsql",
)
ON_OTHER_DIALECTS = {
    "postgresql": (
        *MORE,
        f"{SUITE}/test_waiting.py",
        "--lives=20",
    ),
    "libsql_file": CORE,
    "libsql_server": MORE,
}
OUTSIDE = ROOT / "docs" / "examples" / "durably-mariadb"


def run_check(module: str, *arguments: str, beside: str | None = None) -> bool:
    """Run one check as a module of this interpreter, with the packages of a folder *beside*; tell whether it passed."""
    print(f"\n== {module} {' '.join(arguments)}", flush=True)
    if module == "importlinter":
        program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
        command = [sys.executable, "-c", program]
    else:
        command = [sys.executable, "-m", module, *arguments]
    environment = os.environ if beside is None else os.environ | {"PYTHONPATH": beside}
    return subprocess.run(command, cwd=ROOT, check=False, env=environment).returncode == 0


def check_outside_dialect() -> bool:
    """Install the dialect that lives outside of durably, as anybody's, and run the core of the contract on it."""
    if not mariadb.is_there():
        print("\n== mariadb: NOT RUN, for want of a server (Debian's mariadb-server, or DURABLY_TEST_MARIADB_URL)")
        return True
    with tempfile.TemporaryDirectory() as folder:
        install = ("install", "--quiet", "--no-deps", "--no-build-isolation", "--target", folder, str(OUTSIDE))
        return run_check("pip", *install) and run_check(
            "pytest", *TWO_AT_ONCE, "--databases", "tests.databases:mariadb", *CORE, beside=folder
        )


def main() -> int:
    """Run every check, also after one has failed; give the exit code."""
    tests: list[tuple[str, ...]] = [("pytest", *(sys.argv[1:] or (*TWO_AT_ONCE, "--lives=60")))]
    if not sys.argv[1:]:
        tests += [
            ("pytest", *TWO_AT_ONCE, "--databases", f"tests.databases:{each}", *which)
            for each, which in ON_OTHER_DIALECTS.items()
        ]
    passed = [run_check(*check) for check in (*CHECKS, *tests)]
    if not sys.argv[1:]:
        passed.append(check_outside_dialect())
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
