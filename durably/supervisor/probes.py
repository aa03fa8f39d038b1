"""What a supervisor answers over HTTP about itself: /live, /ready, /consuming, /metrics."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

from durably.supervisor.tally import BUCKETS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from durably.status import SystemStatus

LIVE_SECONDS: Final = 10.0
"""A supervisor tells of itself every second; one that has not for so long stands still."""

_REQUEST_SECONDS: Final = 5.0
_MOST_AT_ONCE: Final = 32
_TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """
    What a supervisor tells of itself.

    Args:
        has_begun: Whether the database is migrated and recovered, and workers are begun.
        stopping: Why it stops; None if it does not.
        bound: Seconds within which a worker that consumes has worked, or has looked for work.
        workers: Of each: id, state, silent_for, idle_for (seconds since it worked or looked; None if never),
            loop_lag, running, slots.
        counters: See `durably.supervisor.tally`.
        histograms: The same.
    """

    has_begun: bool = False
    stopping: str | None = None
    bound: float = 0.0
    workers: Sequence[Mapping[str, Any]] = ()
    counters: Mapping[str, Any] = field(default_factory=dict)
    histograms: Mapping[str, Any] = field(default_factory=dict)


class Answers:
    """
    Answers from the last snapshot; only metrics ask the database too. For any thread.

    Args:
        look: Gives what the database tells, or None, within a bounded time.
    """

    def __init__(self, look: Callable[[], SystemStatus | None]) -> None:
        self._look = look
        # Replaced as a pair by the one thread that hears the supervisor.
        self._heard = (Snapshot(), time.monotonic())

    def hear(self, snapshot: Snapshot) -> None:
        """Take what the supervisor told now."""
        self._heard = snapshot, time.monotonic()

    def give(self, path: str, accept: str) -> tuple[HTTPStatus, str, bytes]:
        """
        Answer a request.

        Args:
            path: Without its query.
            accept: The form that metrics are wanted in.

        Returns:
            Status, content type and body.
        """
        match path:
            case "/live":
                return _say(self._why_not_live(), "the supervisor's loop goes round")
            case "/ready":
                return _say(self._why_not_ready(), "a worker is ready")
            case "/consuming":
                return _say(self._why_not_consuming(), "a worker works, or looks for work")
            case "/metrics":
                return self._metrics(accept)
        return HTTPStatus.NOT_FOUND, _TEXT, b"there are /live, /ready, /consuming and /metrics\n"

    def _why_not_live(self) -> str | None:
        silent_for = time.monotonic() - self._heard[1]
        return None if silent_for <= LIVE_SECONDS else f"the supervisor has not been heard of for {silent_for:.0f} s"

    def _why_not_ready(self) -> str | None:
        snapshot, _ = self._heard
        if why := self._why_not_live():
            return why
        if snapshot.stopping is not None:
            return f"the supervisor is stopping ({snapshot.stopping})"
        if not snapshot.has_begun:
            return "the database is not migrated and recovered yet"
        if not any(worker["state"] == "ready" for worker in snapshot.workers):
            return "no worker is ready"
        return None

    def _why_not_consuming(self) -> str | None:
        snapshot, heard_at = self._heard
        if why := self._why_not_ready():
            return why
        told_ago = time.monotonic() - heard_at
        idle = [worker["idle_for"] + told_ago for worker in snapshot.workers if worker["idle_for"] is not None]
        if not idle:
            return "no worker has looked for work yet"
        if min(idle) > snapshot.bound:
            return f"no worker has worked or looked for work for {min(idle):.0f} s (the bound is {snapshot.bound:g} s)"
        return None

    def _metrics(self, accept: str) -> tuple[HTTPStatus, str, bytes]:
        try:
            from durably.telemetry.metrics import Measured, render
        except ImportError as error:
            return HTTPStatus.NOT_IMPLEMENTED, _TEXT, f"pip install 'durably[metrics]' ({error})\n".encode()
        snapshot, _ = self._heard
        measured = Measured(
            counters=snapshot.counters,
            histograms=snapshot.histograms,
            buckets=BUCKETS,
            workers=snapshot.workers,
            status=self._look(),
        )
        body, content_type = render(measured, accept)
        return HTTPStatus.OK, content_type, body


def _say(why_not: str | None, well: str) -> tuple[HTTPStatus, str, bytes]:
    status = HTTPStatus.OK if why_not is None else HTTPStatus.SERVICE_UNAVAILABLE
    return status, _TEXT, f"{well if why_not is None else why_not}\n".encode()


class Server(ThreadingHTTPServer):
    """
    Answers requests, each in a thread of its own, 32 at once; one more, and the oldest is cut off.

    Args:
        listener: Bound, and listening.
        answers: What is answered.
    """

    daemon_threads = True

    def __init__(self, listener: socket.socket, answers: Answers) -> None:
        super().__init__(listener.getsockname()[:2], _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.answers = answers
        self._lock = threading.Lock()
        # Connections, the oldest first; under the lock.
        self._open: dict[Any, None] = {}

    def process_request(self, request: Any, client_address: Any) -> None:
        """Begin a thread, and make room for it at the cost of whoever has taken longest."""
        with self._lock:
            self._open[request] = None
            oldest = next(iter(self._open)) if len(self._open) > _MOST_AT_ONCE else None
        if oldest is not None:
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection that is over."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing: a client that goes away is its own affair."""


class _Handler(BaseHTTPRequestHandler):
    server_version = "durably"
    sys_version = ""
    timeout = _REQUEST_SECONDS

    def do_GET(self) -> None:
        """Answer."""
        server = self.server
        assert isinstance(server, Server)
        path = self.path.partition("?")[0]
        status, content_type, body = server.answers.give(path, self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the same

    def log_message(self, *_args: Any) -> None:
        """Do nothing: probes come every few seconds."""
