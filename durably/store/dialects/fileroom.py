"""What is looked at of an SQLite file, whichever driver opens it: its mode, its room, and who may watch it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path
from stat import filemode
from typing import TYPE_CHECKING, Any, Final

from durably.findings import Finding
from durably.store.dialects.mounts import NETWORK_FILE_SYSTEMS, file_system

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from durably.findings import Level

_MIB: Final = 1024 * 1024
# A million runs of a kilobyte, with as much for the WAL and for a copy of it.
_LITTLE_ROOM_BYTES: Final = 1024 * _MIB
_NO_ROOM_BYTES: Final = 64 * _MIB
# Before it, two checkpoints at once can corrupt a file, in a race that nobody could bring about (sqlite.org/wal.html,
# "The WAL-Reset Bug"). Told, and not warned of: most systems have an older one.
_WITHOUT_THE_RESET_BUG: Final = (3, 51, 3)
# Some seconds.
_LARGEST_CHECKED_BYTES: Final = 1024 * _MIB
_WAL_FACTOR: Final = 2


def diagnose_file(connection: Connection, path: Path, *, largest_wal: int) -> Iterator[Finding]:
    """
    Look at a database file and where it is.

    Args:
        connection: To it.
        path: Of it.
        largest_wal: Bytes that its WAL has while it is checkpointed as it should be.
    """
    yield _version(connection)
    yield from _mode(connection, path)
    yield _place(path)
    yield _permissions(path)
    yield _integrity(connection, path)
    yield _room(path)
    yield _wal(path, largest_wal)
    if sys.platform == "linux":
        yield _inotify()


def why_closed(path: Path) -> str | None:
    """
    Tell why this user may not use a database file, and what would help.

    Args:
        path: Of the file, which need not exist; its folder does.

    Returns:
        None if the file, what is beside it and its folder may be read and written.
    """
    for place in (path.parent, *_files(path)):
        if os.access(place, os.W_OK if place == path.parent else os.R_OK | os.W_OK):
            continue
        with contextlib.suppress(FileNotFoundError):  # who was the last to close the database has removed it
            return _why_closed(place)
    return None


def _why_closed(place: Path) -> str:
    if os.statvfs(place).f_flag & os.ST_RDONLY:
        return f"{place} is on a file system that is mounted read-only: move the file to one that is not"
    found, user = place.stat(), os.geteuid()
    remedy = (
        f"chmod u+rw {place}"
        if found.st_uid == user
        else "run durably as that user, or let a group that both are in write to the file and its folder"
    )
    return (
        f"{place} may not be read and written by this user (uid {user}); it is {filemode(found.st_mode)} of uid "
        f"{found.st_uid}: {remedy}"
    )


def _version(connection: Connection) -> Finding:
    version = str(connection.exec_driver_sql("SELECT sqlite_version()").scalar_one())
    driver = connection.engine.dialect.driver
    has_bug = tuple(int(part) for part in version.split(".")[:3]) < _WITHOUT_THE_RESET_BUG
    note = "; before 3.51.3 it has a very rare bug of the WAL's reset (sqlite.org/wal.html#walresetbug)"
    return Finding(check="SQLite", level="ok", message=f"{version}, over {driver}{note if has_bug else ''}")


def _pragma(connection: Connection, name: str) -> Any:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


def _mode(connection: Connection, path: Path) -> Iterator[Finding]:
    mode = _pragma(connection, "journal_mode")
    if mode != "wal":
        yield Finding(
            check="journal mode",
            level="error",
            message=f"{mode}: readers and writers hold each other up",
            remedy=f"stop every process that uses it, then: sqlite3 {path} 'PRAGMA journal_mode=WAL'",
        )
        return
    level = _pragma(connection, "synchronous")
    durable = {2: "full: survives a power cut", 3: "extra: survives a power cut"}.get(
        level, "normal: survives a killed process, and may lose the last commits in a power cut (synchronous = full)"
    )
    yield Finding(check="journal mode", level="ok", message="WAL")
    yield Finding(check="synchronous", level="ok", message=durable)
    waits = _pragma(connection, "busy_timeout")
    if waits is not None:
        yield Finding(
            check="busy timeout",
            level="ok",
            message=f"{waits / 1000:g} s for strangers; durably's own writers queue at {path.name}-gate",
        )


def _place(path: Path) -> Finding:
    kind = file_system(path.parent)
    if kind in NETWORK_FILE_SYSTEMS:
        return Finding(
            check="file system",
            level="error",
            message=f"{path.parent} is on a network file system ({kind}), where WAL does not keep processes apart",
            remedy="move the file to a local disk, or to PostgreSQL for several hosts (durably copy)",
        )
    return Finding(check="file system", level="ok", message=f"{path} is on {kind or 'an unknown kind of file system'}")


def _permissions(path: Path) -> Finding:
    closed = [p for p in (path.parent, *_files(path)) if not os.access(p, os.R_OK | os.W_OK)]
    if closed:
        return Finding(
            check="permissions",
            level="error",
            message=f"this user may not read and write {', '.join(map(str, closed))}",
            remedy="run every process as one user, or as one group that may write to the folder and its files",
        )
    return Finding(check="permissions", level="ok", message="the file, what is beside it and its folder are writable")


def _files(path: Path) -> list[Path]:
    """List those that there are: the database's, and what SQLite and durably keep beside it."""
    return [file for suffix in ("", "-wal", "-shm", "-gate") if (file := Path(f"{path}{suffix}")).exists()]


def _integrity(connection: Connection, path: Path) -> Finding:
    if (size := path.stat().st_size) > _LARGEST_CHECKED_BYTES:
        message = f"not checked, for it would take long: the file has {_size(size)}"
        return Finding(check="integrity", level="ok", message=message)
    # quick_check would not compare the indexes with the rows, where a WAL of another file does its damage.
    if (found := _pragma(connection, "integrity_check(1)")) != "ok":
        return Finding(
            check="integrity",
            level="error",
            message=f"the file is damaged: {found}",
            remedy=f"stop every process that uses it, and restore a backup without {path.name}-wal and {path.name}-shm",
        )
    return Finding(check="integrity", level="ok", message="the file is whole")


def _room(path: Path) -> Finding:
    usage = shutil.disk_usage(path.parent)
    level: Level = "ok"
    if usage.free < _LITTLE_ROOM_BYTES:
        level = "error" if usage.free < _NO_ROOM_BYTES else "warning"
    return Finding(
        check="room",
        level=level,
        message=f"the file has {_size(path.stat().st_size)}, the disk {_size(usage.free)} free",
        remedy=None if level == "ok" else "make room: durably purge, then VACUUM while nothing runs; or a larger disk",
    )


def _wal(path: Path, largest: int) -> Finding:
    try:
        size = Path(f"{path}-wal").stat().st_size
    except OSError:
        size = 0
    if size > _WAL_FACTOR * largest:
        return Finding(
            check="WAL",
            level="warning",
            message=f"{_size(size)}: it is not moved to the file",
            remedy="a reader keeps a transaction open (fuser names the processes), or no supervisor or worker runs",
        )
    return Finding(check="WAL", level="ok", message=_size(size))


def _inotify() -> Finding:
    from inotify_simple import INotify

    try:
        INotify(nonblocking=True).close()
    except OSError as error:
        return Finding(
            check="inotify",
            level="warning",
            message=f"no instance is left ({error.strerror}): commits of others are noticed by polling alone",
            remedy="sysctl fs.inotify.max_user_instances=1024",
        )
    return Finding(check="inotify", level="ok", message="commits of others wake idle workers at once")


def _size(size: int) -> str:
    return f"{size / _MIB / 1024:.1f} GiB" if size >= 1024 * _MIB else f"{size / _MIB:.1f} MiB"
