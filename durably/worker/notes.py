"""What a run tells of itself while it executes: progress and log lines. Neither waits, neither fails a job."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from durably import events
from durably.codec import PLAIN
from durably.model import Progress
from durably.store.intents import LogLine, ProgressNote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from durably.events import Event
    from durably.model import LogLevel
    from durably.worker.execution import Execution

_MOST_LINES_IN_FLIGHT: Final = 10_000
_LONGEST_MESSAGE: Final = 16 * 1024 - 64  # bytes, and room for the mark
_LARGEST_INTEGER: Final = 2**63
_LARGEST_DATA: Final = 64 * 1024


class Notes:
    """
    One execution's progress and log.

    At most one progress value is on its way at a time and the newest waits; log lines beyond 10,000 on their way
    are dropped and counted in a line of their own. The fields below change under the lock: the job's threads write
    them, and the committer's thread as it answers.
    """

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        # Reentrant: a committer that has ended answers at once, in the thread that hands over.
        self._lock = threading.RLock()
        self._progress_in_flight = False
        self._newest: Progress | None = None
        self._lines_in_flight = 0
        self._lines_dropped = 0

    def progress(self, value: Progress) -> None:
        """Have *value* written soon; a newer one may overtake it. One that is no number is logged instead."""
        try:
            fitted = Progress(
                current=_as_number(value.current),
                total=None if value.total is None else _as_number(value.total),
                message=None if value.message is None else _fit_message(value.message),
            )
        except (ValueError, OverflowError):
            data = {"current": value.current, "total": value.total}
            self.log("warning", "progress ignored: it is no finite number", data, None)
            return
        with self._lock:
            self._newest = fitted
            if not self._progress_in_flight:
                self._send_progress()

    def log(self, level: LogLevel, message: str, data: Mapping[str, Any], step_name: str | None) -> None:
        """Have a log line written soon."""
        with self._lock:
            if self._lines_in_flight >= _MOST_LINES_IN_FLIGHT:
                self._lines_dropped += 1
                return
            self._lines_in_flight += 1
        self._send_line(level, message, data, step_name)

    def flush(self) -> None:
        """Hand over what waits, so that it is written no later than what is handed over next."""
        with self._lock:
            self._send_progress()
            dropped, self._lines_dropped = self._lines_dropped, 0
            self._lines_in_flight += bool(dropped)
        if dropped:
            self._send_line("warning", f"{dropped} log lines dropped: logged faster than the database writes", {}, None)

    def _send_progress(self) -> None:
        """Hand the newest value over. Under the lock, so that no older one can follow it."""
        value, self._newest = self._newest, None
        if value is None:
            return
        self._progress_in_flight = True
        run = self._execution.run
        text = json.dumps({k: v for k, v in asdict(value).items() if v is not None})
        self._submit(
            ProgressNote(run_id=run.id, generation=run.generation, progress=text),
            events.RunProgress(**self._execution.facts(), progress=value),
            self._progress_arrived,
        )

    def _progress_arrived(self) -> None:
        with self._lock:
            self._progress_in_flight = False
            self._send_progress()

    def _send_line(self, level: LogLevel, message: str, data: Mapping[str, Any], step_name: str | None) -> None:
        run = self._execution.run
        message, stored = _fit_message(message), _fit_data(data)
        self._submit(
            LogLine(
                run_id=run.id,
                generation=run.generation,
                step_name=step_name,
                attempt=run.attempt,
                level=level,
                message=message,
                data=json.dumps(stored, ensure_ascii=False),
            ),
            events.LogWrite(**self._execution.facts(), step_name=step_name, level=level, message=message, data=stored),
            self._line_arrived,
        )

    def _line_arrived(self) -> None:
        with self._lock:
            self._lines_in_flight -= 1

    def _submit(self, intent: ProgressNote | LogLine, event: Event, arrived: Callable[[], None]) -> None:
        host = self._execution.host

        def settle(verdict: object, error: BaseException | None) -> None:
            arrived()
            if verdict is None and error is None:
                host.emitter.emit(event)

        host.committer.submit(intent, settle)


def _as_number(value: object) -> float:
    """Check that *value* is a number that JSON and every reader of it can hold; raise a ValueError else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError
    number = int(value) if isinstance(value, int) else float(value)  # numpy's floats are floats, but not to orjson
    return number if isinstance(number, float) or abs(number) < _LARGEST_INTEGER else float(number)


def _fit_message(message: object) -> str:
    """Make text of anything: without what no database stores, cut to what crosses a channel whole, and marked."""
    try:
        text = str(message)
    except Exception as error:  # noqa: BLE001 - a broken __str__ must not fail the job
        return f"<no text: __str__ raised {type(error).__qualname__}>"
    data = text.encode(errors="backslashreplace").replace(b"\0", b"\\0")
    if len(data) <= _LONGEST_MESSAGE:
        return data.decode()
    return data[:_LONGEST_MESSAGE].decode(errors="ignore") + f"[cut from {len(text)} characters]"


def _fit_data(data: Mapping[str, Any]) -> dict[str, Any]:
    """Make JSON data of anything: what cannot be encoded becomes its repr, what is too large is cut and marked."""
    fitted = {str(key): _fit_value(value) for key, value in data.items()}
    if len(json.dumps(fitted)) > _LARGEST_DATA:
        return {key: _fit_message(json.dumps(value))[:1024] for key, value in list(fitted.items())[:50]} | {"cut": True}
    return fitted


def _fit_value(value: object) -> Any:
    try:
        return PLAIN.encode(value).data
    except Exception:  # noqa: BLE001 - not only Unfit: keys may be of classes with a broken __repr__
        try:
            return _fit_message(repr(value))
        except Exception as error:  # noqa: BLE001 - a broken __repr__ must not fail the job
            return f"<no repr: {type(error).__qualname__}>"
