"""What reads the log by the files of deploy/ reads all of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from durably.events import CATALOGUE
from durably.testing.dialects.suite.support import eventually
from tests.deploying import DEPLOY, need, run
from tests.e2e.harness import Supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONG = 12_000
PLAIN = "Traceback (most recent call last):"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the log of a supervisor with a killed worker, a failed run, prints, a long line, and one that is no JSON."""
    folder = tmp_path_factory.mktemp("log")
    with Supervised(folder, max_interruptions=0) as supervised:
        supervised.trigger("talk", 'a\nb "c" é')
        supervised.trigger("long", LONG)
        eventually(lambda: len(supervised.events("run:complete")) == 2, timeout=20)
        supervised.trigger("deadly", None)  # with a worker that is killed its last events may be lost
        eventually(lambda: supervised.events("run:fail"), timeout=20)
        supervised.process.send_signal(signal.SIGTERM)
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


def test_lnavs_format_has_every_field_of_every_event() -> None:
    described = json.loads((DEPLOY / "logs/durably.lnav.json").read_text(encoding="utf-8"))["durably_log"]["value"]
    fields = {field.name for event in CATALOGUE.values() for field in dataclasses.fields(event)}
    assert fields - {"type", "timestamp"} <= described.keys()


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


def test_logrotate_renames_the_file_and_the_supervisor_goes_on_in_a_new_one(tmp_path: Path) -> None:
    logrotate = need("logrotate")
    log = tmp_path / "durably.log"
    configuration = tmp_path / "logrotate.conf"
    with Supervised(tmp_path, "--log-file", str(log)) as supervised:
        eventually(lambda: log.exists() and log.read_text(encoding="utf-8").count('"worker:start"') == 2, timeout=20)
        text = (DEPLOY / "logs/logrotate.conf").read_text(encoding="utf-8")
        for theirs, ours in (
            ("/var/log/durably/durably.log", str(log)),
            ("su durably durably\n", "\n"),
            (
                "systemctl kill --kill-whom=main --signal=USR1 durably.service",
                f"kill -USR1 {supervised.process.pid}",
            ),
        ):
            assert theirs in text
            text = text.replace(theirs, ours)
        configuration.write_text(text, encoding="utf-8")
        configuration.chmod(0o644)
        run(logrotate, "--force", "--state", tmp_path / "state", configuration)
        eventually(lambda: log.exists() and "is reopened" in log.read_text(encoding="utf-8"))
        assert (tmp_path / "durably.log.1").read_text(encoding="utf-8").count('"worker:start"') == 2
        supervised.process.send_signal(signal.SIGTERM)
        assert supervised.wait() == 0
    assert '"supervisor:stop"' in log.read_text(encoding="utf-8")
