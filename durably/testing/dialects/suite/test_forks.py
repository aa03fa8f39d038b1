"""Forks of a process that uses a database: nothing half done is copied, and both go on."""

import subprocess
from collections.abc import Callable

import pytest

FORK_IN_A_TRANSACTION = """
import os, sys, threading, time
from durably import Durably
app = Durably(url)
job = app.register(__import__("durably").define_job("job", lambda step, input: None))
app.migrate()
job.trigger()
begun, enough = threading.Event(), threading.Event()

def write():
    with app.database.writing():
        begun.set()
        enough.wait(20)

writer = threading.Thread(target=write)
writer.start()
begun.wait(10)
threading.Timer(0.5, enough.set).start()
before = time.monotonic()
child = os.fork()
if child == 0:
    code = 1
    try:
        job.trigger()
        code = 0
    finally:
        os._exit(code)
took = time.monotonic() - before
status = os.waitpid(child, 0)[1]
writer.join()
job.trigger()
print(os.waitstatus_to_exitcode(status), took > 0.3, len(app.get_runs()))
app.database.close()
"""


@pytest.mark.timeout(60)
def test_a_fork_waits_for_the_transaction_of_another_thread(
    python: Callable[..., subprocess.Popen[str]],
) -> None:
    # contract 9, 9a
    assert python(FORK_IN_A_TRANSACTION).communicate(timeout=40)[0] == "0 True 3\n"


FORK = """
import os, sys, threading
from durably import Durably
app = Durably(url, polling_interval=0.05)
@app.job("job")
def job(step, input):
    return os.getpid()
app.migrate()
app.start()
assert job.trigger_and_wait(timeout=10).output == os.getpid()
parents_engine = app.database.engine()
child = os.fork()
if child == 0:
    code = 1
    try:
        heard = []
        app.on("*", heard.append)
        app.stop()                                   # not started here: does nothing
        assert app.database.engine() is not parents_engine
        app.start()                                  # so this begins a worker of the child's own
        run = job.trigger()
        app.wait_for_run(run.id, timeout=10)
        assert heard[0].process.pid == os.getpid() and heard[0].sequence == 1, heard[0]
        app.stop()
        app.database.close()
        code = 0
    finally:
        os._exit(code)
status = os.waitpid(child, 0)[1]
assert job.trigger_and_wait(timeout=10).output == os.getpid()
assert app.database.engine() is parents_engine
app.stop()
app.database.close()
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.timeout(60)
def test_a_forked_child_opens_connections_of_its_own_and_counts_as_not_started(
    python: Callable[..., subprocess.Popen[str]],
) -> None:
    # contract 9, 9a, 142
    process = python(FORK)
    assert process.communicate(timeout=40)[0] == "0\n"
    assert process.returncode == 0
