"""The files of deploy/, and the programs that they are for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PACKAGES = {  # of Debian, where they are called otherwise than the program
    "promtool": "prometheus",
    "rsyslogd": "rsyslog",
    "systemd-analyze": "systemd",
    "unshare": "util-linux",
}


def need(program: str) -> str:
    """Find a program that a file of deploy/ is for; where it is not installed, skip and say so."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed (apt install {PACKAGES.get(program, program)})")
    return found


def run(*command: str | Path, **options: Any) -> str:
    """Run a program that must succeed; give what it wrote."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=60, **options
    )
    assert done.returncode == 0, done.stdout
    return str(done.stdout)
