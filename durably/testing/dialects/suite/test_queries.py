"""Looking runs up: by id, by filter, page by page; and what labels find."""

from typing import Any

import pytest

from durably import BatchItem, Durably, NotFoundError, Run, StepContext, ValidationError, define_job
from durably.testing.dialects.suite.support import eventually, hear, read, sql


def behave(step: StepContext, input: object) -> object:
    """Do as told, and say that it was done."""
    step.log.info("began")
    step.run("only", lambda: None)
    if input == "fail":
        raise ValueError("told to")
    return input


@pytest.fixture
def runs(app: Durably) -> list[Run]:
    """Six runs of two jobs, of which three share a moment, in the order of their triggers."""
    first, second = app.register(define_job("first", behave)), app.register(define_job("second", behave))
    made = [first.trigger("fail", labels={"org": "a"}), second.trigger(2, labels={"org": "a", "of": "x"})]
    app.process_until_idle()
    made += first.batch_trigger([3, 4, 5])
    made += second.batch_trigger([BatchItem(6, labels={"org": "b"})])
    sql(app, "UPDATE durably_runs SET created_at = 1700000000000000 WHERE status = 'pending' AND job_name = 'first'")
    app.cancel(made[5].id)
    return made


def ids(found: list[Run]) -> list[str]:
    return [run.id for run in found]


def newest_first(app: Durably, runs: list[Run]) -> list[str]:
    return ids(sorted((read(app, run) for run in runs), key=lambda run: (run.created_at, run.id), reverse=True))


def test_a_run_is_found_by_its_id_and_by_the_handle_of_its_own_job_alone(app: Durably, runs: list[Run]) -> None:
    # contract 175
    first, second = app.get_job("first"), app.get_job("second")
    assert first is not None
    assert second is not None
    found = app.get_run(runs[0].id)
    assert found is not None
    assert (found.id, found.job_name, found.status) == (runs[0].id, "first", "failed")
    assert first.get_run(runs[0].id) == found
    assert second.get_run(runs[0].id) is None
    assert app.get_run("01ARZ3NDEKTSV4RRFFQ69G5FAV") is None
    for odd in ("", "a\0b", "\ud800", "x" * 26, "1" * 10_000):
        assert app.get_run(odd) is None
        with pytest.raises(NotFoundError):
            app.cancel(odd)
        with pytest.raises(NotFoundError):
            app.retrigger(odd)
    assert {run.job_name for run in first.get_runs()} == {"first"}
    assert len(first.get_runs(limit=2)) == 2


def test_runs_are_listed_newest_first_and_those_of_one_moment_by_id(app: Durably, runs: list[Run]) -> None:
    # contract 176
    listed = ids(app.get_runs())
    assert listed == newest_first(app, runs)
    of_one_moment = ids([runs[4], runs[3], runs[2]])
    assert listed[-3:] == of_one_moment


@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_pages_neither_repeat_nor_skip_a_run(app: Durably, runs: list[Run], size: int) -> None:
    # contract 176, 178, 179
    by_offset: list[str] = []
    while page := app.get_runs(limit=size, offset=len(by_offset)):
        by_offset += ids(page)
    by_cursor = ids(app.get_runs(limit=size))
    while page := app.get_runs(limit=size, before=by_cursor[-1]):
        by_cursor += ids(page)
    assert by_offset == by_cursor == newest_first(app, runs)


def test_pages_before_a_run_stay_as_they_are_while_runs_arrive(app: Durably, runs: list[Run]) -> None:
    # contract 179
    first = app.get_job("first")
    assert first is not None
    top = app.get_runs(limit=2)
    rest = ids(app.get_runs(before=top[-1].id))
    first.batch_trigger([7, 8, 9])
    assert ids(app.get_runs(before=top[-1].id)) == rest
    assert ids(app.get_runs(before=top[-1].id, limit=1)) == rest[:1]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"status": "failed"}, [0]),
        ({"status": ["failed", "cancelled"]}, [0, 5]),
        ({"status": ("pending", "running")}, [2, 3, 4]),
        ({"job_name": "second"}, [1, 5]),
        ({"job_name": ["first", "second"], "status": "completed"}, [1]),
        ({"job_name": "unknown"}, []),
        ({"status": [], "job_name": [], "labels": {}}, [0, 1, 2, 3, 4, 5]),
        ({"status": None, "job_name": None, "labels": None}, [0, 1, 2, 3, 4, 5]),
        ({"labels": {"org": "a"}}, [0, 1]),
        ({"labels": {"org": "a", "of": "x"}}, [1]),
        ({"labels": {"org": "A"}}, []),
        ({"labels": {"org": ""}}, []),
        ({"labels": {"org": "a"}, "status": "failed", "job_name": "first"}, [0]),
    ],
    ids=str,
)
def test_filters_find_what_has_all_that_they_ask_for(
    app: Durably, runs: list[Run], filters: dict[str, Any], expected: list[int]
) -> None:
    # contract 120, 177
    assert set(ids(app.get_runs(**filters))) == {runs[n].id for n in expected}


@pytest.mark.parametrize(
    ("filters", "field"),
    [
        ({"status": "done"}, "status"),
        ({"status": ["failed", "done"]}, "status"),
        ({"limit": -1}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": 1.5}, "limit"),
        ({"offset": -1}, "offset"),
        ({"offset": "1"}, "offset"),
        ({"labels": {"": "a"}}, "labels."),
        ({"labels": {"org": 1}}, "labels.org"),
    ],
    ids=str,
)
def test_a_wrong_filter_is_refused_by_name(app: Durably, filters: dict[str, Any], field: str) -> None:
    # contract 119, 177, 178
    with pytest.raises(ValidationError) as refused:
        app.get_runs(**filters)
    assert refused.value.field == field


def test_limit_and_offset_work_without_each_other_and_beyond_the_end(app: Durably, runs: list[Run]) -> None:
    # contract 178
    everything = ids(app.get_runs())
    assert app.get_runs(limit=0) == []
    assert ids(app.get_runs(limit=100)) == everything
    assert ids(app.get_runs(offset=4)) == everything[4:]
    assert app.get_runs(offset=6) == app.get_runs(offset=600, limit=3) == app.get_runs(offset=2**70) == []
    assert ids(app.get_runs(limit=2**70)) == everything
    assert app.purge_runs("100000h", limit=2**70) == 0


def test_a_page_begins_at_one_place_which_exists(app: Durably, runs: list[Run]) -> None:
    # contract 179
    with pytest.raises(ValidationError) as refused:
        app.get_runs(before=runs[0].id, offset=1)
    assert refused.value.field == "before"
    with pytest.raises(NotFoundError, match="01ARZ3NDEKTSV4RRFFQ69G5FAV"):
        app.get_runs(before="01ARZ3NDEKTSV4RRFFQ69G5FAV")


def test_labels_stay_and_are_in_every_event_of_the_run(app: Durably) -> None:
    # contract 121
    given = {"org": "acme", "of": "x"}
    heard = hear(app)
    run = app.register(define_job("job", behave)).trigger("fail", labels=given)
    given["org"] = "changed by the caller"
    app.process_one()
    app.retry(run.id)
    app.cancel(run.id)
    about = [event for event in heard if hasattr(event, "run_id") and event.type != "worker:error"]
    told = {event.type for event in about}
    assert told >= {"run:trigger", "run:start", "step:start", "step:complete", "log:write", "run:fail", "run:retry"}
    assert {tuple(sorted(event.labels.items())) for event in about} == {(("of", "x"), ("org", "acme"))}
    assert read(app, run).labels == {"org": "acme", "of": "x"}
    with pytest.raises(TypeError):
        read(app, run).labels["org"] = "changed"  # type: ignore[index]
    assert app.retrigger(run.id).labels == read(app, run).labels


def test_queries_are_answered_while_runs_execute(app: Durably) -> None:
    # contract 8, 176
    handle = app.register(define_job("job", behave))
    app.start()
    made = handle.batch_trigger(range(50))
    eventually(lambda: len(app.get_runs(status="completed")) == 50)
    assert ids(app.get_runs()) == ids(made[::-1])
