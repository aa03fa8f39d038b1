"""Asks for runs all through a campaign, so that there is always something to execute, and remembers each."""

from __future__ import annotations

import contextlib
import json
import queue
import random
import threading
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from durably import DatabaseUnavailableError
from durably.ids import new_id
from durably.store.triggers import NewRun, trigger
from tests.chaos.disk import MEMORY_MEBIBYTES
from tests.chaos.history import Asked

if TYPE_CHECKING:
    from durably import Durably

_KEYS: Final = 12
_PAUSE: Final = 0.1
_EXIT_STEPS: Final = 4
# More generations than any run has: it kills every worker that it meets.
_ALWAYS: Final = 1_000_000


class Feeder:
    """
    A thread that triggers.

    Args:
        backlog: Runs that it keeps pending or running.
    """

    def __init__(self, client: Durably, seed: int, backlog: int) -> None:
        self.asked: list[Asked] = []
        self.problem: BaseException | None = None
        self._client, self._chance, self._backlog = client, random.Random(seed), backlog
        self._special: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._feed, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def ask(self, what: str) -> None:
        """Have a run that does something bad triggered before the next ordinary ones."""
        self._special.put(what)

    def stop(self) -> None:
        """Trigger nothing more but what was asked for."""
        self._is_over.set()
        self._thread.join(60)
        if self.problem is not None:
            raise self.problem

    def active(self) -> int:
        """Count the runs that are pending or running."""
        counting = text("SELECT count(*) FROM durably_runs WHERE status IN ('pending', 'running')")
        return self._client.database.read(lambda connection: int(connection.execute(counting).scalar_one()))

    def _feed(self) -> None:
        try:
            while True:
                is_over = self._is_over.wait(_PAUSE)
                self._feed_once(is_over=is_over)
                if is_over:
                    return
        except BaseException as error:
            self.problem = error

    def _feed_once(self, *, is_over: bool) -> None:
        wanted = []
        while not self._special.empty():
            wanted.append(self._bad(self._special.get()))
        with contextlib.suppress(DatabaseUnavailableError):
            wanted += [self._ordinary() for _ in range(0 if is_over else self._backlog - self.active())]
        if wanted:
            self._trigger(wanted)

    def _trigger(self, wanted: list[tuple[Asked, NewRun]]) -> None:
        database = self._client.database
        new = [run for _, run in wanted]
        try:
            database.write(lambda connection: trigger(connection, new, database.dialect.lock), rings=True)
        except DatabaseUnavailableError:
            self.asked += [_unsure(asked) for asked, _ in wanted]
        else:
            self.asked += [asked for asked, _ in wanted]

    def _ordinary(self) -> tuple[Asked, NewRun]:
        chance = self._chance
        key = f"key {chance.randrange(_KEYS)}" if chance.random() < 1 / 2 else None
        steps = chance.randint(2, 12)
        plan = {"steps": steps, "seconds": chance.uniform(0.002, 0.03)}
        return _run(chance.choice(("work", "work-async")), plan, steps, key=key)

    def _bad(self, what: str) -> tuple[Asked, NewRun]:
        chance = self._chance
        dying = {
            "steps": _EXIT_STEPS,
            "seconds": chance.uniform(0.002, 0.03),
            "at": chance.randrange(_EXIT_STEPS),
            "deaths": 1,
        }
        job = chance.choice(("work", "work-async"))
        match what:
            case "exit-in-step":
                return _run(job, dying, _EXIT_STEPS, key=f"key {chance.randrange(_KEYS)}")
            case "exit-in-commit":
                return _run(job, dying | {"after": chance.uniform(0, 0.01)}, _EXIT_STEPS)
            case "poison":
                return _run(job, dying | {"deaths": _ALWAYS}, _EXIT_STEPS, fails_with="TooManyInterruptions")
            case "hang" | "hang-with-gil":
                return _run("hang", {"seconds": 0.0, "keeps_gil": what == "hang-with-gil"}, 1)
            case "overrun":
                return _run("overrun", {"timeout": 0.3}, 0, fails_with="StepTimeoutError")
            case "out-of-memory":
                return _run("devour", {"seconds": 0.0, "mebibytes": MEMORY_MEBIBYTES}, 1)
        raise ValueError(what)


def _run(
    job: str, plan: dict[str, Any], steps: int, *, key: str | None = None, fails_with: str | None = None
) -> tuple[Asked, NewRun]:
    run = new_id()
    asked = Asked(run=run, job=job, steps=steps, key=key, fails_with=fails_with)
    return asked, NewRun(id=run, job_name=job, input=json.dumps(plan), concurrency_key=key)


def _unsure(asked: Asked) -> Asked:
    return Asked(
        run=asked.run, job=asked.job, steps=asked.steps, key=asked.key, fails_with=asked.fails_with, is_sure=False
    )
