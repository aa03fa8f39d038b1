"""All checks with one command: `python -m tests`. Arguments go to pytest."""

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
    passed = [run_check(*check) for check in (*CHECKS, ("pytest", *sys.argv[1:]))]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
