"""A campaign: families of processes under load, faults by a schedule, then quiet until all has ended."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from durably import DatabaseUnavailableError
from durably.testing.dialects.databases import database_of, databases
from tests.chaos.disk import small_disk, small_memory
from tests.chaos.family import Family, until
from tests.chaos.faults import KINDS, Fault, Scene, draw_schedule, possible_kinds
from tests.chaos.feeder import Feeder
from tests.chaos.history import History, Inflicted, read_log, read_tables, read_witnesses

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SILENCE: Final = 4.0
SETTINGS: Final[dict[str, Any]] = {
    "polling_interval": 0.2,
    "heartbeat_interval": 0.5,
    "stale_threshold": SILENCE,
    "hang_threshold": 3.0,
    "drain_timeout": 2.0,
    "kill_timeout": 1.0,
    # So many deaths meet no run by chance, and poison not for long.
    "max_interruptions": 8,
}
_SECONDS_TO_BEGIN, _SECONDS_TO_SETTLE, _SECONDS_TO_STOP = 30, 180, 30
# An orphan has a second to notice, and kill_timeout.
_SECONDS_TO_EXIT: Final = 5
_LOOK_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    What a campaign is.

    Args:
        seconds: For how long faults are inflicted.
        pause: Between two faults, on average.
        kinds: Of faults; of those that are not possible here none comes. None for all.
        backlog: Runs that are kept pending or running.
    """

    seed: int
    seconds: float
    pause: float = 1.0
    kinds: tuple[str, ...] | None = None
    families: int = 2
    workers: int = 2
    concurrency: int = 4
    backlog: int = 60


@dataclass(slots=True)
class Outcome:
    """What a campaign has left."""

    history: History
    schedule: list[Fault]
    settled_after: float
    impossible: list[str] = field(default_factory=list)


def run(plan: Plan, folder: Path, tell: Callable[[float, str], object] = lambda *_: None) -> Outcome:
    """
    Run a campaign on a database of this session's maker.

    Args:
        folder: An empty one; it keeps the witnesses' lines, the logs, and what was read from the tables.
        tell: Is told what share is done, and what is being done.
    """
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(small_disk(folder / "disk"))
        url = databases().fresh_url(folder / "disk", "runs")
        group = stack.enter_context(small_memory())
        families = []
        for n in range(plan.families):
            settings = SETTINGS | {"concurrency": plan.concurrency}
            family = Family(folder / f"family-{n}", url, plan.workers, group if n == 0 else None, settings)
            stack.callback(family.end)
            families.append(family)
        feeder = Feeder(families[-1].supervised.client, plan.seed, plan.backlog)
        is_a_file = str(folder) in str(database_of(url))
        scene = Scene(
            families, url, SILENCE, feeder.ask, disk if is_a_file else None, has_little_memory=group is not None
        )
        possible = list(possible_kinds(scene))
        kinds = [kind for kind in plan.kinds or KINDS if kind in possible]
        schedule = draw_schedule(plan.seed, plan.seconds, plan.pause, plan.families, kinds)
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
        until(lambda: not _active(feeder), _SECONDS_TO_SETTLE)
        settled_after = time.monotonic() - began
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
        wanted = plan.kinds or tuple(KINDS)
        return Outcome(history, schedule, settled_after, [kind for kind in wanted if kind not in possible])


def _inflict(
    schedule: list[Fault], seconds: float, scene: Scene, tell: Callable[[float, str], object]
) -> tuple[list[Inflicted], list[str]]:
    began = time.monotonic()
    faults: list[Inflicted] = []
    gave_up: list[str] = []
    waiting = list(schedule)
    while (passed := time.monotonic() - began) < seconds:
        scene.make_good()
        while waiting and waiting[0].at <= passed:
            fault = waiting.pop(0)
            at = time.monotonic()
            faults.append(Inflicted(kind=fault.kind, at=at, pids=tuple(KINDS[fault.kind].inflict(scene, fault))))
            tell(passed / seconds, fault.kind)
        for family in scene.families:
            if family.has_ended_unasked():
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
