"""Durably: what an application holds. Registers jobs, triggers and looks up runs, and may execute them itself."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Final, TypedDict

from durably import events
from durably.codec import Unfit
from durably.emitter import Emitter
from durably.errors import UsageError, ValidationError
from durably.handle import JobHandle, check_labels
from durably.hints import hints
from durably.inprocess import InProcessWorkers
from durably.jobs import DEFAULT_POOL, Job, Registry, check_name, define_job
from durably.model import STATUSES, Run
from durably.settings import load_settings, parse_duration
from durably.store import runs, triggers
from durably.store.database import Database
from durably.store.status import read_status
from durably.store.tables import to_microseconds
from durably.twins import twin
from durably.waiting import Ends, Wait
from durably.worker.upkeep import Upkeep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime, timedelta
    from typing import Unpack

    from durably.emitter import Handler, OnError
    from durably.model import LogEntry, Progress, Status, Step
    from durably.settings import Settings
    from durably.status import SystemStatus


class Options(TypedDict, total=False):
    """The settings that an instance takes by name; see `durably.settings.Settings`."""

    polling_interval: float | str | timedelta
    heartbeat_interval: float | str | timedelta
    stale_threshold: float | str | timedelta
    hang_threshold: float | str | timedelta
    concurrency: int
    workers: int
    pools: Mapping[str, int] | str
    max_runs_per_worker: int
    max_memory_per_worker: int | str
    max_worker_age: float | str | timedelta
    max_interruptions: int
    isolate_after: int
    max_payload_bytes: int
    preserve_steps: bool
    retain_runs: float | str | timedelta
    drain_timeout: float | str | timedelta
    kill_timeout: float | str | timedelta
    unknown_job_interval: float | str | timedelta
    database_timeout: float | str | timedelta
    synchronous: str
    health_port: int
    health_host: str


@hints({
    "task step": 'a job is defined by @durably.job("name"), its steps by step.run("name", function, ...) in it',
    "define define_job add_job": "define_job is a function of the module durably; .register(job) takes what it returns",
    "trigger enqueue send submit schedule delay": 'a run is created by its job: durably.get_job("name").trigger(input)',
    "run run_worker work worker serve supervise":
        "durably.start() runs a worker in this process until durably.stop(), durably.process_until_idle() all that is "
        "pending; `durably supervise` on the command line runs worker processes",
    "wait wait_for": "durably.wait_for_run(run.id)",
    "await_for_run await_wait_for_run await_wait": "its awaitable twin is durably.await_run(run.id)",
    "runs list_runs": "durably.get_runs()",
    "jobs": "durably.registry holds them, durably.get_job(name) gives one's handle",
    "delete": "durably.delete_run(run.id)",
    "purge": "durably.purge_runs(older_than=...)",
    "status": "durably.get_status()",
    "close shutdown": "durably.stop() ends the worker that durably.start() began",
})  # fmt: skip
class Durably:
    """
    One application's instance. Opens nothing until it is used; safe for threads, event loops and forks.

    Args:
        dialect_url: The database, such as "sqlite:///jobs.db"; else DURABLY_DIALECT_URL, else [tool.durably].
        on_error: Called with (error, event) when a handler raises; else a `worker:error` is told.
        options: See `durably.settings.Settings`; durations are seconds, timedeltas or text such as "90s".

    Raises:
        ValidationError: A setting is wrong; `field` names it.
    """

    def __init__(
        self, dialect_url: str | None = None, *, on_error: OnError | None = None, **options: Unpack[Options]
    ) -> None:
        self.settings: Settings = load_settings(dialect_url=dialect_url, **options)
        self.database = Database(self.settings)
        self.registry: Final = Registry()
        self.emitter: Final = Emitter(on_error=on_error)
        self._ends: Final = Ends(self.emitter)
        self._handles: Final[dict[str, JobHandle]] = {}
        self.in_process: Final = InProcessWorkers(self)

    def __reduce__(self) -> tuple[Any, ...]:
        # For a spawned worker: settings and jobs cross; handlers, threads and connections are this process's.
        settings = {field.name: getattr(self.settings, field.name) for field in fields(self.settings)}
        return make_app, (settings, tuple(self.registry))

    def reconfigure(self, settings: Settings) -> None:
        """
        Take a supervisor's settings instead of its own, in a child process, before anything is used.

        Args:
            settings: Checked.
        """
        self.settings = settings
        self.database = Database(settings)

    def __repr__(self) -> str:
        return f"<Durably {self.database.dialect.safe_url}>"

    # --- jobs -----------------------------------------------------------------------------------------------

    def job(
        self,
        name: str,
        *,
        input: Any = None,
        output: Any = None,
        timeout: float | str | timedelta | None = None,
        pool: str = DEFAULT_POOL,
    ) -> Callable[[Callable[[Any, Any], Any]], JobHandle]:
        """
        Define and register the decorated function as a job; see `define_job`.

        Raises:
            ValidationError: On `name`, at once, also where the parentheses were forgotten.
        """
        check_name(name, "name", '@durably.job("name")')

        def decorate(run: Callable[[Any, Any], Any]) -> JobHandle:
            return self.register(define_job(name, run, input=input, output=output, timeout=timeout, pool=pool))

        return decorate

    def register(self, job: Job) -> JobHandle:
        """
        Make *job* known to this instance; again, it returns the same handle.

        Raises:
            ConflictError: Another job has the name.
        """
        self.registry.add(job)
        return self._handles.setdefault(job.name, JobHandle(job, self))

    def get_job(self, name: str) -> JobHandle | None:
        """Give the handle of a registered job, or None."""
        return self._handles.get(name)

    # --- life -----------------------------------------------------------------------------------------------

    def migrate(self) -> None:
        """
        Bring the database to this code's schema; on a current one, do nothing.

        Raises:
            SchemaTooNewError: A newer durably has migrated it; nothing was written.
            DatabaseUnavailableError: It cannot be opened or made.
        """
        self.database.migrate()

    def start(self) -> None:
        """
        Begin one worker in this process, in a thread with an event loop of its own; do nothing if one runs.

        Raises:
            SchemaOutdatedError, SchemaTooNewError: Run `migrate` first; nothing is migrated by itself.
        """
        self.in_process.start()

    def stop(self, timeout: float | None = None) -> None:
        """
        Drain the worker and return when no job function is executing; do nothing if none runs.

        Args:
            timeout: Seconds after which held runs are handed back at their next step boundary, and a database that
                takes nothing is waited for no longer than twice database_timeout; None waits for the runs' end.

        Raises:
            UsageError: Called by a job of the worker, or by a handler in one of its own threads.
        """
        self.in_process.stop(timeout)

    def process_one(self) -> bool:
        """
        Claim and execute at most one run, to its end, in this thread.

        Returns:
            Whether there was one.
        """
        return self.in_process.process(most_runs=1) > 0

    def process_until_idle(self, max_runs: int | None = None) -> int:
        """
        Recover stale runs once, then execute until nothing is claimable, in this thread.

        Args:
            max_runs: Execute at most so many.

        Returns:
            The number of runs executed.
        """
        if max_runs is not None:
            _check_count("max_runs", max_runs)
        Upkeep(self.database, self.settings, self.emitter, lambda _part, _error: None).recover_stale(0.0, at_start=True)
        return self.in_process.process(most_runs=max_runs)

    # --- events ---------------------------------------------------------------------------------------------

    def on(self, event_type: str, handler: Handler) -> Callable[[], None]:
        """
        Call *handler* with each event of a type that this process tells, or of every type for "*".

        Args:
            event_type: One of docs/events.md, or "*".
            handler: A function of one event, called in the thread that tells it, which may be a worker's: keep it
                short. A coroutine function is scheduled on the loop that subscribes it.

        Returns:
            A function that unsubscribes.
        """
        return self.emitter.on(event_type, handler)

    # --- runs -----------------------------------------------------------------------------------------------

    def get_run(self, run_id: str) -> Run | None:
        """Look a run up; None if there is none of that id."""
        _check_id(run_id)
        return self.database.read(lambda connection: runs.get_run(connection, run_id))

    def get_runs(
        self,
        *,
        status: Status | Sequence[Status] | None = None,
        job_name: str | Sequence[str] | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
        offset: int = 0,
        before: str | None = None,
    ) -> list[Run]:
        """
        List runs, newest first; the order is total, so pages neither repeat nor skip a run.

        Args:
            status: One status or several (any of them); None for all.
            job_name: One name or several (any of them); None for all.
            labels: All of these, with exactly these values.
            limit: At most so many; None for all.
            offset: Skip so many; not together with *before*.
            before: Only the runs that follow this one in the order: the last id of the page before.

        Raises:
            ValidationError: A filter is wrong.
            NotFoundError: There is no run *before*.
        """
        statuses = _as_tuple(status)
        if unknown := next((s for s in statuses if s not in STATUSES), None):
            raise ValidationError("status", f"{unknown!r} is none of {', '.join(STATUSES)}")
        _check_count("offset", offset)
        if limit is not None:
            _check_count("limit", limit)
        if before is not None:
            _check_id(before, "before")
        if before is not None and offset:
            raise ValidationError("before", "not together with offset: both say where the page begins")
        checked = check_labels(labels)
        return self.database.read(
            lambda connection: runs.get_runs(
                connection,
                statuses=statuses,
                job_names=_as_tuple(job_name),
                labels=checked,
                limit=limit,
                offset=offset,
                before=before,
            )
        )

    def get_steps(self, run_id: str) -> list[Step]:
        """
        List a run's checkpoints and failed attempts, by index, then attempt.

        Raises:
            NotFoundError: There is no such run.
        """
        _check_id(run_id)

        def read(connection: Any) -> list[Step]:
            runs.require_run(connection, run_id)
            return runs.get_steps(connection, run_id)

        return self.database.read(read)

    def get_logs(self, run_id: str) -> list[LogEntry]:
        """
        List a run's log entries in the order in which they were logged.

        Raises:
            NotFoundError: There is no such run.
        """
        _check_id(run_id)

        def read(connection: Any) -> list[LogEntry]:
            runs.require_run(connection, run_id)
            return runs.get_logs(connection, run_id)[0]

        return self.database.read(read)

    def get_status(self) -> SystemStatus:
        """
        Look at everything once: what waits, who executes, what failed.

        Bounded however many runs there are, so that it may be asked every second.
        """
        threshold = self.settings.stale_threshold
        return self.database.read(lambda connection: read_status(connection, stale_threshold=threshold))

    def cancel(self, run_id: str) -> Run:
        """
        Cancel a pending or running run, at once; a worker that executes it learns of it.

        Raises:
            NotFoundError: There is no such run.
            ConflictError: It has ended; `status` says how.
        """
        _check_id(run_id)
        run, previous = self.database.write(lambda connection: runs.cancel(connection, run_id), rings=True)
        # A worker here that has learned of it between the commit and now has told it.
        if not self.in_process.cancelled_here(run_id, run.generation):
            self.emitter.emit(events.RunCancel(**_facts(run), previous_status=previous, origin="caller"))
        return run

    def retry(self, run_id: str) -> Run:
        """
        Put a failed or cancelled run back to pending; it resumes after its completed steps.

        Raises:
            NotFoundError: There is no such run.
            ConflictError: It is pending, running or completed; `status` says which.
        """
        _check_id(run_id)
        run, previous = self.database.write(lambda connection: runs.retry(connection, run_id), rings=True)
        self.emitter.emit(events.RunRetry(**_facts(run), previous_status=previous, attempt=run.attempt))
        return run

    def retrigger(self, run_id: str) -> Run:
        """
        Create a new run with the job, input, labels and concurrency key of one that has ended, which stays as it is.

        Returns:
            The new run, pending, without an idempotency key and without any step.

        Raises:
            NotFoundError: There is no such run.
            ConflictError: It is pending or running; `status` says which.
            ValidationError: Its job is registered here, and its input does not fit the job's type any more.
        """
        _check_id(run_id)
        original = self.database.read(lambda connection: triggers.read_original(connection, run_id))
        self._check_input_of(run_id, original)
        run = self.database.write(lambda c: triggers.retrigger(c, run_id, self.database.dialect.lock), rings=True)
        self.emitter.emit(
            events.RunTrigger(
                **_facts(run),
                input=run.input,
                concurrency_key=run.concurrency_key,
                idempotency_key=None,
                retriggered_from=run_id,
            )
        )
        return run

    def _check_input_of(self, run_id: str, original: triggers.NewRun) -> None:
        if (job := self.registry.get(original.job_name)) is None:
            return
        try:
            job.input.decode(original.input)
        except Unfit as error:
            raise ValidationError(
                "input" + error.path.removeprefix("$"),
                f"the input of run {run_id} does not fit the type of job {job.name!r} any more: {error.message}",
            ) from error

    def delete_run(self, run_id: str) -> None:
        """
        Delete an ended run with its steps, logs and labels.

        Raises:
            NotFoundError: There is no such run.
            ConflictError: It is pending or running.
        """
        _check_id(run_id)
        run = self.database.write(lambda connection: runs.delete_run(connection, run_id), rings=True)
        self.emitter.emit(events.RunDelete(**_facts(run), reason="delete"))

    def purge_runs(self, older_than: float | str | timedelta | datetime, limit: int = 500) -> int:
        """
        Delete runs that ended before a time, oldest end first.

        Args:
            older_than: A duration before now, by the database's clock, or an aware datetime.
            limit: At most so many.

        Returns:
            How many were deleted.

        Raises:
            ValidationError: On `older_than` or `limit`.
        """
        import datetime as dt

        _check_count("limit", limit)
        if isinstance(older_than, dt.datetime):
            if older_than.tzinfo is None:
                raise ValidationError("older_than", "a datetime without a time zone; give an aware one")
            cutoff, age = to_microseconds(older_than), None
        else:
            try:
                cutoff, age = 0, int(parse_duration(older_than) * 1e6)
            except ValueError as error:
                raise ValidationError("older_than", str(error)) from None

        def purge(connection: Any) -> Sequence[tuple[str, str, Mapping[str, str]]]:
            before = cutoff if age is None else runs.read_clock(connection) - age
            return runs.purge_runs(connection, before=before, limit=limit)

        purged = self.database.write(purge)
        for run_id, job_name, labels in purged:
            self.emitter.emit(events.RunDelete(run_id=run_id, job_name=job_name, labels=labels, reason="purge"))
        return len(purged)

    # --- waiting --------------------------------------------------------------------------------------------

    def wait_for_run(
        self,
        run_id: str,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        on_log: Callable[[LogEntry], object] | None = None,
    ) -> Run:
        """
        Wait for a run's end, whichever process executes it.

        Args:
            timeout: Seconds; 0 looks once; None waits for ever.
            on_progress: Called with the newest progress; values may be skipped.
            on_log: Called with each entry committed since the call, once, in order.

        Returns:
            The completed run, its output decoded where its job is registered.

        Raises:
            RunFailedError, RunCancelledError: It ended so; `run` is the run.
            NotFoundError: There is no such run, or it was deleted meanwhile.
            WaitTimeoutError: It goes on.
            UsageError: Called on the thread of a worker's event loop, or by a handler in the thread that writes.
        """
        self.check_may_wait()
        return self._wait(run_id, timeout, on_progress, on_log).block()

    def check_may_wait(self) -> None:
        """
        Make sure that this thread may wait for a run.

        Raises:
            UsageError: It is a worker's own.
        """
        if self.in_process.must_not_block():
            raise UsageError(
                "this is a worker's own thread, which would stand still: in a job use "
                "`await durably.await_run(run.id)` or `await job.atrigger_and_wait(input)`, and in a handler of events "
                "nothing that waits"
            )

    async def await_run(
        self,
        run_id: str,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        on_log: Callable[[LogEntry], object] | None = None,
    ) -> Run:
        """Await a run's end; as `wait_for_run`. Cancelling the await leaves the run alone."""
        return await self._wait(run_id, timeout, on_progress, on_log).loop()

    def _wait(
        self,
        run_id: str,
        timeout: float | None,
        on_progress: Callable[[Progress], object] | None,
        on_log: Callable[[LogEntry], object] | None,
    ) -> Wait:
        _check_id(run_id)
        return Wait(
            run_id,
            self.database,
            self.registry,
            self.emitter,
            self._ends,
            polling_interval=self.settings.polling_interval,
            timeout=timeout,
            on_progress=on_progress,
            on_log=on_log,
        )

    amigrate = twin(migrate)
    astart = twin(start)
    astop = twin(stop)
    aprocess_one = twin(process_one)
    aprocess_until_idle = twin(process_until_idle)
    aget_run = twin(get_run)
    aget_runs = twin(get_runs)
    aget_steps = twin(get_steps)
    aget_logs = twin(get_logs)
    aget_status = twin(get_status)
    acancel = twin(cancel)
    aretry = twin(retry)
    aretrigger = twin(retrigger)
    adelete_run = twin(delete_run)
    apurge_runs = twin(purge_runs)


def make_app(settings: Mapping[str, Any], jobs: Iterable[Job]) -> Durably:
    """
    Make an instance of settings and jobs alone.

    Args:
        settings: By name; None where not given.
        jobs: To register.
    """
    app = Durably(**settings)
    for job in jobs:
        app.register(job)
    return app


create_durably = Durably
"""The name that users of @coji/durably know."""


def _facts(run: Run) -> dict[str, Any]:
    return {"run_id": run.id, "job_name": run.job_name, "labels": run.labels}


def _check_id(run_id: object, field: str = "run_id") -> None:
    if isinstance(run_id, Run):
        raise ValidationError(field, f"a Run, where its id is wanted: pass run.id, {run_id.id!r}")
    if not isinstance(run_id, str):
        raise ValidationError(field, f"{run_id!r:.80} is no str")


def _check_count(field: str, number: object) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValidationError(field, f"{number!r} is no integer from 0")


def _as_tuple(one_or_many: Any) -> tuple[Any, ...]:
    if one_or_many is None:
        return ()
    return (one_or_many,) if isinstance(one_or_many, str) else tuple(one_or_many)
