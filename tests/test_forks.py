"""Forks of a process that uses a database: nothing half done is copied, and both go on."""

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from durably.forks import ForkGate
from durably.store.dialects.gate import gate

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


def test_a_gate_that_is_shut_waits_for_those_inside_and_holds_up_the_others() -> None:
    # contract 9a
    forks = ForkGate()
    inside, leave, entered = threading.Event(), threading.Event(), threading.Event()

    def stay() -> None:
        with forks.passing():
            inside.set()
            leave.wait(10)

    def enter() -> None:
        with forks.passing():
            entered.set()

    first, second = threading.Thread(target=stay), threading.Thread(target=enter)
    first.start()
    assert inside.wait(10)
    assert forks.shut(0.01) is False
    forks.open()
    leave.set()
    assert forks.shut(10) is True
    second.start()
    assert not entered.wait(0.1)
    forks.open()
    assert entered.wait(10)
    first.join()
    second.join()


def test_the_end_of_one_fork_does_not_open_the_gate_for_another() -> None:
    # contract 9a
    forks = ForkGate()
    entered = threading.Event()

    def enter() -> None:
        with forks.passing():
            entered.set()

    assert forks.shut(1) is True
    assert forks.shut(1) is True
    forks.open()
    writer = threading.Thread(target=enter)
    writer.start()
    assert not entered.wait(0.1)
    forks.open()
    assert entered.wait(10)
    writer.join()


def test_a_copy_of_the_write_gate_in_a_forked_process_holds_up_nobody(tmp_path: Path) -> None:
    # contract 9a, 184
    path = str(tmp_path / "gate")
    reading, writing = os.pipe()
    with gate(path, 1):
        child = os.fork()
        if child == 0:
            os.read(reading, 1)
            os._exit(0)
    with gate(path, 1):
        pass
    os.write(writing, b".")
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)


def test_a_thread_that_forks_inside_is_not_held_up_by_itself() -> None:
    # contract 9a
    forks = ForkGate()
    with forks.passing():
        assert forks.shut(10) is False
        with forks.passing():
            pass
        forks.open()
    assert forks.shut(0) is True
    forks.open()
