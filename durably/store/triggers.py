"""How runs are born: trigger, answered by an existing run where a key says so."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from sqlalchemy import bindparam, insert, literal_column, select

from durably.errors import ConflictError, NotFoundError
from durably.ids import is_id, new_id
from durably.model import ACTIVE
from durably.store.rows import to_labels, to_run
from durably.store.tables import has_status, now, runs
from durably.store.tables import labels as labels_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sqlalchemy import Connection, Row

    from durably.model import Disposition, Run

Coalesce = Literal["skip", "active"]
Lock: TypeAlias = "Callable[[Connection, str], None]"
"""Holds, until the transaction's end, a name that only one transaction holds at a time."""
_CHUNK: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """
    What a trigger asks for, checked.

    Args:
        id: From `new_id`.
        input: JSON.
        coalesce: With a concurrency key: answer with a pending ("skip") or also the running ("active") run.
    """

    id: str
    job_name: str
    input: str
    labels: Mapping[str, str] = field(default_factory=dict)
    idempotency_key: str | None = None
    concurrency_key: str | None = None
    coalesce: Coalesce | None = None


_insert_run: Final = insert(runs).values(
    id=bindparam("id"),
    job_name=bindparam("job_name"),
    status="pending",
    input=bindparam("input"),
    labels=bindparam("labels"),
    idempotency_key=bindparam("idempotency_key"),
    concurrency_key=bindparam("concurrency_key"),
    attempt=1,
    generation=0,
    interruptions=0,
    created_at=now(),
    pending_at=now(),
    updated_at=now(),
)
_insert_and_give: Final = _insert_run.returning(runs)
_by_id: Final = select(runs).where(runs.c.id == bindparam("run_id"))
_insert_label: Final = insert(labels_table)
_by_idempotency_key: Final = select(runs).where(
    runs.c.job_name == bindparam("job_name"), runs.c.idempotency_key == bindparam("key")
)
_of_key: Final = runs.c.job_name == bindparam("job_name"), runs.c.concurrency_key == bindparam("key")
_oldest_pending: Final = (
    select(runs)
    .where(has_status("pending"), *_of_key)
    .order_by(runs.c.created_at, runs.c.id)
    .limit(literal_column("1"))
)
_running: Final = select(runs).where(has_status("running"), *_of_key)


def trigger(connection: Connection, wanted: Sequence[NewRun], lock: Lock) -> list[Run]:
    """
    Create a run for each of *wanted*, in order, or answer with an existing one.

    Args:
        connection: In a write transaction.
        lock: The dialect's, which makes look and insert of one key one.

    Returns:
        One run for each, with its disposition: "created", "idempotent" or "coalesced".
    """
    for key in sorted({key for new in wanted for key in _keys_looked_for(new)}):  # one order for all: no deadlock
        lock(connection, key)
    # Answered with as they were found: where writers do not exclude each other, they may be gone by the end.
    found: list[tuple[Row[Any] | None, Disposition]] = []
    created: dict[str, Row[Any]] = {}
    fresh: list[NewRun] = []
    for new in wanted:
        if new.idempotency_key is not None or new.coalesce is not None:
            # Those before it must be seen by the look.
            created |= _insert(connection, fresh)
            fresh = []
        existing, disposition = _find_existing(connection, new)
        found.append((existing, disposition))
        if existing is None:
            fresh.append(new)
    created |= _insert(connection, fresh)
    return [
        to_run(created[new.id] if row is None else row, disposition=disposition)
        for new, (row, disposition) in zip(wanted, found, strict=True)
    ]


def read_original(connection: Connection, run_id: str) -> NewRun:
    """
    Read what an ended run was triggered with, for one like it.

    Returns:
        Its job, input, labels and concurrency key, under an id of its own; without an idempotency key.

    Raises:
        NotFoundError: There is none of that id.
        ConflictError: It is pending or running; with its status.
    """
    row = connection.execute(_by_id, {"run_id": run_id}).first() if is_id(run_id) else None
    if row is None:
        raise NotFoundError(f"there is no run {run_id!r}")
    if row.status in ACTIVE:
        raise ConflictError(
            f"run {run_id} is {row.status}; only a run that has ended can be triggered again", status=row.status
        )
    return NewRun(
        id=new_id(),
        job_name=row.job_name,
        input=row.input,
        labels=to_labels(row.labels),
        concurrency_key=row.concurrency_key,
    )


def retrigger(connection: Connection, run_id: str, lock: Lock) -> Run:
    """
    Create a run like an ended one, in a write transaction.

    Raises:
        NotFoundError, ConflictError: As of `read_original`.
    """
    return trigger(connection, [read_original(connection, run_id)], lock)[0]


def _keys_looked_for(new: NewRun) -> Iterator[str]:
    """Name what a trigger looks for before it inserts."""
    if new.idempotency_key is not None:
        yield f"durably idempotency {new.job_name} {new.idempotency_key}"
    if new.coalesce is not None:
        yield f"durably coalesce {new.job_name} {new.concurrency_key}"


def _find_existing(connection: Connection, new: NewRun) -> tuple[Row[Any] | None, Disposition]:
    if new.idempotency_key is not None:
        same = {"job_name": new.job_name, "key": new.idempotency_key}
        if row := connection.execute(_by_idempotency_key, same).first():
            return row, "idempotent"
    if new.coalesce is not None:
        values = {"job_name": new.job_name, "key": new.concurrency_key}
        if row := connection.execute(_oldest_pending, values).first():
            return row, "coalesced"
        if new.coalesce == "active" and (row := connection.execute(_running, values).first()):
            return row, "coalesced"
    return None, "created"


def _insert(connection: Connection, fresh: Sequence[NewRun]) -> dict[str, Row[Any]]:
    """Insert them, and give their rows by id."""
    if not fresh:
        return {}
    values = [
        {
            "id": new.id,
            "job_name": new.job_name,
            "input": new.input,
            "labels": json.dumps(dict(new.labels), ensure_ascii=False),
            "idempotency_key": new.idempotency_key,
            "concurrency_key": new.concurrency_key,
        }
        for new in fresh
    ]
    if connection.dialect.insert_executemany_returning:
        created = {row.id: row for row in connection.execute(_insert_and_give, values)}
    else:
        connection.execute(_insert_run, values)
        created = _fetch(connection, [new.id for new in fresh])
    labelled = [{"run_id": n.id, "key": k, "value": v} for n in fresh for k, v in n.labels.items()]
    if labelled:
        connection.execute(_insert_label, labelled)
    return created


def _fetch(connection: Connection, ids: Sequence[str]) -> dict[str, Row[Any]]:
    found: dict[str, Row[Any]] = {}
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        found |= {row.id: row for row in connection.execute(select(runs).where(runs.c.id.in_(chunk)))}
    return found
