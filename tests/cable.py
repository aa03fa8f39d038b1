"""A way to a server that can be cut while a commit is under way."""

from __future__ import annotations

import contextlib
import select
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


_LONGEST_CUT_SECONDS = 120
# As PostgreSQL's protocol ends it, where "READ COMMITTED" is none, and as Hrana quotes it.
_CUT_AT = (b"COMMIT\0", b'"COMMIT"', b"pg_notify")


class Cable:
    """
    A socket whose bytes pass through here.

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
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, self.connect() as server:
            while True:
                for ready in select.select([client, server], [], [])[0]:
                    data = ready.recv(65536)
                    self.is_plugged.wait(_LONGEST_CUT_SECONDS)
                    if not data:
                        return
                    is_told = ready is client and any(words in data for words in _CUT_AT)
                    cut = self.cuts.pop(0) if is_told and self.cuts else None
                    if cut == "before":
                        return
                    (server if ready is client else client).sendall(data)
                    if cut == "after":
                        server.recv(1)  # the answer, which nobody gets
                        return
