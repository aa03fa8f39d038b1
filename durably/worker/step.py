"""What a job's function holds: the step context, in a synchronous and an asynchronous face over one execution."""

from __future__ import annotations

import asyncio
import contextvars
import os
from inspect import CORO_CREATED, getcoroutinestate
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, overload

from durably.errors import DatabaseUnavailableError, UsageError
from durably.forks import end_if_forked
from durably.hints import hints
from durably.jobs import is_async_callable
from durably.model import LogLevel, Progress
from durably.worker.context import current_step
from durably.worker.execution import Call, Execution, Hold, Write
from durably.worker.failure import call_plain
from durably.worker.threads import run_in_thread
from durably.worker.timeouts import bounded, earlier

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from concurrent.futures import Executor
    from datetime import timedelta

    from durably.worker.execution import Request
    from durably.worker.token import Token

T = TypeVar("T")
Timeout: TypeAlias = "float | str | timedelta | None"
_HOLD_SECONDS: Final = 0.05


@hints(
    {"warn": "it is called warning", "exception critical fatal": "it is called error", "log": "step.log.info(message)"},
    called='a level is called: step.log.info("loaded", rows=3), or .debug, .warning, .error',
)
class StepLog:
    """
    A run's own log, stored with it: `step.log.info("loaded", rows=3)`.

    Data that cannot be stored as JSON is stored as its repr; what is too large is cut and marked.
    """

    __slots__ = ("_execution",)

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    def debug(self, message: str, **data: Any) -> None:
        """Log for those who look for a fault; returns at once."""
        self._write("debug", message, data)

    def info(self, message: str, **data: Any) -> None:
        """Log what happened; returns at once."""
        self._write("info", message, data)

    def warning(self, message: str, **data: Any) -> None:
        """Log what somebody should look at; returns at once."""
        self._write("warning", message, data)

    def error(self, message: str, **data: Any) -> None:
        """Log what went wrong; returns at once."""
        self._write("error", message, data)

    def _write(self, level: LogLevel, message: str, data: dict[str, Any]) -> None:
        self._execution.notes.log(level, message, data, current_step.get())


@hints(
    {
        "do call execute invoke step task arun": 'a step is step.run("name", function, ...)',
        "sleep": 'let a step sleep: step.run("wait", time.sleep, 5), or with asyncio.sleep where the job is async def',
        "input": "the input is the function's second parameter",
        "debug info warning error": 'the log is step.log: step.log.info("loaded", rows=3)',
        "set_progress report_progress update_progress": 'step.progress(1, 10, "message")',
        "is_cancelled": "step.cancelled.is_set() tells",
        "id": "it is called run_id",
    },
    called='a step is step.run("name", function, ...)',
)
class _Context:
    """What both faces have."""

    def __init__(self, execution: Execution, loop: asyncio.AbstractEventLoop, executor: Executor) -> None:
        self._execution: Final = execution
        self._loop: Final = loop
        self._executor: Final = executor
        self.log: Final = StepLog(execution)

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._execution.run.id

    @property
    def attempt(self) -> int:
        """The run's attempt: 1 + its retries."""
        return self._execution.run.attempt

    @property
    def cancelled(self) -> Token:
        """The token that fires when the run was cancelled, lost or is being released."""
        return self._execution.token

    def progress(self, current: float, total: float | None = None, message: str | None = None) -> None:
        """
        Tell how far the run has come. Returns at once; of values told in quick succession some may be skipped.

        Args:
            current: Units done.
            total: Units in all, if known.
            message: What is being done.
        """
        self._execution.notes.progress(Progress(current=current, total=total, message=message))


class Step(_Context):
    """The context of a synchronous job. Its methods may be called from threads that the job starts."""

    @overload
    def run(
        self,
        name: str,
        fn: Callable[..., Coroutine[Any, Any, T]],
        *args: Any,
        output: Any = None,
        timeout: Timeout = None,
    ) -> T: ...
    @overload
    def run(self, name: str, fn: Callable[..., T], *args: Any, output: Any = None, timeout: Timeout = None) -> T: ...
    def run(self, name: str, fn: Callable[..., Any], *args: Any, output: Any = None, timeout: Timeout = None) -> Any:
        """
        Run a step, or give back what it returned when it completed in an earlier execution.

        Args:
            name: Unique within the run; checkpoints are found by it.
            fn: Called as fn(*args); a coroutine function runs on the worker's event loop.
            output: The result's type; else fn's return annotation, else plain JSON data.
            timeout: How long one attempt may take: seconds above 0, a timedelta, or text such as "90s". A coroutine
                function is cancelled then. A plain function cannot be: what it returns later is discarded, and under a
                supervisor its worker is replaced and killed, with which the run fails.

        Returns:
            What *fn* returned, decoded from its stored form, once its checkpoint is committed.

        Raises:
            StepTimeoutError: It took longer than its timeout. Stored as any failed attempt; the name may be run again.
            RunTimeoutError: The run has taken longer than its job's timeout.
            DuplicateStepError: The name was used already in this execution.
            EncodingError, PayloadTooLargeError: The result cannot be stored.
            CheckpointError: A stored result does not fit the type any more.
            Cancelled, LeaseLost, Released: The run is no longer this worker's; let it pass.
        """
        return _drive(self._execution.step(name, fn, args, output, timeout), self._do)

    def _do(self, request: Request) -> Any:
        match request:
            case Call():
                return contextvars.copy_context().run(self._call, request)
            case Write(intent):
                host = self._execution.host
                try:
                    return host.committer.ask_blocking(intent)
                except DatabaseUnavailableError as error:
                    return asyncio.run_coroutine_threadsafe(host.keep_writing(intent, error), self._loop).result()
            case Hold():
                host, time = self._execution.host, self._execution.time
                while host.is_cut_off and not time.is_up() and not self.cancelled.wait(_HOLD_SECONDS):
                    pass
        return None

    def _call(self, call: Call) -> Any:
        current_step.set(call.step_name)
        if is_async_callable(call.fn):
            # Nobody cancels a thread, so here the run's own limit is kept too.
            coroutine = bounded(call.fn(*call.args), earlier(call.limit, self._execution.time.limit))
            return asyncio.run_coroutine_threadsafe(self._on_loop(coroutine), self._loop).result()
        return call_plain(call.fn, *call.args)

    async def _on_loop(self, coroutine: Coroutine[Any, Any, T]) -> T:
        with self._execution.host.board.executing(self.run_id):
            return await coroutine


class AsyncStep(_Context):
    """The context of an asynchronous job. Its steps may run concurrently, by gather or in a TaskGroup."""

    def __init__(self, execution: Execution, loop: asyncio.AbstractEventLoop, executor: Executor) -> None:
        super().__init__(execution, loop, executor)
        # What `run` has given and nobody has awaited yet, by the order of the calls. On the loop.
        self._not_begun: dict[int, tuple[str, Coroutine[Any, Any, Any]]] = {}
        self._calls = 0

    @overload
    def run(
        self,
        name: str,
        fn: Callable[..., Coroutine[Any, Any, T]],
        *args: Any,
        output: Any = None,
        timeout: Timeout = None,
    ) -> Coroutine[Any, Any, T]: ...
    @overload
    def run(
        self, name: str, fn: Callable[..., T], *args: Any, output: Any = None, timeout: Timeout = None
    ) -> Coroutine[Any, Any, T]: ...
    def run(
        self, name: str, fn: Callable[..., Any], *args: Any, output: Any = None, timeout: Timeout = None
    ) -> Coroutine[Any, Any, Any]:
        """
        Run a step, or give back what it returned when it completed in an earlier execution; to be awaited.

        Args:
            name: Unique within the run; checkpoints are found by it.
            fn: Called as fn(*args); a plain function runs in a thread, so that it may block.
            output: The result's type; else fn's return annotation, else plain JSON data.
            timeout: How long one attempt may take: seconds above 0, a timedelta, or text such as "90s". A coroutine
                function is cancelled then. A plain function cannot be: what it returns later is discarded, and under a
                supervisor its worker is replaced and killed, with which the run fails.

        Returns:
            When awaited, what *fn* returned, decoded from its stored form, once its checkpoint is committed.

        Raises:
            StepTimeoutError: It took longer than its timeout. Stored as any failed attempt; the name may be run again.
            RunTimeoutError: The run has taken longer than its job's timeout.
            DuplicateStepError: The name was used already in this execution.
            EncodingError, PayloadTooLargeError: The result cannot be stored.
            CheckpointError: A stored result does not fit the type any more.
            Cancelled, LeaseLost, Released: The run is no longer this worker's; let it pass.
        """
        self._calls += 1
        step = self._run(self._calls, self._execution.step(name, fn, args, output, timeout))
        self._not_begun[self._calls] = name, step
        return step

    async def _run(self, call: int, body: Generator[Request, Any, Any]) -> Any:
        del self._not_begun[call]
        return await _drive_async(body, self._do)

    def check_all_begun(self) -> None:
        """
        Make sure, at the job's end, that it has awaited its steps.

        Raises:
            UsageError: It has not; what such a step was to do has not been done.
        """
        forgotten = self._forgotten()
        for _, step in forgotten:
            step.close()
        if forgotten:
            raise UsageError(_await_it(forgotten[0][0]))

    def explain(self, error: Exception) -> None:
        """Note on what the job raised that it may come of a step which it has not awaited, and used the result of."""
        if not isinstance(error, (TypeError, AttributeError)):
            return
        # One that a task has is not forgotten; it has not come round yet.
        begun = {task.get_coro() for task in asyncio.all_tasks()}
        for name, step in self._forgotten():
            if step not in begun:
                step.close()
                error.add_note(_await_it(name))

    def _forgotten(self) -> list[tuple[str, Coroutine[Any, Any, Any]]]:
        # A task that was cancelled before its beginning has closed its coroutine.
        return [(n, step) for n, step in self._not_begun.values() if getcoroutinestate(step) == CORO_CREATED]

    async def _do(self, request: Request) -> Any:
        match request:
            case Call():
                return await self._call(request)
            case Write(intent):
                host = self._execution.host
                try:
                    return await host.committer.ask(intent)
                except DatabaseUnavailableError as error:
                    return await host.keep_writing(intent, error)
            case Hold():
                while self._execution.host.is_cut_off and not self.cancelled.is_set():  # noqa: ASYNC110 - a clock decides
                    await asyncio.sleep(_HOLD_SECONDS)
        return None

    async def _call(self, call: Call) -> Any:
        outer, process = current_step.set(call.step_name), os.getpid()
        try:
            if is_async_callable(call.fn):
                return await bounded(call.fn(*call.args), call.limit)
            run = contextvars.copy_context().run
            returned = run_in_thread(self._execution, self._executor, run, call_plain, call.fn, *call.args)
            return await self._to_its_end(returned)
        finally:
            end_if_forked(process)
            current_step.reset(outer)

    async def _to_its_end(self, function: asyncio.Future[Any]) -> Any:
        """Await a function in a thread, also when the run's time is up: the slot is taken until it has returned."""
        if self._execution.time.limit is None:
            return await function
        try:
            return await asyncio.shield(function)
        except asyncio.CancelledError:
            if self._execution.time.is_up():
                await asyncio.wait([function])
            raise


def _await_it(step_name: str) -> str:
    return f"step {step_name!r} did not run: write `await step.run({step_name!r}, ...)`"


def _drive(body: Generator[Request, Any, Any], do: Callable[[Request], Any]) -> Any:
    """Do what *body* asks for, one request after the other, until it returns."""
    try:
        request = next(body)
        while True:
            try:
                answer = do(request)
            except BaseException as error:  # noqa: BLE001 - the body decides what to do with it
                request = body.throw(error)
            else:
                request = body.send(answer)
    except StopIteration as end:
        return end.value


async def _drive_async(body: Generator[Request, Any, Any], do: Callable[[Request], Awaitable[Any]]) -> Any:
    """As `_drive`, for requests that are awaited."""
    try:
        request = next(body)
        while True:
            try:
                answer = await do(request)
            except BaseException as error:  # noqa: BLE001 - the body decides what to do with it
                request = body.throw(error)
            else:
                request = body.send(answer)
    except StopIteration as end:
        return end.value
