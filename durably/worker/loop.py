"""
The worker: one identity that claims runs, executes them, and writes how they end.

Everything here runs on the worker's event loop, except what a comment says. What a death at any point means:
before a claim's commit the runs are pending; after it, they are recovered; an end that is not committed did not
happen, and the run resumes after its last checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from durably import events
from durably.codec import read_json
from durably.errors import DatabaseUnavailableError, DurablyError
from durably.store import workers as worker_rows
from durably.store.committer import Committer
from durably.store.fence import find_lost
from durably.store.intents import Beat, Completion, Failure, Fenced, Release
from durably.store.pause import Pause
from durably.worker.claiming import Claimer
from durably.worker.execution import Execution
from durably.worker.failure import type_name
from durably.worker.held import Held
from durably.worker.identity import new_worker
from durably.worker.lag import Lag
from durably.worker.outcome import Ended, Executors, Outcome, Raised, Returned, call_job
from durably.worker.pulse import Pulse
from durably.worker.tasks import belongs_to, make_task
from durably.worker.timeouts import NoBoard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from durably.emitter import Emitter
    from durably.jobs import Registry
    from durably.settings import Settings
    from durably.store.claims import ClaimedRun
    from durably.store.database import Database
    from durably.store.intents import BeatAnswer, Verdict
    from durably.worker.doorbell import Doorbell
    from durably.worker.timeouts import Board

Mode = Literal["working", "draining", "releasing", "lost"]
_CLOSING_SECONDS: Final = 5.0
_STUCK_SECONDS: Final = 0.5
"""A loop that is late for less is late as on any busy host."""
_LATE_SECONDS: Final = 1.0
"""How late the pulse may come and count nevertheless."""
# A worker looks by itself all the same, but seldom: for a host whose keeper has died and cannot be replaced.
_POLLS_LEFT_TO_THE_KEEPER: Final = 10


class Worker:
    """
    One identity that claims and executes, from the insertion of its row to its closing.

    Args:
        database: Of this process.
        registry: The jobs it knows; may grow meanwhile.
        settings: Checked.
        emitter: Tells this process's events.
        executors: Where synchronous code runs.
        doorbell: Wakes it when idle; without one it polls.
        worker_id: Given by a supervisor; else fresh.
        supervisor_id: Whose child it is; None without a supervisor.
        most_runs: Execute so many runs and stop; None for no bound.
        until_idle: Stop when nothing is claimable.
        look_around: Called twice a second from the pulse's thread, with the monotonic time.
        events_dropped: Counts the events that found no room in the channel.
        board: Where its supervisor sees what has a timeout.
        on_ready: Called once, when it has looked for runs.
    """

    def __init__(
        self,
        database: Database,
        registry: Registry,
        settings: Settings,
        emitter: Emitter,
        executors: Executors,
        *,
        doorbell: Doorbell | None = None,
        worker_id: str | None = None,
        supervisor_id: str | None = None,
        most_runs: int | None = None,
        until_idle: bool = False,
        look_around: Callable[[float], None] = lambda _now: None,
        events_dropped: Callable[[], int] = lambda: 0,
        board: Board | None = None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._me: Final = new_worker(registry.names(), settings.concurrency, worker_id, supervisor_id)
        self.emitter: Final = emitter
        self.board: Final = board or NoBoard()
        self.max_payload_bytes: Final = settings.max_payload_bytes
        self.committer: Final = Committer(
            database,
            longest_pause=10 * settings.polling_interval,
            on_outage=self.tell_outage,
            worker_id=self._me.id,
        )
        self._database: Final = database
        self._registry: Final = registry
        self._settings: Final = settings
        self._executors: Final = executors
        self._doorbell: Final = doorbell
        self._most_runs: Final = most_runs
        self._until_idle: Final = until_idle
        self._events_dropped: Final = events_dropped
        # Called once, and then replaced by what does nothing.
        self._on_ready = on_ready
        self._pulse: Final = Pulse(
            self,
            self.committer,
            interval=settings.heartbeat_interval,
            patience=settings.stale_threshold,
            look_around=look_around,
        )
        self._mode: Mode = "working"
        self._reason = "stopped"
        self._held: Final = Held()
        # Whether somebody wants to know which runs are lost, and the task that finds out. On the loop.
        self._is_check_wanted = False
        self._checking: asyncio.Task[None] | None = None
        self._tasks: dict[asyncio.Task[None], Execution] = {}
        # Writes that the database has refused and that are being tried again. On the loop.
        self._refused = 0
        self._executed = 0
        self._released = 0
        self._lag: Lag
        # The thread itself, for the id of one that has ended may be given to another.
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._context: contextvars.Context
        self._wake: Final = asyncio.Event()
        self._claimer = Claimer(
            self.id, self._registry, self._settings, self.committer, self._doorbell, self._most_runs,
            begin=self._begin, found_nothing=self._found_nothing, failed=lambda error: self._tell_error("claim", error),
            looked=self._is_ready,
        )  # fmt: skip

    @property
    def id(self) -> str:
        """The worker's id."""
        return self._me.id

    @property
    def is_cut_off(self) -> bool:
        """Whether no heartbeat was accepted for stale_threshold."""
        return self._pulse.is_cut_off

    @property
    def was_lost(self) -> bool:
        """Whether another process declared the worker dead."""
        return self._mode == "lost"

    @property
    def abandoned(self) -> frozenset[asyncio.Task[None]]:
        """What a lost worker left running: tasks whose functions have not returned."""
        return frozenset(self._tasks)

    async def run(self, taken: Iterable[asyncio.Task[None]] = ()) -> int:
        """
        Work until stopped, lost, idle or done, whichever the arguments ask for; then close the worker's row.

        Args:
            taken: What an earlier identity left running; each holds a slot until it is done.

        Returns:
            The number of runs executed.

        Raises:
            DurablyError: The worker's row could not be written.
        """
        self._loop = asyncio.get_running_loop()
        self._loop.set_task_factory(make_task)
        self._lag = Lag(self._loop, self._settings.heartbeat_interval + _LATE_SECONDS)
        # Of no run: each run's task begins with a copy, so that nothing of the run before it is in its context.
        self._context = contextvars.copy_context()
        self._thread = threading.current_thread()
        await asyncio.to_thread(self._database.write, lambda connection: worker_rows.register(connection, self._me))
        self.emitter.become(self.emitter.process.role, self.id)
        for task in taken:
            self._claimer.slot_taken()
            task.add_done_callback(lambda _task: self._claimer.slot_freed())
        self.emitter.emit(events.WorkerStart(jobs=self._registry.names(), concurrency=self._settings.concurrency))
        self.committer.start()
        self._pulse.start()
        try:
            await self._look_for_work()
            await self._let_end()
        except BaseException:
            # The loop is being ended, by Ctrl-C say, and cancels the task of each run: they go back, and do not fail.
            self.stop(release=True, reason="interrupted")
            raise
        finally:
            self._pulse.stop()
        await asyncio.to_thread(self._close)
        return self._executed

    def stop(self, *, release: bool = False, reason: str = "stopped") -> None:
        """
        Claim nothing more and end when nothing is held. On the loop, or through `call_soon_threadsafe`.

        Args:
            release: Hand held runs back at their next step boundary instead of waiting for their end.
            reason: For the event.
        """
        if self._mode == "working":
            self._mode, self._reason = "draining", reason
            self._claimer.stop()
        if release and self._mode == "draining":
            self._mode = "releasing"
            self._held.release()
        self._wake.set()

    def give_up_what_is_refused(self) -> None:
        """Wait no longer, if a database that takes nothing is what a stopping worker waits for. On the loop."""
        if self.committer.is_out or self._refused:
            self._lose_everything("database")

    @property
    def running(self) -> int:
        """How many runs it holds; for any thread."""
        return len(self._held)

    def idle_for(self, now: float) -> float:
        """
        Tell for how many seconds it has neither held a run nor looked for one; for any thread.

        Args:
            now: Monotonic seconds.
        """
        # Not even while the database is away: the claim is on its way until it is back.
        return 0.0 if self.running or self._claimer.on_their_way else max(0.0, now - self._claimer.looked_at)

    def must_not_block(self) -> bool:
        """Whether this thread is the worker's event loop, or the one that writes for it."""
        return threading.current_thread() is self._thread or self.committer.is_writing_thread()

    def cancelled_here(self, run_id: str, generation: int) -> bool:
        """Learn, in any thread, that this process has cancelled a run; tell whether that was told already."""
        return self._held.cancelled_here(run_id, generation)

    def check_held(self) -> None:
        """Find out soon, without waiting for a heartbeat, which runs are no longer ours. On the loop."""
        self._is_check_wanted = len(self._held) > 0
        if self._is_check_wanted and (self._checking is None or self._checking.done()):
            self._checking = self._loop.create_task(self._check_held())

    async def _check_held(self) -> None:
        while self._is_check_wanted:
            self._is_check_wanted = False
            held = self._held.keys()
            with contextlib.suppress(DurablyError):  # the database is away: the next heartbeat tells
                lost = await asyncio.to_thread(self._database.read, lambda c, held=held: find_lost(c, held, self.id))
                self._held.lose(lost)

    async def _look_for_work(self) -> None:
        """Claim at once, then now and then; the doorbell and free slots let the claimer claim in between."""
        # With a doorbell there is a keeper, which looks once per polling interval for all workers of the host.
        pause = self._settings.polling_interval * (1 if self._doorbell is None else _POLLS_LEFT_TO_THE_KEEPER)
        while self._mode == "working":
            self._wake.clear()
            self._claimer.fill()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()

    def _is_ready(self) -> None:
        self._on_ready()
        self._on_ready = _do_nothing

    def _found_nothing(self) -> None:
        """Learn from the claimer that it holds nothing, and that its last claim brought nothing."""
        if self._until_idle or self._claimer.is_spent:
            self.stop(reason="idle")

    async def _let_end(self) -> None:
        """Wait for held runs, and for claims that came too late to be called back; a lost worker waits for nothing."""
        while self._mode != "lost" and (ending := self._ending()):
            self._wake.clear()
            lost = asyncio.ensure_future(self._wake.wait())
            await asyncio.wait([lost, *ending], return_when=asyncio.FIRST_COMPLETED)
            lost.cancel()

    def _ending(self) -> list[asyncio.Future[Any]]:
        return [*self._tasks, *self._claimer.on_their_way]

    # --- executing ------------------------------------------------------------------------------------------

    def _begin(self, run: ClaimedRun) -> None:
        job = self._registry.get(run.job_name)
        assert job is not None  # a claim names registered jobs, and jobs are never unregistered
        execution = Execution(run, job, self)
        self._held.add(execution)
        if self._mode == "releasing":
            execution.token.fire("released")
        task = self._context.copy().run(self._loop.create_task, self._execute(execution))
        self._tasks[task] = execution
        task.add_done_callback(self._execution_done)

    def _execution_done(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if (error := task.exception()) is not None:  # a fault of ours: told, and the run recovered with this worker
            self._tell_error("execution", error)

    async def _execute(self, execution: Execution) -> None:
        """Call the run's function, hand its end over, free the slot with a claim behind it, and tell the end."""
        run = execution.run
        self.emitter.emit(
            events.RunStart(
                **execution.facts(),
                input=read_json(run.input),
                attempt=run.attempt,
                generation=run.generation,
                interruptions=run.interruptions,
                waited=run.waited,
            )
        )
        outcome = await call_job(execution, self._executors)
        execution.is_over = True
        execution.notes.flush()
        end = self._end_of(execution, outcome)
        verdict: asyncio.Future[Any] = self._loop.create_future()
        if end is not None:
            self.committer.submit(end, verdict)
        self._held.remove(execution)
        self._executed += 1
        self._claimer.slot_freed()
        if end is not None:
            await self._tell_end(execution, outcome, end, verdict)

    def _end_of(self, execution: Execution, outcome: Outcome) -> Fenced | None:
        """Turn an outcome into what is written of it; None for a run that is no longer ours."""
        if (lost := execution.token.reason) in ("cancelled", "lease_lost"):
            # Whatever the function made of it. A worker that was declared dead has nobody left to write, either.
            execution.lose(lost)
            return None
        fence: dict[str, Any] = {"run_id": execution.run.id, "generation": execution.run.generation}
        match outcome:
            case Returned(output):
                return Completion(**fence, output=output.text, drop_outputs=not self._settings.preserve_steps)
            case Raised(description):
                return Failure(**fence, **description._asdict())
            case Ended():
                return Release(**fence)

    async def keep_writing(self, intent: Fenced, refusal: DatabaseUnavailableError) -> Verdict:
        """
        Try what the database has refused to write again, for as long as the worker lives.

        What the dialect does not call transient may pass all the same, as a folder that was made read-only. To give up
        would make the database's trouble the outcome of a step, or leave an ended run running, and its key taken, for
        as long as this healthy worker beats.
        """
        self._tell_error("write", refusal, intent.run_id)
        pause = Pause(self._settings.polling_interval, 10 * self._settings.polling_interval)
        self._refused += 1
        try:
            while self._mode != "lost":
                await asyncio.sleep(pause.next())
                with contextlib.suppress(DatabaseUnavailableError):
                    return cast("Verdict", await self.committer.ask(intent))
        finally:
            self._refused -= 1
        return "lease_lost"

    async def _tell_end(
        self, execution: Execution, outcome: Outcome, end: Fenced, verdict: asyncio.Future[Any]
    ) -> None:
        """Await the commit of a run's end and tell it; where it was refused, tell why the run is not ours."""
        try:
            refused: Verdict = await verdict
        except DatabaseUnavailableError as error:
            refused = await self.keep_writing(end, error)
        if refused is not None:
            execution.lose(refused)
            return
        if isinstance(outcome, Ended):
            self._released += 1
        self.emitter.emit(_event_of(execution, outcome))

    # --- signs of life --------------------------------------------------------------------------------------

    def describe_beat(self) -> Beat:
        """Put the worker's state into a heartbeat, and probe the loop for its lag. In the pulse's thread."""
        now = time.monotonic()
        stuck_for = self._lag.probe(now)
        return Beat(
            worker_id=self.id,
            jobs=self._registry.names(),
            held=self._held.keys(),
            loop_lag=max(self._lag.last, stuck_for),
            oldest_step_age=self._held.oldest_step_age(now),
            isolate_after=self._settings.isolate_after,
            patience=self._settings.stale_threshold,
        )

    def stuck(self, now: float) -> tuple[float, Execution | None]:
        """
        Tell, in any thread, for how many seconds the loop has not come round, and whose code it is in, if that shows.

        Args:
            now: Monotonic seconds.
        """
        stuck_for = self._lag.probe(now)
        if stuck_for < _STUCK_SECONDS:
            return 0.0, None
        task = asyncio.current_task(self._loop)
        return stuck_for, None if task is None else self._tasks.get(task) or belongs_to(task)

    def heard(self, answer: BeatAnswer) -> None:
        """Take the answer to the loop, which owns what it changes. In the pulse's thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._heed, answer)

    def _heed(self, answer: BeatAnswer) -> None:
        if not answer.accepted:
            self._lose_everything("lease-lost")
            return
        self._held.lose(answer.lost)
        self._claimer.run_waits_to_be_alone(waits=answer.run_waits_to_be_alone)
        self.emitter.emit(
            events.WorkerHeartbeat(
                running=len(self._held),
                free=self._claimer.unheld,
                oldest_step_age=self._held.oldest_step_age(time.monotonic()),
                loop_lag=self._lag.last,
                events_dropped=self._events_dropped(),
            )
        )

    def _lose_everything(self, reason: str) -> None:
        self._mode, self._reason = "lost", reason
        self._claimer.stop()
        self._held.lose_all()
        self._wake.set()

    # --- ending ---------------------------------------------------------------------------------------------

    def _close(self) -> None:
        """Write what is left, close the row, tell the end. In a thread, for it waits."""
        self.committer.close(0.0 if self.committer.is_out else _CLOSING_SECONDS)
        try:
            self._database.write(lambda connection: worker_rows.close(connection, self.id))
        except DurablyError as error:
            self._tell_error("close", error)
        self.emitter.emit(events.WorkerStop(reason=self._reason, released=self._released))

    # --- telling --------------------------------------------------------------------------------------------

    def tell_outage(self, error: BaseException | None) -> None:
        """Tell that the database went away, or with None that it came back. In any thread."""
        if error is not None:
            self._tell_error("database", error)
        else:
            self.emitter.emit(
                events.WorkerError(
                    context="database", severity="info", error="the database is back", error_type="Recovered"
                )
            )

    def _tell_error(self, context: str, error: BaseException, run_id: str | None = None) -> None:
        self.emitter.emit(
            events.WorkerError(
                context=context,
                severity="error",
                error=str(error),
                error_type=type_name(error),
                run_id=run_id,
            )
        )


def _do_nothing() -> None:
    pass


def _event_of(execution: Execution, outcome: Outcome) -> events.Event:
    """Describe the end of a run as its event."""
    facts, run = execution.facts(), execution.run
    duration = time.monotonic() - execution.began
    match outcome:
        case Returned(output):
            return events.RunComplete(**facts, output=output.data, duration=duration, attempt=run.attempt)
        case Raised(description, failed_step):
            return events.RunFail(
                **facts,
                error=description.error,
                error_type=description.error_type,
                failed_step=failed_step,
                duration=duration,
                attempt=run.attempt,
                interruptions=run.interruptions,
            )
        case Ended():
            return events.RunRelease(**facts)
