"""Triggers: what is checked, what is stored, what is answered, and how soon a worker begins."""

import asyncio
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pydantic
import pytest

from durably import (
    BatchItem,
    Durably,
    PayloadTooLargeError,
    StepContext,
    ValidationError,
    define_job,
    ids,
)
from durably.handle import parse_json
from durably.testing.dialects.suite.support import (
    AppMaker,
    add_worker,
    claim,
    eventually,
    hear,
    read,
    spelled,
    sql,
    types,
)


class Order(pydantic.BaseModel):
    email: str
    amount: int = 1
    placed: datetime | None = None


def nothing(step: StepContext, input: object) -> None:
    """Do nothing, as a job."""


def take_order(step: StepContext, order: Order) -> Order:
    """Give the order back."""
    return order


def test_a_new_run_is_pending_and_otherwise_empty(app: Durably) -> None:
    # contract 26, 31, 32, 181
    before = datetime.now(UTC) - timedelta(milliseconds=2)
    run = app.register(define_job("job", nothing)).trigger({"n": 1})
    assert run.disposition == "created"
    assert (run.status, run.attempt, run.generation, run.interruptions) == ("pending", 1, 0, 0)
    assert (run.input, run.labels, run.job_name) == ({"n": 1}, {}, "job")
    assert before <= run.created_at == run.updated_at <= datetime.now(UTC) + timedelta(milliseconds=2)
    assert (run.current_step_index, run.completed_step_count) == (0, 0)
    assert (run.is_active, run.is_terminal) == (True, False)
    for field in (
        "worker_id",
        "progress",
        "output",
        "error",
        "error_type",
        "error_traceback",
        "started_at",
        "completed_at",
        "idempotency_key",
        "concurrency_key",
    ):
        assert getattr(run, field) is None, field


def test_a_run_is_committed_when_trigger_returns(make_app: AppMaker) -> None:
    # contract 26
    run = make_app().register(define_job("job", nothing)).trigger()
    found = make_app().get_run(run.id)
    assert found is not None
    assert (found.id, found.disposition) == (run.id, None)


def test_the_checked_input_is_what_is_stored(app: Durably) -> None:
    # contract 23, 28
    handle = app.register(define_job("order", take_order))
    run = handle.trigger({"email": "a@b", "amount": "3", "placed": "2024-02-29T12:00:00Z"})
    assert run.input == {"email": "a@b", "amount": 3, "placed": "2024-02-29T12:00:00Z"}
    assert handle.trigger(Order(email="x")).input == {"email": "x", "amount": 1, "placed": None}
    app.process_until_idle()
    done = app.wait_for_run(run.id, timeout=0)
    assert done.output == Order(email="a@b", amount=3, placed=datetime(2024, 2, 29, 12, tzinfo=UTC))


def test_the_input_is_equal_on_every_execution(app: Durably) -> None:
    # contract 23
    seen: list[Any] = []

    @app.job("job", input=tuple[datetime, set[int]])
    def job(step: StepContext, input: Any) -> None:
        seen.append(input)
        if step.attempt == 1:
            raise RuntimeError

    given = (datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=UTC), {1, 2})
    run = job.trigger(given)
    app.process_one()
    app.retry(run.id)
    app.process_one()
    assert seen == [given, given]


BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"input": {}}, "input.email"),
    ({"input": {"email": 7}}, "input.email"),
    ({"input": {"email": "x", "amount": "many"}}, "input.amount"),
    ({"input": "text"}, "input"),
    ({"input": None}, "input"),
    ({"idempotency_key": ""}, "idempotency_key"),
    ({"idempotency_key": "x" * 256}, "idempotency_key"),
    ({"idempotency_key": 7}, "idempotency_key"),
    ({"concurrency_key": ""}, "concurrency_key"),
    ({"concurrency_key": "x" * 256}, "concurrency_key"),
    ({"concurrency_key": b"k"}, "concurrency_key"),
    ({"concurrency_key": "\ud800"}, "concurrency_key"),
    ({"concurrency_key": "a\0b"}, "concurrency_key"),
    ({"coalesce": "skip"}, "coalesce"),
    ({"coalesce": "other", "concurrency_key": "k"}, "coalesce"),
    ({"coalesce": True, "concurrency_key": "k"}, "coalesce"),
    ({"coalesce": [], "concurrency_key": "k"}, "coalesce"),
    ({"labels": {"org": 7}}, "labels.org"),
    ({"labels": {"or g": "x"}}, "labels.or g"),
    ({"labels": {"": "x"}}, "labels."),
    ({"labels": {"org": "x" * 256}}, "labels.org"),
    ({"labels": {"org": "\ud800"}}, "labels.org"),
    ({"labels": {"x" * 256: "x"}}, "labels." + "x" * 256),
    ({"labels": ["org"]}, "labels"),
]


@pytest.mark.parametrize(("arguments", "field"), BAD_ARGUMENTS, ids=spelled)
def test_a_wrong_argument_is_refused_by_name_before_anything_is_written(
    app: Durably, arguments: dict[str, Any], field: str
) -> None:
    # contract 27, 30, 116, 119, 123
    handle = app.register(define_job("order", take_order))
    heard = hear(app)
    with pytest.raises(ValidationError) as refused:
        handle.trigger(**{"input": {"email": "x"}, **arguments})
    assert refused.value.field == field
    assert str(refused.value).startswith(f"{field}: ")
    with pytest.raises(ValidationError) as refused:
        handle.batch_trigger([{"email": "x"}, BatchItem(**{"input": {"email": "x"}, **arguments})])
    assert refused.value.field == f"items[1].{field}"
    assert app.get_runs() == []
    assert heard == []


def test_the_longest_keys_and_labels_are_taken_as_they_are(app: Durably) -> None:
    # contract 30, 119
    key = "ä" * 255
    labels = {"a.b/c_d-E9": "x" * 255, "k" * 255: ""}
    run = app.register(define_job("job", nothing)).trigger(idempotency_key=key, concurrency_key=key, labels=labels)
    found = read(app, run)
    assert (found.idempotency_key, found.concurrency_key, dict(found.labels)) == (key, key, labels)
    with pytest.raises(TypeError):
        found.labels["new"] = "x"  # type: ignore[index]


def test_text_that_is_no_json_is_an_error_on_input() -> None:
    # contract 27
    assert parse_json('{"a": [1, null]}') == {"a": [1, None]}
    with pytest.raises(ValidationError, match=r"^input: not JSON"):
        parse_json("{a: 1}")


def test_an_input_over_max_payload_bytes_gives_its_size_and_the_limit(make_app: AppMaker) -> None:
    # contract 29
    app = make_app(max_payload_bytes=1024)
    handle = app.register(define_job("job", nothing))
    assert handle.trigger("x" * 1022).status == "pending"
    with pytest.raises(PayloadTooLargeError, match=r"1025.*1024") as refused:
        handle.trigger("x" * 1023)
    assert (refused.value.field, refused.value.size, refused.value.limit) == ("input", 1025, 1024)
    assert len(app.get_runs()) == 1


@pytest.mark.parametrize(
    "value", [float("nan"), [float("inf")], {1: 2}, object(), b"x", {"a": {"b": {1, 2}}}], ids=spelled
)
def test_an_untyped_input_that_is_no_json_is_refused(app: Durably, value: Any) -> None:
    # contract 25
    with pytest.raises(ValidationError, match=r"^input"):
        app.register(define_job("job", nothing)).trigger(value)


def test_ids_ascend_in_the_order_of_the_calls_also_when_the_clock_steps_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # contract 33
    made = [ids.new_id() for _ in range(2000)]
    past = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr("durably.ids.time.time_ns", lambda: past)
    made += [ids.new_id() for _ in range(2000)]
    assert made == sorted(set(made))
    assert all(re.fullmatch("[0-9A-HJKMNP-TV-Z]{26}", one) for one in made)


def test_ids_of_threads_are_all_different() -> None:
    # contract 33
    with ThreadPoolExecutor(8) as threads:
        parts = [f.result() for f in [threads.submit(lambda: [ids.new_id() for _ in range(500)]) for _ in range(8)]]
    assert all(part == sorted(part) for part in parts)
    assert len({one for part in parts for one in part}) == 4000


def test_runs_of_one_thread_ascend(app: Durably) -> None:
    # contract 33, 124
    handle = app.register(define_job("job", nothing))
    made = [handle.trigger().id for _ in range(5)] + [r.id for r in handle.batch_trigger(range(5))]
    assert made == sorted(made)


@pytest.mark.wakes
def test_a_waiting_worker_begins_without_waiting_for_its_polling_interval(make_app: AppMaker) -> None:
    # contract 34
    app = make_app(polling_interval=30)
    handle = app.register(define_job("job", nothing))
    app.start()
    handle.trigger_and_wait(timeout=10)
    waits = sorted(trigger_to_start(app, handle.trigger) for _ in range(20))
    # The aim is 10 ms; what is asserted is that nobody polled, on a machine that does other things too.
    assert waits[10] < 0.1


@pytest.mark.wakes
def test_a_waiting_worker_begins_what_another_instance_triggers(make_app: AppMaker) -> None:
    # contract 34, 186
    app, other = make_app(polling_interval=30), make_app()
    job = define_job("job", nothing)
    app.register(job)
    app.start()
    handle = other.register(job)
    assert trigger_to_start(other, handle.trigger) < 5


def trigger_to_start(app: Durably, trigger: Callable[[], Any]) -> float:
    """Measure, in seconds by the database's clock, how long a new run waits."""
    run = eventually_done(app, trigger().id)
    assert run.started_at is not None
    return float((run.started_at - run.created_at).total_seconds())


def eventually_done(app: Durably, run_id: str) -> Any:
    return eventually(lambda: (run := read(app, run_id)).is_terminal and run)


def test_a_worker_that_nothing_wakes_begins_within_its_polling_interval(
    make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # contract 34
    app = make_app(polling_interval=0.1)
    monkeypatch.setattr(type(app.database.dialect), "watch", lambda _self, _engine: None)
    handle = app.register(define_job("job", nothing))
    app.start()
    assert handle.trigger_and_wait(timeout=10).status == "completed"


def test_the_awaitable_twin_does_the_same(app: Durably) -> None:
    # contract 26, 27
    handle = app.register(define_job("order", take_order))

    async def go() -> Any:
        with pytest.raises(ValidationError, match=r"input\.email"):
            await handle.atrigger({})
        run = await handle.atrigger({"email": "x"}, labels={"a": "b"})
        return run, await app.aget_run(run.id), await handle.abatch_trigger([{"email": "y"}])

    run, found, batch = asyncio.run(go())
    assert (run.id, dict(run.labels)) == (found.id, {"a": "b"})
    assert [r.input["email"] for r in batch] == ["y"]


def test_a_trigger_tells_its_run_after_the_commit(app: Durably) -> None:
    # contract 139
    seen: list[Any] = []
    app.on("run:trigger", lambda e: seen.append((e, app.get_run(e.run_id) is not None)))
    run = app.register(define_job("job", nothing)).trigger([1], labels={"a": "b"}, idempotency_key="i")
    ((event, was_there),) = seen
    assert was_there
    assert (event.run_id, event.job_name, event.input, dict(event.labels)) == (run.id, "job", [1], {"a": "b"})
    assert (event.idempotency_key, event.concurrency_key, event.retriggered_from) == ("i", None, None)


def test_the_same_idempotency_key_is_answered_with_the_first_run_and_tells_nothing(app: Durably) -> None:
    # contract 31, 106, 107
    handle, other = app.register(define_job("job", nothing)), app.register(define_job("other", nothing))
    first = handle.trigger(1, idempotency_key="k")
    heard = hear(app)
    second = handle.trigger(2, idempotency_key="k", concurrency_key="c", coalesce="skip")
    assert (second.id, second.disposition, second.input) == (first.id, "idempotent", 1)
    assert heard == []
    app.process_one()
    again = handle.trigger(3, idempotency_key="k")
    assert (again.id, again.status) == (first.id, "completed")
    assert other.trigger(idempotency_key="k").disposition == "created"


def test_racing_triggers_of_one_idempotency_key_create_one_run(app: Durably) -> None:
    # contract 8, 108
    handle = app.register(define_job("job", nothing))
    with ThreadPoolExecutor(8) as threads:
        made = [f.result() for f in [threads.submit(handle.trigger, n, idempotency_key="k") for n in range(16)]]
    assert len({run.id for run in made}) == 1
    assert sorted(str(run.disposition) for run in made) == ["created"] + ["idempotent"] * 15


def test_racing_coalescing_triggers_leave_one_pending_run(app: Durably) -> None:
    # contract 114, 117
    handle = app.register(define_job("job", nothing))

    def go(n: int) -> Any:
        return handle.trigger(n, concurrency_key="k", coalesce="skip")

    with ThreadPoolExecutor(8) as threads:
        made = [f.result() for f in [threads.submit(go, n) for n in range(16)]]
    assert len({run.id for run in made}) == 1
    assert len(app.get_runs(status="pending")) == 1


def test_coalescing_is_told_with_what_was_skipped(app: Durably) -> None:
    # contract 31, 114, 118
    handle = app.register(define_job("job", nothing))
    first = handle.trigger(1, concurrency_key="k", labels={"of": "first"})
    heard = hear(app)
    second = handle.trigger(2, concurrency_key="k", coalesce="skip", labels={"of": "second"})
    assert (second.id, second.disposition, second.input) == (first.id, "coalesced", 1)
    (event,) = heard
    assert types(heard) == ["run:coalesced"]
    assert (event.run_id, event.status, event.skipped_input) == (first.id, "pending", 2)
    assert (dict(event.labels), dict(event.skipped_labels)) == ({"of": "first"}, {"of": "second"})


def test_a_batch_is_written_as_a_whole_or_not_at_all(app: Durably) -> None:
    # contract 124, 125, 126
    handle = app.register(define_job("job", nothing))
    heard = hear(app)
    runs = handle.batch_trigger(
        [{"input": 1}, BatchItem(2, idempotency_key="k"), BatchItem(3, idempotency_key="k"), BatchItem(4)]
    )
    assert [run.input for run in runs] == [{"input": 1}, 2, 2, 4]
    assert [run.disposition for run in runs] == ["created", "created", "idempotent", "created"]
    assert types(heard) == ["run:trigger"] * 3
    assert [e.run_id for e in heard] == [runs[0].id, runs[1].id, runs[3].id]
    assert handle.batch_trigger([]) == []
    sql(app, "DROP TABLE durably_labels")
    with pytest.raises(Exception, match="durably_labels"):
        handle.batch_trigger([BatchItem(5), BatchItem(6, labels={"a": "b"})])
    assert len(app.get_runs()) == 3


def test_coalescing_with_the_active_run_takes_a_pending_one_first_and_else_the_running_one(app: Durably) -> None:
    # contract 114, 115
    handle = app.register(define_job("job", nothing))
    other = app.register(define_job("other", nothing))
    running = handle.trigger(1, concurrency_key="k")
    claim(app, add_worker(app))
    assert handle.trigger(2, concurrency_key="l", coalesce="active").disposition == "created"
    assert other.trigger(3, concurrency_key="k", coalesce="active").disposition == "created"
    taken = handle.trigger(4, concurrency_key="k", coalesce="active", labels={"of": "the second"})
    assert (taken.id, taken.disposition, taken.status) == (running.id, "coalesced", "running")
    assert (taken.input, taken.labels) == (1, {})
    pending = handle.trigger(5, concurrency_key="k", coalesce="skip")
    assert pending.disposition == "created"
    younger = handle.trigger(6, concurrency_key="k")
    assert younger.disposition == "created"
    taken = handle.trigger(7, concurrency_key="k", coalesce="active")
    assert (taken.id, taken.status) == (pending.id, "pending")


def test_only_a_batch_item_is_read_as_options(app: Durably) -> None:
    # contract 122, 125
    handle = app.register(define_job("job", nothing))
    like_options = {"input": 1, "labels": {"org": "a"}, "idempotency_key": "k"}
    item = BatchItem(like_options, idempotency_key="k", concurrency_key="c", coalesce="skip", labels={"org": "b"})
    plain, optional, again = handle.batch_trigger([like_options, item, item])
    assert (plain.input, plain.labels, plain.idempotency_key) == (like_options, {}, None)
    assert (optional.input, optional.labels) == (like_options, {"org": "b"})
    assert (optional.idempotency_key, optional.concurrency_key) == ("k", "c")
    assert (plain.disposition, optional.disposition, again.disposition) == ("created", "created", "idempotent")
    assert again.id == optional.id
