"""What systemd hears from a supervisor, at a real socket."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from durably.supervisor.systemd import Systemd
from tests.e2e.harness import Supervised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WATCHDOG_SECONDS = 0.4


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Listen as systemd does."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        listener.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield listener


def heard(manager: socket.socket) -> list[str]:
    """Take the lines of the next message."""
    return manager.recv(4096).decode().split("\n")


def hear_until(manager: socket.socket, line: str) -> list[str]:
    """Take messages until one has a line; give the lines that are neither status nor sign of life."""
    lines: list[str] = []
    while line not in lines:
        lines += heard(manager)
    return [told for told in lines if not told.startswith(("STATUS=", "WATCHDOG=", "MONOTONIC_USEC="))]


def everything(manager: socket.socket) -> list[str]:
    """Take what is there."""
    manager.setblocking(False)
    lines = []
    try:
        while True:
            lines += heard(manager)
    except BlockingIOError:
        return lines


def beat(manager: socket.socket) -> float:
    """Wait for a sign of life; give when it came."""
    while "WATCHDOG=1" not in heard(manager):
        pass
    return time.monotonic()


def silently(context: str, severity: str, error: str) -> None:
    pytest.fail(f"{context} {severity} {error}")


def test_ready_is_told_when_all_workers_are_then_a_reload_and_the_stop(tmp_path: Path, manager: socket.socket) -> None:
    # contract 174a
    with Supervised(tmp_path, workers=3) as supervised:
        assert hear_until(manager, "READY=1") == ["READY=1"]
        assert len(supervised.ready_workers()) == 3
        supervised.process.send_signal(signal.SIGHUP)
        assert hear_until(manager, "READY=1") == ["RELOADING=1", "READY=1"]
        assert len(supervised.events("worker:start")) == 6
        supervised.process.send_signal(signal.SIGTERM)
        assert hear_until(manager, "STOPPING=1") == ["STOPPING=1"]
        assert supervised.wait() == 0
    assert [line for line in everything(manager) if not line.startswith("STATUS=")] == []


def test_the_watchdog_is_fed_at_half_its_time_and_only_while_the_loop_goes_round(
    tmp_path: Path, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 174a
    monkeypatch.setenv("WATCHDOG_USEC", f"{WATCHDOG_SECONDS * 1e6:.0f}")
    with Supervised(tmp_path) as supervised:
        hear_until(manager, "READY=1")
        beats = [beat(manager) for _ in range(5)]
        pauses = sorted(b - a for a, b in itertools.pairwise(beats))
        assert 0.3 * WATCHDOG_SECONDS < pauses[len(pauses) // 2] < WATCHDOG_SECONDS
        supervised.process.send_signal(signal.SIGSTOP)
        everything(manager)
        manager.settimeout(2 * WATCHDOG_SECONDS)
        with pytest.raises(TimeoutError):
            beat(manager)
        manager.settimeout(20)
        supervised.process.send_signal(signal.SIGCONT)
        beat(manager)
        supervised.process.send_signal(signal.SIGTERM)
        assert supervised.wait() == 0


def test_it_is_not_ready_before_the_last_worker_and_stays_ready_when_one_is_lost(manager: socket.socket) -> None:
    # contract 174a
    systemd = Systemd(silently)
    for ready, workers in ((0, 0), (0, 2), (1, 2), (1, 2), (2, 2), (1, 2)):
        systemd.tick(0.0, ready=ready, workers=workers, reloading=False, stopping=None)
    assert everything(manager) == [
        "STATUS=0 of 0 workers ready",
        "STATUS=0 of 2 workers ready",
        "STATUS=1 of 2 workers ready",
        "READY=1",
        "STATUS=2 of 2 workers ready",
        "STATUS=1 of 2 workers ready",
    ]


def test_a_start_that_fails_is_told_as_a_stop(manager: socket.socket) -> None:
    # contract 174a
    systemd = Systemd(silently)
    systemd.tick(0.0, ready=0, workers=0, reloading=False, stopping="gave up")
    assert everything(manager) == ["STOPPING=1", "STATUS=Stopping (gave up)"]


def test_nobody_else_speaks_in_its_place(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    # contract 174a
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    Systemd(silently)
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & os.environ.keys()
    second = Systemd(silently)
    second.tick(0.0, ready=1, workers=1, reloading=False, stopping=None)
    assert second.deadlines() == []
    assert everything(manager) == []


def test_a_watchdog_of_another_process_is_not_fed(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    # contract 174a
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    systemd = Systemd(silently)
    systemd.tick(0.0, ready=1, workers=1, reloading=False, stopping=None)
    assert everything(manager) == ["READY=1", "STATUS=1 of 1 workers ready"]


def test_a_socket_that_is_away_is_told_once_and_tried_each_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 174a
    address = str(tmp_path / "late")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    reports: list[str] = []
    systemd = Systemd(lambda context, severity, error: reports.append(f"{context} {severity} {error}"))
    for now in (10.0, 10.1, 11.1, 12.2):
        systemd.tick(now, ready=1, workers=1, reloading=False, stopping=None)
        assert systemd.deadlines()[0] > now
    (report,) = reports
    assert report.startswith(f"systemd warning nothing can be told at NOTIFY_SOCKET={address}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address)
        systemd.tick(13.3, ready=1, workers=1, reloading=False, stopping=None)
        assert everything(listener) == ["READY=1", "STATUS=1 of 1 workers ready", "WATCHDOG=1"]
    assert systemd.deadlines() == [18.3]


def test_an_abstract_address_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    # contract 174a
    name = f"durably-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        Systemd(silently).tick(0.0, ready=1, workers=1, reloading=False, stopping=None)
        assert "READY=1" in everything(listener)
