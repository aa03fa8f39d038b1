"""The gates that forks and writers pass: whoever is inside is waited for, and nobody is held up for ever."""

import os
import threading
from pathlib import Path

from durably.forks import ForkGate
from durably.store.dialects.gate import gate


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
