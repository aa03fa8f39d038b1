"""
What a supervisor tells systemd, if systemd asks for it: the protocol of sd_notify(3) and sd_watchdog_enabled(3).

A message is lines of text in one datagram. Libraries for it exist, but the one in plain Python has not been kept
since 2017, and the others need a compiler and libsystemd.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from durably import events

_RETRY_SECONDS: Final = 1.0


class Systemd:
    """
    Tells systemd of one supervisor's state, and that its loop goes round. Owned by the supervisor's thread.

    Takes NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID out of the environment, so that no program that a job starts
    speaks in the supervisor's place. Without NOTIFY_SOCKET it does nothing.

    Args:
        report: Tells of something that went wrong.
    """

    def __init__(self, report: Callable[[str, events.Severity, str], None]) -> None:
        self._report = report
        self._address: Final = os.environ.pop("NOTIFY_SOCKET", "")
        self._beat_seconds: Final = _watchdog_seconds() / 2  # as sd_watchdog_enabled(3) recommends
        self._state: Literal["starting", "ready", "reloading", "stopping"] = "starting"
        self._status = ""
        self._beat_at = float("-inf")
        self._not_before = float("-inf")
        self._has_failed = False

    def deadlines(self) -> list[float]:
        """List when the loop has to go round for its next sign of life, by the monotonic clock."""
        return [max(self._beat_at, self._not_before)] if self._address and self._beat_seconds else []

    def tick(self, now: float, *, ready: int, workers: int, reloading: bool, stopping: str | None) -> None:
        """
        Tell what has changed, and give a sign of life when it is time; never waits.

        Args:
            now: Monotonic seconds.
            ready: Workers that are ready.
            workers: Workers that are kept; 0 before the first is begun.
            reloading: Whether workers are being replaced, as SIGHUP asked for.
            stopping: Why the supervisor stops; None if it does not.
        """
        if not self._address or now < self._not_before:
            return
        state = self._state
        if stopping is not None:
            state = "stopping"
        elif state != "starting" or (workers and ready >= workers):
            state = "reloading" if reloading else "ready"
        status = f"{ready} of {workers} workers ready" if stopping is None else f"Stopping ({stopping})"
        lines = []
        if state != self._state:
            lines.append(_told(state))
        if status != self._status:
            lines.append(f"STATUS={status}")
        if self._beat_seconds and now >= self._beat_at:
            lines.append("WATCHDOG=1")
        if not lines:
            return
        if self._send("\n".join(lines), now):
            self._state, self._status = state, status
            self._beat_at = now + self._beat_seconds

    def _send(self, message: str, now: float) -> bool:
        """Send without waiting, over a socket that is there only now, so that no child has a copy."""
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(message.encode(), address)
        except OSError as error:
            self._not_before = now + _RETRY_SECONDS
            if not self._has_failed:
                self._report("systemd", "warning", f"nothing can be told at NOTIFY_SOCKET={self._address}: {error}")
            self._has_failed = True
            return False
        self._has_failed = False
        return True


def _told(state: str) -> str:
    if state == "reloading":  # Type=notify-reload wants to know when it began
        return f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}"
    return f"{state.upper()}=1"


def _watchdog_seconds() -> float:
    """Give the seconds of silence after which systemd ends this process; 0 if it does not."""
    seconds, pid = (os.environ.pop(name, "") for name in ("WATCHDOG_USEC", "WATCHDOG_PID"))
    is_mine = not pid or pid == str(os.getpid())
    return int(seconds) / 1e6 if is_mine and seconds.isdecimal() else 0.0
