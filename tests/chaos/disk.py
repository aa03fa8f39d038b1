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
_DISK_MEBIBYTES: Final = 256
MEMORY_MEBIBYTES: Final = 450
_SECONDS_TO_LEAVE: Final = 10


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
def small_disk(folder: Path) -> Iterator[Disk | None]:
    """Mount one, where that is allowed; it goes with what is on it."""
    folder.mkdir()
    options = ("-o", f"size={_DISK_MEBIBYTES}m")
    try:
        done = subprocess.run(("mount", "-t", "tmpfs", *options, "tmpfs", folder), capture_output=True, check=False)
        is_mounted = done.returncode == 0
    except FileNotFoundError:
        is_mounted = False
    if not is_mounted:
        yield None
        return
    try:
        yield Disk(folder)
    finally:
        subprocess.run(("umount", "--lazy", folder), check=True)


@contextlib.contextmanager
def small_memory() -> Iterator[Path | None]:
    """Make a control group with little memory, where that is allowed; all that joins it must end before."""
    old = Path("/sys/fs/cgroup/memory")
    group = (old if old.is_dir() else Path("/sys/fs/cgroup")) / f"durably-chaos-{os.getpid()}"
    try:
        group.mkdir()
        limit = group / ("memory.limit_in_bytes" if old.is_dir() else "memory.max")
        limit.write_text(str(MEMORY_MEBIBYTES * _MEBIBYTE))
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        yield None
        return
    try:
        yield group
    finally:
        deadline = time.monotonic() + _SECONDS_TO_LEAVE
        while (group / "cgroup.procs").read_text().strip() and time.monotonic() < deadline:
            time.sleep(0.05)
        group.rmdir()
