"""What is seen: lines on terminals and in pipes; what workers print and log; the schema; the docs."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import threading
import warnings
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import structlog
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError as SchemaError

from durably import events
from durably.errors import ValidationError
from durably.events import CATALOGUE, Event, Process, as_record
from durably.model import Progress
from durably.telemetry import (
    LogRelay,
    StreamToLog,
    configure_log,
    forward_standard_logging,
    forward_stdout,
    get_logger,
    lost_lines,
)
from durably.telemetry.levels import level_of, levels_of
from durably.telemetry.schema import FILE_NAME, load_schema, make_schema
from durably.telemetry.units import cut_text, human_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOW = datetime(2025, 3, 4, 9, 30, 0, 104212, tzinfo=UTC)
WORKER = Process(host="web-1", pid=4242, role="worker", worker_id="01JNG2Z6S0V5QK3H8T0B4W9F3K")
WHO: dict[str, Any] = {"timestamp": NOW, "sequence": 7, "process": WORKER}
RUN: dict[str, Any] = {**WHO, "run_id": "01JNG30F5M7C1E9R6XZ4Q7TN2A", "job_name": "import_users"}
STEP: dict[str, Any] = {**RUN, "step_name": "fetch", "step_index": 0, "attempt": 1}
EXAMPLES: dict[str, Event] = {
    event.type: event
    for event in (
        events.RunTrigger(**RUN, input={"page": 1}, concurrency_key=None, idempotency_key="k"),
        events.RunCoalesced(**RUN, status="pending", skipped_input=[1], skipped_labels={"a": "b"}),
        events.RunStart(**RUN, input=None, attempt=2, generation=3, interruptions=1, waited=0.0021),
        events.RunProgress(**RUN, progress=Progress(current=3, total=10, message="pages")),
        events.RunComplete(**RUN, output=0, duration=93.5, attempt=1),
        events.RunFail(
            **RUN,
            error="no route",
            error_type="OSError",
            failed_step="fetch",
            duration=None,
            attempt=1,
            interruptions=0,
        ),
        events.RunCancel(**RUN, previous_status="running", origin="caller"),
        events.RunRetry(**RUN, previous_status="failed", attempt=2),
        events.RunRecover(**RUN, lost_worker="01JNG2Z6S0V5QK3H8T0B4W9F3K", reason="died", interruptions=1),
        events.RunRelease(**RUN),
        events.RunDelete(**RUN, reason="purge"),
        events.StepStart(**STEP),
        events.StepComplete(**STEP, output={"rows": [1] * 100}, duration=1.25),
        events.StepFail(**STEP, error="no route", error_type="OSError", duration=0.5),
        events.StepCancel(**STEP, reason="lease_lost"),
        events.LogWrite(**RUN, step_name=None, level="warning", message="slow", data={"ms": 123}),
        events.WorkerStart(**WHO, jobs=("import_users",), concurrency=8),
        events.WorkerHeartbeat(**WHO, running=3, free=5, oldest_step_age=None, loop_lag=0.0004, events_dropped=0),
        events.WorkerStop(**WHO, reason="stopped", released=0),
        events.WorkerChange(**WHO, worker="w", worker_pid=7, pool="default", state="starting", previous=None),
        events.WorkerSuspect(
            **WHO, worker="w", worker_pid=7, reason="hung", seconds=61.5, run_id=None, step_name=None, stacks="File x"
        ),
        events.WorkerBackoff(**WHO, pool="heavy", deaths=3, pause=0.31),
        events.WorkerExit(**WHO, lost_worker="w", exit_code=None, signal="SIGKILL", reason="died", recovered=3),
        events.WorkerError(**WHO, context="handler", severity="warning", error="boom", error_type="KeyError"),
        events.SupervisorStart(**WHO, workers=4, dialect="sqlite", version="0.1.0"),
        events.SupervisorStop(**WHO, reason="signal", exit_code=0),
        events.SupervisorError(**WHO, context="migrate", severity="error", error="boom", error_type="KeyError"),
    )
}
LOG_RECORD: dict[str, Any] = {
    "type": "log",
    "timestamp": NOW.isoformat(),
    "process": {"host": "web-1", "pid": 4242, "role": "worker", "worker_id": None},
    "level": "critical",
    "logger": "urllib3",
    "message": "gave up",
}


def through_channel(record: dict[str, Any]) -> dict[str, Any]:
    decoded: dict[str, Any] = orjson.loads(orjson.dumps(record))
    return decoded


@pytest.fixture(autouse=True)
def _structlog_as_found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    yield
    structlog.reset_defaults()


def lines_of(*records: Any, level: str = "debug", **more: Any) -> list[dict[str, Any]]:
    stream = io.StringIO()
    configure_log(stream, level=level, **more)
    relay = LogRelay()
    for record in records:
        relay(record)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def console_of(*records: Any) -> str:
    stream = io.StringIO()
    configure_log(stream, form="console", level="debug")
    relay = LogRelay()
    for record in records:
        relay(record)
    return stream.getvalue()


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(load_schema())


# --- lines -----------------------------------------------------------------------------------------------


def test_there_is_an_example_of_every_event() -> None:
    assert EXAMPLES.keys() == CATALOGUE.keys()


@pytest.mark.parametrize("kind", CATALOGUE)
@pytest.mark.parametrize("way", [dict, through_channel], ids=["as told", "through a channel"])
def test_an_events_line_has_the_type_as_event_and_the_records_fields(
    kind: str, way: Callable[[dict[str, Any]], dict[str, Any]], validator: Draft202012Validator
) -> None:
    record = way(as_record(EXAMPLES[kind]))

    (line,) = lines_of(record)

    expected = through_channel(as_record(EXAMPLES[kind])) | {"event": kind, "level": level_of(record)}
    del expected["type"]
    assert line == expected
    validator.validate(line)
    assert record["type"] == kind, "the record is as it was"


@pytest.mark.parametrize(
    ("kind", "changes", "level"),
    [
        ("run:complete", {}, "info"),
        ("run:fail", {}, "error"),
        ("step:fail", {}, "warning"),
        ("run:recover", {}, "warning"),
        ("worker:heartbeat", {}, "debug"),
        ("run:progress", {}, "debug"),
        ("worker:exit", {"reason": "silent"}, "warning"),
        ("worker:exit", {"reason": "stopped"}, "info"),
        ("worker:exit", {"reason": "drain"}, "info"),
        ("worker:error", {"severity": "info"}, "info"),
        ("supervisor:error", {"severity": "warning"}, "warning"),
        ("log:write", {"level": "debug"}, "debug"),
    ],
)
def test_the_level_follows_from_the_fact(kind: str, changes: dict[str, Any], level: str) -> None:
    (line,) = lines_of(as_record(EXAMPLES[kind]) | changes)
    assert line["level"] == level
    assert level in levels_of(kind)


def test_lines_below_the_level_are_not_written() -> None:
    records = [as_record(EXAMPLES[kind]) for kind in ("worker:heartbeat", "run:start", "run:recover")]
    assert [line["event"] for line in lines_of(*records, level="warning")] == ["run:recover"]


def test_a_workers_own_logging_has_its_message_as_event(validator: Draft202012Validator) -> None:
    (line,) = lines_of(LOG_RECORD | {"exception": "Traceback", "run_id": "r", "job_name": "j", "step_name": "s"})
    validator.validate(line)
    assert line["event"] == "gave up"
    assert (line["level"], line["logger"], line["exception"], line["step_name"]) == (
        "critical", "urllib3", "Traceback", "s",
    )  # fmt: skip
    assert not {"message", "type"} & line.keys()


@pytest.mark.parametrize(
    ("record", "wrong"),
    [
        ({"type": "run:strat"}, "type: 'run:strat' is no type of event"),
        ({}, "type: None is no type of event"),
        ({"type": ["log"]}, "type: "),
        (17, "not iterable"),
        (None, "not iterable"),
        (
            {k: v for k, v in as_record(EXAMPLES["run:start"]).items() if k != "run_id"},
            "run_id: it is missing",
        ),
        (as_record(EXAMPLES["run:start"]) | {"event": "x"}, "event: .* has no such field"),
        (as_record(EXAMPLES["run:start"]) | {7: "x"}, "7: .* has no such field"),
        (as_record(EXAMPLES["run:start"]) | {"timestamp": "noon"}, "timestamp: Invalid isoformat"),
        (as_record(EXAMPLES["run:start"]) | {"timestamp": 5}, "timestamp: 5 is a int"),
        (as_record(EXAMPLES["run:start"]) | {"process": None}, "process: None is a NoneType"),
        (as_record(EXAMPLES["worker:error"]) | {"severity": "fatal"}, "severity: 'fatal' is none of"),
        ({k: v for k, v in LOG_RECORD.items() if k != "message"}, "message: it is missing"),
        (LOG_RECORD | {"level": []}, "level: "),
        (LOG_RECORD | {"message": {"omitted_bytes": 3}}, "message: "),
    ],
)
def test_a_malformed_record_is_logged_as_an_error_that_names_what_is_wrong(
    record: Any, wrong: str, validator: Draft202012Validator
) -> None:
    (line,) = lines_of(record)
    validator.validate(line)
    assert line["level"] == "error"
    assert line["logger"] == "durably.telemetry"
    assert re.search(wrong, line["event"]), line["event"]


def test_malformed_records_are_counted_and_the_next_one_is_logged() -> None:
    stream = io.StringIO()
    configure_log(stream)
    relay = LogRelay()
    relay({"type": "nothing"})
    relay(as_record(EXAMPLES["run:start"]))
    assert relay.malformed == 1
    assert json.loads(stream.getvalue().splitlines()[1])["event"] == "run:start"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2**70, str(2**70)),
        ("half a \ud83d character", r"'half a \ud83d character'"),
        ({("a", 1): 2}, "{('a', 1): 2}"),
        (Path("/tmp"), "PosixPath('/tmp')"),  # noqa: S108 - only its name
    ],
)
def test_a_value_without_a_json_form_is_shown_as_its_repr(value: Any, shown: str) -> None:
    (line,) = lines_of(as_record(EXAMPLES["run:complete"]) | {"output": value})
    assert line["output"] == shown
    assert line["duration"] == 93.5


def test_what_repr_raises_costs_one_value_and_not_the_line() -> None:
    class Unspeakable:
        def __repr__(self) -> str:
            raise RuntimeError

    (line,) = lines_of(as_record(EXAMPLES["run:complete"]) | {"output": Unspeakable()})
    assert line["event"] == "run:complete"
    assert line["output"] == "<Unspeakable without a repr>"


def test_a_logger_gives_lines_of_the_same_log(validator: Draft202012Validator) -> None:
    stream = io.StringIO()
    configure_log(stream)
    logger = get_logger("durably.cli")
    try:
        raise LookupError("no app")
    except LookupError:
        logger.exception("cannot start", app="main:app")
    line = json.loads(stream.getvalue())
    validator.validate(line)
    assert (line["event"], line["logger"], line["level"], line["app"]) == (
        "cannot start", "durably.cli", "error", "main:app",
    )  # fmt: skip
    assert line["exception"].endswith("LookupError: no app")


@pytest.mark.parametrize("wrong", [{"level": "loud"}, {"form": "xml"}])
def test_a_form_or_level_that_does_not_exist_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        configure_log(io.StringIO(), **wrong)


# --- the stream ------------------------------------------------------------------------------------------


def test_a_line_is_out_when_the_call_returns() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as read, os.fdopen(writer, "w") as stream:
        configure_log(stream)
        LogRelay()(as_record(EXAMPLES["run:start"]))
        assert json.loads(os.read(read.fileno(), 65_536))["event"] == "run:start"


def test_a_broken_pipe_loses_lines_and_counts_them() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        configure_log(stream)
        relay = LogRelay()
        for _ in range(3):
            relay(as_record(EXAMPLES["run:start"]))
        assert lost_lines() == 3
        assert relay.malformed == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_loses_lines_and_counts_them() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as stream:
        configure_log(stream)
        LogRelay()(as_record(EXAMPLES["run:start"]))
        assert lost_lines() == 1


def test_a_closed_stream_loses_lines_and_counts_them() -> None:
    stream = io.TextIOWrapper(io.BytesIO())
    configure_log(stream)
    stream.close()
    LogRelay()(as_record(EXAMPLES["run:start"]))
    assert lost_lines() == 1


def test_a_process_without_standard_output_loses_lines_and_counts_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    configure_log()
    LogRelay()(as_record(EXAMPLES["run:start"]))
    assert lost_lines() == 1


def test_after_a_torn_line_the_next_begins_on_a_line_of_its_own() -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    with os.fdopen(reader, "rb", buffering=0) as read, os.fdopen(writer, "w") as stream:
        configure_log(stream)
        relay = LogRelay()
        long = as_record(EXAMPLES["run:complete"]) | {"output": "x" * 300_000}
        relay(long)  # the pipe holds less than this
        relay(long)
        assert lost_lines() == 2
        while read.read(65_536):
            pass
        relay(as_record(EXAMPLES["run:start"]))
        after = read.read(65_536)
    assert lost_lines() == 2
    first, _, whole = after.partition(b"\n")
    assert first == b""
    assert json.loads(whole)["event"] == "run:start"


def program(code: str) -> subprocess.Popen[bytes]:
    """Begin a program of its own, which does not log before its standard input is closed."""
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_broken_pipe_does_not_change_the_exit_code() -> None:
    code = (
        "import sys; from durably.telemetry import configure_log, get_logger, lost_lines\n"
        "configure_log(); log = get_logger(); sys.stdin.read()\n"
        "for _ in range(1000): log.info('hello')\n"
        "print(lost_lines(), file=sys.stderr)"
    )
    with program(code) as child:
        assert child.stdin
        assert child.stdout
        assert child.stderr
        child.stdout.close()
        child.stdin.close()
        complaint, lost = child.stderr.read().splitlines()
        assert complaint == b"durably: the log takes no lines (Broken pipe); all else goes on, and they are lost"
        assert lost == b"1000"
        assert child.wait() == 0


def test_a_log_that_takes_lines_again_says_how_many_were_lost(capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with os.fdopen(reader, "rb", buffering=0) as read, os.fdopen(writer, "w") as stream:
        configure_log(stream)
        relay = LogRelay()
        long = as_record(EXAMPLES["run:complete"]) | {"output": "x" * 300_000}
        for _ in range(3):
            relay(long)  # the pipe holds less than this
        while read.read(65_536):
            pass
        for _ in range(2):
            relay(as_record(EXAMPLES["run:start"]))
    assert capfd.readouterr().err.splitlines() == [
        "durably: the log takes no lines (who should read it does not); all else goes on, and they are lost",
        "durably: the log takes lines again; 3 were lost",
    ]


def test_what_goes_to_standard_error_complains_of_it_nowhere() -> None:
    code = (
        "import sys; from durably.telemetry import configure_log, get_logger, lost_lines\n"
        "configure_log(sys.stderr); log = get_logger(); sys.stdin.read()\n"
        "for _ in range(3): log.info('hello')\n"
        "print(lost_lines())"
    )
    with program(code) as child:
        assert child.stdin
        assert child.stdout
        assert child.stderr
        child.stderr.close()
        child.stdin.close()
        assert child.stdout.read() == b"3\n"
        assert child.wait() == 0


def test_threads_write_whole_lines() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as read, os.fdopen(writer, "w") as stream:
        configure_log(stream)
        relay = LogRelay()
        record = as_record(EXAMPLES["run:complete"]) | {"output": "x" * 20_000}

        def speak() -> None:
            for _ in range(20):
                relay(record)

        threads = [threading.Thread(target=speak) for _ in range(4)]
        seen: list[bytes] = []
        drain = threading.Thread(target=lambda: seen.extend(read))
        for thread in (drain, *threads):
            thread.start()
        for thread in threads:
            thread.join()
        stream.close()
        drain.join()
    assert [json.loads(line)["event"] for line in seen] == ["run:complete"] * 80


# --- the console -----------------------------------------------------------------------------------------


def on_a_terminal(**more: Any) -> str:
    """Log one event on a terminal and give what the terminal got."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        configure_log(stream, **more)
        LogRelay()(as_record(EXAMPLES["run:complete"]))
        text = os.read(ours, 65_536).decode()
    os.close(ours)
    return text


def test_a_terminal_gets_readable_lines_in_colour() -> None:
    assert re.search(r"\x1b\[32mrun:complete", on_a_terminal())


def test_a_terminal_gets_json_if_asked_for() -> None:
    assert json.loads(on_a_terminal(form="json"))["event"] == "run:complete"


@pytest.mark.parametrize(("variable", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    text = on_a_terminal()
    assert "run:complete" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("run:complete", r"I run:complete     9F3K       import_users Q7TN2A duration=1 min 33 s output=0"),
        (
            "run:start",
            r"I run:start        9F3K       import_users Q7TN2A resumed 2 times attempt=2 interruptions=1 waited=2.1 ms",  # noqa: E501 - a line
        ),
        (
            "run:fail",
            r"E run:fail         9F3K       import_users Q7TN2A failed_step=fetch error=OSError: no route",
        ),
        ("run:progress", r"D run:progress     9F3K       import_users Q7TN2A progress=3/10 pages"),
        (
            "run:recover",
            r"W run:recover      9F3K       import_users Q7TN2A lost_worker=9F3K reason=died interruptions=1",
        ),
        ("log:write", r'W log:write        9F3K       import_users Q7TN2A | slow data={"ms":123}'),
        ("worker:heartbeat", r"D worker:heartbeat 9F3K       running=3 free=5 loop_lag=0.4 ms"),
    ],
)
def test_a_person_sees_who_what_and_the_values_that_matter(kind: str, shown: str) -> None:
    clock = f"{NOW.astimezone():%H:%M:%S}.104"
    text = f"{clock} {shown}\n"
    assert console_of(as_record(EXAMPLES[kind])) == text
    assert console_of(through_channel(as_record(EXAMPLES[kind]))) == text


@pytest.mark.parametrize(("generation", "shown"), [(1, ""), (2, " resumed"), (3, " resumed 2 times")])
def test_a_person_sees_how_often_a_run_was_resumed(generation: int, shown: str) -> None:
    record = as_record(EXAMPLES["run:start"]) | {"generation": generation, "attempt": 1, "interruptions": 0}
    assert console_of(record).endswith(f"import_users Q7TN2A{shown} waited=2.1 ms\n")


def test_a_long_output_is_shortened_and_an_omitted_one_shown_by_its_size() -> None:
    long, omitted = console_of(
        as_record(EXAMPLES["step:complete"]),
        as_record(EXAMPLES["step:complete"]) | {"output": {"omitted_bytes": 20_480}},
    ).splitlines()
    assert long.endswith("…")
    assert len(long.partition("output=")[2]) == 60
    assert omitted.endswith("duration=1.2 s output=(20 KiB)")


# contract 185
def test_an_error_is_shown_whole() -> None:
    reason = "the start failed: " + "why " * 50 + "and where"
    told = as_record(EXAMPLES["supervisor:error"]) | {"context": "gave-up", "error_type": "gave-up", "error": reason}
    assert console_of(told).endswith(f" context=gave-up error={reason}\n")


def test_a_message_cannot_move_the_cursor() -> None:
    text = console_of(LOG_RECORD | {"message": "red \x1b[31m\r\nalert"})
    assert r"| red \x1b[31m\r\nalert" in text
    assert text.count("\n") == 1


def test_a_traceback_follows_its_line_indented() -> None:
    text = console_of(LOG_RECORD | {"exception": "Traceback:\n  here\nKeyError: 'x'"})
    assert text.splitlines()[1:] == ["    Traceback:", "      here", "    KeyError: 'x'"]


def test_a_terminal_that_cannot_show_a_character_gets_its_escape() -> None:
    raw = io.BytesIO()
    configure_log(io.TextIOWrapper(raw, encoding="ascii"), form="console")
    LogRelay()(LOG_RECORD | {"message": "schön"})
    assert rb"| sch\xf6n" in raw.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0004, "0.4 ms"), (0.25, "250.0 ms"), (1, "1.0 s"), (59.94, "59.9 s"), (60, "1 min 0 s"),
        (3_599.9, "59 min 59 s"), (3_720, "1 h 2 min"), (90_061, "1 d 1 h"),
    ],
)  # fmt: skip
def test_durations_are_in_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


# --- the standard library --------------------------------------------------------------------------------

PROCESS = {"host": "web-1", "pid": 4242, "role": "worker", "worker_id": "w1"}


def context() -> dict[str, Any]:
    return {"process": PROCESS, "run_id": "r1", "job_name": "j1", "step_name": None, "secret": "not told"}


@pytest.fixture
def _logging_as_found() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("_logging_as_found")
class TestStandardLogging:
    def test_a_line_becomes_a_record_with_the_context_of_its_speaker(self) -> None:
        sent: list[dict[str, Any]] = []
        forward_standard_logging(sent.append, context)
        before = datetime.now(UTC)
        logging.getLogger("lib.http").warning("attempt %d of %s", 2, "x")
        (record,) = sent
        moment = datetime.fromisoformat(record.pop("timestamp"))
        assert abs((moment - before).total_seconds()) < 5
        assert record == {
            "type": "log",
            "process": PROCESS,
            "run_id": "r1",
            "job_name": "j1",
            "level": "warning",
            "logger": "lib.http",
            "message": "attempt 2 of x",
        }

    def test_a_record_can_be_relayed(self, validator: Draft202012Validator) -> None:
        stream = io.StringIO()
        configure_log(stream)
        forward_standard_logging(LogRelay(), context)
        logging.getLogger("lib").error("broken")
        line = json.loads(stream.getvalue())
        validator.validate(line)
        assert (line["event"], line["level"], line["run_id"]) == ("broken", "error", "r1")

    def test_an_exception_is_forwarded_as_its_traceback(self) -> None:
        sent: list[dict[str, Any]] = []
        forward_standard_logging(sent.append, context)
        try:
            raise KeyError("x")
        except KeyError:
            logging.getLogger("lib").exception("oops")
        assert sent[0]["message"] == "oops"
        assert sent[0]["exception"].startswith("Traceback")
        assert sent[0]["exception"].endswith("KeyError: 'x'")

    def test_a_record_survives_the_channel(self) -> None:
        sent: list[dict[str, Any]] = []
        forward_standard_logging(sent.append, context)
        logging.getLogger("lib").warning("half a \ud83d character, %s", "y" * 50_000)
        assert through_channel(sent[0]) == sent[0]
        assert len(sent[0]["message"].encode()) <= 16_384
        assert sent[0]["message"].startswith(r"half a \ud83d character")
        assert sent[0]["message"].endswith("… (49 KiB in all)")

    def test_inherited_handlers_are_replaced_and_the_level_is_set(self) -> None:
        inherited = io.StringIO()
        logging.getLogger().addHandler(logging.StreamHandler(inherited))
        sent: list[dict[str, Any]] = []
        handler = forward_standard_logging(sent.append, context, logging.WARNING)
        logging.getLogger("lib").info("quiet")
        logging.getLogger("lib").warning("loud")
        assert logging.getLogger().handlers == [handler]
        assert [record["message"] for record in sent] == ["loud"]
        assert inherited.getvalue() == ""

    def test_warnings_are_forwarded(self) -> None:
        sent: list[dict[str, Any]] = []
        forward_standard_logging(sent.append, context)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(capture=False)
            forward_standard_logging(sent.append, context)
            warnings.warn("old way", DeprecationWarning, stacklevel=1)
            logging.captureWarnings(capture=False)
        assert sent[0]["logger"] == "py.warnings"
        assert "DeprecationWarning: old way" in sent[0]["message"]

    def test_arguments_that_do_not_fit_their_message_are_shown_as_they_are(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sent: list[dict[str, Any]] = []
        handler = forward_standard_logging(sent.append, context)
        logging.getLogger("lib").warning("%d rows", "many")
        assert sent[0]["message"].startswith("'%d rows' does not fit ('many',): ")
        assert handler.lost == 0
        assert capsys.readouterr() == ("", "")

    def test_a_send_that_raises_is_counted_and_nobody_hears_of_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        def refuse(_record: dict[str, Any]) -> None:
            raise BrokenPipeError(errno.EPIPE, "gone")

        handler = forward_standard_logging(refuse, context)
        for _ in range(3):
            logging.getLogger("lib").warning("hello")
        assert handler.lost == 3
        assert capsys.readouterr() == ("", "")

    def test_a_send_that_logs_does_not_go_round_for_ever(self) -> None:
        sent: list[dict[str, Any]] = []

        def send(record: dict[str, Any]) -> None:
            logging.getLogger("lib").warning("sending")
            sent.append(record)

        handler = forward_standard_logging(send, context)
        logging.getLogger("lib").warning("hello")
        assert [record["message"] for record in sent] == ["hello"]
        assert handler.lost == 1

    @pytest.mark.parametrize(
        ("number", "level"),
        [
            (5, "debug"),
            (10, "debug"),
            (20, "info"),
            (25, "info"),
            (30, "warning"),
            (40, "error"),
            (50, "critical"),
        ],
    )
    def test_levels_get_our_names(self, number: int, level: str) -> None:
        sent: list[dict[str, Any]] = []
        forward_standard_logging(sent.append, context, 1)
        logging.getLogger("lib").log(number, "x")
        assert sent[0]["level"] == level


# --- standard output -------------------------------------------------------------------------------------


def messages(sent: list[dict[str, Any]]) -> list[str]:
    return [record["message"] for record in sent]


def test_a_print_becomes_a_record_whose_logger_is_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    sent: list[dict[str, Any]] = []
    forward_stdout(sent.append, context)
    print("hello", 3)
    del sent[0]["timestamp"]
    assert sent == [
        {
            "type": "log",
            "process": PROCESS,
            "run_id": "r1",
            "job_name": "j1",
            "level": "info",
            "logger": "stdout",
            "message": "hello 3",
        }
    ]


def test_lines_are_sent_as_they_are_completed() -> None:
    sent: list[dict[str, Any]] = []
    stream = StreamToLog(sent.append, context)
    assert stream.write("one\ntw") == 6
    assert messages(sent) == ["one"]
    stream.write("o\r\n\n  three\n")
    assert messages(sent) == ["one", "two", "  three"]


def test_an_unfinished_line_is_sent_by_flush_and_by_close() -> None:
    sent: list[dict[str, Any]] = []
    stream = StreamToLog(sent.append, context)
    stream.write("working...")
    stream.flush()
    stream.write("done")
    stream.close()
    assert messages(sent) == ["working...", "done"]


def test_a_line_redrawn_with_carriage_returns_is_sent_in_its_last_state() -> None:
    sent: list[dict[str, Any]] = []
    stream = StreamToLog(sent.append, context)
    for percent in range(101):
        stream.write(f"\r{percent} %")
    stream.write("\n")
    assert messages(sent) == ["100 %"]


def test_a_line_longer_than_a_channel_carries_is_sent_in_pieces() -> None:
    sent: list[dict[str, Any]] = []
    stream = StreamToLog(sent.append, context)
    text = "ö" * 20_000
    for character in text:
        stream.write(character)
    stream.write("\n")
    assert max(len(piece.encode()) for piece in messages(sent)) <= 16_384
    assert "".join(messages(sent)) == text


def test_lines_of_several_threads_do_not_mix() -> None:
    sent: list[dict[str, Any]] = []
    stream = StreamToLog(sent.append, context)
    barrier = threading.Barrier(4)

    def speak(letter: str) -> None:
        for _ in range(50):
            barrier.wait()
            for _ in range(5):
                stream.write(letter)
            stream.write("\n")

    threads = [threading.Thread(target=speak, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(messages(sent)) == sorted(letter * 5 for letter in "abcd" for _ in range(50))


def test_the_stream_looks_like_one_to_libraries() -> None:
    stream = StreamToLog(lambda _record: None, context)
    assert stream.encoding == "utf-8"
    assert not stream.isatty()
    assert stream.writable()
    assert not stream.readable()
    with pytest.raises(io.UnsupportedOperation):
        stream.fileno()


def test_a_print_never_fails_a_job() -> None:
    def refuse(_record: dict[str, Any]) -> None:
        raise OSError

    stream = StreamToLog(refuse, context)
    print("hello", file=stream, flush=True)
    assert stream.lost == 1


def test_a_text_within_the_limit_is_not_cut() -> None:
    assert cut_text("ö" * 8_192) == "ö" * 8_192
    assert len(cut_text("ö" * 8_193).encode()) <= 16_384


# --- the schema ------------------------------------------------------------------------------------------


def test_the_shipped_schema_is_what_the_generator_prints() -> None:
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-m", "durably.telemetry.schema"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    shipped = Path(sys.modules[make_schema.__module__].__file__ or "").with_name(FILE_NAME)
    assert shipped.read_text(encoding="utf-8") == printed
    assert load_schema() == make_schema()


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(load_schema())


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"waited": "long"}, "'long' is not of type 'number'"),
        ({"extra": 1}, "'extra' was unexpected"),
        ({"event": "run:strat"}, "'run:strat' is not one of"),
        ({"level": "error"}, "'info' was expected"),
        ({"process": None}, "None is not of type 'object'"),
    ],
)
def test_a_wrong_line_gets_an_error_about_its_own_event(
    changes: dict[str, Any], wrong: str, validator: Draft202012Validator
) -> None:
    (line,) = lines_of(as_record(EXAMPLES["run:start"]))
    (error,) = validator.iter_errors(line | changes)
    assert wrong in error.message


def test_a_line_that_lacks_a_field_is_wrong(validator: Draft202012Validator) -> None:
    (line,) = lines_of(as_record(EXAMPLES["run:start"]))
    for name in line:
        with pytest.raises(SchemaError, match=f"'{name}' is a required property"):
            validator.validate({key: value for key, value in line.items() if key != name})


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("run:trigger", "input"), ("run:complete", "output"), ("step:complete", "output"),
        ("log:write", "data"), ("run:coalesced", "skipped_input"), ("run:fail", "error"),
        ("supervisor:error", "error"),
    ],
)  # fmt: skip
def test_a_large_value_may_be_its_size_only(kind: str, field: str, validator: Draft202012Validator) -> None:
    (line,) = lines_of(as_record(EXAMPLES[kind]) | {field: {"omitted_bytes": 20_000}})
    validator.validate(line)


# --- the docs --------------------------------------------------------------------------------------------

DOCS = (Path(__file__).parent.parent / "docs" / "events.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### `([^`]+)`\n(.*?)(?=^##|\Z)", DOCS, re.MULTILINE | re.DOTALL))


def documented(text: str) -> dict[str, str]:
    """Read the rows of a table of fields: name to type."""
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", text, re.MULTILINE))


def in_words(schema: dict[str, Any]) -> str:  # noqa: PLR0911 - a table
    """Spell a field's schema as the docs do."""
    match schema:
        case {"anyOf": [first, *_]}:
            return in_words(first)
        case {"enum": [*values]}:
            *most, last = ["null" if value is None else f'`"{value}"`' for value in values]
            return f"{', '.join(most)} or {last}"
        case {"$ref": "#/$defs/process"}:
            return "object: host, pid, role, worker_id"
        case {"format": "date-time"}:
            return "time"
        case {"type": [*types]}:
            return " or ".join(types)
        case {"type": "array"}:
            return "list of strings"
        case {"type": "object", "properties": properties}:
            return f"object: {', '.join(properties)}"
        case {"type": "object", "additionalProperties": {"type": "string"}}:
            return "object of strings"
    return str(schema.get("type", "any JSON"))


def test_the_docs_have_a_section_for_every_event_and_no_other() -> None:
    assert SECTIONS.keys() == CATALOGUE.keys()


@pytest.mark.parametrize("kind", CATALOGUE)
def test_the_docs_list_the_fields_of_an_event_with_their_types(kind: str) -> None:
    schema = load_schema()["$defs"][kind]["properties"]
    bases = [base for base in CATALOGUE[kind].__mro__[1:] if is_dataclass(base)]
    shared = {field.name for base in bases for field in fields(base)}
    own = {field.name for field in fields(CATALOGUE[kind])} - shared
    assert documented(SECTIONS[kind]) == {name: in_words(schema[name]) for name in own}


def test_the_docs_list_the_fields_that_events_share() -> None:
    beginning = documented(DOCS[: DOCS.index("\n## Runs")])
    schema = load_schema()["$defs"]["step:start"]["properties"]
    assert beginning == {name: in_words(schema[name]) for name in schema if name not in {"event", "level"}} | {
        "event": "string",
        "level": "string",
    }


@pytest.mark.parametrize("kind", CATALOGUE)
def test_the_docs_tell_whether_an_event_is_domain_and_its_levels(kind: str) -> None:
    (line,) = re.findall(r"^\*(.+)\*$", SECTIONS[kind], re.MULTILINE)
    assert line.startswith("Domain. Told by" if CATALOGUE[kind].domain else "Operational. Told by")
    assert tuple(re.findall(r"`(\w+)`", line.replace("`severity`", ""))) == levels_of(kind)


def test_every_line_in_the_docs_is_valid(validator: Draft202012Validator) -> None:
    lines = [json.loads(line) for line in DOCS.splitlines() if line.startswith('{"timestamp"')]
    for line in lines:
        validator.validate(line)
    assert len({line["event"] for line in lines if "logger" not in line}) >= 5
    assert [line["logger"] for line in lines if "logger" in line] == ["urllib3.connectionpool", "stdout"]
