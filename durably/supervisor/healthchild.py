"""
The process that answers over HTTP, from its first line to its last.

It holds no state that its successor would miss: what it knows of the supervisor comes through a pipe, all of it every
second. It ends at the pipe's end, and heeds no signal, so that it answers for as long as the supervisor drains.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from durably.events import Process
from durably.settings import change_settings
from durably.supervisor.channel import Channel, Outbox
from durably.supervisor.probes import Answers, Server, Snapshot
from durably.supervisor.title import call_process
from durably.telemetry import leave_log
from durably.telemetry.stdlib import forward_standard_logging

if TYPE_CHECKING:
    from collections.abc import Callable

    from durably.client import Durably
    from durably.status import SystemStatus

_LOOK_SECONDS: Final = 2.0
"""How long a request for metrics waits for the database."""
_FRESH_SECONDS: Final = 5.0
_logger: Final = logging.getLogger("durably.health")


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthPlan:
    """
    What the process is told as it begins.

    Args:
        load: Makes the application's instance, whose database is asked.
        overrides: Settings that win over the application's own.
        orders: From the supervisor: its snapshots.
        channel: To the supervisor: log lines.
        inherited: Called by a forked process, to close its copies of what the supervisor has of its children.
        listener: Where requests come.
    """

    load: Callable[[], Durably]
    overrides: dict[str, Any]
    orders: Channel
    channel: Channel
    inherited: tuple[Callable[[], None], ...]
    listener: socket.socket


def run_health(plan: HealthPlan) -> None:
    """Answer until the supervisor is gone; ends the process."""
    for forget in plan.inherited:
        forget()
    plan.orders.keep_reading_end()
    plan.channel.keep_writing_end()
    call_process("durably-health")
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.dup2(2, 1)  # standard output is the log's
    leave_log()
    outbox = Outbox(plan.channel)
    me = Process(host=socket.gethostname(), pid=os.getpid(), role="supervisor")
    forward_standard_logging(outbox.send_record, lambda: {"process": me})
    looks = Looks()
    answers = Answers(looks.give)
    threading.Thread(target=_listen, args=(plan.orders, answers), name="durably-snapshots", daemon=True).start()
    threading.Thread(target=Server(plan.listener, answers).serve_forever, name="durably-http", daemon=True).start()
    # In the main thread, because applications may set signal handlers as they are imported.
    looks.keep_looking(plan)


def _listen(orders: Channel, answers: Answers) -> None:
    """Take the supervisor's snapshots; at their end, end the process."""
    while not orders.is_at_end:
        select.select([orders], [], [])
        for line in orders.drain():
            if line.pop("type") == "snapshot":
                answers.hear(Snapshot(**line))
    os._exit(0)


class Looks:
    """What the database tells, looked up when it is asked for and what is known is older than 5 s."""

    def __init__(self) -> None:
        self._changed: Final = threading.Condition()
        # All under the condition's lock.
        self._is_wanted = False
        self._found: SystemStatus | None = None
        self._looked_at = float("-inf")
        # Of the thread that looks.
        self._is_failing = False

    def give(self) -> SystemStatus | None:
        """Give what the database tells; None if it does not within 2 s. In any thread."""
        deadline = time.monotonic() + _LOOK_SECONDS
        with self._changed:
            while time.monotonic() - self._looked_at > _FRESH_SECONDS:
                self._is_wanted = True
                self._changed.notify_all()
                if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    return None
            return self._found

    def keep_looking(self, plan: HealthPlan) -> None:
        """Load the application and look whenever that is wanted, for ever. In one thread."""
        app = None
        while True:
            with self._changed:
                while not self._is_wanted:
                    self._changed.wait()
                self._is_wanted = False
            found = None
            try:
                app = app or _open(plan)
                found = app.get_status()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next look may do better
                self._tell(error)
            else:
                self._tell(None)
            with self._changed:
                self._found, self._looked_at = found, time.monotonic()
                self._changed.notify_all()

    def _tell(self, error: Exception | None) -> None:
        """Log that the database cannot be asked, once until it can, and then that."""
        if error is not None and not self._is_failing:
            _logger.warning("metrics are without the database's: %s", error)
        elif error is None and self._is_failing:
            _logger.info("metrics have the database's again")
        self._is_failing = error is not None


def _open(plan: HealthPlan) -> Durably:
    if url := plan.overrides.get("dialect_url"):
        os.environ["DURABLY_DIALECT_URL"] = url
    app = plan.load()
    settings = change_settings(app.settings, **plan.overrides)
    app.reconfigure(change_settings(settings, database_timeout=min(settings.database_timeout, _LOOK_SECONDS)))
    return app
