"""What a supervisor decides, without processes: whom it suspects, replaces, follows, and what it makes of a death."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from durably import ValidationError, events
from durably.events import as_record
from durably.ids import new_id
from durably.settings import load_settings
from durably.supervisor.board import Board, BoardWriter, _record_at
from durably.supervisor.children import Child, Slot
from durably.supervisor.deaths import OutOfMemory, ending_of
from durably.supervisor.lockwait import is_held_up
from durably.supervisor.outage import Outage
from durably.supervisor.recycling import Bounds, draw_bounds, resident_memory
from durably.supervisor.respawn import Respawn
from durably.supervisor.suspicion import Evidence, Patience, Suspicion, suspect
from durably.worker.lag import Lag
from durably.worker.timeouts import Timed

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = Patience(silence=30, hang=60)
SETTINGS: dict[str, Any] = {"dialect_url": "sqlite:///x.db"}


def child(**changes: Any) -> Child:
    """Make the record of a worker without a process."""
    values: dict[str, Any] = {
        "id": "worker", "is_keeper": False, "pool": "default", "process": None, "pid": os.getpid(), "handle": -1,
        "channel": None, "orders": None, "stacks": None, "board": None, "began_at": 0.0, "heard_at": 0.0,
    }  # fmt: skip
    return Child(**values | changes)


def test_an_outage_is_told_once_a_minute_while_somebody_waits() -> None:
    # contract 168a
    told: list[tuple[str, str, str]] = []
    outage = Outage(lambda *what: told.append(what))

    def hear(pid: int, severity: str, now: float, context: str = "database") -> None:
        event = events.WorkerError(context=context, severity="error", error="away", error_type="OSError")
        outage.take(json.loads(orjson.dumps(as_record(event))) | {"severity": severity, "process": {"pid": pid}}, now)

    outage.take({"type": "log", "message": "database"}, 0.0)
    hear(3, "error", 0.0, context="handler")
    outage.tell(1_000.0)
    assert told == []
    hear(1, "error", 1_000.0)
    hear(2, "error", 1_030.0)
    outage.tell(1_059.0)
    assert told == []
    outage.tell(1_060.0)
    outage.tell(1_061.0)
    assert told == [("database", "warning", "the database has been away for 1 min 0 s; 2 of our processes wait")]
    hear(1, "info", 1_070.0)
    outage.tell(1_120.0)
    assert told[1:] == [("database", "warning", "the database has been away for 1 min 30 s; 1 of our processes wait")]
    outage.forget(2)
    outage.tell(2_000.0)
    hear(1, "error", 3_000.0)
    outage.tell(3_001.0)
    assert len(told) == 2


@pytest.mark.parametrize(
    ("silent_for", "stuck_for", "overdue_for", "verdict"),
    [
        (0, 0, 0, None),
        (29.9, 59.9, 0.9, None),
        (30, 0, 0, ("silent", 30)),
        (0, 60, 0, ("hung", 60)),
        (0, 0, 1, ("timeout", 1)),
        (40, 0, 2, ("timeout", 2)),  # what has a timeout names its culprit
        (40, 70, 0, ("silent", 40)),
    ],
)
def test_whom_it_suspects(silent_for: float, stuck_for: float, overdue_for: float, verdict: Any) -> None:
    # contract 165a, 165c
    assert suspect(Evidence(silent_for, stuck_for, overdue_for), PATIENCE) == verdict


def test_a_suspicion_is_ripe_after_the_stacks_have_had_their_time_and_only_once() -> None:
    # contract 165a
    suspicion = Suspicion("hung", since=100.0)
    assert [suspicion.is_ripe(now) for now in (100.0, 100.4, 100.5)] == [False, False, True]
    suspicion.is_told = True
    assert not suspicion.is_ripe(200.0)


def test_a_prober_that_stood_still_itself_does_not_take_the_loop_for_stuck() -> None:
    # contract 165a
    loop = asyncio.new_event_loop()
    lag = Lag(loop, longest=6.0)
    assert [lag.probe(now) for now in (100.0, 105.0, 110.0)] == [0.0, 5.0, 10.0]
    assert lag.probe(3_710.0) == 16.0, "paused for an hour, with all that is in its container"
    loop.run_until_complete(asyncio.sleep(0))
    assert [lag.probe(now) for now in (3_715.0, 3_720.0)] == [0.0, 5.0]
    loop.close()


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board()
    yield made
    made.close()


def test_a_board_shows_what_is_overdue_the_longest_first_until_it_is_taken_off(board: Board) -> None:
    # contract 89d
    writer = BoardWriter(board.path)
    assert not Path(board.path).exists()
    step = Timed("run 1", 3, 2.5, "ein Schritt mit Umlauten äöü " + "€" * 200, 7, 2)
    run = Timed("run 2", 1, 60.0)
    places = [writer.enter(step, 100.0), writer.enter(run, 90.0), writer.enter(run, 200.0)]
    assert board.overdue(89.0) == []
    assert board.overdue(101.0) == [(11.0, run), (1.0, step)]
    writer.leave(places[1])
    assert board.overdue(101.0) == [(1.0, step)]
    writer.leave(places[0])
    assert writer.enter(run, 50.0) == places[0]


def test_a_board_shows_which_thread_is_in_whose_code(board: Board) -> None:
    # contract 89f
    writer = BoardWriter(board.path)
    run_id, other = new_id(), new_id()
    assert (board.executing(), board.alive_at()) == ([], 0.0)
    writer.note_life(7.5)
    with writer.executing(run_id), writer.executing(other):
        assert board.executing() == [(os.getpid(), other), (os.getpid(), run_id)]
        assert (board.alive_at(), board.last_sequence(), board.overdue(1e9)) == (7.5, 0, [])
    assert board.executing() == []
    with contextlib.ExitStack() as many:
        for _ in range(300):
            many.enter_context(writer.executing(run_id))
        assert len(board.executing()) == 256
    assert board.executing() == []


LOOP, JOB, STEP = 10, 11, 12


@pytest.mark.parametrize(
    ("on_loop", "executing", "waiting", "held_up"),
    [
        (False, [(JOB, "me")], [JOB, LOOP], True),
        (False, [(JOB, "me")], [LOOP], False),  # it keeps the lock, or sleeps
        (False, [(JOB, "me"), (LOOP, "me")], [JOB], True),  # the loop may be idle
        (False, [(JOB, "me"), (STEP, "me")], [JOB, LOOP], False),
        (False, [(JOB, "other")], [JOB, LOOP], False),  # where it is nobody knows
        (True, [(LOOP, "me")], [LOOP], True),
        (True, [(LOOP, "me")], [JOB], False),
        (True, [(LOOP, "me"), (LOOP, "other")], [JOB], True),  # whose code keeps the lock nobody knows
        (True, [(LOOP, "me"), (LOOP, "other")], [], False),  # nobody keeps the lock
        (True, [(LOOP, "me"), (STEP, "me"), (LOOP, "other")], [LOOP], False),  # its own step keeps it
    ],
)
def test_who_is_held_up_by_who_keeps_pythons_lock(
    on_loop: bool, executing: list[tuple[int, str]], waiting: list[int], held_up: bool
) -> None:
    # contract 89f
    assert is_held_up(Timed("me", 1, 1.0, on_loop=on_loop), executing, waiting, loop=LOOP) == held_up


def test_a_full_board_refuses_and_has_room_again(board: Board) -> None:
    # contract 89d
    writer = BoardWriter(board.path)
    places = [writer.enter(Timed("run", n, 1.0), 1.0) for n in range(256)]
    assert None not in places
    assert writer.enter(Timed("run", 999, 1.0), 1.0) is None
    assert len(board.overdue(2.0)) == 256
    writer.leave(None)
    writer.leave(places[100])
    assert writer.enter(Timed("run", 999, 1.0), 1.0) == places[100]


def test_an_entry_whose_writer_was_killed_half_way_is_passed_over(board: Board) -> None:
    # contract 89d
    writer = BoardWriter(board.path)
    place = writer.enter(Timed("run", 1, 1.0), 1.0)
    assert place is not None
    start = _record_at(place)
    writer._memory[start + 2 : start + 12] = b"x" * 10
    assert board.overdue(2.0) == []
    struct.pack_into("@H", writer._memory, start, 60_000)
    assert board.overdue(2.0) == []


def test_what_a_worker_has_ended_before_it_was_killed_is_not_blamed(board: Board) -> None:
    # contract 89d
    writer = BoardWriter(board.path)
    steps = [Timed("run 1", 1, 1.0, "one", 0, 1), Timed("run 1", 1, 1.0, "one", 0, 2), Timed("run 2", 1, 1.0)]
    first, _, late = (writer.enter(step, at) for step, at in zip(steps, (1.0, 1.0, 9.0), strict=True))
    killed = child(board=board, ending="timeout")
    killed.look_at_board(2.0)
    writer.leave(first)
    killed.confirm_overdue()
    assert killed.blamed == [(1.0, steps[1])], "nor what came to its time after the look"
    assert late is not None


def test_when_a_worker_has_done_enough() -> None:
    # contract 164b
    bounds = Bounds(runs=10, memory=100 << 20, age=60)
    assert bounds.reached(runs=9, memory=50 << 20, age=59) is None
    assert bounds.reached(runs=10, memory=0, age=0) == "it has ended 10 runs"
    assert bounds.reached(runs=0, memory=0, age=60) == "it is 60 s old"
    assert bounds.reached(runs=1, memory=200 << 20, age=0) == "it holds 200 MiB"
    assert bounds.reached(runs=0, memory=200 << 20, age=0) is None, "or it would be replaced for ever"


def test_bounds_are_drawn_from_the_upper_tenth() -> None:
    # contract 164b
    assert draw_bounds(load_settings(**SETTINGS)) is None
    settings = load_settings(**SETTINGS, max_runs_per_worker=1000, max_memory_per_worker="1G")
    drawn = [draw_bounds(settings) for _ in range(200)]
    runs = [bounds.runs for bounds in drawn if bounds is not None]
    assert 900 <= min(runs) < 920
    assert 980 < max(runs) <= 1000
    assert all(bounds is not None and bounds.age == float("inf") for bounds in drawn)
    assert all(bounds is not None and 0.9 * 2**30 <= bounds.memory <= 2**30 for bounds in drawn)


def test_memory_that_is_resident_is_read_from_the_system() -> None:
    # contract 164b
    assert resident_memory(os.getpid()) > 10 << 20
    assert resident_memory(0) == 0


@pytest.mark.parametrize(
    ("given", "size"), [("512M", 512 << 20), ("2g", 2 << 30), ("10 K", 10240), ("77", 77), (5_000_000, 5_000_000)]
)
def test_sizes_are_read(given: Any, size: int) -> None:
    # contract 164b
    assert load_settings(**SETTINGS, max_memory_per_worker=given).max_memory_per_worker == size


@pytest.mark.parametrize("wrong", ["much", "1.5G", "", 0, -1, True, 2.5, "0M"])
def test_what_is_no_size_is_refused(wrong: Any) -> None:
    # contract 164b
    with pytest.raises(ValidationError) as refused:
        load_settings(**SETTINGS, max_memory_per_worker=wrong)
    assert refused.value.field == "max_memory_per_worker"


def test_it_is_hopeless_after_five_that_never_worked_and_ten_after_some_have() -> None:
    # contract 164, 164a
    respawn, slot = Respawn(), Slot()
    for _ in range(4):
        respawn.reschedule(slot, child(), now=1.0)
    assert not respawn.is_hopeless(any_works=False)
    respawn.reschedule(slot, child(failure="no luck"), now=1.0)
    assert respawn.is_hopeless(any_works=False)
    assert not respawn.is_hopeless(any_works=True)
    assert "5 workers in a row" in respawn.verdict()
    assert respawn.verdict().endswith("no luck")
    respawn.was_ready()
    for _ in range(9):
        respawn.reschedule(slot, child(), now=1.0)
    assert not respawn.is_hopeless(any_works=False)
    respawn.reschedule(slot, child(), now=1.0)
    assert respawn.is_hopeless(any_works=False)


def test_workers_that_wait_for_the_database_are_never_a_reason_to_give_up() -> None:
    # contract 164a, 168
    respawn, slot = Respawn(), Slot()
    for _ in range(100):
        respawn.reschedule(slot, child(waits_for_database=True), now=1.0)
    assert not respawn.is_hopeless(any_works=False)


def test_pauses_double_and_begin_anew_after_a_run_ten_seconds_or_an_orderly_end() -> None:
    # contract 164
    respawn, slot = Respawn(), Slot()
    for n in range(6):
        assert 0.05 * 2**n <= respawn.reschedule(slot, child(), now=1.0) <= 0.1 * 2**n
    assert slot.deaths == 6
    for one in (child(runs_ended=1), child(began_at=-20.0), child(has_begun=True, release_at=0.0)):
        assert respawn.reschedule(slot, one, now=1.0) == 0.0
        assert (slot.deaths, slot.not_before) == (0, 1.0)
        assert 0.05 <= respawn.reschedule(slot, child(), now=1.0) <= 0.1


def test_what_is_made_of_a_death(tmp_path: Path) -> None:
    # contract 163b, 89e
    book = tmp_path / "memory.events"
    book.write_text("low 0\noom 1\noom_kill 3\n")
    memory = OutOfMemory(tmp_path / "none", book)
    overdue = [(1.0, Timed("run", 1, 1.0))]
    assert ending_of(child(), 0, None, memory, 0.0) == "stopped"
    assert ending_of(child(), 3, None, memory, 0.0) == "died"
    assert ending_of(child(), None, "SIGKILL", memory, 0.0) == "died"
    assert ending_of(child(ending="drain"), None, "SIGKILL", memory, 0.0) == "drain"
    assert ending_of(child(ending="silent"), None, "SIGKILL", memory, 0.0) == "silent"
    assert ending_of(child(ending="silent", overdue=overdue), None, "SIGKILL", memory, 0.0) == "timeout"
    book.write_text("low 0\noom 2\noom_kill 4\n")
    assert ending_of(child(), None, "SIGSEGV", memory, 1.0) == "died"
    assert ending_of(child(), None, "SIGKILL", memory, 1.0) == "out_of_memory"
    assert ending_of(child(), None, "SIGKILL", memory, 1.0) == "died", "each kill is counted once"


def test_a_kill_for_want_of_memory_explains_no_death_of_much_later(tmp_path: Path) -> None:
    # contract 163b
    book = tmp_path / "memory.events"
    book.write_text("oom_kill 3\n")
    memory = OutOfMemory(book)
    book.write_text("oom_kill 5\n")  # programs that a job has started, say
    for now in (1.0, 2.0, 3.0):
        memory.watch(now)
    assert ending_of(child(), None, "SIGKILL", memory, 4.0) == "out_of_memory"
    for now in (5.0, 6.0, 7.0):
        memory.watch(now)
    assert ending_of(child(), None, "SIGKILL", memory, 8.0) == "died"
    book.write_text("oom_kill 6\n")
    assert ending_of(child(), None, "SIGKILL", memory, 9.0) == "out_of_memory"


def test_what_waits_for_an_event_loop_that_another_run_keeps_is_not_to_blame() -> None:
    # contract 89d, 165b
    memory = OutOfMemory(Path("/none"))
    awaits, blocks = (3.0, Timed("one", 1, 1.0, on_loop=True)), (2.0, Timed("two", 1, 1.0, on_loop=True))
    in_thread = (1.0, Timed("three", 1, 1.0))
    for overdue, stuck_in, blamed, reason in (
        ([awaits], None, [awaits], "timeout"),
        ([awaits], "two", [], "hung"),
        ([awaits, blocks], "two", [blocks], "timeout"),
        ([awaits, in_thread], "two", [in_thread], "timeout"),
        ([], "two", [], "timeout"),  # what was past its time has returned
    ):
        killed = child(ending="timeout", overdue=overdue, stuck_in=stuck_in)
        assert killed.blamed == blamed
        assert ending_of(killed, None, "SIGKILL", memory, 0.0) == reason
    assert ending_of(child(ending="silent", overdue=[awaits], stuck_in="two"), None, "SIGKILL", memory, 0.0) == "silent"


def test_where_nobody_counts_nothing_is_for_want_of_memory(tmp_path: Path) -> None:
    # contract 163b
    (tmp_path / "strange").write_bytes(b"\xff\xfe")
    assert not OutOfMemory(tmp_path / "none", tmp_path / "strange").has_struck(1.0)


def test_a_drain_that_is_told_again_only_becomes_shorter() -> None:
    # contract 169, 164b
    draining = child(pid=2**22 + 1)  # above the highest there can be
    draining.drain(0.0, 30.0, float("inf"))
    assert (draining.release_at, draining.kill_at) == (30.0, float("inf"))
    draining.drain(10.0, 5.0, 10.0)
    assert (draining.release_at, draining.kill_at) == (15.0, 25.0)
    draining.drain(11.0, 50.0, 50.0)
    assert (draining.release_at, draining.kill_at) == (15.0, 25.0)
    assert not draining.keep_deadlines(15.0)
    assert (draining.is_released, draining.kill_at) == (True, 25.0)
    draining.release(16.0, 2.0)
    assert draining.kill_at == 18.0
    assert draining.keep_deadlines(18.0)
    assert draining.ending == "drain"
    assert not draining.keep_deadlines(time.monotonic() + 1e6), "nobody is killed twice"
