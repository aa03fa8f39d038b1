"""The log's stream: each line is written at once; one that the stream does not take is lost and counted."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

    # Takes bytes and says how many it took; None stands for "none, it would have to wait".
    Write = Callable[[bytes], int | None]

# A pipe that has room at all has room for so much (PIPE_BUF, pipe(7)), so that the write does not wait.
_SURELY_TAKEN: Final = 4096
_PATIENCE_MS: Final = 100
_STDERR: Final = 2
# A disk that is full now and then must not fill standard error.
_SECONDS_BETWEEN_COMPLAINTS: Final = 60.0


class LineWriter:
    """
    Write whole lines to a stream, and never raise because of it.

    When it takes none any more, and when it does again, that is said on standard error, at most once a minute.

    It writes past the stream's own buffers, one system call a line (a pipe or a terminal takes a long line in
    parts). So a line is out when the call returns,
    short lines of processes that share the stream do not mix, and a failed write leaves nothing behind that
    would fail once more when the interpreter exits.

    It has the method names of a logger because structlog hands rendered lines to those.

    Args:
        stream: Where to write; None, as `sys.stdout` is in a process without one, loses every line.
    """

    def __init__(self, stream: TextIO | None) -> None:
        # Held, because a text stream that nobody holds closes what is below it.
        self._stream = stream
        self._write = _unbuffered(stream)
        # Reentrant: a signal handler or a finalizer may log while its thread is writing a line.
        self._lock = threading.RLock()
        # All are owned by `msg`, under the lock.
        self._is_torn = False
        self._lost = 0
        self._is_stalled = False
        self._refusal = ""
        # How many were lost when it was said that lines are lost; None once they are not.
        self._lost_before: int | None = None
        self._complained_at = float("-inf")
        self._room = _poll_of(stream)

    def move_to(self, stream: TextIO) -> None:
        """Write to another stream from now on, and close the one so far."""
        with self._lock:
            before, self._stream = self._stream, stream
            self._write, self._room = _unbuffered(stream), _poll_of(stream)
            self._is_torn = self._is_stalled = False
            if before is not None:
                before.close()

    def divert_to(self, descriptor: int) -> None:
        """Have what is written to the stream's descriptor go to another, in this process."""
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):  # a process without standard error, or a closed stream
                os.dup2(descriptor, self._stream.fileno(), inheritable=False)

    @property
    def lost(self) -> int:
        """How many lines the stream did not take, or not to their end."""
        return self._lost

    def msg(self, line: bytes) -> None:
        """
        Write a line.

        Args:
            line: The line with its newline.
        """
        with self._lock:
            # After a torn line a newline first, so that one lost line does not cost its successor too.
            data = b"\n" + line if self._is_torn else line
            written = self._write_out(data)
            is_whole = written == len(data)
            self._is_torn = not is_whole and (self._is_torn or written > 0)
            if not is_whole:
                self._complain()
                self._lost += 1
            elif self._lost_before is not None:
                self._say(f"the log takes lines again; {self._lost - self._lost_before:,} were lost")
                self._lost_before = None

    debug = info = warning = error = critical = msg

    def _complain(self) -> None:
        now = time.monotonic()
        if self._lost_before is None and now >= self._complained_at + _SECONDS_BETWEEN_COMPLAINTS:
            self._lost_before, self._complained_at = self._lost, now
            self._say(f"the log takes no lines ({self._refusal}); all else goes on, and they are lost")

    def _say(self, message: str) -> None:
        """Tell a person on standard error, unless that is where the log goes, or is no better off."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if self._stream is not None and os.path.sameopenfile(self._stream.fileno(), _STDERR):
                return
            room = select.poll()
            room.register(_STDERR, select.POLLOUT)
            if any(event & select.POLLOUT for _, event in room.poll(0)):
                os.write(_STDERR, f"durably: {message}\n".encode())

    def _has_room(self) -> bool:
        """
        Tell whether the stream takes some bytes now: a reader that stalls costs lines, and never the one that logs.

        It is waited for, but not again by each line while nothing has been taken.
        """
        if self._room is None:
            return True
        self._is_stalled = not self._room.poll(0 if self._is_stalled else _PATIENCE_MS)
        if self._is_stalled:
            self._refusal = "who should read it does not"
        return not self._is_stalled

    def _write_out(self, data: bytes) -> int:
        """Write until all is written or the stream refuses, and tell how many bytes it took."""
        done = 0
        try:
            while done < len(data):
                if not self._has_room():
                    break
                end = len(data) if self._room is None else done + _SURELY_TAKEN
                taken = self._write(data[done:end])
                if not taken:
                    self._refusal = "there is no stream"
                    break
                done += taken
        except (OSError, ValueError) as error:  # a broken pipe, a full disk, a closed stream
            self._refusal = (isinstance(error, OSError) and error.strerror) or str(error)
        return done


def _poll_of(stream: TextIO | None) -> select.poll | None:
    """Watch a stream's descriptor for room; None for one whose reader cannot stall: a file, or none at all."""
    try:
        descriptor = -1 if stream is None else stream.fileno()
        is_file = descriptor < 0 or stat.S_ISREG(os.fstat(descriptor).st_mode)
    except (OSError, ValueError, AttributeError):
        return None
    if is_file:
        return None
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    return room


def _unbuffered(stream: TextIO | None) -> Write:
    """Find the lowest layer of a text stream that takes bytes."""
    if stream is None:
        return lambda _data: None
    buffer: Any = getattr(stream, "buffer", None)
    if buffer is None:
        return _encoding_into(stream)
    with contextlib.suppress(OSError, ValueError):
        # What was printed before the log began stays before it.
        stream.flush()
    write: Write = getattr(buffer, "raw", buffer).write
    return write


def _encoding_into(stream: TextIO) -> Write:
    """Write bytes to a stream that knows text only, such as `io.StringIO`."""

    def write(data: bytes) -> int:
        stream.write(data.decode(errors="replace"))
        stream.flush()
        return len(data)

    return write
