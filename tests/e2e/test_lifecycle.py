"""The life of a worker: its states, its recycling, its end; and when the supervisor gives up."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from durably.supervisor.child import EXIT_BOOT_FAILED
from durably.supervisor.supervisor import EXIT_FAILED, EXIT_KILLED
from durably.testing.dialects.suite.support import eventually
from tests.e2e.harness import Supervised

if TYPE_CHECKING:
    from collections.abc import Iterator

HUNGRY = Path(__file__).with_name("hungry.py")
WORKS = "from durably import Durably\ndurably = Durably()\n"
BREAKS = "import no_such_module\n"


def states(supervised: Supervised, worker: str) -> list[str]:
    return [e["state"] for e in supervised.events("worker:state") if e["worker"] == worker]


def finish(supervised: Supervised, runs: list[str]) -> list[Any]:
    return [supervised.client.wait_for_run(run, timeout=60) for run in runs]


# contract 163a
def test_a_worker_passes_through_its_states_in_order_each_told_in_a_word(tmp_path: Path) -> None:
    with Supervised(tmp_path, workers=1) as supervised:
        ((worker, _),) = supervised.until_ready(1).items()
        eventually(lambda: states(supervised, worker) == ["starting", "ready"])
        told = [line["event"] for line in supervised.lines()]
        assert told.index("worker:start") < next(
            n for n, line in enumerate(supervised.lines()) if line.get("state") == "ready"
        ), "ready is only who has looked for runs"
        supervised.process.terminate()
        assert supervised.wait() == 0
        assert states(supervised, worker) == ["starting", "ready", "draining", "exited"]
        previous = [e["previous"] for e in supervised.events("worker:state")]
        assert previous == [None, "starting", "ready", "draining"]


# contract 164, 164a
def test_workers_that_cannot_begin_are_followed_after_growing_pauses_and_then_given_up(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(
        "from durably import Durably\n"
        "if 'worker' in __import__('multiprocess').current_process().name: raise RuntimeError('no luck')\n"
        "durably = Durably()\n"
    )
    with Supervised(tmp_path, app=app, workers=1) as supervised:
        assert supervised.wait() == EXIT_FAILED
        told = supervised.events("worker:backoff")
        assert [e["deaths"] for e in told] == [1, 2, 3, 4, 5][: len(told)]
        assert len(told) >= 4
        for n, event in enumerate(told):
            assert 0.05 * 2**n <= event["pause"] <= 0.1 * 2**n, "doubled, and drawn from the upper half"
        assert {e["exit_code"] for e in supervised.events("worker:exit")} == {EXIT_BOOT_FAILED}
        assert supervised.events("supervisor:stop")[0]["reason"] == "gave up"


# contract 164a
def test_it_gives_up_too_when_an_application_that_worked_does_not_begin_any_more(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text(WORKS)
    with Supervised(tmp_path, app=app, workers=4) as supervised:
        workers = supervised.until_ready(4)
        app.write_text(BREAKS)
        for pid in list(workers.values())[:3]:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: len(supervised.events("worker:backoff")) > 12)
        assert supervised.process.is_running(), "one works still"
        os.kill(list(workers.values())[3], signal.SIGKILL)
        assert supervised.wait() == EXIT_FAILED
        (told,) = [e for e in supervised.events("supervisor:error") if e["context"] == "gave-up"]
        assert "no_such_module" in told["error"]


def check_that_successors_were_ready_first(supervised: Supervised, workers: int) -> None:
    """Follow the states: at most one successor begins at a time, and never are fewer ready than there should be."""
    now: dict[str, str] = {}
    were_all_ready = False
    for event in supervised.events("worker:state"):
        now[event["worker"]] = event["state"]
        ready = sum(state == "ready" for state in now.values())
        were_all_ready = were_all_ready or ready >= workers
        if were_all_ready:
            assert ready >= workers
            assert sum(state == "starting" for state in now.values()) <= 1


# contract 164b
def test_workers_are_recycled_after_so_many_runs_one_at_a_time_and_no_run_notices(tmp_path: Path) -> None:
    with Supervised(tmp_path, workers=2, max_runs_per_worker=10) as supervised:
        supervised.until_ready(2)
        deadline, runs = time.monotonic() + 40, []
        while len(supervised.events("worker:stop")) < 4 and time.monotonic() < deadline:
            runs += (some := supervised.trigger("count", *[1] * 8))
            finish(supervised, some)
        assert len(supervised.events("worker:stop")) >= 4
        assert {(run.interruptions, run.generation) for run in finish(supervised, runs)} == {(0, 1)}
        check_that_successors_were_ready_first(supervised, 2)
        assert {e["reason"] for e in supervised.events("worker:exit")} == {"stopped"}
        lines = [line["event"] for line in supervised.lines() if line.get("logger") == "durably.supervisor"]
        assert all("is replaced: it has ended" in line for line in lines)


# contract 164b
def test_a_worker_is_recycled_when_it_is_old(tmp_path: Path) -> None:
    with Supervised(tmp_path, workers=2, max_worker_age=3) as supervised:
        eventually(lambda: len(supervised.events("worker:stop")) >= 2, timeout=20)
        check_that_successors_were_ready_first(supervised, 2)


# contract 164b
def test_a_worker_is_recycled_when_it_holds_much_memory(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_memory_per_worker": "300M", "drain_timeout": 0.1, "kill_timeout": 0.1}
    with Supervised(tmp_path, app=HUNGRY, workers=1, **settings) as supervised:
        ((first, pid),) = supervised.until_ready(1).items()
        (small,) = finish(supervised, supervised.trigger("take", 10))
        assert small.output == pid
        finish(supervised, supervised.trigger("take", 300))
        eventually(lambda: [e for e in supervised.events("worker:exit") if e["lost_worker"] == first])
        ((_, other),) = supervised.until_ready(1).items()
        (last,) = finish(supervised, supervised.trigger("take", 1))
        assert last.output == other


# contract 164b
def test_recycling_waits_for_a_run_without_a_step_boundary(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_worker_age": 1, "drain_timeout": 0.1, "kill_timeout": 0.1}
    with Supervised(tmp_path, workers=1, **settings) as supervised:
        ((first, _),) = supervised.until_ready(1).items()
        (run,) = supervised.trigger("stubborn", 5)
        ended = supervised.client.wait_for_run(run, timeout=30)
        assert (ended.interruptions, ended.generation) == (0, 1)
        eventually(lambda: "exited" in states(supervised, first))
        (gone,) = eventually(lambda: [e for e in supervised.events("worker:exit") if e["lost_worker"] == first])
        assert gone["reason"] == "stopped"


# contract 164b
def test_workers_that_are_recycled_and_still_run_something_do_not_pile_up(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_worker_age": 1, "drain_timeout": 0.1, "concurrency": 1}
    with Supervised(tmp_path, workers=1, **settings) as supervised:
        supervised.until_ready(1)
        finish(supervised, supervised.trigger("stubborn", 6, 6, 6))
        living: set[str] = set()
        most = 0
        for event in supervised.events("worker:state"):
            (living.discard if event["state"] == "exited" else living.add)(event["worker"])
            most = max(most, len(living))
        assert most == 2


# contract 164b, 169
def test_a_worker_that_drains_without_hurry_is_ended_in_time_when_its_supervisor_stops(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_worker_age": 1, "drain_timeout": 0.3, "kill_timeout": 0.3}
    with Supervised(tmp_path, workers=1, **settings) as supervised:
        ((first, _),) = supervised.until_ready(1).items()
        (run,) = supervised.trigger("stubborn", 60)
        eventually(lambda: states(supervised, first)[-1] == "draining")
        supervised.process.terminate()
        assert supervised.wait(10) == EXIT_KILLED
        stored = supervised.client.get_run(run)
        assert stored is not None
        assert (stored.status, stored.interruptions) == ("pending", 0)


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group with little memory."""
    old = Path("/sys/fs/cgroup/memory")
    folder = (old if old.is_dir() else Path("/sys/fs/cgroup")) / f"durably-test-{os.getpid()}"
    try:
        folder.mkdir()
        limit = folder / ("memory.limit_in_bytes" if old.is_dir() else "memory.max")
        limit.write_text(str(300 << 20))
    except OSError as error:
        pytest.skip(f"making a control group takes rights that this user lacks: {error}")
    yield folder
    eventually(lambda: not (folder / "cgroup.procs").read_text().strip())
    folder.rmdir()


# contract 163b
def test_a_worker_that_the_kernel_kills_for_want_of_memory_is_named_so(tmp_path: Path, small_group: Path) -> None:
    supervised = Supervised(tmp_path, app=HUNGRY, workers=1)
    with supervised.within(small_group):
        supervised.until_ready(1)
        (run,) = supervised.trigger("devour", 600)
        ended = supervised.client.wait_for_run(run, timeout=30)
        assert ended.interruptions == 1
        (gone,) = eventually(lambda: supervised.events("worker:exit"))
        assert (gone["reason"], gone["signal"]) == ("out_of_memory", "SIGKILL")
        # Another kill is not taken for a further one.
        ((_, pid),) = supervised.until_ready(1).items()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: [e["reason"] for e in supervised.events("worker:exit")] == ["out_of_memory", "died"])
