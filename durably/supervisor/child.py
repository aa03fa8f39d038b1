"""What a child process does, from its first line to its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import socket
import sys
import traceback
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from durably.errors import DatabaseUnavailableError, DurablyError
from durably.events import Process
from durably.jobs import DEFAULT_POOL
from durably.settings import change_settings
from durably.supervisor.board import BoardWriter
from durably.supervisor.channel import Channel, Outbox
from durably.supervisor.stacks import STACKS_SIGNAL, write_stacks_on_signal
from durably.supervisor.title import call_process
from durably.telemetry import leave_log
from durably.telemetry.stdlib import forward_standard_logging, forward_stdout
from durably.worker.context import log_context
from durably.worker.doorbell import Doorbell
from durably.worker.failure import type_name
from durably.worker.identity import machine_key
from durably.worker.keeper import Keeper
from durably.worker.loop import Worker
from durably.worker.serve import executors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from durably.client import Durably
    from durably.settings import Settings
    from durably.worker.outcome import Executors

EXIT_BOOT_FAILED: Final = 3
"""The child could not begin: the application does not import, or the schema does not fit. Its last line says why."""
EXIT_LEASE_LOST: Final = 4
"""The worker was declared dead by another process, and ended so that a fresh one takes its place."""

EXIT_ORPHANED: Final = 5
"""The supervisor is gone, and something ran on past kill_timeout."""
EXIT_NO_DATABASE: Final = 6
"""The child could not begin because the database is away."""

DRAIN_SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1)
"""From the supervisor to a worker: drain; release."""
BLOCKED_SIGNALS: Final = (*DRAIN_SIGNALS, STACKS_SIGNAL)
"""While a child is begun, and until it takes them: so none is lost in between, or ends a spawned one."""
CHECK_SIGNAL: Final = signal.SIGURG
"""From the supervisor to a worker: runs were cancelled, perhaps yours. Ignored by a process that does not know it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    What a child is told as it begins.

    Args:
        load: Makes the application's instance; in the child, so that the supervisor never imports it.
        overrides: Settings that win over the application's own.
        channel: To the supervisor.
        orders: To the keeper; None for a worker.
        inherited: Called by a forked child, to close its copies of what the supervisor has of its children.
        doorbell: Both ends, as connections, which the plan keeps open.
        worker_id: The worker's, known to the supervisor before the fork; None for the keeper.
        pool: Whose jobs the worker takes.
        supervisor_id: Stands in its workers' rows.
        supervisor_pid: Whose disappearance makes an orphan.
        stacks: Path of the file for the stacks of a child that hangs.
        board: Path of the file that shows the supervisor what has a timeout; None for the keeper.
        until_idle: Whether the keeper tells when nothing is pending or running.
        at_start: Whether the keeper is the supervisor's first, and judges by silence at once.
    """

    load: Callable[[], Durably]
    overrides: dict[str, Any]
    channel: Channel
    orders: Channel | None
    inherited: tuple[Callable[[], None], ...]
    doorbell: Any
    worker_id: str | None
    pool: str
    supervisor_id: str
    supervisor_pid: int
    stacks: str
    board: str | None
    until_idle: bool
    at_start: bool


def run_child(plan: Plan) -> None:
    """Be a worker, or the keeper; ends the process."""
    _forget_the_supervisor(plan)
    call_process("durably-keeper" if plan.worker_id is None else f"durably:{plan.pool}")
    outbox = Outbox(plan.channel)
    me = Process(
        host=socket.gethostname(),
        pid=os.getpid(),
        role="keeper" if plan.worker_id is None else "worker",
        worker_id=plan.worker_id,
    )
    with contextlib.suppress(OSError):
        # For programs that jobs start: standard output is the log's, and takes nothing but its lines.
        os.dup2(2, 1)
    leave_log()
    forward_standard_logging(outbox.send_record, lambda: {"process": me, **log_context()})
    forward_stdout(outbox.send_record, lambda: {"process": me, **log_context()})
    if url := plan.overrides.get("dialect_url"):
        # For an application that names no database of its own, and leaves that to whoever supervises it.
        os.environ["DURABLY_DIALECT_URL"] = url
    try:
        app = plan.load()
        app.reconfigure(change_settings(app.settings, **plan.overrides))
        code = _run_keeper(plan, app, outbox) if plan.orders is not None else _run_worker(plan, app, outbox)
        if not code:  # else a thread may be stuck in the database, and what it holds goes with the process
            app.database.close()
    except BaseException as error:  # noqa: BLE001 - whatever kept the child from its work is told before it exits
        outbox.send_record(_boot_failure(error))
        code = EXIT_NO_DATABASE if isinstance(error, DatabaseUnavailableError) else EXIT_BOOT_FAILED
    sys.stdout.flush()
    outbox.close()
    if sys.stderr is not None:  # as it is in a process begun without one
        sys.stderr.flush()
    # Neither threads that are stuck in job code nor exit handlers of the supervisor may hold the exit up.
    os._exit(code)


def _forget_the_supervisor(plan: Plan) -> None:
    """Drop what a fork has copied and only the supervisor may use, and take signals as a child does."""
    for forget in plan.inherited:
        forget()
    plan.channel.keep_writing_end()
    if plan.orders is not None:
        plan.orders.keep_reading_end()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    # A terminal's Ctrl-C reaches the whole group; what it means is the supervisor's to say. A handler that only
    # records is not inherited by programs that jobs start, as SIG_IGN would be.
    for number in (signal.SIGINT, *DRAIN_SIGNALS):
        signal.signal(number, lambda number, _frame: _early_signals.append(number))
    write_stacks_on_signal(plan.stacks)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, BLOCKED_SIGNALS)


# Signals that came before the worker could heed them.
_early_signals: list[int] = []


def _doorbell(plan: Plan) -> Doorbell:
    reading, writing = plan.doorbell
    return Doorbell((reading.fileno(), writing.fileno()))


def _boot_failure(error: BaseException) -> dict[str, Any]:
    expected = isinstance(error, DurablyError)
    return {
        "type": "boot:failed",
        "error": str(error) or type_name(error),
        "error_type": type_name(error),
        "traceback": None if expected else "".join(traceback.format_exception(error)),
    }


def _life_signs(
    plan: Plan,
    outbox: Outbox,
    settings: Settings,
    orphaned: Callable[[], None],
    progress: Callable[[float], dict[str, Any]] = lambda _now: {},
    is_busy: Callable[[], bool] = lambda: False,
) -> Callable[[float], None]:
    """
    Give what a child does twice a second: tell that it lives, once per heartbeat; see whether its parent does.

    With each sign of life it tells of its *progress*, for a thread that lives does not say that the others do. While it
    *is_busy* it looks each time, and tells at once what its event loop is stuck in: what waits for that loop may be
    about to be blamed for it.

    An orphan has the time that a supervisor would give it after telling it to release. Then what still runs is ended
    with the process, and recovered by whoever finds it gone.
    """
    told_at = 0.0
    told_stuck_in: str | None = None
    ends_at: float | None = None
    interval = min(settings.heartbeat_interval, settings.hang_threshold / 4)

    # A thread of C's, which needs no lock of Python's. Who may not look around for so long has been killed by its
    # supervisor long before, if it has one.
    longest = 2 * (settings.stale_threshold + settings.database_timeout) + settings.kill_timeout
    nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - its supervisor asks for the stacks
    put_off_the_end = partial(faulthandler.dump_traceback_later, longest, exit=True, file=nowhere)
    put_off_the_end()

    def look_around(now: float) -> None:
        nonlocal told_at, told_stuck_in, ends_at
        put_off_the_end()
        if os.getppid() != plan.supervisor_pid:
            orphaned()
            ends_at = ends_at or now + settings.kill_timeout
            if now >= ends_at:
                os._exit(EXIT_ORPHANED)
        is_due = now - told_at >= interval
        if not is_due and not is_busy():
            return
        signs = progress(now)
        if is_due or signs.get("stuck_in") != told_stuck_in:
            told_at, told_stuck_in = now, signs.get("stuck_in")
            outbox.send_record({"type": "beat", **signs})

    return look_around


def _run_worker(plan: Plan, app: Durably, outbox: Outbox) -> int:
    emitter = app.emitter
    app.registry.keep_to(plan.pool)
    emitter.become("worker", plan.worker_id)
    emitter.sink = outbox
    assert plan.board is not None
    board = BoardWriter(plan.board)
    outbox.note_sequence = board.note_sequence
    app.database.read(lambda _connection: None)  # a schema that does not fit is a failed boot

    async def work(threads: Executors) -> int:
        loop = asyncio.get_running_loop()

        def orphaned() -> None:
            loop.call_soon_threadsafe(lambda: worker.stop(release=True, reason="orphaned"))

        def progress(now: float) -> dict[str, Any]:
            board.note_life(now)
            stuck_for, execution = worker.stuck(now)
            return {
                "idle_for": worker.idle_for(now),
                "running": worker.running,
                "stuck_for": stuck_for,
                "stuck_in": None if execution is None else execution.run.id,
            }

        worker = Worker(
            app.database,
            app.registry,
            app.settings,
            emitter,
            threads,
            doorbell=_doorbell(plan),
            worker_id=plan.worker_id,
            supervisor_id=plan.supervisor_id,
            look_around=_life_signs(plan, outbox, app.settings, orphaned, progress, lambda: worker.running > 0),
            events_dropped=lambda: outbox.dropped,
            board=board,
            on_ready=lambda: outbox.send_record({"type": "ready"}),
        )
        app.in_process.executes(worker)
        for number in DRAIN_SIGNALS:
            stop = partial(worker.stop, release=number == signal.SIGUSR1, reason="drained")
            loop.add_signal_handler(number, stop)
            if number in _early_signals:
                stop()
        loop.add_signal_handler(CHECK_SIGNAL, worker.check_held)
        await worker.run()
        faulthandler.cancel_dump_traceback_later()  # the pulse, which put it off, is over
        if worker.was_lost and worker.abandoned:
            # Their rows belong to others now; a while to clean up, then the exit ends them.
            await asyncio.wait(worker.abandoned, timeout=app.settings.kill_timeout)
        return EXIT_LEASE_LOST if worker.was_lost else 0

    with executors(app.settings) as threads:
        code = asyncio.run(work(threads))
        if code:
            outbox.close()
            os._exit(code)
        return code


def _run_keeper(plan: Plan, app: Durably, outbox: Outbox) -> int:
    assert plan.orders is not None
    emitter = app.emitter
    emitter.become("keeper")
    emitter.sink = outbox

    def tell_idle() -> None:
        outbox.send_record({"type": "keeper:idle"})

    def orphaned() -> None:
        keeper.stop()

    def pool_of(job_name: str) -> str | None:
        job = app.registry.get(job_name)
        return None if job is None or job.pool == DEFAULT_POOL else job.pool

    def tell_pending(pools: Mapping[str, int]) -> None:
        outbox.send_record({"type": "keeper:pending", "pools": pools})

    def tell_given_up(worker_id: str) -> None:
        outbox.send_record({"type": "keeper:gave-up", "worker_id": worker_id})

    def tell_cancellation() -> None:
        outbox.send_record({"type": "keeper:cancelled"})

    app.migrate()
    keeper = Keeper(
        app.database,
        app.settings,
        emitter,
        _doorbell(plan),
        orders=plan.orders,
        supervisor_id=plan.supervisor_id,
        on_idle=tell_idle if plan.until_idle else None,
        on_cancellation=tell_cancellation,
        pool_of=pool_of,
        ring_pools=tell_pending,
        on_give_up=tell_given_up,
        on_tick=_life_signs(plan, outbox, app.settings, orphaned),
    )
    keeper.upkeep.recover_stale(0.0, at_start=plan.at_start)
    outbox.send_record(
        {
            "type": "keeper:ready",
            "dialect": app.database.dialect.name,
            "url": app.database.dialect.safe_url,
            "jobs": {job.name: job.pool for job in app.registry},
            "machine": machine_key(),
            "settings": {k: v for k, v in asdict(app.settings).items() if k not in ("dialect_url", "app")},
        }
    )
    keeper.run()
    return 0
