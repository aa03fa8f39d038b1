"""A host of one's own: a network namespace, with a cable to this one."""

from __future__ import annotations

import os
import shutil
import subprocess
from ipaddress import IPv4Address
from typing import Final

# 198.18.0.0/15 is for tests of networks (RFC 2544); each process takes four addresses of it.
_FIRST_ADDRESS: Final = IPv4Address("198.18.0.0")
_NETWORKS: Final = 32_768


class CannotMakeError(Exception):
    """Namespaces need root and iproute2, and a kernel that allows them."""


class Namespace:
    """
    A network namespace that reaches this one by a veth pair, and nothing else.

    Attributes:
        prefix: Of a command that is to run in it.
        address: Of this side of the cable.

    Raises:
        CannotMakeError: With the reason.
    """

    def __init__(self) -> None:
        name = f"durably{os.getpid()}"
        network = _FIRST_ADDRESS + 4 * (os.getpid() % _NETWORKS)
        self.address = str(network + 1)
        self.prefix = ("ip", "netns", "exec", name)
        self._name = self._cable = name
        if shutil.which("ip") is None:
            raise CannotMakeError("there is no iproute2")
        _ip("netns", "add", name)
        try:
            _ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("address", "add", f"{network + 1}/30", "dev", self._cable)
            _ip("-n", name, "address", "add", f"{network + 2}/30", "dev", "eth0")
            for link in ("lo", "eth0"):
                _ip("-n", name, "link", "set", link, "up")
            self.join()
        except BaseException:
            self.close()
            raise

    def cut(self) -> None:
        """Let nothing through any more; nobody is told."""
        _ip("link", "set", self._cable, "down")

    def join(self) -> None:
        """Let everything through again."""
        _ip("link", "set", self._cable, "up")

    def close(self) -> None:
        """Remove it, and the cable with it."""
        _ip("netns", "delete", self._name)


def _ip(*arguments: str) -> None:
    done = subprocess.run(("ip", *arguments), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotMakeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
