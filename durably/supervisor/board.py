"""
What a worker tells in memory that its supervisor has too: what has a timeout, who is in whose code, signs of life.

A worker in a C call that holds Python's lock can send nothing, and this is just when its supervisor has to know which
step it is in. So the worker writes it down before the step begins, in a file that both have mapped: no system call, no
thread of its own. The supervisor looks whenever it likes, also after the worker's death.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import tempfile
import threading
from collections import deque
from dataclasses import asdict
from pathlib import Path
from typing import Final

import orjson

from durably.worker.timeouts import Timed

_PLACES: Final = 256
"""
Steps with a timeout that a worker can have in flight; of more, the last are bounded in its own process only. As many
threads in runs' code can show; what others are in is not excused when somebody else keeps Python's lock.
"""
# Native: Python stores a number in one go then, and in any other format byte by byte.
_SEQUENCE: Final = struct.Struct("@Q")
_DEADLINE: Final = struct.Struct("@d")
_DEADLINES: Final = struct.Struct(f"@{_PLACES}d")
_LENGTH: Final = struct.Struct("@H")
_LONGEST: Final = 2048 - _LENGTH.size  # a name of 255 characters takes 1,530 bytes at most, as JSON
_THREAD: Final = struct.Struct("@q")
_THREADS: Final = struct.Struct(f"@{_PLACES}q")
_RUN: Final = struct.Struct("@32s")  # an id has 26 characters
_ALIVE_AT: Final = _SEQUENCE.size
_DEADLINES_AT: Final = _ALIVE_AT + _DEADLINE.size
_THREADS_AT: Final = _DEADLINES_AT + _DEADLINES.size
_RUNS_AT: Final = _THREADS_AT + _THREADS.size
_RECORDS_AT: Final = _RUNS_AT + _PLACES * _RUN.size
_SIZE: Final = _RECORDS_AT + _PLACES * (_LONGEST + _LENGTH.size)
_NONE: Final = 0.0
_IN_MEMORY: Final = "/dev/shm"  # noqa: S108 - a file on a disk makes who writes to its mapping wait while the kernel writes it out


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _make(folder: str | None) -> tuple[str, mmap.mmap]:
    """Make a board's file in a folder, by default that for temporary files; give its path, and map it."""
    descriptor, path = tempfile.mkstemp(prefix="durably-board-", dir=folder)
    try:
        _write_all(descriptor, bytes(_SIZE))  # or writing to what has no room on the disk would be a SIGBUS
        return path, mmap.mmap(descriptor, _SIZE)
    except BaseException:
        Path(path).unlink()
        raise
    finally:
        os.close(descriptor)


def _record_at(place: int) -> int:
    return _RECORDS_AT + place * (_LONGEST + _LENGTH.size)


def _deadline_at(place: int) -> int:
    return _DEADLINES_AT + place * _DEADLINE.size


def _thread_at(place: int) -> int:
    return _THREADS_AT + place * _THREAD.size


def _run_at(place: int) -> int:
    return _RUNS_AT + place * _RUN.size


class Board:
    """
    A supervisor's view of one worker's board, and the file behind it: half a megabyte.

    The worker opens it by its name and removes the name, so that nothing stays behind when all are killed.

    Raises:
        OSError: There is no room for it.
    """

    def __init__(self) -> None:
        try:
            self.path, self._memory = _make(_IN_MEMORY)
        except OSError:
            self.path, self._memory = _make(None)

    def last_sequence(self) -> int:
        """Give the number of the last event that the worker has told, whether or not it has arrived."""
        return int(_SEQUENCE.unpack_from(self._memory)[0])

    def alive_at(self) -> float:
        """Give when the worker's pulse was last seen, monotonic: twice a second or oftener while it holds a run."""
        return float(_DEADLINE.unpack_from(self._memory, _ALIVE_AT)[0])

    def overdue(self, now: float) -> list[tuple[float, Timed]]:
        """
        List whose time is up.

        Args:
            now: Monotonic seconds.

        Returns:
            For how many seconds, and what it is; the longest first.
        """
        found = []
        for place, at in enumerate(_DEADLINES.unpack_from(self._memory, _DEADLINES_AT)):
            if _NONE < at <= now and (work := self._read(place, at)) is not None:
                found.append((now - at, work))
        return sorted(found, key=lambda entry: -entry[0])

    def executing(self) -> list[tuple[int, str]]:
        """List which threads are in whose code: the system's id of the thread, and the run's; one may be in several."""
        found = []
        for place, thread in enumerate(_THREADS.unpack_from(self._memory, _THREADS_AT)):
            if thread:
                (run_id,) = _RUN.unpack_from(self._memory, _run_at(place))
                found.append((thread, run_id.rstrip(b"\0").decode(errors="replace")))
        return found

    def _read(self, place: int, at: float) -> Timed | None:
        """Read an entry; None if its worker has changed it meanwhile, or was killed while it wrote."""
        start = _record_at(place)
        (length,) = _LENGTH.unpack_from(self._memory, start)
        data = self._memory[start + _LENGTH.size : start + _LENGTH.size + length]
        if _DEADLINE.unpack_from(self._memory, _deadline_at(place)) != (at,):
            return None
        try:
            return Timed(**orjson.loads(data))
        except (orjson.JSONDecodeError, TypeError):
            return None

    def forget(self) -> None:
        """Close a forked child's copy; else what a dead worker had stays for as long as its siblings live."""
        self._memory.close()

    def close(self) -> None:
        """Close it, and remove the name if the worker did not live to do it."""
        self._memory.close()
        with contextlib.suppress(OSError):
            Path(self.path).unlink()


class BoardWriter:
    """
    The worker's side: see `durably.worker.timeouts.Board`.

    Args:
        path: Of the supervisor's `Board`; it has no name afterwards.
    """

    def __init__(self, path: str) -> None:
        with Path(path).open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SIZE)
        Path(path).unlink()
        self._lock = threading.Lock()
        # Under the lock.
        self._free = list(reversed(range(_PLACES)))
        self._free_for_threads = deque(range(_PLACES))

    def note_sequence(self, sequence: int) -> None:
        """Note the number of an event that is about to be sent."""
        _SEQUENCE.pack_into(self._memory, 0, sequence)

    def note_life(self, now: float) -> None:
        """Note that the pulse goes; who keeps Python's lock stops it."""
        _DEADLINE.pack_into(self._memory, _ALIVE_AT, now)

    def enter(self, work: Timed, at: float) -> int | None:
        """Put *work* on the board; None if it is full. The deadline last: without it the entry does not count."""
        data = orjson.dumps(asdict(work))
        with self._lock:
            if not self._free or len(data) > _LONGEST:
                return None
            place = self._free.pop()
        start = _record_at(place)
        _LENGTH.pack_into(self._memory, start, len(data))
        self._memory[start + _LENGTH.size : start + _LENGTH.size + len(data)] = data
        _DEADLINE.pack_into(self._memory, _deadline_at(place), at)
        return place

    def leave(self, place: int | None) -> None:
        """Take an entry off the board."""
        if place is not None:
            _DEADLINE.pack_into(self._memory, _deadline_at(place), _NONE)
            with self._lock:
                self._free.append(place)

    def executing(self, run_id: str) -> Executing:
        """Say, for as long as it lasts, that this thread executes a run's code."""
        return Executing(self._memory, self._free_for_threads, run_id)


class Executing:
    """
    One thread in one run's code, on a board while it lasts; not where there is no place left. In that thread.

    Args:
        memory: The board's.
        free: Its free places for threads; a deque needs no lock.
        run_id: The run's.
    """

    __slots__ = ("_free", "_memory", "_place", "_run_id")

    def __init__(self, memory: mmap.mmap, free: deque[int], run_id: str) -> None:
        self._memory = memory
        self._free = free
        self._run_id = run_id
        self._place: int | None = None

    def __enter__(self) -> None:
        try:
            place = self._place = self._free.pop()
        except IndexError:
            return
        _RUN.pack_into(self._memory, _run_at(place), self._run_id.encode())
        _THREAD.pack_into(self._memory, _thread_at(place), threading.get_native_id())  # last, as with a deadline

    def __exit__(self, *_raised: object) -> None:
        if self._place is not None:
            _THREAD.pack_into(self._memory, _thread_at(self._place), 0)
            self._free.append(self._place)
