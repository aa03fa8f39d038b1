"""
One child's way to its supervisor, and back: a multiprocess queue of JSON lines whose reader never waits.

The queue gives the pipe, its inheritance by fork and its passing by spawn. Its own `get` would wait for the rest of
a message whose writer was stopped in the middle (docs/adr/0001), so the reading end is non-blocking and lines are put
together here: half a line is kept until its rest comes, or dropped at the end of file.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, Final

import orjson

from durably.events import Event, as_record
from durably.forks import after_fork_in_child
from durably.telemetry.schema import OMITTABLE

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_BYTES_AT_ONCE: Final = 1 << 20
_LONGEST_VALUE: Final = 16 * 1024
_MOST_BUFFERED: Final = 20_000
_GATHER_SECONDS: Final = 0.01
_CLOSING_SECONDS: Final = 2.0
_STDERR: Final = 2


class Channel:
    """
    A queue from one process to one other.

    Each process keeps one end. The writer's death is the reader's end of file, so nobody else may keep a copy of
    the writing end: the parent closes its own right after the fork, and children close what they inherit.

    Args:
        context: multiprocess's, of the start method in use.
    """

    def __init__(self, context: Any) -> None:
        self._queue = context.SimpleQueue()
        self._rest = b""
        self.is_at_end = False

    def fileno(self) -> int:
        """Give the reading end's descriptor."""
        return int(self._queue._reader.fileno())  # noqa: SLF001 - the queue offers no way to wait for it

    def keep_reading_end(self) -> None:
        """Become the reader."""
        self._queue._writer.close()  # noqa: SLF001 - see the class
        os.set_blocking(self.fileno(), False)

    def keep_writing_end(self) -> None:
        """Become the writer; processes that this one forks do not inherit the end."""
        self._queue._reader.close()  # noqa: SLF001 - see the class
        os.register_at_fork(after_in_child=self.close)

    def drain(self) -> list[dict[str, Any]]:
        """Take the lines that have arrived, at most a megabyte; never waits."""
        try:
            data = os.read(self.fileno(), _MOST_BYTES_AT_ONCE)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.is_at_end = True
            return []
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [_parse(line) for line in lines]

    def send(self, data: bytes) -> None:
        """
        Write whole lines, waiting for room.

        Raises:
            OSError: The reader is gone.
        """
        view = memoryview(data)
        while view:
            view = view[os.write(self._writing(), view) :]

    def try_send(self, record: dict[str, Any]) -> bool:
        """Write one short line if there is room; never waits. False if there is none, or the reader is gone."""
        os.set_blocking(self._writing(), False)
        try:
            os.write(self._writing(), orjson.dumps(record) + b"\n")  # shorter than PIPE_BUF: all or nothing
        except OSError:
            return False
        return True

    def send_some(self, data: bytes) -> int:
        """Write as much of *data* as there is room for, and give how much; never waits, and 0 if the reader is gone."""
        os.set_blocking(self._writing(), False)
        try:
            return os.write(self._writing(), data)
        except OSError:
            return 0

    def _writing(self) -> int:
        return int(self._queue._writer.fileno())  # noqa: SLF001 - see the class

    def close(self) -> None:
        """Close what this process has of it."""
        for end in (self._queue._reader, self._queue._writer):  # noqa: SLF001 - see the class
            if not end.closed:
                end.close()


def _parse(line: bytes) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return {"type": "unreadable", "error": str(error), "line": line[:200].decode(errors="replace")}
    return (
        record if isinstance(record, dict) else {"type": "unreadable", "error": "no object", "line": str(record)[:200]}
    )


class Outbox:
    """
    A child's sink for events and log lines: a bounded buffer, sent in batches by a thread.

    Nobody waits for the channel. What finds no room is dropped and counted.

    Args:
        channel: Its writing end.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        # Called with the number of each event; set once, by a worker that has a board.
        self.note_sequence: Callable[[int], None] = _forget
        self._filled = threading.Condition()
        # Both under the condition's lock.
        self._lines: list[bytes] = []
        self._is_closing = False
        self.dropped = 0
        # Written by a forked child, which is alone: it has a copy without a thread, of a channel that is not its own.
        self._is_copy = False
        after_fork_in_child(self._become_copy)
        self._thread = threading.Thread(target=self._run, name="durably-outbox", daemon=True)
        self._thread.start()

    def _become_copy(self) -> None:
        self._filled = threading.Condition()
        self._lines = []
        self._is_copy = True
        self.note_sequence = _forget

    def __call__(self, event: Event) -> None:
        """Put an event into the buffer. One that cannot be written counts as dropped: telling must not fail a run."""
        self.note_sequence(event.sequence)
        try:
            line = encode(event)
        except (TypeError, ValueError):
            with self._filled:
                self.dropped += 1
            return
        self._put(line)

    def send_record(self, record: dict[str, Any]) -> None:
        """Put a line that is no event into the buffer; what a process says that a job has forked goes to stderr."""
        if self._is_copy:
            with contextlib.suppress(OSError):
                os.write(_STDERR, f"{record.get('message', '')}\n".encode(errors="backslashreplace"))
            return
        self._put(orjson.dumps(record, default=str) + b"\n")

    def _put(self, line: bytes) -> None:
        with self._filled:
            if self._is_copy or len(self._lines) >= _MOST_BUFFERED:
                self.dropped += 1
                return
            self._lines.append(line)
            if len(self._lines) == 1:
                self._filled.notify()

    def _run(self) -> None:
        gather = threading.Event()
        while True:
            with self._filled:
                while not self._lines and not self._is_closing:
                    self._filled.wait()
                if not self._lines:
                    return
            if not self._is_closing:
                gather.wait(_GATHER_SECONDS)
            with self._filled:
                lines, self._lines = self._lines, []
            try:
                self._channel.send(b"".join(lines))
            except OSError:
                return  # the supervisor is gone; the worker notices by itself

    def close(self) -> None:
        """Send what is left, for at most two seconds."""
        with self._filled:
            self._is_closing = True
            self._filled.notify()
        self._thread.join(_CLOSING_SECONDS)


def _forget(_sequence: int) -> None:
    pass


def encode(event: Event) -> bytes:
    """Write an event as one JSON line; a value of more than 16 KiB crosses as its size only."""
    head = b'{"type":"' + event.type.encode() + b'",'
    try:
        line = head + orjson.dumps(event, default=_as_plain)[1:] + b"\n"
    except TypeError:  # an integer of more than 64 bits, say
        line = _shorten(event)
    return line if len(line) <= _LONGEST_VALUE else _shorten(event)


def _shorten(event: Event) -> bytes:
    record = {key: _fit(value) if key in OMITTABLE else value for key, value in as_record(event).items()}
    return orjson.dumps(record, default=_as_plain) + b"\n"


def _fit(value: Any) -> Any:
    try:
        size = len(orjson.dumps(value, default=_as_plain))
    except TypeError:
        value = str(value)
        size = len(value)
    return value if size <= _LONGEST_VALUE else {"omitted_bytes": size}


def _as_plain(value: Any) -> Any:
    """Write what orjson does not know: labels are read-only mappings."""
    return dict(value)
