"""Jobs: a named function with its types, checked where it is defined; and the registry of one process."""

from __future__ import annotations

import inspect
import threading
import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import FunctionType
from typing import TYPE_CHECKING, Any, Final, get_type_hints

from durably.codec import PLAIN, Codec, codec_for
from durably.errors import ConflictError, ValidationError
from durably.hints import hints, is_function
from durably.settings import POOL_NAME, parse_timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import timedelta

MAX_NAME_LENGTH: Final = 255
DEFAULT_POOL: Final = "default"


@hints(
    {
        "trigger batch_trigger trigger_and_wait atrigger atrigger_and_wait abatch_trigger delay":
            "a job has runs where it is registered: durably.register(job) gives the handle, which has .trigger(input)",
    },
    called="a job is registered and triggered, not called: durably.register(job).trigger(input)",
)  # fmt: skip
@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """
    A named function with declared types. Immutable; register it with any number of instances.

    Args:
        name: 1 to 255 characters.
        run: The function, `def` or `async def`, called with (step, input).
        input: The input's codec.
        output: The output's codec.
        is_async: Whether `run` is a coroutine function.
        timeout: Seconds that one execution may take; None for ever.
        pool: Which of a supervisor's workers take it.
    """

    name: str
    run: Callable[[Any, Any], Any]
    input: Codec = field(repr=False)
    output: Codec = field(repr=False)
    is_async: bool
    declared: tuple[Any, Any] = field(repr=False)
    timeout: float | None = None
    pool: str = DEFAULT_POOL

    def __reduce__(self) -> tuple[Any, ...]:
        # A spawned worker builds the codecs anew: pydantic's adapters do not pickle.
        return _define, (self.name, self.run, *self.declared, self.timeout, self.pool)


def define_job(
    name: str,
    run: Callable[[Any, Any], Any],
    *,
    input: Any = None,
    output: Any = None,
    timeout: float | str | timedelta | None = None,
    pool: str = DEFAULT_POOL,
) -> Job:
    """
    Define a job.

    Args:
        name: 1 to 255 characters, no control characters, no surrounding blanks.
        run: `def` or `async def`, taking (step, input).
        input: The input's type; else the annotation of the second parameter, else plain JSON data.
        output: The output's type; else the return annotation, else plain JSON data.
        timeout: How long one execution may take, from its claim to its end: seconds above 0, a timedelta, or text such
            as "5m". After it the run fails with RunTimeoutError. An asynchronous function is cancelled where it awaits;
            a synchronous one stops at its next step. What does neither is ended with its worker's process, if a
            supervisor has begun it; without one, nobody can end it.
        pool: Which of a supervisor's workers take it (`--pool NAME:N`), so that slow jobs do not starve quick ones. A
            worker that `start` begins takes the jobs of all pools.

    Raises:
        ValidationError: The name, the function, a type, the timeout or the pool is unusable; `field` says which.
    """
    check_name(name, "name", 'define_job("name", function)')
    if not is_function(run):
        raise ValidationError("run", f"{run!r} is no function")
    if inspect.isgeneratorfunction(run) or inspect.isasyncgenfunction(run):
        raise ValidationError("run", f"{run!r} is a generator; a job returns its output")
    second = _second_parameter(run)
    hints = _hints(run)
    return _define(
        name,
        run,
        hints.get(second, Any) if input is None else input,
        hints.get("return", Any) if output is None else output,
        parse_timeout(timeout),
        check_pool(pool),
    )


def _define(
    name: str,
    run: Callable[[Any, Any], Any],
    input_type: Any,
    output_type: Any,
    timeout: float | None,
    pool: str,
) -> Job:
    return Job(
        name=name,
        run=run,
        input=_codec(input_type, "input"),
        output=_codec(output_type, "output"),
        is_async=is_async_callable(run),
        declared=(input_type, output_type),
        timeout=timeout,
        pool=pool,
    )


def check_pool(pool: object) -> str:
    """
    Check a pool's name.

    Raises:
        ValidationError: On `pool`; it is not 1 to 64 letters, digits, "-", "_" or ".".
    """
    if not isinstance(pool, str) or not POOL_NAME.fullmatch(pool):
        raise ValidationError("pool", f"{pool!r} is no pool's name: 1 to 64 letters, digits, '-', '_' or '.'")
    return pool


def check_name(name: object, field_name: str, use: str = 'step.run("name", function, ...)') -> str:
    """
    Check a job's or step's name.

    Args:
        name: As given.
        field_name: What errors name.
        use: How the call looks, for who gave a function in the name's place.

    Raises:
        ValidationError: It is not 1 to 255 characters, or has control characters or surrounding blanks.
    """
    if callable(name):
        raise ValidationError(field_name, f"{name!r} is no str; the name comes first: {use}")
    if not isinstance(name, str):
        raise ValidationError(field_name, f"{name!r} is no str")
    _check_name(name, field_name)
    return name


def check_function(fn: object, step_name: str) -> None:
    """
    Check what a step is to call.

    Raises:
        ValidationError: On `fn`; it is no function, but what one has returned, say.
    """
    if is_function(fn):
        return
    if inspect.iscoroutine(fn):
        fn.close()  # or Python would warn that nobody has awaited it
    raise ValidationError(
        "fn",
        f"{fn!r:.80} is no function; the step calls it, so pass it and its arguments apart: "
        f"step.run({step_name!r}, function, argument), not step.run({step_name!r}, function(argument))",
    )


@lru_cache(maxsize=4096)
def _check_name(name: str, field_name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME_LENGTH:
        raise ValidationError(field_name, f"{name!r:.80} has {len(name)} characters; a name has 1 to {MAX_NAME_LENGTH}")
    if name != name.strip() or any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        raise ValidationError(field_name, f"{name!r} has control characters or surrounding blanks")


def is_async_callable(fn: Any) -> bool:
    """Tell whether calling *fn* gives a coroutine, also if it is a partial, or an object with an async `__call__`."""
    if type(fn) is FunctionType:  # most are, and each step asks
        return bool(fn.__code__.co_flags & inspect.CO_COROUTINE)
    while isinstance(fn, partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or (
        not inspect.isroutine(fn) and inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004 - its kind matters
    )


def result_codec(fn: Callable[..., Any]) -> Codec:
    """
    Find the codec of what *fn* returns, from its return annotation; plain JSON data without one.

    Raises:
        ValidationError: The annotation cannot be coded.
    """
    while isinstance(fn, partial):
        fn = fn.func
    annotations = getattr(fn, "__annotations__", None)
    if not annotations or "return" not in annotations:
        return PLAIN
    code = getattr(fn, "__code__", None)
    # A function defined within a job is new in each run, its code object is not.
    if code is None:
        return _codec(_hints(fn)["return"], "output")
    return _codec_of_return(_ByCode(code, annotations["return"], fn))


class _ByCode:
    """A function that equals every other made from the same source, and said to return the same."""

    __slots__ = ("code", "fn", "returned")

    def __init__(self, code: Any, returned: Any, fn: Callable[..., Any]) -> None:
        self.code = code
        self.returned = returned
        self.fn = fn

    def __hash__(self) -> int:
        return id(self.code)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByCode) and self.code is other.code and bool(self.returned == other.returned)


@lru_cache(maxsize=1024)
def _codec_of_return(key: _ByCode) -> Codec:
    return _codec(_hints(key.fn).get("return", Any), "output")


def _place(fn: Callable[..., Any]) -> str:
    """Tell a person which function this is."""
    while isinstance(fn, partial):
        fn = fn.func
    code = getattr(fn, "__code__", None)
    return repr(fn) if code is None else f"{fn.__qualname__} in {code.co_filename}:{code.co_firstlineno}"


def _second_parameter(run: Callable[..., Any]) -> str:
    try:
        parameters = list(inspect.signature(run).parameters.values())
        inspect.signature(run).bind(None, None)
    except (TypeError, ValueError) as error:
        raise ValidationError(
            "run",
            f"{run!r} does not take (step, input): {error}; a job has one input, which may be a dataclass, a pydantic "
            "model or a dict, and is there, as None say, where it needs none",
        ) from error
    return parameters[1].name if len(parameters) > 1 else ""


def _hints(fn: Callable[..., Any]) -> dict[str, Any]:
    """Read the annotations; those that name what is not importable at run time count as an error."""
    while isinstance(fn, partial):
        fn = fn.func
    if not (inspect.isroutine(fn) or inspect.isclass(fn)):
        fn = type(fn).__call__
    try:
        hints = get_type_hints(fn, include_extras=True)
    except NameError as error:
        raise ValidationError(
            "run",
            f"an annotation of {getattr(fn, '__qualname__', fn)} cannot be resolved ({error}): "
            "define or import the type at module level, not under TYPE_CHECKING",
        ) from error
    return {name: Any if hint is inspect.Parameter.empty else hint for name, hint in hints.items()}


def _codec(declared: Any, field_name: str) -> Codec:
    try:
        return codec_for(declared)
    except TypeError as error:
        raise ValidationError(field_name, str(error)) from error


class Registry:
    """
    The jobs that one process knows, by name. Safe for threads.

    Writers: whoever registers, under the lock. Readers: the worker's claims and every lookup, without it.
    """

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        # Whose jobs `names` lists; None for all.
        self._pool: str | None = None
        for job in jobs:
            self.add(job)

    def add(self, job: Job) -> None:
        """
        Add *job*; adding the same again changes nothing.

        Raises:
            ValidationError: It is no Job.
            ConflictError: Another job has the name.
        """
        if not isinstance(job, Job):
            raise ValidationError(
                "job", f"{job!r} is no Job: make one with define_job(name, function); a handle has its own at .job"
            )
        with self._lock:
            known = self._jobs.setdefault(job.name, job)
        if known is not job:
            raise ConflictError(
                f"another job is registered under the name {job.name!r}: {_place(known.run)}, now {_place(job.run)}; "
                "give each a name of its own, and where one definition is executed again, as in a notebook, make the "
                "instance anew before it"
            )

    def get(self, name: str) -> Job | None:
        """Give the job of that name, or None."""
        return self._jobs.get(name)

    def names(self) -> tuple[str, ...]:
        """Give the names in the order of registration; of one pool's jobs only, if that was said."""
        if self._pool is None:
            return tuple(self._jobs)
        return tuple(name for name, job in tuple(self._jobs.items()) if job.pool == self._pool)

    def keep_to(self, pool: str) -> None:
        """List from now on only one pool's jobs, also of those that are registered later; `get` knows all."""
        self._pool = pool

    def __iter__(self) -> Iterator[Job]:
        return iter(tuple(self._jobs.values()))
