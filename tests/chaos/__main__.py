"""
`python -m tests.chaos --minutes 5 --dialect postgresql --seed 1`: kill, stop and hang real workers, and judge it.

    python -m tests.chaos                                   a minute on SQLite
    python -m tests.chaos --minutes 10 --dialect postgresql on a server that it begins
    python -m tests.chaos --dialect postgresql://u:p@host/d on an empty database; all in it is dropped at the end
    python -m tests.chaos --minutes 60 --faults none        four workers and a steady load: nobody may be suspected

The schedule of faults comes from the seed alone and is repeated exactly; what each fault meets depends on the machine.
What it is judged by is kept where a promise was broken, and with --folder; else nothing is left behind.
Exit code 0 if every promise was kept, else 1; 2 for wrong usage; 130 if it was interrupted, and judged nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

import tests.databases
from durably import DurablyError
from durably.settings import Settings
from durably.store.dialects import find_dialect
from durably.testing.dialects import OneDatabase
from durably.testing.dialects import databases as session
from tests.benchmarks.common import machine, versions
from tests.chaos import campaign, checker, figures
from tests.chaos.faults import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.violation import Violation

_SHOWN_OF_A_PROMISE = 5
_WIDTH_OF_A_FILE = 140
_INTERRUPTED = 130
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupt(*_: object) -> None:
    """End the campaign, once: what is being ended is ended, however often that is asked for."""
    for number in _ENDS:
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Put an interrupt off: half a server is nobody's to end."""
    came: list[int] = []
    heeded = [signal.signal(number, lambda number, _: came.append(number)) for number in _ENDS]
    try:
        yield
    finally:
        for number, handler in zip(_ENDS, heeded, strict=True):
            signal.signal(number, handler)
    if came:
        _interrupt()


def main() -> int:
    options = _parse()
    for number in _ENDS:
        signal.signal(number, _interrupt)
    dialect = _choose(options.dialect)
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH_OF_A_FILE
    folder = Path(tempfile.mkdtemp(prefix="durably-chaos-", dir=options.folder))
    is_kept = options.folder is not None
    try:
        outcome = _campaign(_plan(options), folder, console)
        violations = checker.check(outcome.history)
        is_kept |= bool(violations)
    except KeyboardInterrupt:
        console.print("Interrupted: nothing was judged.")
        return _INTERRUPTED
    except BaseException:
        is_kept = True
        console.print(f"What there is of it is in {folder}.", highlight=False)
        raise
    finally:
        if not is_kept:
            shutil.rmtree(folder)
    _report(console, f"{dialect}, seed {options.seed}, {options.minutes:g} minutes", outcome, violations)
    where = f"What it is judged by is in {folder}; t" if is_kept else "T"
    console.print(f"{where}his was seed {options.seed}.", highlight=False)
    if options.json is not None:
        data = {
            "dialect": dialect,
            "plan": asdict(_plan(options)),
            "settings": _plan(options).settings,
            "machine": machine(),
            "versions": versions(),
            "figures": _figures(outcome, violations),
            "faults": figures.faults_by_kind(outcome.history),
            "met nobody": figures.missed_by_kind(outcome.history),
            "not possible here": outcome.hindered,
            "failed": outcome.failures,
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
    parser.add_argument("--minutes", type=_more_than_zero, default=1.0, help="of faults (default 1)")
    parser.add_argument(
        "--dialect",
        type=_dialect,
        default="sqlite",
        metavar="URL",
        help=f"an empty database; or one of its own: {names} (default sqlite)",
    )
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="(default: a random one)")
    parser.add_argument(
        "--pause", type=_more_than_zero, default=1.0, help="seconds between two faults, on average (default 1)"
    )
    parser.add_argument(
        "--faults",
        type=_kinds,
        default=tuple(KINDS),
        metavar="KIND,...",
        help=f"of {', '.join(KINDS)} (default all); or none, for a steady load and the default settings",
    )
    parser.add_argument(
        "--families", type=_one_or_more, help="supervisors on the database (default 2; without faults 1)"
    )
    parser.add_argument("--workers", type=_one_or_more, help="of each (default 2; without faults 4)")
    parser.add_argument("--concurrency", type=_one_or_more, default=4, help="runs at once in each worker (default 4)")
    parser.add_argument("--folder", type=Path, help="where the logs are kept, also if all promises are")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    options = parser.parse_args()
    if options.folder is not None and not options.folder.is_dir():
        parser.error(f"argument --folder: {options.folder} is no directory")
    return options


def _more_than_zero(given: str) -> float:
    number = float(given)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{given} is not above 0")
    return number


def _one_or_more(given: str) -> int:
    number = int(given)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{given} is less than 1")
    return number


def _kinds(given: str) -> tuple[str, ...]:
    kinds = () if given == "none" else tuple(given.split(","))
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"no such fault: {', '.join(unknown)}")
    return kinds


def _dialect(given: str) -> str:
    if "://" not in given and given not in tests.databases.NAMES:
        raise argparse.ArgumentTypeError(f"{given} is neither a URL nor one of {', '.join(tests.databases.NAMES)}")
    return given


def _choose(dialect: str) -> str:
    """Choose this session's databases; give what they are called, without secrets."""
    if "://" not in dialect:
        tests.databases.chosen = dialect
        session.make = tests.databases.maker_of(dialect)
        return dialect
    session.make = lambda: OneDatabase(dialect)
    try:
        make_url(dialect)
        session.databases()
        return find_dialect(Settings(dialect_url=dialect)).safe_url
    except (ArgumentError, DurablyError, pytest.UsageError) as error:
        print(
            f"python -m tests.chaos: error: argument --dialect: {str(error).removeprefix('--url: ')}", file=sys.stderr
        )
        raise SystemExit(2) from None


def _plan(options: argparse.Namespace) -> campaign.Plan:
    return campaign.Plan(
        seed=options.seed,
        seconds=60 * options.minutes,
        pause=options.pause,
        kinds=options.faults,
        families=options.families or (2 if options.faults else 1),
        workers=options.workers or (2 if options.faults else 4),
        concurrency=options.concurrency,
    )


def _campaign(plan: campaign.Plan, folder: Path, console: Console) -> campaign.Outcome:
    try:
        with _undisturbed():
            session.databases()
        return _run(plan, folder, console)
    finally:
        with _undisturbed():
            if session.is_open():
                session.databases().clean()
            session.close()


def _figures(outcome: campaign.Outcome, violations: list[Violation]) -> dict[str, Any]:
    found = figures.figures_of(outcome.history, violations)
    found["seconds until all had ended"] = round(outcome.settled_after, 1)
    return found


def _report(console: Console, title: str, outcome: campaign.Outcome, violations: list[Violation]) -> None:
    _show(console, title, _figures(outcome, violations))
    missed = figures.missed_by_kind(outcome.history)
    _show(
        console,
        "faults",
        {
            f"{kind} ({missed[kind]} met nobody)" if kind in missed else kind: times
            for kind, times in figures.faults_by_kind(outcome.history).items()
        },
    )
    for kind, why in outcome.hindered.items():
        console.print(f"not inflicted: {kind}: {why}", highlight=False)
    for failure, times in Counter(outcome.failures).items():
        console.print(f"did not succeed {times} times: {failure}", highlight=False)
    shown: Counter[str] = Counter()
    for violation in violations:
        shown[violation.promise] += 1
        if shown[violation.promise] <= _SHOWN_OF_A_PROMISE:
            console.print(f"NOT KEPT ({violation.promise}) {violation.subject}: {violation.detail}", highlight=False)


def _run(plan: campaign.Plan, folder: Path, console: Console) -> campaign.Outcome:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), TextColumn("{task.fields[last]}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("chaos", total=1.0, last="")

        told = 0

        def tell(share: float, what: str) -> None:
            nonlocal told
            progress.update(task, completed=share)
            if what:
                progress.update(task, last=what)
            if progress.disable and int(10 * share) > told:
                told = int(10 * share)
                console.print(f"{told * 10} %")

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
