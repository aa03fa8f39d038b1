"""A registered job, as callers hold it: triggers and looks up its runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from durably import events
from durably.codec import Encoded, check_input
from durably.errors import ValidationError
from durably.hints import hints
from durably.ids import new_id
from durably.settings import check_timeout
from durably.store import triggers
from durably.twins import twin

if TYPE_CHECKING:
    from collections.abc import Callable

    from durably.client import Durably
    from durably.jobs import Job
    from durably.model import LogEntry, Progress, Run, Status

MAX_KEY_LENGTH: Final = 255
_LABEL_KEY: Final = re.compile(r"[A-Za-z0-9._/-]{1,255}")


@dataclass(frozen=True, slots=True)
class BatchItem:
    """
    One input of a batch with options of its own; they mean what they mean for `JobHandle.trigger`.

    Args:
        input: The run's input.
    """

    input: Any
    idempotency_key: str | None = None
    concurrency_key: str | None = None
    coalesce: str | None = None
    labels: Mapping[str, str] | None = None


@hints(
    {
        "delay apply_async send enqueue submit schedule queue push run start call":
            "a run is created by .trigger(input), and a worker executes it",
        "map batch bulk trigger_many": "runs are created, all or none, by .batch_trigger(inputs)",
        "wait result": ".trigger_and_wait(input) waits, and the run that it returns has the output",
        "cancel retry": "a run is cancelled or retried by the instance: durably.cancel(run.id), durably.retry(run.id)",
        "fn func function": "the job's function is .job.run",
    },
    called="a job is triggered, not called: .trigger(input) creates a run, which a worker executes, and "
    ".trigger_and_wait(input) waits for its end",
)  # fmt: skip
class JobHandle:
    """
    A job registered with one instance.

    Args:
        job: The job.
        durably: The instance.
    """

    def __init__(self, job: Job, durably: Durably) -> None:
        self.job: Final = job
        self._durably = durably

    @property
    def name(self) -> str:
        """The job's name."""
        return self.job.name

    def __repr__(self) -> str:
        return f"<JobHandle {self.name!r}>"

    def trigger(
        self,
        input: Any = None,
        *,
        idempotency_key: str | None = None,
        concurrency_key: str | None = None,
        coalesce: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Run:
        """
        Create a run; it is pending, and committed, when this returns.

        Args:
            input: Checked against the job's input type; the checked form is what is stored.
            idempotency_key: A second trigger of this job with the key is answered with the first one's run.
            concurrency_key: Of all runs with the key, across jobs, at most one is running.
            coalesce: With a concurrency key: be answered with a pending run of this job and key ("skip"), or
                also with the running one ("active").
            labels: Names and values to find the run by.

        Returns:
            The run, with its disposition: "created", "idempotent" or "coalesced".

        Raises:
            ValidationError: An argument is wrong; nothing was written.
            PayloadTooLargeError: The input is larger than max_payload_bytes.
            DatabaseUnavailableError: The database did not take it within database_timeout.
        """
        item = BatchItem(input, idempotency_key, concurrency_key, coalesce, labels)
        return self._write([self._check(item, "")])[0]

    def batch_trigger(self, items: Iterable[Any]) -> list[Run]:
        """
        Create a run for each item, all or none, in order.

        Args:
            items: Inputs, or `BatchItem`s.

        Returns:
            One run for each item, in order, each with its disposition.

        Raises:
            ValidationError: An item is wrong; its field begins with ``items[<i>].``, and nothing was written.
        """
        wanted = [
            self._check(item if isinstance(item, BatchItem) else BatchItem(item), f"items[{i}].")
            for i, item in enumerate(items)
        ]
        return self._write(wanted) if wanted else []

    def trigger_and_wait(
        self,
        input: Any = None,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        on_log: Callable[[LogEntry], object] | None = None,
        **options: Any,
    ) -> Run:
        """
        Trigger, then wait for the run's end; see `trigger` and `Durably.wait_for_run`.

        Raises:
            RunFailedError, RunCancelledError, WaitTimeoutError: As of the wait.
        """
        check_timeout(timeout)
        self._durably.check_may_wait()
        run = self.trigger(input, **options)
        return self._durably.wait_for_run(run.id, timeout=timeout, on_progress=on_progress, on_log=on_log)

    async def atrigger_and_wait(
        self,
        input: Any = None,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        on_log: Callable[[LogEntry], object] | None = None,
        **options: Any,
    ) -> Run:
        """Trigger, then await the run's end; as `trigger_and_wait`."""
        check_timeout(timeout)
        run = await self.atrigger(input, **options)
        return await self._durably.await_run(run.id, timeout=timeout, on_progress=on_progress, on_log=on_log)

    def get_run(self, run_id: str) -> Run | None:
        """Look up a run of this job; None if there is none, or it is another job's."""
        run = self._durably.get_run(run_id)
        return run if run is not None and run.job_name == self.name else None

    def get_runs(
        self,
        *,
        status: Status | Sequence[Status] | None = None,
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
        offset: int = 0,
        before: str | None = None,
    ) -> list[Run]:
        """List this job's runs, newest first; see `Durably.get_runs`."""
        return self._durably.get_runs(
            status=status, job_name=self.name, labels=labels, limit=limit, offset=offset, before=before
        )

    atrigger = twin(trigger)
    abatch_trigger = twin(batch_trigger)
    aget_run = twin(get_run)
    aget_runs = twin(get_runs)

    def _check(self, item: BatchItem, prefix: str) -> tuple[triggers.NewRun, Encoded]:
        try:
            encoded = check_input(self.job.input, item.input, self._durably.settings.max_payload_bytes)
            new = triggers.NewRun(
                id=new_id(),
                job_name=self.name,
                input=encoded.text,
                labels=check_labels(item.labels),
                idempotency_key=_check_key(item.idempotency_key, "idempotency_key"),
                concurrency_key=_check_key(item.concurrency_key, "concurrency_key"),
                coalesce=_check_coalesce(item.coalesce, item.concurrency_key),
            )
        except ValidationError as error:
            error.field = prefix + error.field
            if prefix:
                error.args = (prefix + str(error.args[0]),)
            raise
        return new, encoded

    def _write(self, checked: Sequence[tuple[triggers.NewRun, Encoded]]) -> list[Run]:
        wanted = [new for new, _ in checked]
        database = self._durably.database
        created = database.write(lambda c: triggers.trigger(c, wanted, database.dialect.lock), rings=True)
        for run, (new, encoded) in zip(created, checked, strict=True):
            if run.disposition == "created":
                self._durably.emitter.emit(
                    events.RunTrigger(
                        run_id=run.id,
                        job_name=run.job_name,
                        labels=run.labels,
                        input=encoded.data,
                        concurrency_key=run.concurrency_key,
                        idempotency_key=run.idempotency_key,
                    )
                )
            elif run.disposition == "coalesced":
                self._durably.emitter.emit(
                    events.RunCoalesced(
                        run_id=run.id,
                        job_name=run.job_name,
                        labels=run.labels,
                        status=run.status,
                        skipped_input=encoded.data,
                        skipped_labels=new.labels,
                    )
                )
        return created


def parse_json(text: str) -> Any:
    """
    Read an input given as JSON text.

    Raises:
        ValidationError: On `input`; it does not parse.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        remedy = f"; as a text it has quotes of its own: {json.dumps(text)}" if text[:1].isalpha() else ""
        raise ValidationError("input", f"not JSON: {error}{remedy}") from error


def check_labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    """
    Check labels, given to a trigger or a filter.

    Raises:
        ValidationError: On ``labels.<key>``.
    """
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        raise ValidationError("labels", f"{labels!r} is no dict of str to str")
    for key, value in labels.items():
        if not isinstance(key, str) or not _LABEL_KEY.fullmatch(key):
            raise ValidationError(f"labels.{key}", "a label's name has 1 to 255 letters, digits and - _ . /")
        if not isinstance(value, str) or len(value) > MAX_KEY_LENGTH:
            raise ValidationError(f"labels.{key}", f"{value!r:.80} is no str of at most {MAX_KEY_LENGTH} characters")
        _check_storable(value, f"labels.{key}")
    return dict(labels)


def _check_key(key: object, field: str) -> str | None:
    if key is None:
        return None
    if not isinstance(key, str) or not 1 <= len(key) <= MAX_KEY_LENGTH:
        raise ValidationError(field, f"{key!r:.80} is no str of 1 to {MAX_KEY_LENGTH} characters")
    _check_storable(key, field)
    return key


def _check_storable(text: str, field: str) -> None:
    if "\0" in text or text.encode(errors="replace").decode() != text:
        raise ValidationError(field, f"{text!r:.80} holds characters that no database stores")


def _check_coalesce(coalesce: object, concurrency_key: object) -> triggers.Coalesce | None:
    if coalesce is None:
        return None
    if coalesce not in ("skip", "active"):
        raise ValidationError("coalesce", f"{coalesce!r} is neither 'skip' nor 'active'")
    if concurrency_key is None:
        raise ValidationError("coalesce", "needs a concurrency_key to tell which runs count as the same")
    return coalesce
