"""What tests of several subjects share."""

import re
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import psutil
import pytest
from sqlalchemy import Row, text

from durably import Durably, Event, Run, StepContext
from durably.ids import new_id
from durably.store import claims, workers
from durably.store.batch import write_batch
from durably.store.claims import ClaimedRun, Company
from durably.store.dialects import NotForeseenError
from durably.store.intents import Intent
from durably.testing.dialects.databases import databases

T = TypeVar("T")
Body = Callable[[Any, Any], Awaitable[Any]]
"""A job's function as tests write it for both faces: `async def`, awaiting only the step."""


class Wrap(Protocol):
    """Makes a job function, `def` or `async def`, of a body."""

    def __call__(self, body: Body) -> Callable[[Any, Any], Any]: ...


class AppMaker(Protocol):
    """Makes an instance on the test's database."""

    def __call__(self, *, migrated: bool = True, **settings: Any) -> Durably: ...


Lock = Callable[[], AbstractContextManager[None]]


def eventually(condition: Callable[[], T], timeout: float = 10.0) -> T:
    """
    Wait until *condition* gives something true, and return it; fail with the last value.

    Args:
        timeout: Seconds.
    """
    deadline = time.monotonic() + timeout
    pause = 0.002
    while not (value := condition()):
        if time.monotonic() >= deadline:
            pytest.fail(f"still {value!r} after {timeout:g} s")
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)
    return value


def hear(app: Durably, event_type: str = "*") -> list[Any]:
    """Collect what *app* tells from now on."""
    heard: list[Any] = []
    app.on(event_type, heard.append)
    return heard


def types(events: Sequence[Event], *prefixes: str) -> list[str]:
    """Name the events' types, those with one of *prefixes* if any is given."""
    return [event.type for event in events if not prefixes or event.type.startswith(prefixes)]


def read(app: Durably, run: Run | str) -> Run:
    """Look up a run that exists."""
    found = app.get_run(run if isinstance(run, str) else run.id)
    assert found is not None
    return found


def sql(app: Durably, statement: str, **values: Any) -> Sequence[Row[Any]]:
    """Execute one statement in a transaction of its own, past all of durably's conditions."""

    def execute(connection: Any) -> Sequence[Row[Any]]:
        result = connection.execute(text(statement), values)
        return result.all() if result.returns_rows else ()

    return app.database.write(execute)


def add_worker(app: Durably, *jobs: str, silent_for: float = 0.0, process_key: str | None = None) -> str:
    """
    Insert the row of a living worker without a process behind it.

    Args:
        silent_for: Seconds since its last heartbeat.
    """
    worker = workers.NewWorker(
        id=new_id(), host="elsewhere", pid=1, process_key=process_key, jobs=jobs, concurrency=100
    )
    app.database.write(lambda connection: workers.register(connection, worker))
    if silent_for:
        make_silent(app, worker.id, silent_for)
    return worker.id


def make_silent(app: Durably, worker_id: str, seconds: float) -> None:
    """Move a worker's last heartbeat into the past."""
    age = int(seconds * 1e6)
    sql(
        app,
        "UPDATE durably_workers SET heartbeat_at = heartbeat_at - :age WHERE id = :id",
        age=age,
        id=worker_id,
    )


def count_writes(app: Durably, patch: pytest.MonkeyPatch) -> list[object]:
    """Collect an entry for each write transaction that *app* begins from now on."""
    begun: list[object] = []
    writing = app.database.dialect.writing

    def counted(connection: Any, *, timeout: float) -> Any:
        begun.append(connection)
        return writing(connection, timeout=timeout)

    patch.setattr(app.database.dialect, "writing", counted)
    return begun


def worker_state(app: Durably, worker_id: str) -> str:
    """Read the state in a worker's row."""
    return str(sql(app, "SELECT state FROM durably_workers WHERE id = :id", id=worker_id)[0].state)


def claim(
    app: Durably, worker_id: str, *jobs: str, limit: int = 1, company: Company = "alone", isolate_after: int = 2
) -> list[ClaimedRun]:
    """Claim as a worker does, in one write transaction; by default runs of all jobs that *app* knows."""
    return app.database.write(
        lambda connection: claims.claim(
            connection,
            worker_id=worker_id,
            jobs=jobs or app.registry.names(),
            limit=limit,
            isolate_after=isolate_after,
            company=company,
        )
    )


def write(app: Durably, *intents: Intent) -> list[Any]:
    """Write intents as the committer does, in one transaction; give their answers."""
    try:
        return app.database.write(lambda connection: write_batch(connection, intents, foresees=True))
    except NotForeseenError:
        return app.database.write(lambda connection: write_batch(connection, intents))


def recover(
    app: Durably, worker_id: str, *, max_interruptions: int = 5, interrupts: bool = True
) -> tuple[bool, list[workers.RecoveredRun]]:
    """Declare a worker dead and recover its runs, in one write transaction."""
    return app.database.write(
        lambda connection: workers.recover(
            connection,
            worker_id,
            ending="was killed by SIGKILL",
            max_interruptions=max_interruptions,
            interrupts=interrupts,
        )
    )


def stop_between_commits(url: str, *processes: psutil.Process) -> None:
    """Stop processes at a moment when none is writing, for nobody else could write then."""

    def stopped() -> bool:
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        eventually(lambda: all(process.status() == psutil.STATUS_STOPPED for process in processes))
        if databases().is_free(url):
            return True
        for process in processes:
            process.send_signal(signal.SIGCONT)
        return False

    eventually(stopped)


class _Awaitable:
    """A synchronous step context whose `run` can be awaited: it never waits, for it blocks."""

    def __init__(self, step: StepContext) -> None:
        self._step = step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step, name)

    async def run(self, *args: Any, **options: Any) -> Any:
        return self._step.run(*args, **options)


def as_sync(body: Body) -> Callable[[Any, Any], Any]:
    """Make a `def` job of a body that awaits only its step."""

    def run(step, input):  # type: ignore[no-untyped-def]
        coroutine: Any = body(_Awaitable(step), input)
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("the body of a synchronous job awaited something else than its step")

    return run


def spelled(value: object) -> str:
    """Name a test's parameter by its repr, without what differs from process to process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))[:60]
