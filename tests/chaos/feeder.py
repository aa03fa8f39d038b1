"""Asks for runs all through a campaign, so that there is always something to execute, and remembers each."""

from __future__ import annotations

import contextlib
import queue
import random
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from durably import DatabaseUnavailableError
from durably.store.triggers import trigger
from tests.chaos.runs import draw_bad

if TYPE_CHECKING:
    from durably import Durably
    from tests.chaos.history import Asked
    from tests.chaos.runs import Mix, Wanted

_PAUSE: Final = 0.1


class Feeder:
    """
    A thread that triggers.

    Args:
        mix: What it asks for; of the runs that faults ask for the nth is the same for the same seed, and of the others.
    """

    def __init__(self, client: Durably, seed: int, mix: Mix) -> None:
        self.asked: list[Asked] = []
        self.problem: BaseException | None = None
        self._client, self._mix = client, mix
        self._chance, self._chance_of_bad = random.Random(seed), random.Random(seed)
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
        self.end()
        if self.problem is not None:
            raise self.problem

    def end(self) -> None:
        """Stop, whatever went wrong."""
        self._is_over.set()
        if self._thread.ident is not None:
            self._thread.join(60)

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
            wanted.append(draw_bad(self._chance_of_bad, self._special.get()))
        with contextlib.suppress(DatabaseUnavailableError):
            missing = 0 if is_over else self._mix.backlog - self.active()
            wanted += [self._mix.draw(self._chance) for _ in range(missing)]
        if wanted:
            self._trigger(wanted)

    def _trigger(self, wanted: list[Wanted]) -> None:
        database = self._client.database
        new = [each.new for each in wanted]
        try:
            database.write(lambda connection: trigger(connection, new, database.dialect.lock), rings=True)
        except DatabaseUnavailableError:
            self.asked += [replace(each.asked, is_sure=False) for each in wanted]
        else:
            self.asked += [each.asked for each in wanted]
