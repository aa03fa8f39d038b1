"""Who a process is, so that its death can be told from the kernel's own books."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from durably.ids import new_id
from durably.store.workers import NewWorker

if TYPE_CHECKING:
    from collections.abc import Sequence

_START_TIME_FIELD = 19  # of /proc/PID/stat after the command's closing bracket: field 22 in proc(5)


def new_worker(
    jobs: Sequence[str], concurrency: int, worker_id: str | None = None, supervisor_id: str | None = None
) -> NewWorker:
    """
    Describe this process as a worker.

    Args:
        jobs: Names of the jobs it knows.
        worker_id: Given by its supervisor, which has to know it from before the fork; else a fresh one.
        supervisor_id: Whose child it is.
    """
    return NewWorker(
        id=worker_id or new_id(),
        host=socket.gethostname(),
        pid=os.getpid(),
        process_key=process_key(os.getpid()),
        supervisor_id=supervisor_id,
        jobs=jobs,
        concurrency=concurrency,
    )


def machine_key() -> str | None:
    """
    Name this machine since its boot, and this container's own view of process ids; None where the system has no /proc.

    Two processes with the same key see each other's pids.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        pid_namespace = Path("/proc/self/ns/pid").readlink().name
    except OSError:
        return None
    return f"{boot}/{pid_namespace}/"


def process_key(pid: int) -> str | None:
    """Name a process for good: pids are reused, but not together with the time of the process's start."""
    machine, started = machine_key(), _started(pid)
    return f"{machine}{pid}@{started}" if machine and started else None


def is_gone(key: str) -> bool:
    """Tell whether the process of a key that begins with this machine's is gone."""
    pid = int(key.rpartition("/")[2].partition("@")[0])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's: it is there, and /proc may hide when it began
        return False
    return process_key(pid) != key


def _started(pid: int) -> str | None:
    """Read when a process started, in clock ticks since boot; None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[_START_TIME_FIELD]
