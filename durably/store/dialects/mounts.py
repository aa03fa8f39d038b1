"""Which kind of file system a folder is on."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

# Shared-memory WAL does not work across hosts (sqlite.org/wal.html); these are the kinds that mounts name.
NETWORK_FILE_SYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "glusterfs"}
)


def file_system(folder: Path) -> str | None:
    """Name the kind of the mount that holds *folder*; None where the system does not tell."""
    with contextlib.suppress(OSError):
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
        real = folder.resolve()
        holding = [m for m in mounts if real.is_relative_to(m[1].replace("\\040", " "))]
        return max(holding, key=lambda m: len(m[1]))[2] if holding else None
    return None
