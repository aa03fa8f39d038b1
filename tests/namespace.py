"""Hosts of one's own: a network namespace, with a cable to this one; a machine by its boot's id."""

from __future__ import annotations

import os
import shutil
import subprocess
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

# Each start is another boot's, for nobody else; `exec` leaves the process's id as it is.
_BOOT: Final = """
cat /proc/sys/kernel/random/uuid > "$0" && mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"
"""
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


def another_machine(folder: Path) -> tuple[str, ...]:
    """
    Give what a command begins with that runs as on a machine of its own, lost with it: nobody can tell that it is gone.

    Args:
        folder: For the boot's id.

    Raises:
        CannotMakeError: With the reason.
    """
    prefix = ("unshare", "--mount", "sh", "-c", _BOOT, str(folder / "boot_id"))
    try:
        done = subprocess.run((*prefix, "true"), capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotMakeError(f"there is no unshare: {error}") from None
    if done.returncode != 0:
        raise CannotMakeError(f"unshare --mount: {done.stderr.strip()}")
    return prefix


def _ip(*arguments: str) -> None:
    done = subprocess.run(("ip", *arguments), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotMakeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
