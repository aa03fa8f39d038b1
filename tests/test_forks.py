"""Forks of a process that uses a database: nothing half done is copied, and both go on."""

import subprocess
import threading
from collections.abc import Callable

import pytest

from durably.forks import ForkGate

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
    gate = ForkGate()
    inside, leave, entered = threading.Event(), threading.Event(), threading.Event()

    def stay() -> None:
        with gate.passing():
            inside.set()
            leave.wait(10)

    def enter() -> None:
        with gate.passing():
            entered.set()

    first, second = threading.Thread(target=stay), threading.Thread(target=enter)
    first.start()
    assert inside.wait(10)
    assert gate.shut(0.01) is False
    leave.set()
    assert gate.shut(10) is True
    second.start()
    assert not entered.wait(0.1)
    gate.open()
    assert entered.wait(10)
    first.join()
    second.join()


def test_a_thread_that_forks_inside_is_not_held_up_by_itself() -> None:
    # contract 9a
    gate = ForkGate()
    with gate.passing():
        assert gate.shut(10) is False
        with gate.passing():
            pass
        gate.open()
    assert gate.shut(0) is True
    gate.open()
