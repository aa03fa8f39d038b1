"""A small disk for a database file, which can be filled and freed; and a control group with little memory."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_MEBIBYTE: Final = 1 << 20
MEMORY_MEBIBYTES: Final = 450
_SECONDS_TO_LEAVE: Final = 10


class NotHereError(Exception):
    """This machine, or this user on it, cannot have it; says why."""


class Disk:
    """
    A file system in memory.

    Args:
        folder: Where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave no byte on it."""
        with self._ballast.open("ab", buffering=0) as file:
            for block in (bytes(_MEBIBYTE), bytes(4096)):
                try:
                    while True:
                        file.write(block)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        """Give it back."""
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Disk]:
    """
    Mount one; it goes with what is on it.

    Raises:
        NotHereError: It cannot be mounted.
    """
    mount = ("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder))
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise NotHereError("there is no `mount`") from None
    if done.returncode != 0:
        raise NotHereError(f"no disk can be mounted: {' '.join(done.stderr.split())}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(("umount", "--lazy", folder), check=True)


@contextlib.contextmanager
def small_memory() -> Iterator[Path]:
    """
    Make a control group with little memory; all that joins it must end before it does.

    Raises:
        NotHereError: It cannot be made.
    """
    old = Path("/sys/fs/cgroup/memory")
    group = (old if old.is_dir() else Path("/sys/fs/cgroup")) / f"durably-chaos-{os.getpid()}"
    try:
        group.mkdir()
        limit = group / ("memory.limit_in_bytes" if old.is_dir() else "memory.max")
        limit.write_text(str(MEMORY_MEBIBYTES * _MEBIBYTE))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        raise NotHereError(f"no control group with little memory can be made: {error}") from None
    try:
        yield group
    finally:
        deadline = time.monotonic() + _SECONDS_TO_LEAVE
        while (group / "cgroup.procs").read_text().strip() and time.monotonic() < deadline:
            time.sleep(0.05)
        group.rmdir()
