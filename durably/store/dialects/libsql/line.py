"""One HTTP connection to a server, kept between requests."""

from __future__ import annotations

import http.client
import select
import socket
import ssl
from typing import Final

# For a request whose answer only saves others a wait.
_HURRIED_SECONDS: Final = 1.0


class Line:
    """
    A connection that is opened when it is needed.

    Args:
        address: Host and port; None for the scheme's own.
        path: Where every request goes.
        headers: Of every request.
        is_secure: Whether over TLS.
        connect_timeout: Seconds.
        read_timeout: Seconds without a byte from the server.
    """

    def __init__(
        self,
        address: tuple[str, int | None],
        path: str,
        headers: dict[str, str],
        *,
        is_secure: bool,
        connect_timeout: float,
        read_timeout: float,
    ) -> None:
        self._address = address
        self._path = path
        self._headers = headers
        self._is_secure = is_secure
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._http: http.client.HTTPConnection | None = None

    def post(self, body: bytes, *, hurried: bool = False) -> tuple[int, bytes]:
        """
        Send *body*; give the answer's status and content.

        Args:
            hurried: Wait a second at most, to connect and for the answer.

        Raises:
            OSError, HTTPException: There is no answer; the request may have arrived all the same.
        """
        http_connection = self._connected(_HURRIED_SECONDS if hurried else self._connect_timeout)
        http_connection.sock.settimeout(_HURRIED_SECONDS if hurried else self._read_timeout)
        http_connection.request("POST", self._path, body, self._headers)
        response = http_connection.getresponse()
        return response.status, response.read()

    def close(self) -> None:
        """Close the socket; a parent process that has it too keeps its own descriptor."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def _connected(self, timeout: float) -> http.client.HTTPConnection:
        """Give the connection, or a new one where the server has closed it meanwhile."""
        kept = self._http
        if kept is not None and kept.sock is not None and not _can_be_read(kept.sock):
            return kept
        self.close()
        host, port = self._address
        opened: http.client.HTTPConnection
        if self._is_secure:
            context = ssl.create_default_context()
            opened = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
        else:
            opened = http.client.HTTPConnection(host, port, timeout=timeout)
        opened.connect()
        opened.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._http = opened
        return opened


def _can_be_read(connection: socket.socket) -> bool:
    """Tell whether the server has said anything between requests: that can only be the end."""
    poll = select.poll()  # select() does not take descriptors beyond 1023
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))
