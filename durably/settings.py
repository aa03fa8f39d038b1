"""One frozen Settings: from keyword arguments, the environment and pyproject.toml; checked once, passed whole."""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from functools import cache
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import pydantic
from pydantic import AfterValidator, BeforeValidator, TypeAdapter

from durably.errors import ValidationError

ENVIRONMENT_PREFIX: Final = "DURABLY_"
_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_LONGEST_SECONDS: Final = 100 * 365 * 86_400  # in microseconds, and as a timeout of the system, it fits everywhere
_UNIT_BYTES: Final = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_SIZE_WITH_UNIT: Final = re.compile(r"(\d+)\s*([KMGkmg]?)")
_MOST_WORKERS: Final = 1000
SHORTEST_HANG_SECONDS: Final = 1.0
"""An event loop is probed twice a second, so that it stands still shows no sooner."""
POOL_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NUMBER_WITH_UNIT: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")


def parse_duration(value: object) -> float:
    """
    Read a duration.

    Args:
        value: Seconds as a number, a timedelta, or digits with one of the units s, m, h, d ("90s", "30d").

    Returns:
        Seconds, above 0, and no more than 100 years.

    Raises:
        ValueError: The value is zero, negative, not finite, too long or unreadable.
    """
    match value:
        case bool():
            seconds = math.nan
        case int() | float():
            seconds = float(value) if abs(value) <= _LONGEST_SECONDS else math.inf  # or no float holds it
        case timedelta():
            seconds = value.total_seconds()
        case str() if found := _NUMBER_WITH_UNIT.fullmatch(value.strip()):
            seconds = float(found[1]) * _UNIT_SECONDS[found[2] or "s"]
        case _:
            seconds = math.nan
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise ValueError(
            f"{value!r} is no duration: give seconds above 0, a timedelta, or digits with a unit such as '90s' or "
            "'30d', and no more than 100 years"
        )
    return seconds


def parse_timeout(timeout: object) -> float | None:
    """
    Read how long a job or a step may take: a duration, or None for ever.

    Raises:
        ValidationError: On `timeout`.
    """
    if timeout is None:
        return None
    try:
        return parse_duration(timeout)
    except ValueError as error:
        raise ValidationError("timeout", str(error)) from None


def check_timeout(timeout: object) -> None:
    """
    Check what somebody wants to wait at most: seconds from 0 to 100 years, or None for ever.

    Raises:
        ValidationError: On `timeout`.
    """
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 <= timeout <= _LONGEST_SECONDS:
        raise ValidationError("timeout", f"{timeout!r} is no number of seconds from 0, or longer than 100 years")


def _integer(value: object) -> int:
    """Accept an int, or digits as the environment gives them; a bool is no integer."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    raise ValueError(f"{value!r} is no integer")


def parse_size(value: object) -> int:
    """
    Read a size in bytes: an integer, or digits with K, M or G, which are powers of 1,024 as systemd's are.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, str) and (found := _SIZE_WITH_UNIT.fullmatch(value.strip())):
        return int(found[1]) * _UNIT_BYTES[found[2].upper()]
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{value!r} is no size: give bytes, or digits with K, M or G such as '512M'")


def parse_pools(value: object) -> dict[str, int] | None:
    """
    Read how many workers each pool has.

    Args:
        value: A mapping, "NAME:N" with commas between them, or a list of such; None for none.

    Raises:
        ValueError: It is none of these, a pool has no usable name or stands twice, or N is not 1 to 1,000.
    """
    if value is None:
        return None
    if isinstance(value, str):
        value = value.split(",")
    entries = list(value.items()) if isinstance(value, Mapping) else [_split_pool(entry) for entry in _as_list(value)]
    pools: dict[str, int] = {}
    for name, count in entries:
        if not isinstance(name, str) or not POOL_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no pool's name: 1 to 64 letters, digits, '-', '_' or '.'")
        if name in pools:
            raise ValueError(f"the pool {name!r} is given twice")
        pools[name] = _integer(count)
        if not 1 <= pools[name] <= _MOST_WORKERS:
            raise ValueError(f"the pool {name!r} has {count} workers: an integer from 1 to {_MOST_WORKERS}")
    if not pools:
        raise ValueError("there is no pool in it")
    return pools


def _as_list(value: object) -> list[object]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{value!r} names no pools: give such as 'default:4,heavy:1'")  # noqa: TRY004 - as pydantic wants
    return list(value)


def _split_pool(entry: object) -> tuple[object, object]:
    if not isinstance(entry, str) or ":" not in entry:
        raise ValueError(f"{entry!r} is not NAME:N")
    name, _, count = entry.strip().partition(":")
    return name, count


def _between(low: int, high: float = math.inf) -> AfterValidator:
    def check(value: int) -> int:
        if not low <= value <= high:
            upper = "" if high == math.inf else f" to {high:.0f}"
            raise ValueError(f"{value} is out of range: an integer from {low}{upper}")
        return value

    return AfterValidator(check)


def _check_hang(seconds: float) -> float:
    if seconds < SHORTEST_HANG_SECONDS:
        raise ValueError(f"{seconds:g} s is less than {SHORTEST_HANG_SECONDS:g} s; a loop is looked at twice a second")
    return seconds


Duration = Annotated[float, BeforeValidator(parse_duration)]
Integer = BeforeValidator(_integer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    What can be set. Durations are seconds, a timedelta, or text such as "90s".

    Args:
        dialect_url: The database, as an SQLAlchemy URL. There is no default.
        app: Where `durably` finds the application: "module:attribute", a module, or a file.
        polling_interval: How often an idle worker looks for runs when nothing wakes it.
        heartbeat_interval: How often a worker gives a sign of life.
        stale_threshold: Silence after which a worker counts as dead; at least 2 * heartbeat_interval.
        hang_threshold: How long a worker's event loop may stand still before the worker is replaced; from 1 s.
        concurrency: Runs that one worker executes at once, 1 to 1,000.
        workers: Worker processes of a supervisor, 1 to 1,000; by default one for each usable core.
        pools: Worker processes for each pool of jobs, as {"default": 4, "heavy": 1} or "default:4,heavy:1"; *workers*
            is the short form for the pool "default", and counts where that is not among them.
        max_runs_per_worker: Runs that a worker completes or fails before it is replaced; None for no bound.
        max_memory_per_worker: Resident memory at which a worker is replaced, in bytes or such as "512M" (K, M and G are
            powers of 1,024); None for no bound. Only where the system has /proc.
        max_worker_age: How old a worker becomes before it is replaced; None for no bound.
        max_interruptions: Lost workers that a run survives, from 0; at one more it fails.
        isolate_after: Interruptions from which a run executes alone in its worker, from 0.
        max_payload_bytes: Largest encoded input, output or step output, from 1,024.
        preserve_steps: Keep step outputs after the run has completed.
        retain_runs: Purge terminal runs of this age; None keeps them for ever.
        drain_timeout: How long stopping waits for held runs before it releases them.
        kill_timeout: How long after the release what still runs is killed.
        unknown_job_interval: How often pending runs of unknown jobs are reported.
        database_timeout: How long a caller's call keeps trying while the database is busy or away.
        synchronous: SQLite: "normal" survives a killed process, "full" also a power cut.
        health_port: Where a supervisor answers over HTTP about its health, and gives metrics; 0 for any free port, None
            for nowhere.
        health_host: The address that it does so at; "0.0.0.0" for all.
    """

    dialect_url: str | None = field(default=None, repr=False)
    app: str | None = None
    polling_interval: Duration = 1.0
    heartbeat_interval: Duration = 5.0
    stale_threshold: Duration = 30.0
    hang_threshold: Annotated[Duration, AfterValidator(_check_hang)] = 60.0
    concurrency: Annotated[int, _between(1, 1000), Integer] = 1
    workers: Annotated[int | None, _between(1, 1000), Integer] = None
    pools: Annotated[dict[str, int] | None, BeforeValidator(parse_pools)] = None
    max_runs_per_worker: Annotated[int | None, _between(1), Integer] = None
    max_memory_per_worker: Annotated[int | None, _between(1), BeforeValidator(parse_size)] = None
    max_worker_age: Duration | None = None
    max_interruptions: Annotated[int, _between(0), Integer] = 5
    isolate_after: Annotated[int, _between(0), Integer] = 2
    max_payload_bytes: Annotated[int, _between(1024), Integer] = 1_048_576
    preserve_steps: bool = True
    retain_runs: Duration | None = None
    drain_timeout: Duration = 30.0
    kill_timeout: Duration = 10.0
    unknown_job_interval: Duration = 60.0
    database_timeout: Duration = 10.0
    synchronous: Literal["normal", "full"] = "normal"
    health_port: Annotated[int | None, _between(0, 65_535), Integer] = None
    health_host: str = "127.0.0.1"


_NAMES: Final = frozenset(f.name for f in fields(Settings))


def load_settings(**given: Any) -> Settings:
    """
    Gather the settings: keyword arguments, else DURABLY_<NAME>, else [tool.durably], else the default.

    Args:
        given: Settings by name; None means not given.

    Returns:
        The settings, checked.

    Raises:
        ValidationError: A value is wrong, or pyproject.toml has an unknown key; `field` is the setting.
    """
    values = _from_pyproject(Path.cwd()) | _from_environment() | {k: v for k, v in given.items() if v is not None}
    if unknown := sorted(values.keys() - _NAMES):
        raise ValidationError(unknown[0], f"no such setting; there are {', '.join(sorted(_NAMES))}")
    try:
        settings = _adapter().validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors(include_input=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        raise ValidationError(str(first["loc"][0]), message) from None
    if settings.stale_threshold < 2 * settings.heartbeat_interval:
        raise ValidationError(
            "stale_threshold",
            f"{settings.stale_threshold:g} s is less than twice heartbeat_interval "
            f"({settings.heartbeat_interval:g} s); a worker must be able to miss a beat",
        )
    return settings


def change_settings(settings: Settings, **changes: Any) -> Settings:
    """
    Copy *settings* with some values replaced, checked like the first ones.

    Args:
        settings: The settings to start from.
        changes: Settings by name; None leaves the value as it is.

    Raises:
        ValidationError: A value is wrong; `field` is the setting.
    """
    kept = {name: getattr(settings, name) for name in _NAMES}
    return load_settings(**kept | {k: v for k, v in changes.items() if v is not None})


def purpose_of(name: str) -> str:
    """Give what `Settings` says about one of them; empty where Python was told to keep no docstrings."""
    found = re.search(rf"^    {name}: (.+(?:\n {{8}}.+)*)", cleandoc(Settings.__doc__ or ""), re.MULTILINE)
    return "" if found is None else " ".join(found[1].split())


def default_of(name: str) -> str | None:
    """Spell the default of a setting for people; None if there is none."""
    default = next(f.default for f in fields(Settings) if f.name == name)
    if default is None:
        return None
    return f"{default:g} s" if isinstance(default, float) else str(default)


def find_sources() -> dict[str, str]:
    """
    Tell where each setting that is set outside the program comes from.

    Returns:
        By name, the environment's variable, or the path of the pyproject.toml.

    Raises:
        ValidationError: pyproject.toml cannot be read.
    """
    path = _find_pyproject(Path.cwd())
    variables = {name: ENVIRONMENT_PREFIX + name.upper() for name in _from_environment()}
    return {name: str(path) for name in _from_pyproject(Path.cwd())} | variables


def find_unknown_variables() -> list[str]:
    """List the environment's variables that look like settings of durably's, and are none."""
    known = {ENVIRONMENT_PREFIX + name.upper() for name in _NAMES}
    return sorted(name for name in os.environ if name.startswith(ENVIRONMENT_PREFIX) and name not in known)


@cache
def _adapter() -> TypeAdapter[Settings]:
    return TypeAdapter(Settings)


def _from_environment() -> dict[str, str]:
    found = {name: os.environ.get(ENVIRONMENT_PREFIX + name.upper()) for name in _NAMES}
    return {name: value for name, value in found.items() if value}


def _from_pyproject(folder: Path) -> dict[str, Any]:
    """Read [tool.durably] of the nearest pyproject.toml at or above *folder*."""
    path = _find_pyproject(folder)
    if path is None:
        return {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("durably", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValidationError("pyproject.toml", f"{path} cannot be read: {error}") from error
    if not isinstance(table, dict):
        raise ValidationError("tool.durably", f"in {path} it is no table")
    return table


def _find_pyproject(folder: Path) -> Path | None:
    return next((p for d in (folder, *folder.parents) if (p := d / "pyproject.toml").is_file()), None)
