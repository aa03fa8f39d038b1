"""What all benchmarks share: figures over rounds, their table, their JSON, and the facts about the machine."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

_LIBRARIES = ("durably", "sqlalchemy", "structlog", "orjson", "pydantic", "multiprocess")
_WIDTH_OF_A_FILE = 140
_NO_SETTINGS = ("measure", "json", "folder", "name")


@dataclass(slots=True)
class Figure:
    """
    One thing measured in every round.

    Args:
        reference: The figure, measured in the same rounds, that it is divided by; None if it has none.
    """

    name: str
    unit: str
    reference: Figure | None = None
    values: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        if self.reference is None:
            return []
        pairs = zip(self.values, self.reference.values, strict=True)
        return [value / reference for value, reference in pairs if reference]


class Report:
    """The figures of one benchmark, filled round by round."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name = name
        self.settings = {k: v for k, v in vars(options).items() if k not in _NO_SETTINGS}
        self.figures: dict[str, Figure] = {}
        self.rounds: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._began = datetime.now(UTC)
        self._load = os.getloadavg()

    def add(self, name: str, unit: str, value: float, *, over: str | None = None) -> None:
        """Add a round's value; *over* names the figure it is to be divided by, added before it in the round."""
        if name not in self.figures:
            reference = None if over is None else self.figures[over]
            self.figures[name] = Figure(name, unit, reference)
        self.figures[name].values.append(value)

    def show(self) -> None:
        table = Table(title=f"{self.name}: median (min to max) over rounds")
        table.add_column("measured", no_wrap=True)
        for heading in ("median", "min", "max", "unit", "ratio", "ratio min to max", "rounds"):
            table.add_column(heading, justify="left" if heading == "unit" else "right")
        for figure in self.figures.values():
            low_to_high = f"{_short(min(figure.ratios))} to {_short(max(figure.ratios))}" if figure.ratios else ""
            table.add_row(
                figure.name,
                *(_short(of(figure.values)) for of in (statistics.median, min, max)),
                figure.unit,
                _short(statistics.median(figure.ratios)) if figure.ratios else "",
                low_to_high,
                str(len(figure.values)),
            )
        console = Console()
        if not console.is_terminal:
            console.width = _WIDTH_OF_A_FILE
        console.print(table)
        for note in self.notes:
            console.print(note, highlight=False)

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(self._as_data(), indent=2) + "\n", encoding="utf-8")

    def _as_data(self) -> dict[str, Any]:
        return {
            "benchmark": self.name,
            "date": self._began.isoformat(timespec="seconds"),
            "machine": machine() | {"load_before": self._load},
            "versions": versions(),
            "settings": self.settings,
            "figures": [
                {
                    "name": figure.name,
                    "unit": figure.unit,
                    "over": figure.reference and figure.reference.name,
                    "median": statistics.median(figure.values),
                    "min": min(figure.values),
                    "max": max(figure.values),
                    "ratio": statistics.median(figure.ratios) if figure.ratios else None,
                    "values": figure.values,
                }
                for figure in self.figures.values()
            ],
            "rounds": self.rounds,
            "notes": self.notes,
        }


def quantile(values: Iterable[float], share: float) -> float:
    """Give the smallest value that at least *share* of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def machine() -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
    }


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in _LIBRARIES},
    }


def commas(cast: type, allowed: Sequence[Any] = ()) -> Any:
    """Make an option's type of values separated by commas."""

    def parse(text: str) -> list[Any]:
        values = [cast(part) for part in text.split(",")]
        if allowed and (wrong := [value for value in values if value not in allowed]):
            raise ValueError(wrong)
        return values

    return parse


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
