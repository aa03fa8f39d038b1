"""
The thread that owns a process's writing connection (group commit).

Whoever wants something written hands over an intent and a future. The thread takes all that waits, writes it in one
transaction, commits, and resolves the futures; so under load many runs share a commit, and nothing is less durable.

If it dies at any line, the transaction rolls back and nobody was told otherwise: futures resolve after the commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy.exc import IntegrityError

from durably.errors import UsageError
from durably.store.attempts import Attempts
from durably.store.batch import write_batch
from durably.store.claims import is_any_claimable
from durably.store.database import unavailable
from durably.store.dialects import NotForeseenError
from durably.store.intents import Claim, Completion, Failure, Fenced, Release
from durably.store.pause import Pause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sqlalchemy import Connection

    from durably.store.database import Database
    from durably.store.intents import Intent

Waiter: TypeAlias = "asyncio.Future[Any] | Future[Any] | Callable[[Any, BaseException | None], None] | None"
"""Who is told the answer or the error: a future, a function called in the committer's thread, or nobody."""

_Order: TypeAlias = "tuple[Intent, Waiter]"

# Enough to share one fsync among all runs of a busy worker; a bound on how long one transaction holds the others up.
_LARGEST_BATCH: Final = 512
_FIRST_PAUSE_SECONDS: Final = 0.01
# Of one claim: each is another key that another worker took while this claim waited for it.
_MOST_CONFLICTS: Final = 8
_SECONDS_BETWEEN_RINGS: Final = 0.01
_OTHERS_WAIT_FOR: Final = (Completion, Failure, Release)


class Committer:
    """
    One process's writer.

    Args:
        database: Opened by the thread, not before.
        longest_pause: Seconds between attempts while the database is away.
        on_outage: Called from the thread once per outage, with the error, and with None when it is over.
        worker_id: Whose intents are written.
    """

    def __init__(
        self,
        database: Database,
        *,
        longest_pause: float,
        on_outage: Callable[[BaseException | None], None],
        worker_id: str | None = None,
    ) -> None:
        self._database = database
        self._worker_id = worker_id
        self._on_outage = on_outage
        self._pause = Pause(_FIRST_PAUSE_SECONDS, longest_pause)
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="durably-committer", daemon=True)
        # Owned by the thread; others may look whether it is out.
        self._must_ring = database.dialect.capabilities.wakes == "ring"
        self._rang_at = 0.0
        self._ring_is_due = False
        self._connection: Connection | None = None
        self._is_out = False
        # Written by the thread once, as it ends.
        self._has_ended = False

    @property
    def is_out(self) -> bool:
        """Whether the database is away, as far as the last attempt told."""
        return self._is_out

    def is_writing_thread(self) -> bool:
        """Whether this thread is the one that writes; what waits there for a commit waits for ever."""
        return threading.current_thread() is self._thread

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def submit(self, intent: Intent, waiter: Waiter = None) -> None:
        """
        Hand *intent* over; safe from any thread.

        Args:
            waiter: Resolved after the commit with the intent's answer, or with the error that it alone caused.
        """
        self._orders.put((intent, waiter))
        if self._has_ended:
            self._refuse_what_waits()

    async def ask(self, intent: Intent) -> Any:
        """Hand *intent* over and await its answer."""
        waiter: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.submit(intent, waiter)
        return await waiter

    def ask_blocking(self, intent: Intent) -> Any:
        """Hand *intent* over and wait for its answer, in a thread that is no event loop's."""
        waiter: Future[Any] = Future()
        self.submit(intent, waiter)
        return waiter.result()

    def close(self, timeout: float) -> None:
        """
        Write what was handed over so far and end. What a lost worker's functions hand over later is refused.

        Args:
            timeout: Seconds to wait; with the database away the thread gives up then, and the fence does the rest.
        """
        self._orders.put(None)
        self._thread.join(timeout)
        self._closing.set()

    def _run(self) -> None:
        try:
            self._write_what_comes()
        finally:
            self._has_ended = True
            self._refuse_what_waits()

    def _write_what_comes(self) -> None:
        while True:
            try:
                first = self._orders.get(timeout=_SECONDS_BETWEEN_RINGS if self._ring_is_due else None)
            except queue.Empty:
                self._ring()
                continue
            if first is None:
                break
            batch = [first]
            try:
                self._commit(batch, and_what_waits=True)
            except Exception as fault:  # noqa: BLE001 - one of ours: nobody may wait for an answer that never comes
                self._disconnect()
                for _, waiter in batch:
                    with contextlib.suppress(Exception):  # its own may be the fault
                        _resolve([(waiter, None, fault)])
            if self._ring_is_due and time.monotonic() >= self._rang_at + _SECONDS_BETWEEN_RINGS:
                self._ring()
        if self._ring_is_due:
            self._ring()
        self._disconnect()

    def _refuse_what_waits(self) -> None:
        """Answer those who came too late, as the fence would: nobody may wait for a commit that never comes."""
        with contextlib.suppress(queue.Empty):
            while True:
                if (order := self._orders.get_nowait()) is not None:
                    intent, waiter = order
                    if isinstance(intent, Fenced):
                        _resolve([(waiter, "lease_lost", None)])
                    else:
                        _resolve([(waiter, None, UsageError("the worker has ended; it writes nothing more"))])

    def _ring(self) -> None:
        """Wake those who wait for what was committed; many commits share a ring."""
        self._ring_is_due = False
        self._rang_at = time.monotonic()
        try:
            with self._database.lasting(self._connection) as self._connection:
                self._database.dialect.ring(self._connection)
        except Exception:  # noqa: BLE001 - those who wait look by themselves too
            self._disconnect()

    def _commit(self, batch: list[_Order], *, and_what_waits: bool) -> None:
        """Write *batch*, waiting out what is transient; if it fails for good, find the culprit one by one."""
        attempts: Attempts[list[Any]] = Attempts()
        conflicts = 0
        while True:
            try:
                answers = self._write(batch, attempts, and_what_waits=and_what_waits)
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must be answered
                self._disconnect()
                is_transient = self._database.dialect.is_transient(error)
                if is_transient and not self._closing.is_set():
                    self._wait_out(error)
                    continue
                if is_transient:
                    refusal = unavailable(error, self._database.dialect)
                    _resolve([(waiter, None, refusal) for _, waiter in batch])
                elif len(batch) > 1:
                    for order in batch:
                        self._commit([order], and_what_waits=False)
                elif isinstance(error, IntegrityError) and isinstance(batch[0][0], Claim):
                    # Another worker took the same concurrency key in this moment; now that can be seen.
                    conflicts += 1
                    if conflicts < _MOST_CONFLICTS:
                        continue
                    _resolve([(batch[0][1], [], None)])
                else:
                    _resolve([(batch[0][1], None, unavailable(error, self._database.dialect))])
                return
            self._is_back()
            if self._must_ring and any(isinstance(intent, _OTHERS_WAIT_FOR) for intent, _ in batch):
                self._ring_is_due = True
            _resolve([(waiter, answer, None) for (_, waiter), answer in zip(batch, answers, strict=True)])
            return

    def _write(self, batch: list[_Order], attempts: Attempts[list[Any]], *, and_what_waits: bool) -> list[Any]:
        """Write *batch* in one transaction, with all that came while the right to write was waited for."""

        def write(connection: Connection, *, foresees: bool = True) -> list[Any]:
            if and_what_waits:
                self._take_what_waits(batch)
            return write_batch(connection, [intent for intent, _ in batch], self._worker_id, foresees=foresees)

        if self._connection is None:
            self._database.check()
        with self._database.lasting(self._connection) as self._connection:
            # An attempt that failed has taken in what waited: then there is more to write than the claim.
            if len(batch) == 1 and not attempts.is_in_doubt and self._finds_nothing(batch[0][0]):
                return [[]]
            try:
                return attempts.write(self._transaction, write)
            except NotForeseenError:  # nothing was written; what was refused, only looks in between can tell
                return attempts.write(self._transaction, partial(write, foresees=False))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        assert self._connection is not None
        with self._database.dialect.writing(self._connection, timeout=self._database.timeout):
            yield self._connection

    def _finds_nothing(self, intent: Intent) -> bool:
        """Look before a claim that comes alone, as an idle worker's does: most find nothing, and need not write."""
        assert self._connection is not None
        if not isinstance(intent, Claim) or not self._orders.empty():
            return False
        try:
            return not is_any_claimable(self._connection, intent.jobs)
        finally:
            self._connection.rollback()

    def _take_what_waits(self, batch: list[_Order]) -> None:
        with contextlib.suppress(queue.Empty):
            while len(batch) < _LARGEST_BATCH:
                order = self._orders.get_nowait()
                if order is None:
                    self._orders.put(None)  # the end comes after what it follows
                    return
                batch.append(order)

    def _wait_out(self, error: BaseException) -> None:
        if not self._is_out:
            self._is_out = True
            self._on_outage(unavailable(error, self._database.dialect))
        self._closing.wait(self._pause.next())

    def _is_back(self) -> None:
        if self._is_out:
            self._is_out = False
            self._pause.reset()
            self._on_outage(None)

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception):  # it is being thrown away
                self._connection.close()
            self._connection = None


def _resolve(outcomes: Sequence[tuple[Waiter, Any, BaseException | None]]) -> None:
    """Tell those who wait; those on one event loop with one wake-up of it."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any, BaseException | None]]] = {}
    for waiter, answer, error in outcomes:
        if isinstance(waiter, asyncio.Future):
            by_loop.setdefault(waiter.get_loop(), []).append((waiter, answer, error))
        elif isinstance(waiter, Future):
            _settle(waiter, answer, error)
        elif waiter is not None:
            waiter(answer, error)
    for loop, settled in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits there any more
            loop.call_soon_threadsafe(_settle_all, settled)


def _settle_all(settled: Sequence[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
    for waiter, answer, error in settled:
        _settle(waiter, answer, error)


def _settle(waiter: asyncio.Future[Any] | Future[Any], answer: Any, error: BaseException | None) -> None:
    if waiter.done():
        return
    if error is None:
        waiter.set_result(answer)
    else:
        waiter.set_exception(error)
