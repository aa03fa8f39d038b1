"""A way to a server that can be cut at any moment."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import threading
from typing import TYPE_CHECKING, Final

from sqlalchemy import make_url

if TYPE_CHECKING:
    from collections.abc import Callable

_COMMIT_OR_RING: Final = re.compile(rb"COMMIT(?!TED)|pg_notify")
_LONGEST_CUT_SECONDS: Final = 120
_LONGEST_ANSWER_SECONDS: Final = 0.5


class Cable:
    """
    A socket whose bytes pass through here.

    What commits is found by the word COMMIT in what a client sends: a driver that says it otherwise needs a way of its
    own, or the tests that cut commits find that nothing was cut.

    Args:
        listener: Where clients connect; closed at the end.
        connect: Opens a connection to the server.

    Attributes:
        cuts: What becomes of the next commits and rings: their connection is cut "before" or "after" the server has
            done it.
        is_plugged: While it is not set nothing passes, and nobody is told; what was on its way arrives late.
    """

    def __init__(self, listener: socket.socket, connect: Callable[[], socket.socket]) -> None:
        self._listener = listener
        self.connect = connect
        self.cuts: list[str] = []
        self.is_plugged = threading.Event()
        self.is_plugged.set()
        # Written by the test between its calls, counted down by the one thread whose client is in one.
        self._lock = threading.Lock()
        self._messages_left = 0
        self._where = ""
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more."""
        self._listener.close()

    def cut_next(self, message: int, where: str) -> None:
        """Cut the connection of the *message*-th message, from 1, that a client sends from now on, as `cuts` does."""
        with self._lock:
            self._messages_left, self._where = message, where

    def forget_cut(self) -> bool:
        """Take `cut_next` back; tell whether it had still to come."""
        with self._lock:
            still, self._messages_left = self._messages_left > 0, 0
        return still

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, self.connect() as server:
            for end in (client, server):
                if end.family != socket.AF_UNIX:
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else each message waits 40 ms
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(65536)
                    self.is_plugged.wait(_LONGEST_CUT_SECONDS)
                    if not data:
                        return
                    cut = self._cut_of(data) if ready is client else None
                    if cut == "before":
                        return
                    (server if ready is client else client).sendall(data)
                    if cut == "after":
                        # The answer, which nobody gets; there is none to half a message.
                        select.select([server], [], [], _LONGEST_ANSWER_SECONDS)
                        return

    def _cut_of(self, data: bytes) -> str | None:
        with self._lock:
            if self._messages_left:
                self._messages_left -= 1
                return None if self._messages_left else self._where
        return self.cuts.pop(0) if _COMMIT_OR_RING.search(data) and self.cuts else None


def lay_by_tcp(url: str) -> tuple[Cable, str]:
    """Lay a cable on the loopback to the host and port of a URL; give it, and the URL that takes it."""
    server = make_url(url)
    where = str(server.host), int(server.port or 80)
    listener = socket.create_server(("127.0.0.1", 0))
    near = server.set(host="127.0.0.1", port=listener.getsockname()[1])
    return Cable(listener, lambda: socket.create_connection(where)), near.render_as_string(hide_password=False)
