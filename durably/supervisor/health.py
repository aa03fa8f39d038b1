"""
The supervisor's side of the server that answers over HTTP: what is told to it, and its respawning.

The server is a child process of its own, because the supervisor has one thread and waits for nobody. It is told
everything once a second, so that a new one knows what its predecessor knew; whatever becomes of it, the supervisor
goes on. The supervisor binds the port, so that a port in use is known before anything begins, and requests wait in
the socket's queue while the server is replaced.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, Final

import multiprocess
import orjson

from durably.errors import ValidationError
from durably.store.pause import Pause
from durably.supervisor.channel import Channel
from durably.supervisor.healthchild import HealthPlan, run_health
from durably.supervisor.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from durably import events
    from durably.client import Durably
    from durably.settings import Settings
    from durably.supervisor.children import Child

_SNAPSHOT_SECONDS: Final = 1.0
_UNREAD_SECONDS: Final = 30.0
_YOUNG_SECONDS: Final = 10.0
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 30.0
_BACKLOG: Final = 32


class Health:
    """
    One supervisor's server of health and metrics. Owned by the supervisor's thread.

    Args:
        host: The address to listen at.
        port: The port; 0 for any that is free.
        load: Makes the application's instance in the server's process.
        overrides: Settings that win over the application's.
        start_method: How processes are begun.
        tell: Takes a line that the server logs.
        report: Tells of something that went wrong.

    Raises:
        ValidationError: On `health_port`: nobody can listen there.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        load: Callable[[], Durably],
        overrides: dict[str, Any],
        start_method: str,
        tell: Callable[[dict[str, Any]], None],
        report: Callable[[str, events.Severity, str], None],
    ) -> None:
        self._load = load
        self._overrides = overrides
        self._context = multiprocess.get_context(start_method)
        self._forks: Final = start_method == "fork"
        self._tell = tell
        self._report = report
        self._tally: Final = Tally()
        self._lags: dict[str, float] = {}
        self._listener: Final = _listen(host, port)
        self.url: Final = _url(self._listener)
        self._server: _Server | None = None
        self._is_forking = False
        self._not_before = 0.0
        self._pause = Pause(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """Close what a forked sibling of the server has copied."""
        if self._is_forking:
            return
        self._listener.close()
        if self._server is not None:
            self._server.channel.close()

    def take(self, record: dict[str, Any]) -> None:
        """Count what a child told."""
        if record["type"] == "worker:heartbeat":
            self._lags[record["process"]["worker_id"]] = record["loop_lag"]
        self._tally.take(record)

    def worker_ended(self, reason: str) -> None:
        """Count a worker that another takes the place of."""
        self._tally.worker_ended(reason)

    def events_lost(self, number: int) -> None:
        """Count events of children that never came."""
        self._tally.events_lost(number)

    def tick(
        self,
        now: float,
        workers: Sequence[Child],
        settings: Settings,
        *,
        has_begun: bool,
        stopping: str | None,
        inherited: Callable[[], tuple[Callable[[], None], ...]],
    ) -> None:
        """
        Begin the server where there is none, log what it says, and tell it everything once a second; never waits.

        Args:
            now: Monotonic seconds.
            workers: Those that live.
            settings: Of them what bounds the time between two looks for work.
            has_begun: Whether workers are begun.
            stopping: Why the supervisor stops; None if it does not.
            inherited: Lists what a forked server calls to close its copies; a spawned one inherits nothing.
        """
        if self._server is not None and self._server.is_gone():
            self._bury(now)
        if self._server is None:
            if now < self._not_before:
                return
            self._begin(now, inherited() if self._forks else ())
        server = self._server
        if server is None:
            return
        for record in server.channel.drain():
            self._tell(record)
        if not server.unsent and now >= server.told_at + _SNAPSHOT_SECONDS:
            server.told_at = now
            server.unsent = self._snapshot(now, workers, settings, has_begun=has_begun, stopping=stopping)
        server.send()
        if server.unsent and now >= server.told_at + _UNREAD_SECONDS:
            server.process.kill()  # it was stopped, or hangs

    def close(self) -> None:
        """End the server and free the port."""
        if self._server is not None:
            self._server.process.kill()
            self._server.bury()
            self._server = None
        self._listener.close()

    def _begin(self, now: float, inherited: tuple[Callable[[], None], ...]) -> None:
        orders, channel = Channel(self._context), Channel(self._context)
        plan = HealthPlan(
            load=self._load,
            overrides=self._overrides,
            orders=orders,
            channel=channel,
            inherited=inherited,
            listener=self._listener,
        )
        process = self._context.Process(target=run_health, args=(plan,), name="health")
        self._is_forking = True
        try:
            process.start()
        except OSError as error:
            self._report("health", "error", f"no process could be begun: {error}")
            self._not_before = now + self._pause.next()
            orders.close()
            channel.close()
            return
        finally:
            self._is_forking = False
        channel.keep_reading_end()
        orders.keep_writing_end()
        self._server = _Server(process, orders, channel, now)

    def _bury(self, now: float) -> None:
        server, self._server = self._server, None
        assert server is not None
        code = server.bury()
        how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
        self._report("health", "warning", f"the server of health {how}; another takes its place")
        if now >= server.began_at + _YOUNG_SECONDS:
            self._pause.reset()
        self._not_before = now + self._pause.next()

    def _snapshot(
        self, now: float, workers: Sequence[Child], settings: Settings, *, has_begun: bool, stopping: str | None
    ) -> bytes:
        self._lags = {worker.id: self._lags.get(worker.id, 0.0) for worker in workers}
        snapshot = {
            "type": "snapshot",
            "has_begun": has_begun,
            "stopping": stopping,
            "bound": consuming_bound(settings),
            "workers": [
                {
                    "id": worker.id,
                    "state": worker.state,
                    "silent_for": now - worker.heard_at,
                    "idle_for": None if worker.worked_at is None else now - worker.worked_at,
                    "loop_lag": self._lags[worker.id],
                    "running": worker.running,
                    "slots": settings.concurrency,
                }
                for worker in workers
            ],
            **self._tally.as_data(),
        }
        return orjson.dumps(snapshot) + b"\n"


class _Server:
    """The server's process, and what it was not yet told."""

    def __init__(self, process: Any, orders: Channel, channel: Channel, now: float) -> None:
        self.process = process
        self.channel = channel
        self._orders = orders
        self.began_at = now
        self.told_at = float("-inf")
        self.unsent: bytes = b""

    def is_gone(self) -> bool:
        return self.process.exitcode is not None

    def send(self) -> None:
        """Send what finds room in the pipe."""
        if self.unsent:
            self.unsent = self.unsent[self._orders.send_some(self.unsent) :]

    def bury(self) -> int:
        """Reap it, and give its exit code."""
        self.process.join()
        code: int = self.process.exitcode
        self.process.close()
        self._orders.close()
        self.channel.close()
        return code


def consuming_bound(settings: Settings) -> float:
    """Give the seconds within which a worker works, or looks for work, though the database is away or slow."""
    # An idle worker looks every ten polls, because its keeper looks for it; in an outage after pauses as long. What it
    # did it tells with its heartbeat.
    return max(settings.stale_threshold, 20 * settings.polling_interval + 2 * settings.heartbeat_interval)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ValidationError("health_port", f"nobody can listen at {host} port {port}: {error.strerror}") from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
