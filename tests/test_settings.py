"""Settings and the instance: where values come from, what is refused, what is not opened, threads and forks."""

import math
import os
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import durably
from durably import (
    Durably,
    ValidationError,
    define_job,
)
from durably.settings import load_settings, parse_duration
from durably.testing.dialects.suite.support import spelled


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder without a pyproject.toml, and without settings in the environment."""
    for name in list(os.environ):
        if name.startswith("DURABLY_") and not name.startswith("DURABLY_TEST"):
            monkeypatch.delenv(name)
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir() if path.exists()}


def test_create_durably_is_the_same_constructor() -> None:
    # contract 1
    assert durably.create_durably is Durably


def test_the_constructor_opens_nothing(elsewhere: Path) -> None:
    # contract 1
    descriptors, threads = open_files(), threading.active_count()
    app = Durably("sqlite:///new.db")
    app.register(define_job("job", lambda step, value: None))
    assert open_files() == descriptors
    assert threading.active_count() == threads
    assert [path.name for path in elsewhere.iterdir()] == ["pyproject.toml"]


def test_an_argument_goes_before_the_environment_before_the_pyproject_before_the_default(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 2
    (elsewhere / "pyproject.toml").write_text(
        '[tool.durably]\ndialect_url = "sqlite:///a.db"\nconcurrency = 2\npolling_interval = "2m"\nworkers = 3\n'
    )
    below = elsewhere / "below" / "it"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    monkeypatch.setenv("DURABLY_CONCURRENCY", "5")
    monkeypatch.setenv("DURABLY_POLLING_INTERVAL", "90s")
    monkeypatch.setenv("DURABLY_HEARTBEAT_INTERVAL", "")
    settings = load_settings(polling_interval=7, concurrency=None)
    assert settings.dialect_url == "sqlite:///a.db"
    assert (settings.polling_interval, settings.concurrency, settings.workers) == (7.0, 5, 3)
    assert settings.heartbeat_interval == 5.0


def test_an_unknown_key_in_the_pyproject_is_named(elsewhere: Path) -> None:
    # contract 2
    (elsewhere / "pyproject.toml").write_text("[tool.durably]\npoling_interval = 3\n")
    with pytest.raises(ValidationError, match="polling_interval") as refused:
        Durably("sqlite:///a.db")
    assert refused.value.field == "poling_interval"


@pytest.mark.parametrize("text", ["[tool.durably\n", "[tool]\ndurably = 3\n"])
def test_a_pyproject_that_cannot_be_read_is_a_validation_error(elsewhere: Path, text: str) -> None:
    # contract 2
    (elsewhere / "pyproject.toml").write_text(text)
    with pytest.raises(ValidationError):
        Durably("sqlite:///a.db")


def test_an_unknown_argument_is_named() -> None:
    # contract 2
    with pytest.raises(ValidationError) as refused:
        Durably("sqlite:///a.db", heartbeat=3)  # type: ignore[call-arg]
    assert refused.value.field == "heartbeat"


def test_the_defaults() -> None:
    # contract 3
    s = load_settings()
    assert (s.polling_interval, s.heartbeat_interval, s.stale_threshold) == (1.0, 5.0, 30.0)
    assert (s.concurrency, s.max_interruptions, s.isolate_after) == (1, 5, 2)
    assert (s.max_payload_bytes, s.preserve_steps, s.retain_runs) == (1_048_576, True, None)
    assert (s.drain_timeout, s.kill_timeout, s.unknown_job_interval) == (30.0, 10.0, 60.0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (5, 5.0),
        (0.25, 0.25),
        (timedelta(minutes=2), 120.0),
        ("90s", 90.0),
        ("1.5 h", 5400.0),
        ("30d", 2_592_000.0),
        ("2m", 120.0),
        ("45", 45.0),
    ],
)
def test_durations_are_numbers_timedeltas_or_text_with_a_unit(value: object, seconds: float) -> None:
    # contract 4
    assert parse_duration(value) == seconds


NO_DURATIONS: list[Any] = [
    *(0, -1, math.nan, math.inf, True, [], 10**400, timedelta(0), timedelta(seconds=-1)),
    *("", "soon", "5 weeks", "-3s", "1e3", "nan", "9" * 400),
]
NO_INTEGERS: list[tuple[str, list[Any]]] = [
    ("concurrency", [0, 1001, -1, True, 1.5, "x", "1.5", []]),
    ("workers", [0, 1001, False]),
    ("max_interruptions", [-1, True, 0.5]),
    ("isolate_after", [-1, False, "-1"]),
    ("max_payload_bytes", [1023, True, "1 MB"]),
]
BAD_SETTINGS: list[tuple[str, Any]] = [
    *(("polling_interval", bad) for bad in NO_DURATIONS),
    *((name, bad) for name, values in NO_INTEGERS for bad in values),
    ("retain_runs", 0),
    ("drain_timeout", "never"),
    ("stale_threshold", 9.9),
    ("hang_threshold", 0.9),
    ("heartbeat_interval", 16),
    ("synchronous", "off"),
    ("preserve_steps", "perhaps"),
]


@pytest.mark.parametrize(("name", "value"), BAD_SETTINGS, ids=spelled)
def test_a_wrong_setting_is_refused_by_name_in_the_constructor(name: str, value: Any) -> None:
    # contract 4, 5
    with pytest.raises(ValidationError) as refused:
        Durably("sqlite:///a.db", **{name: value})
    # A heartbeat that is too slow for the threshold is told on the threshold, which is compared with it.
    assert refused.value.field == ("stale_threshold" if name == "heartbeat_interval" else name)


def test_the_bounds_themselves_are_allowed() -> None:
    # contract 5
    s = load_settings(
        concurrency=1000,
        max_interruptions=0,
        isolate_after=0,
        max_payload_bytes=1024,
        heartbeat_interval=5,
        stale_threshold=10,
        hang_threshold=1,
    )
    assert (s.concurrency, s.max_payload_bytes, s.stale_threshold) == (1000, 1024, 10.0)


def test_without_a_database_url_there_is_none_made_up(elsewhere: Path) -> None:
    # contract 6
    with pytest.raises(ValidationError, match="DURABLY_DIALECT_URL") as refused:
        Durably()
    assert refused.value.field == "dialect_url"
    assert [path.name for path in elsewhere.iterdir()] == ["pyproject.toml"]


@pytest.mark.parametrize("url", ["nosuch://h/db", "oracle://u:secret@h/db", "sqlite+nosuch:///x.db"])
def test_a_url_whose_dialect_is_not_installed_lists_those_that_are(url: str) -> None:
    # contract 6, 7
    with pytest.raises(ValidationError, match=r"installed: .*sqlite") as refused:
        Durably(url)
    assert refused.value.field == "dialect_url"
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["", "no url", "://", "sqlite://", "sqlite:///:memory:", "u:secret@h"])
def test_a_url_that_names_no_database_is_refused(url: str) -> None:
    # contract 6, 7
    with pytest.raises(ValidationError) as refused:
        Durably(url)
    assert refused.value.field == "dialect_url"
    assert "secret" not in str(refused.value)


def test_the_url_is_in_no_repr_of_the_settings() -> None:
    # contract 7
    assert "a.db" not in repr(load_settings(dialect_url="sqlite:///a.db"))
    assert "secret" not in repr(Durably("sqlite:///a.db?password=secret").settings)
