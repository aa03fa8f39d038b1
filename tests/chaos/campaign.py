"""A campaign: families of processes under load, faults by a schedule, then quiet until all has ended."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from durably import DatabaseUnavailableError
from durably.testing.dialects.databases import database_of, databases
from tests.chaos.disk import NotHereError, small_disk, small_memory
from tests.chaos.family import Family, until
from tests.chaos.faults import KINDS, Fault, Scene, draw_schedule, hindrances
from tests.chaos.feeder import Feeder
from tests.chaos.history import History, Inflicted, read_log, read_tables, read_witnesses
from tests.chaos.runs import FIERCE, STEADY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.chaos.runs import Mix

Had = TypeVar("Had")
SILENCE: Final = 4.0
SETTINGS: Final[dict[str, Any]] = {
    "polling_interval": 0.2,
    "heartbeat_interval": 0.5,
    "stale_threshold": SILENCE,
    "hang_threshold": 3.0,
    "drain_timeout": 2.0,
    "kill_timeout": 1.0,
    "database_timeout": 3.0,
    # So many deaths meet no run by chance, and poison not for long.
    "max_interruptions": 8,
}
_SECONDS_TO_BEGIN, _SECONDS_TO_STOP = 30, 30
# For an orphan that keeps Python's lock (contract 172a), and some for a machine that has much to do.
_SECONDS_TO_EXIT: Final = (
    SETTINGS["kill_timeout"] + 2 * (SETTINGS["stale_threshold"] + SETTINGS["database_timeout"]) + 5
)
_LOOK_SECONDS: Final = 0.02
# What ten times the runs of a minute have taken, and room for as much again.
_LEAST_MEBIBYTES, _MEBIBYTES_A_SECOND = 256, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    What a campaign is.

    Args:
        seconds: For how long faults are inflicted.
        pause: Between two faults, on average.
        kinds: Of faults; where some are not possible the others come when they would have come. With none of them the
            load is a steady one, and the settings are the defaults.
    """

    seed: int
    seconds: float
    pause: float = 1.0
    kinds: tuple[str, ...] = tuple(KINDS)
    families: int = 2
    workers: int = 2
    concurrency: int = 4

    @property
    def mix(self) -> Mix:
        return FIERCE if self.kinds else STEADY

    @property
    def settings(self) -> dict[str, Any]:
        """What the workers are told that is not the default."""
        return (SETTINGS if self.kinds else {}) | {"concurrency": self.concurrency}

    def schedule(self) -> list[Fault]:
        """Draw it, with the faults that will turn out not to be possible."""
        return draw_schedule(self.seed, self.seconds, self.pause, self.families, self.kinds)


@dataclass(slots=True)
class Outcome:
    """
    What a campaign has left.

    Args:
        schedule: What was to be inflicted, without what could not be.
        hindered: What could not be, and why.
        failures: What did not succeed when it was tried, by kind and error.
    """

    history: History
    schedule: list[Fault]
    settled_after: float
    hindered: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def run(plan: Plan, folder: Path, tell: Callable[[float, str], object] = lambda *_: None) -> Outcome:
    """
    Run a campaign on a database of this session's maker.

    Args:
        folder: An empty one; it keeps the witnesses' lines, the logs, and what was read from the tables.
        tell: Is told what share is done, and what is being done.
    """
    with contextlib.ExitStack() as stack:
        place = folder / "disk"
        place.mkdir()
        mebibytes = int(_LEAST_MEBIBYTES + plan.seconds * _MEBIBYTES_A_SECOND)
        disk = _possibly(stack, small_disk(place, mebibytes))
        url = databases().fresh_url(place, "runs")
        if str(place) not in database_of(url):
            disk = "the database is on no disk of the campaign's own"
        group = _possibly(stack, small_memory()) if plan.kinds else "there is nothing to want it for"
        families = []
        for n in range(plan.families):
            joins = None if isinstance(group, str) or n > 0 else group
            family = Family(folder / f"family-{n}", url, plan.workers, joins, plan.settings)
            stack.callback(family.end)
            families.append(family)
        feeder = Feeder(families[-1].supervised.client, plan.seed, plan.mix)
        stack.callback(feeder.end)
        scene = Scene(families, url, SILENCE, feeder.ask, disk, group)
        stack.callback(scene.end)
        hindered = hindrances(scene, plan.kinds)
        schedule = [fault for fault in plan.schedule() if fault.kind not in hindered]
        for family in families:
            family.begin()
        for family in families:
            if not until(lambda family=family: family.supervised.ready_workers(), _SECONDS_TO_BEGIN):  # type: ignore[misc]
                raise RuntimeError(f"{family.name} does not begin: {family.supervised.errors()}")
        feeder.begin()
        faults, gave_up = _inflict(schedule, plan.seconds, scene, tell)
        tell(1.0, "letting all runs end")
        began = time.monotonic()
        scene.make_good(all_of_it=True)
        feeder.stop()
        until(lambda: not _active(feeder), plan.mix.seconds_to_end)
        settled_after = time.monotonic() - began
        for family in families:
            # One that was begun just now would be ended by the signal, as any program that imports.
            until(lambda family=family: family.has_ended_unasked() or family.takes_signals(), _SECONDS_TO_BEGIN)  # type: ignore[misc]
        gave_up += [family.ending() for family in families if family.has_ended_unasked()]
        exit_codes = [family.stop(_SECONDS_TO_STOP) for family in families if not family.has_ended_unasked()]
        until(lambda: not any(family.survivors() for family in families), _SECONDS_TO_EXIT)
        survivors = [f"{family.name}, pid {process.pid}" for family in families for process in family.survivors()]
        runs, checkpoints = read_tables(families[-1].supervised.client)
        witnesses = [each for family in families for each in read_witnesses(family.supervised.journal)]
        history = History(
            asked=feeder.asked,
            runs=runs,
            checkpoints=checkpoints,
            witnesses=sorted(witnesses, key=lambda each: each.at),
            faults=faults,
            logs={family.name: read_log(family.log) for family in families},
            exit_codes=exit_codes,
            gave_up=gave_up,
            survivors=survivors,
        )
        history.write(folder)
        return Outcome(history, schedule, settled_after, hindered, scene.failures)


def _possibly(stack: contextlib.ExitStack, context: contextlib.AbstractContextManager[Had]) -> Had | str:
    """Enter it, or tell why not."""
    try:
        return stack.enter_context(context)
    except NotHereError as error:
        return str(error)


def _inflict(
    schedule: list[Fault], seconds: float, scene: Scene, tell: Callable[[float, str], object]
) -> tuple[list[Inflicted], list[str]]:
    began = time.monotonic()
    faults: list[Inflicted] = []
    gave_up: list[str] = []
    waiting = list(schedule)
    while (passed := time.monotonic() - began) < seconds or waiting:
        scene.make_good()
        while waiting and waiting[0].at <= passed:
            fault = waiting.pop(0)
            at = time.monotonic()
            faults.append(Inflicted(kind=fault.kind, at=at, pids=tuple(KINDS[fault.kind].inflict(scene, fault))))
            tell(passed / seconds, fault.kind)
        for family in scene.families:
            if family.has_ended_unasked():
                if not family.found_no_database():
                    gave_up.append(family.ending())
                family.is_down = True
                family.begin()
        tell(passed / seconds, "")
        time.sleep(_LOOK_SECONDS)
    return faults, gave_up


def _active(feeder: Feeder) -> int:
    try:
        return feeder.active()
    except DatabaseUnavailableError:
        return 1
