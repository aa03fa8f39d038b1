"""
`python -m tests.chaos --minutes 5 --dialect postgresql --seed 1`: kill, stop and hang real workers, and judge it.

The schedule of faults comes from the seed alone and is repeated exactly; what each fault meets depends on the machine.
Exit code 0 if every promise was kept, else 1; 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import tests.databases
from durably.testing.dialects import OneDatabase
from durably.testing.dialects import databases as session
from tests.benchmarks.common import machine, versions
from tests.chaos import campaign, checker, figures
from tests.chaos.faults import KINDS

_SHOWN_OF_A_PROMISE = 5
_WIDTH_OF_A_FILE = 140


def main() -> int:
    options = _parse()
    _choose(options.dialect)
    plan = campaign.Plan(
        seed=options.seed,
        seconds=60 * options.minutes,
        pause=options.pause,
        kinds=options.faults,
        families=options.families,
        workers=options.workers,
        concurrency=options.concurrency,
    )
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH_OF_A_FILE
    folder = Path(tempfile.mkdtemp(prefix="durably-chaos-", dir=options.folder))
    try:
        outcome = _run(plan, folder, console)
    finally:
        session.databases().clean()
        session.close()
    violations = checker.check(outcome.history)
    found = figures.figures_of(outcome.history, violations)
    found["seconds until all had ended"] = round(outcome.settled_after, 1)
    _show(console, f"{options.dialect}, seed {plan.seed}, {options.minutes:g} minutes", found)
    _show(console, "faults", figures.faults_by_kind(outcome.history))
    for kind in outcome.impossible:
        console.print(f"not inflicted, for want of rights or on this database: {kind}", highlight=False)
    shown: Counter[str] = Counter()
    for violation in violations:
        shown[violation.promise] += 1
        if shown[violation.promise] <= _SHOWN_OF_A_PROMISE:
            console.print(f"NOT KEPT ({violation.promise}) {violation.subject}: {violation.detail}", highlight=False)
    console.print(f"What it is judged by is in {folder}; this was seed {plan.seed}.", highlight=False)
    if options.json is not None:
        data = {
            "dialect": options.dialect,
            "plan": asdict(plan),
            "settings": campaign.SETTINGS,
            "machine": machine(),
            "versions": versions(),
            "figures": found,
            "faults": figures.faults_by_kind(outcome.history),
            "impossible": outcome.impossible,
            "violations": [violation._asdict() for violation in violations],
            "schedule": [fault._asdict() for fault in outcome.schedule],
        }
        options.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return 1 if violations else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(tests.databases.NAMES)
    parser.add_argument("--minutes", type=float, default=1.0, help="for how long faults are inflicted (default 1)")
    parser.add_argument(
        "--dialect", default="sqlite", metavar="URL", help=f"an empty database; or one of its own: {names}"
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="(default: a random one)")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two faults, on average (default 1)")
    parser.add_argument("--faults", type=_kinds, metavar="KIND,...", help=f"of {', '.join(KINDS)} (default all)")
    parser.add_argument("--families", type=int, default=2, help="supervisors on the database (default 2)")
    parser.add_argument("--workers", type=int, default=2, help="of each (default 2)")
    parser.add_argument("--concurrency", type=int, default=4, help="runs at once in each worker (default 4)")
    parser.add_argument("--folder", type=Path, help="where the logs are kept (default: where temporary files are)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    options = parser.parse_args()
    if "://" not in options.dialect and options.dialect not in tests.databases.NAMES:
        parser.error(f"--dialect {options.dialect}: give a URL, or one of {names}")
    return options


def _kinds(given: str) -> tuple[str, ...]:
    kinds = tuple(given.split(","))
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"no such fault: {', '.join(unknown)}")
    return kinds


def _choose(dialect: str) -> None:
    if "://" in dialect:
        session.make = lambda: OneDatabase(dialect)
    else:
        tests.databases.chosen = dialect
        session.make = tests.databases.maker_of(dialect)


def _run(plan: campaign.Plan, folder: Path, console: Console) -> campaign.Outcome:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[last]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("chaos", total=1.0, last="")

        def tell(share: float, what: str) -> None:
            progress.update(task, completed=share)
            if what:
                progress.update(task, last=what)

        return campaign.run(plan, folder, tell)


def _show(console: Console, title: str, found: dict[str, Any]) -> None:
    table = Table(title=title)
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in found.items():
        table.add_row(name, f"{value:,}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
