"""What deploy/ asks Prometheus is there to be asked, and its alerts fire when they should."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

from durably.testing.dialects.suite.support import eventually
from tests.deploying import DEPLOY, ROOT, need, run
from tests.e2e.harness import Supervised

if TYPE_CHECKING:
    from pathlib import Path


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


# Of what does not happen in this test there is no series.
NOT_HAPPENING = re.compile("durably_(events_lost|runs_recovered|runs_released)_total")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def ask(url: str, query: str) -> list[dict[str, Any]]:
    """Ask Prometheus; give the series that answer."""
    with urllib.request.urlopen(f"{url}/api/v1/query?query={urllib.parse.quote(query)}", timeout=10) as answer:  # noqa: S310
        body = json.load(answer)
    assert body["status"] == "success", body
    found: list[dict[str, Any]] = body["data"]["result"]
    return found


def is_up(url: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(ask(url, 'up{job="durably"} == 1'))
    return False


def test_what_prometheus_scrapes_answers_every_query_of_the_dashboard(tmp_path: Path) -> None:
    prometheus = need("prometheus")
    port, health = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    text = (DEPLOY / "prometheus/prometheus.yml").read_text(encoding="utf-8")
    for theirs, ours in (("localhost:8080", f"127.0.0.1:{health}"), ("scrape_interval: 15s", "scrape_interval: 1s")):
        assert theirs in text
        text = text.replace(theirs, ours)
    (tmp_path / "prometheus.yml").write_text(text, encoding="utf-8")
    shutil.copy(DEPLOY / "prometheus/durably.rules.yml", tmp_path)
    command = (
        prometheus,
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    )
    with (
        Supervised(tmp_path, "--health-port", str(health), max_interruptions=0) as supervised,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
    ):
        try:
            supervised.trigger("count", 1, 2)
            supervised.trigger("deadly", None)
            supervised.trigger("nobody knows", None)
            eventually(lambda: is_up(url), timeout=30)
            asked = [query for query in queries() if not NOT_HAPPENING.search(query)]
            eventually(lambda: all(ask(url, query) for query in asked), timeout=30)
            (unknown,) = ask(url, "max by (job_name) (durably_runs_unknown_job)")
            assert unknown["metric"] == {"job_name": "nobody knows"}
            assert {series["metric"]["job_name"] for series in ask(url, "durably_runs_total")} == {"count", "deadly"}
        finally:
            process.terminate()
