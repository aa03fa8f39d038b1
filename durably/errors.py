"""
Everything that durably raises.

::

    Exception
    └── DurablyError
        ├── ValidationError (also ValueError)      an argument, setting or filter is wrong
        │   └── PayloadTooLargeError               a value is above max_payload_bytes
        ├── NotFoundError (also LookupError)       no such run
        ├── ConflictError                          a run's or database's state forbids it, or a job name is taken
        ├── RunFailedError, RunCancelledError      how a run that was waited for ended
        ├── WaitTimeoutError (also TimeoutError)   a wait's timeout passed; the run goes on
        ├── StepTimeoutError (also TimeoutError)   a step took longer than its timeout
        ├── RunTimeoutError (also TimeoutError)    a run took longer than its job's timeout
        ├── DuplicateStepError, CheckpointError    a step name used twice; a checkpoint unfit for its type
        ├── EncodingError (also TypeError)         a step's or job's value cannot be stored as JSON
        ├── UsageError (also RuntimeError)         a call in the wrong place
        ├── ApplicationError                       the application raised while it was imported
        ├── SchemaOutdatedError, SchemaTooNewError the database's schema and the code differ
        ├── CopyUnfinishedError                    a copy into this database was begun and has not ended
        └── DatabaseUnavailableError               the database did not answer in time; the cause is chained

    BaseException
    └── ControlFlow                                raised inside jobs only; `except Exception` lets it pass
        ├── Cancelled                              somebody cancelled the run
        ├── LeaseLost                              the run belongs to another worker now
        └── Released                               the worker is stopping and handed the run back
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from durably.words import in_words

if TYPE_CHECKING:
    from durably.model import Run

Reason = Literal["cancelled", "lease_lost", "released"]


class DurablyError(Exception):
    """Root of all errors that are not control flow."""


class ValidationError(DurablyError, ValueError):
    """
    An argument, setting or filter is wrong; nothing was written.

    Args:
        field: What is wrong: an argument, a setting, or a path such as ``input.email``.
        message: What is wrong with it and what would be right.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.field, self.message)


class PayloadTooLargeError(ValidationError):
    """
    A value is larger than max_payload_bytes when encoded.

    Args:
        field: What is too large: ``input``, ``output`` or a step's name.
        size: Its encoded size in bytes.
        limit: The setting max_payload_bytes.
    """

    def __init__(self, field: str, size: int, limit: int) -> None:
        super().__init__(
            field,
            f"{size} bytes when encoded, more than max_payload_bytes ({limit}); "
            "store large data elsewhere and pass a reference to it",
        )
        self.size = size
        self.limit = limit

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.field, self.size, self.limit)


class NotFoundError(DurablyError, LookupError):
    """There is no such run."""


class ConflictError(DurablyError):
    """
    The state of a run or database forbids the operation, or a job's name is taken.

    Args:
        message: What was asked and why it cannot be.
        status: The run's status where a status is the reason, else None.
    """

    def __init__(self, message: str, *, status: str | None = None) -> None:
        super().__init__(message)
        self.status = status


class RunFailedError(DurablyError):
    """
    The run that was waited for failed.

    Args:
        run: The failed run, with its error fields.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(f"run {run.id} of job {run.job_name!r} failed: {in_words(run.error_type, run.error)}")
        self.run = run


class RunCancelledError(DurablyError):
    """
    The run that was waited for was cancelled.

    Args:
        run: The cancelled run.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(f"run {run.id} of job {run.job_name!r} was cancelled")
        self.run = run


class WaitTimeoutError(DurablyError, TimeoutError):
    """A wait's timeout passed; the run goes on."""


class StepTimeoutError(DurablyError, TimeoutError):
    """
    A step took longer than its timeout; a failure of the step as any other, which the job may catch.

    Args:
        step_name: The step.
        timeout: What it was allowed, in seconds.
    """

    def __init__(self, step_name: str, timeout: float) -> None:
        super().__init__(f"step {step_name!r} took longer than its timeout of {timeout:g} s")
        self.step_name = step_name
        self.timeout = timeout

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.step_name, self.timeout)


class RunTimeoutError(DurablyError, TimeoutError):
    """
    An execution of a run took longer than its job's timeout; the run fails with it, whatever the job makes of it.

    Args:
        job_name: The job.
        timeout: What it allows, in seconds.
    """

    def __init__(self, job_name: str, timeout: float) -> None:
        super().__init__(f"the run took longer than the timeout of {timeout:g} s of its job {job_name!r}")
        self.job_name = job_name
        self.timeout = timeout

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.job_name, self.timeout)


class DuplicateStepError(DurablyError):
    """
    A step name was used twice in one execution.

    Args:
        step_name: The name that has completed or is in flight already.
    """

    def __init__(self, step_name: str) -> None:
        super().__init__(
            f"step {step_name!r} has already run in this execution; steps are remembered by name, "
            "so give each its own, for example with a counter: f'page {n}'"
        )
        self.step_name = step_name


class CheckpointError(DurablyError):
    """
    A stored checkpoint does not fit the type that the step declares now.

    Args:
        step_name: The step.
        message: Where the stored value and the type differ.
    """

    def __init__(self, step_name: str, message: str) -> None:
        super().__init__(
            f"the checkpoint of step {step_name!r} does not fit its declared type: {message}; "
            "give the changed step a new name, or let its type accept what was stored"
        )
        self.step_name = step_name


class EncodingError(DurablyError, TypeError):
    """
    A value cannot be stored as JSON.

    Args:
        subject: What was encoded, for example ``step 'fetch'``.
        path: Where in the value, for example ``$.rows[3].when``.
        message: What is wrong there.
    """

    def __init__(self, subject: str, path: str, message: str) -> None:
        super().__init__(f"{subject}: {path}: {message}")
        self.subject = subject
        self.path = path


class UsageError(DurablyError, RuntimeError):
    """A call in the wrong place: a synchronous wait on an event loop, a step after its run's end."""


class ApplicationError(DurablyError):
    """The application that was named raised while it was imported; the cause is chained."""


class SchemaOutdatedError(DurablyError):
    """
    The database lacks durably's tables or is behind the code.

    Args:
        found: The database's revision, None if it has none.
        expected: The code's revision.
        url: The database's, without its password; None if it is not known.
        missing_file: The database's file, where there is none yet; else None.
    """

    def __init__(
        self, found: str | None, expected: str, *, url: str | None = None, missing_file: str | None = None
    ) -> None:
        state = "has no durably tables" if found is None else f"is at schema revision {found}"
        if missing_file is not None:
            state = f"is not there yet (there is no file {missing_file})"
        super().__init__(
            f"the database {f'{url} ' if url else ''}{state}, this durably needs revision {expected}: "
            f"run `{_migrate_command(url)}` or call `migrate()`"
        )
        self.found = found
        self.expected = expected


def _migrate_command(url: str | None) -> str:
    import shlex

    if url is None:
        return "durably migrate"
    # A password is not shown; the URL with it is the caller's to fill in.
    return f"durably migrate --dialect-url {'URL' if '***' in url else shlex.quote(url)}"


class SchemaTooNewError(DurablyError):
    """
    A newer durably migrated this database; nothing was written.

    Args:
        found: The database's revision.
        expected: The newest revision that the code knows.
    """

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(
            f"the database is at schema revision {found}, which this durably (up to {expected}) does not know: "
            "install the newer durably that migrated it"
        )
        self.found = found
        self.expected = expected


class CopyUnfinishedError(DurablyError):
    """
    A copy into this database was begun and has not ended; nothing but that copy may use it.

    Args:
        url: The database's, without its password.
    """

    def __init__(self, url: str) -> None:
        super().__init__(
            f"the database {url} holds an unfinished copy of another: the same `durably copy` again goes on with it, "
            "with --restart it begins anew"
        )
        self.url = url

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.url,)


class DatabaseUnavailableError(DurablyError):
    """The database did not do what a caller asked within database_timeout; the cause is chained."""


class ControlFlow(BaseException):
    """Root of what ends a job's function from outside. Let it pass; clean up in `finally`."""


class Cancelled(ControlFlow):
    """The run was cancelled."""


class LeaseLost(ControlFlow):
    """The run belongs to another worker, or to nobody, now."""


class Released(ControlFlow):
    """The worker is stopping and has handed the run back; another worker resumes it."""


CONTROL_FLOW: dict[Reason, type[ControlFlow]] = {
    "cancelled": Cancelled,
    "lease_lost": LeaseLost,
    "released": Released,
}
