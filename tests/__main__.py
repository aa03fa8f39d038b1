"""All checks with one command: `python -m tests`. Arguments go to pytest, which then runs once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("durably", "alembic", "tests", "docs/examples")
CHECKS = (
    ("ruff", "check", *FOLDERS),
    ("ruff", "format", "--check", "--quiet", *FOLDERS),
    ("mypy",),
    ("importlinter",),
)

# Supervisors, which take long, run on another dialect when asked for: `pytest --dialect postgresql tests/e2e`.
CONTRACT = ("--ignore=tests/e2e",)
# All of the contract's tests pass on libSQL too, when asked for, and take some four minutes on each of the two:
# `pytest --dialect libsql-server --ignore=tests/e2e`. These are the ones that a dialect can
# spoil: who wins a race, what is whole after a death, what a commit that was refused or forked away leaves behind.
CORE = (
    "tests/test_claims.py",
    "tests/test_committer.py",
    "tests/test_forks.py",
    "tests/test_migrations.py",
    "tests/test_property.py",
    "tests/test_races.py",
    "tests/test_recovery.py",
    "tests/test_trigger.py",
    "--lives=10",
)
ON_OTHER_DIALECTS = {
    "postgresql": CONTRACT,
    "libsql-file": CORE,
    "libsql-server": (*CORE, "tests/test_state_machine.py", "tests/libsql"),
}


def run_check(module: str, *arguments: str) -> bool:
    """Run one check as a module of this interpreter; tell whether it passed."""
    print(f"\n== {module} {' '.join(arguments)}", flush=True)
    if module == "importlinter":
        program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
        command = [sys.executable, "-c", program]
    else:
        command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def main() -> int:
    """Run every check, also after one has failed; give the exit code."""
    tests = [("pytest", *sys.argv[1:])]
    if not sys.argv[1:]:
        tests += [("pytest", "--dialect", dialect, *which) for dialect, which in ON_OTHER_DIALECTS.items()]
    passed = [run_check(*check) for check in (*CHECKS, *tests)]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
