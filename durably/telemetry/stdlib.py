"""What code says by other means than events, as records: standard logging, warnings, `print`."""

from __future__ import annotations

import io
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from durably.telemetry.units import MAX_TEXT_BYTES, cut_text, split_text

if TYPE_CHECKING:
    from durably.telemetry.levels import Level

# Takes a record of the type "log": a channel's sending end, or a LogRelay.
Send = Callable[[dict[str, Any]], None]
# Tells who speaks, in the speaker's thread: "process", and "run_id", "job_name", "step_name" if any.
Context = Callable[[], Mapping[str, Any]]

STDOUT: Final = "stdout"
_CONTEXT_FIELDS: Final = ("process", "run_id", "job_name", "step_name")
_FORMATTER: Final = logging.Formatter()


class ForwardingHandler(logging.Handler):
    """
    Turn each record of the standard library's logging into a record of the type "log".

    It neither raises nor prints; a line that cannot be sent is lost and counted.

    Args:
        send: Takes the record.
        context: Gives the record's `process`, `run_id`, `job_name` and `step_name`, as far as there are any.
    """

    def __init__(self, send: Send, context: Context) -> None:
        super().__init__()
        self._speaker = _Speaker(send, context)

    @property
    def lost(self) -> int:
        """How many lines could not be sent."""
        return self._speaker.lost

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        try:
            message, exception = _message_of(record), _exception_of(record)
        except Exception:  # noqa: BLE001 - its arguments are anybody's code
            self.handleError(record)
            return
        said = {"level": _level_of(record.levelno), "logger": record.name, "message": message}
        if exception:
            said["exception"] = exception
        self._speaker.say(said, record.created)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802 - the library's signature
        """Count a record that cannot be sent; the library would print each to standard error."""
        self._speaker.lose()


class StreamToLog(io.TextIOBase):
    """
    A text stream whose lines become records of the type "log".

    Each thread has its own unfinished line, so lines of several threads do not mix. A line longer than 16 KiB
    is sent in pieces, an empty one not at all, and of a line redrawn with carriage returns only the last
    state. `flush` sends the thread's unfinished line.

    Args:
        send: Takes the record.
        context: As for ForwardingHandler.
        name: The records' `logger`.
        level: The records' level.
    """

    encoding = "utf-8"

    def __init__(self, send: Send, context: Context, *, name: str = STDOUT, level: Level = "info") -> None:
        super().__init__()
        self._speaker = _Speaker(send, context)
        self._name = name
        self._level = level
        # Unfinished lines by thread; each is read and written by its own thread only, until `close`.
        self._unfinished: dict[int, str] = {}

    @property
    def lost(self) -> int:
        """How many lines could not be sent."""
        return self._speaker.lost

    def write(self, text: str, /) -> int:
        """
        Take text and send the lines that it completes.

        Returns:
            The length of the text: all of it is taken.
        """
        thread = threading.get_ident()
        *lines, rest = (self._unfinished.pop(thread, "") + text).split("\n")
        for line in lines:
            self._send_line(line)
        if len(rest) > MAX_TEXT_BYTES:
            self._send_line(rest)
        elif rest:
            self._unfinished[thread] = rest
        return len(text)

    def flush(self) -> None:
        """Send what the calling thread has written of an unfinished line."""
        self._send_line(self._unfinished.pop(threading.get_ident(), ""))

    def close(self) -> None:
        """Send all unfinished lines and take no more."""
        while self._unfinished:
            self._send_line(self._unfinished.popitem()[1])
        super().close()

    def isatty(self) -> bool:
        """Tell libraries to draw nothing."""
        return False

    def writable(self) -> bool:
        """Tell that the stream takes text."""
        return True

    def _send_line(self, line: str) -> None:
        seen = line.rstrip().rpartition("\r")[2]
        for piece in split_text(seen):
            self._speaker.say({"level": self._level, "logger": self._name, "message": piece}, time.time())


def forward_standard_logging(send: Send, context: Context, level: int = logging.INFO) -> ForwardingHandler:
    """
    Send all that this process logs with the standard library, and its warnings, as records.

    Handlers that the process inherited with its fork write where its parent does; the root logger loses them.

    Args:
        send: Takes each record.
        context: As for ForwardingHandler.
        level: The root logger's level, a number of the standard library's.
    """
    handler = ForwardingHandler(send, context)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(capture=True)
    return handler


def forward_stdout(send: Send, context: Context) -> StreamToLog:
    """
    Send what this process prints as records whose logger is "stdout".

    What writes to the file descriptor itself, such as a child process, is not seen.

    Args:
        send: Takes each record.
        context: As for ForwardingHandler.
    """
    stream = StreamToLog(send, context)
    sys.stdout = stream
    return stream


class _Speaker:
    """Make records of what is said, send them, and count the ones that could not be sent."""

    def __init__(self, send: Send, context: Context) -> None:
        self._send = send
        self._context = context
        # Whether this thread is sending: what sending itself logs or prints would go round for ever.
        self._sending = threading.local()
        self._lock = threading.Lock()
        self.lost = 0

    def say(self, said: Mapping[str, str], seconds: float) -> None:
        """
        Send one record.

        Args:
            said: The record's `level`, `logger`, `message`, and `exception` if any; cut to 16 KiB each.
            seconds: When it was said, since the epoch.
        """
        if getattr(self._sending, "now", False):
            self.lose()
            return
        self._sending.now = True
        try:
            self._send(self._envelope(seconds) | {name: cut_text(text) for name, text in said.items()})
        except Exception:  # noqa: BLE001 - a log that cannot be sent must not fail a job
            self.lose()
        finally:
            self._sending.now = False

    def lose(self) -> None:
        """Count a record that was not sent."""
        with self._lock:
            self.lost += 1

    def _envelope(self, seconds: float) -> dict[str, Any]:
        context = self._context()
        told = {name: value for name in _CONTEXT_FIELDS if (value := context.get(name)) is not None}
        timestamp = datetime.fromtimestamp(seconds, UTC).isoformat()
        return {"type": "log", "timestamp": timestamp, "process": _process(), **told}


def _process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "role": "worker", "worker_id": None}


def _message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage().rstrip()
    except Exception as error:  # noqa: BLE001 - arguments that do not fit their message are the commonest mistake
        return f"{record.msg!r} does not fit {record.args!r}: {error}"


def _exception_of(record: logging.LogRecord) -> str:
    told = [record.exc_text or ""]
    if record.exc_info and record.exc_info[0] is not None:
        told = [_FORMATTER.formatException(record.exc_info)]
    told.append(record.stack_info or "")
    return "\n".join(part for part in told if part)


def _level_of(number: int) -> Level:
    """Name the level of the standard library's number; one between two counts as the lower."""
    if number >= logging.WARNING:
        if number >= logging.ERROR:
            return "critical" if number >= logging.CRITICAL else "error"
        return "warning"
    return "info" if number >= logging.INFO else "debug"
