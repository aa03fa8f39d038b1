"""The faults: a schedule drawn from a seed, and how each is inflicted."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psutil
from sqlalchemy import make_url

from durably.testing.dialects import OneDatabase
from durably.testing.dialects.databases import databases

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.chaos.disk import Disk
    from tests.chaos.family import Family

_LEAST_PAUSE, _MOST_PAUSE = 0.3, 1.5
_SECONDS_OF_A_THREAD: Final = 60
_HUPS = 5


class Fault(NamedTuple):
    """
    One fault of a schedule.

    Args:
        at: Seconds after the campaign's begin.
        family: Which one; counted from 0.
        pick: Which of its processes, as a share from 0 to 1 of those that there are.
        seconds: How long it lasts, or after what time it is made good, as a share from 0 to 1 of what its kind allows.
    """

    at: float
    kind: str
    family: int
    pick: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Kind:
    """
    Args:
        weight: How often it comes, in proportion.
        inflict: Does it; gives the processes that it hits.
        hindrance: Tells why it cannot be, on this database or this machine; "" if it can.
    """

    weight: int
    inflict: Callable[[Scene, Fault], list[int]]
    hindrance: Callable[[Scene], str] = lambda _: ""


class Scene:
    """
    What faults are inflicted on.

    Args:
        silence: The stale threshold, in seconds.
        trigger: Asks for a run of the load, by what it does.
        disk: Of the database, or why there is none that can be filled.
        memory: A control group with little memory that a family is in, or why there is none.
    """

    def __init__(
        self,
        families: list[Family],
        url: str,
        silence: float,
        trigger: Callable[[str], None],
        disk: Disk | str,
        memory: Path | str,
    ) -> None:
        self.families, self.url, self.silence, self.trigger = families, url, silence, trigger
        self.disk, self.memory = disk, memory
        self.failures: list[str] = []
        self._due: list[tuple[float, Callable[[], object]]] = []
        self._threads: list[threading.Thread] = []
        self._database = threading.Lock()
        self._is_over = False

    def later(self, seconds: float, act: Callable[[], object]) -> None:
        """Do something after so many seconds, in the thread that inflicts."""
        self._due.append((time.monotonic() + seconds, act))

    def make_good(self, *, all_of_it: bool = False) -> None:
        """Do what is due; at the campaign's end all, and wait for what threads still do."""
        now = time.monotonic()
        due = [each for each in self._due if all_of_it or each[0] <= now]
        self._due = [each for each in self._due if each not in due]
        for _, act in sorted(due, key=lambda each: each[0]):
            act()
        if all_of_it:
            self._wait()

    def end(self) -> None:
        """Wait for what is being done to the database; what waits for its turn is dropped."""
        self._is_over = True
        self._wait()

    def _wait(self) -> None:
        for thread in self._threads:
            thread.join(_SECONDS_OF_A_THREAD)

    def beside(self, kind: str, act: Callable[[], object]) -> None:
        """
        Do to the database, in a thread, what may wait for a process that is stopped; one such thing at a time.

        What fails is noted: a database that was just busy or away is not locked, and that is no reason to end.
        """

        def do() -> None:
            with self._database:
                if self._is_over:
                    return
                try:
                    act()
                except Exception as error:
                    self.failures.append(f"{kind}: {str(error).strip() or type(error).__name__}")

        self._threads.append(threading.Thread(target=do, daemon=True))
        self._threads[-1].start()


def draw_schedule(seed: int, seconds: float, pause: float, families: int, kinds: Sequence[str]) -> list[Fault]:
    """
    Draw what is done when, the same for the same arguments.

    Each kind comes once, in an order of chance, so that a short campaign has them all; then by their weights.

    Args:
        pause: Between two faults, on average.
    """
    chance = random.Random(seed)
    schedule: list[Fault] = []
    at = chance.expovariate(1 / pause)
    weights = [KINDS[kind].weight for kind in kinds]
    first = chance.sample(kinds, len(kinds))
    while kinds and at < seconds:
        kind = first.pop() if first else chance.choices(kinds, weights)[0]
        schedule.append(Fault(at, kind, chance.randrange(families), chance.random(), chance.random()))
        at += chance.expovariate(1 / pause)
    return schedule


def send(number: int, pids: list[int]) -> list[int]:
    """Send a signal; give those whom it reached."""
    reached = []
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            reached.append(pid)
    return reached


def _one(pids: list[int], fault: Fault) -> list[int]:
    return [sorted(pids)[int(fault.pick * len(pids))]] if pids else []


def _kill_worker(scene: Scene, fault: Fault) -> list[int]:
    return send(signal.SIGKILL, _one(scene.families[fault.family].workers(), fault))


def _kill_keeper(scene: Scene, fault: Fault) -> list[int]:
    return send(signal.SIGKILL, scene.families[fault.family].keepers())


def _kill_family(scene: Scene, fault: Fault) -> list[int]:
    family = scene.families[fault.family]
    if family.is_down:
        return []
    killed = send(signal.SIGKILL, family.members())
    family.is_down = True
    scene.later(fault.seconds * scene.silence, family.begin)
    return killed


def _kill_supervisor(scene: Scene, fault: Fault) -> list[int]:
    family = scene.families[fault.family]
    if family.is_down:
        return []
    killed = send(signal.SIGKILL, [family.pid])
    family.is_down = True
    scene.later(fault.seconds, family.begin)  # while its orphans may be there
    return killed


def _pause(scene: Scene, pids: list[int], seconds: float) -> list[int]:
    stopped = send(signal.SIGSTOP, pids)
    # By handles, which do not take another process with the number for it.
    handles = [psutil.Process(pid) for pid in stopped if psutil.pid_exists(pid)]

    def go_on() -> None:
        for handle in handles:
            with contextlib.suppress(psutil.NoSuchProcess):
                handle.resume()

    scene.later(seconds, go_on)
    return stopped


def _pause_worker(scene: Scene, fault: Fault) -> list[int]:
    seconds = _LEAST_PAUSE + fault.seconds * (_MOST_PAUSE - _LEAST_PAUSE)
    return _pause(scene, _one(scene.families[fault.family].workers(), fault), seconds)


def _pause_worker_long(scene: Scene, fault: Fault) -> list[int]:
    seconds = scene.silence * (1 + fault.seconds)
    return _pause(scene, _one(scene.families[fault.family].workers(), fault), seconds)


def _pause_family(scene: Scene, fault: Fault) -> list[int]:
    family = scene.families[fault.family]
    return [] if family.is_down else _pause(scene, family.members(), scene.silence * (1.2 + fault.seconds))


def _hup(scene: Scene, fault: Fault) -> list[int]:
    family = scene.families[fault.family]
    # Before it takes signals, while Python imports it, this one ends it, as it ends any program.
    if not family.takes_signals():
        return []

    def once_more() -> None:
        if family.takes_signals():
            send(signal.SIGHUP, [family.pid])

    for n in range(1, _HUPS):
        scene.later(n * fault.seconds / 2, once_more)
    return send(signal.SIGHUP, [family.pid])


def _lock(scene: Scene, fault: Fault) -> list[int]:
    def hold() -> None:
        with databases().locked(scene.url):
            time.sleep(fault.seconds * scene.silence)

    scene.beside("lock", hold)
    return []


def _restart(scene: Scene, fault: Fault) -> list[int]:
    maker: Any = databases()
    scene.beside("restart-database", lambda: maker.embedded.restart("fast" if fault.pick < 1 / 2 else "immediate"))
    return []


def _fill_disk(scene: Scene, fault: Fault) -> list[int]:
    assert not isinstance(scene.disk, str)
    scene.disk.fill()
    scene.later(fault.seconds * scene.silence, scene.disk.free)
    return []


def _trigger(what: str) -> Callable[[Scene, Fault], list[int]]:
    def ask(scene: Scene, fault: Fault) -> list[int]:
        scene.trigger(what)
        return []

    return ask


def _said(what: object) -> str:
    return what if isinstance(what, str) else ""


def _no_lock(_: Scene) -> str:
    is_given = isinstance(databases(), OneDatabase)
    return "of a database given by its URL only what every dialect has is used, and locks are not" if is_given else ""


def _no_restart(scene: Scene) -> str:
    if getattr(databases(), "embedded", None) is not None:
        return ""
    url = make_url(scene.url)
    is_file = url.get_backend_name() == "sqlite" and not url.host
    return "a file has no server" if is_file else "the server is not the campaign's own"


KINDS: Final[dict[str, Kind]] = {
    "kill-worker": Kind(10, _kill_worker),
    "kill-keeper": Kind(2, _kill_keeper),
    "kill-family": Kind(3, _kill_family),
    "kill-supervisor": Kind(2, _kill_supervisor),
    "pause-worker": Kind(3, _pause_worker),
    "pause-worker-long": Kind(1, _pause_worker_long),
    "pause-family": Kind(1, _pause_family),
    "hup": Kind(2, _hup),
    "lock": Kind(2, _lock, _no_lock),
    "restart-database": Kind(2, _restart, _no_restart),
    "fill-disk": Kind(2, _fill_disk, lambda scene: _said(scene.disk)),
    "exit-in-step": Kind(3, _trigger("exit-in-step")),
    "exit-in-commit": Kind(6, _trigger("exit-in-commit")),
    "poison": Kind(1, _trigger("poison")),
    "hang": Kind(1, _trigger("hang")),
    "hang-with-gil": Kind(1, _trigger("hang-with-gil")),
    "overrun": Kind(1, _trigger("overrun")),
    "out-of-memory": Kind(1, _trigger("out-of-memory"), lambda scene: _said(scene.memory)),
}


def hindrances(scene: Scene, kinds: Sequence[str]) -> dict[str, str]:
    """Give those of some kinds that this database or this machine cannot have, and why."""
    found = {kind: KINDS[kind].hindrance(scene) for kind in kinds}
    return {kind: why for kind, why in found.items() if why}
