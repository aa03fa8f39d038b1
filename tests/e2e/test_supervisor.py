"""A real supervisor: how it begins, recovers, drains and ends."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import make_url, text

from durably import DatabaseUnavailableError, Durably, Supervisor, define_job
from durably.apps import load_app
from durably.store.workers import get_workers
from durably.supervisor.nursery import Nursery
from durably.supervisor.supervisor import EXIT_FAILED, EXIT_KILLED
from durably.testing.dialects.databases import databases
from durably.testing.dialects.suite.support import add_worker, eventually, stop_between_commits, worker_state
from tests.e2e.harness import Supervised


def status_of(supervised: Supervised, run_id: str) -> str:
    run = supervised.client.get_run(run_id)
    assert run is not None
    return run.status


def pid_of(supervised: Supervised, run_id: str) -> int:
    """Wait until the run's first step has told its process."""

    def pid() -> int:
        steps = [step for step in supervised.client.get_steps(run_id) if step.name == "pid"]
        return int(steps[0].output) if steps else 0

    return eventually(pid)


def notes(supervised: Supervised) -> list[str]:
    """Read what the supervisor logged of what it was asked for."""
    return [line["event"] for line in supervised.lines() if line.get("logger") == "durably.supervisor"]


# contract 161, 167
def test_supervise_until_idle_runs_everything_and_exits_cleanly(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "--until-idle")
    runs = supervised.trigger("count", *range(1, 9))
    with supervised:
        assert supervised.wait() == 0
    assert [supervised.client.get_run(run).output for run in runs] == list(range(1, 9))  # type: ignore[union-attr]
    told = [line["event"] for line in supervised.lines()]
    assert told[0] == "supervisor:start"
    assert told[-1] == "supervisor:stop"
    assert told.count("run:complete") == 8
    assert told.count("step:complete") == sum(range(1, 9))


# contract 143, 167
def test_each_worker_is_heard_in_its_order_without_a_gap(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "--until-idle")
    supervised.trigger("count", *[2] * 20)
    with supervised:
        supervised.wait()
    sequences: dict[int, list[int]] = {}
    for line in supervised.lines():
        if "sequence" in line:
            sequences.setdefault(line["process"]["pid"], []).append(line["sequence"])
    for heard in sequences.values():
        assert heard == list(range(1, len(heard) + 1))


# contract 61, 64, 65
def test_a_killed_worker_is_replaced_and_its_run_resumes_after_its_checkpoint(tmp_path: Path) -> None:
    with Supervised(tmp_path) as supervised:
        supervised.until_ready(2)
        (run_id,) = supervised.trigger("wait", 0.3)
        eventually(supervised.notes)
        victim = pid_of(supervised, run_id)
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: status_of(supervised, run_id) == "completed")
        run = supervised.client.get_run(run_id)
        assert run is not None
        assert (run.generation, run.interruptions, run.attempt) == (2, 1, 1)
        assert pid_of(supervised, run_id) == victim, "the checkpoint of the first execution stands"
        supervised.until_ready(2)
        (told,) = supervised.events("worker:exit")
        assert (told["signal"], told["reason"], told["recovered"]) == ("SIGKILL", "died", 1)
        (recovered,) = supervised.events("run:recover")
        assert recovered["run_id"] == run_id


# contract 163
def test_a_killed_keeper_is_replaced_and_recovery_goes_on(tmp_path: Path) -> None:
    with Supervised(tmp_path) as supervised:
        workers = supervised.until_ready(2)
        (keeper,) = [child for child in supervised.children() if child.pid not in workers.values()]
        (run_id,) = supervised.trigger("wait", 0.3)
        victim = pid_of(supervised, run_id)
        keeper.kill()
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: status_of(supervised, run_id) == "completed")


# contract 163, 171d
def test_a_keeper_that_is_killed_during_a_reload_is_followed_by_one(tmp_path: Path) -> None:
    with Supervised(tmp_path) as supervised:
        before = supervised.until_ready(2)
        (keeper,) = [child for child in supervised.children() if child.pid not in before.values()]
        supervised.process.send_signal(signal.SIGHUP)
        keeper.kill()

        def replaced() -> bool:
            now = supervised.ready_workers()
            return len(now) == 2 and not now.keys() & before.keys() and len(supervised.children()) == 3

        eventually(replaced, timeout=30)
        (run_id,) = supervised.trigger("wait", 0.3)
        os.kill(pid_of(supervised, run_id), signal.SIGKILL)
        eventually(lambda: status_of(supervised, run_id) == "completed")


# contract 63, 171d
def test_a_keeper_that_follows_another_judges_nobody_by_a_silence_that_it_has_not_heard(tmp_path: Path) -> None:
    with Supervised(tmp_path, stale_threshold=30) as supervised:
        before = supervised.until_ready(2)
        elsewhere = add_worker(supervised.client, "wait", silent_for=40)  # as all are after an outage of the database
        supervised.process.send_signal(signal.SIGHUP)
        eventually(lambda: not supervised.ready_workers().keys() & before.keys(), timeout=30)
        assert worker_state(supervised.client, elsewhere) == "alive"


@pytest.mark.own("sqlite")
# contract 163c
def test_a_worker_that_cannot_be_recovered_holds_nothing_up_and_is_left_to_the_next_supervisor(tmp_path: Path) -> None:
    with Supervised(tmp_path, "--concurrency", "1", polling_interval=0.05) as supervised:
        workers = supervised.until_ready(2)
        refused, other = supervised.trigger("wait", 60, 0.3)
        pids = {run: pid_of(supervised, run) for run in (refused, other)}
        lost = next(worker for worker, pid in workers.items() if pid == pids[refused])
        with supervised.client.database.writing() as connection:
            connection.execute(
                text(
                    "CREATE TRIGGER refuse BEFORE UPDATE ON durably_workers "
                    f"WHEN NEW.id = '{lost}' AND NEW.state = 'dead' BEGIN SELECT RAISE(ABORT, 'not this one'); END"
                )
            )
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: status_of(supervised, other) == "completed")

        def told() -> list[str]:
            return [e["error"] for e in supervised.events("supervisor:error") if e["context"] == "recovery"]

        eventually(lambda: any("not this one" in error for error in told()), timeout=60)
        assert status_of(supervised, refused) == "running"
        supervised.process.terminate()
        assert supervised.wait(10) == 0
        assert "is left to the next supervisor" in told()[-1]
    with supervised.client.database.writing() as connection:
        connection.execute(text("DROP TRIGGER refuse"))
    with Supervised(tmp_path, url=supervised.url):
        eventually(lambda: supervised.client.get_run(refused).interruptions == 1)  # type: ignore[union-attr]


# contract 163, 166
def test_a_keeper_that_is_killed_while_it_begins_is_replaced(tmp_path: Path) -> None:
    url = databases().fresh_url(tmp_path)
    databases().fill(url)
    with Supervised(tmp_path, url=url) as supervised:
        # A first keeper cannot have come far: the supervisor has told of nothing yet.
        keeper = eventually(supervised.children)[0]
        assert not supervised.lines()
        keeper.kill()
        supervised.until_ready(2)
        (told,) = supervised.events("supervisor:error")
        assert told["context"] == "keeper"
        assert told["error"].startswith("the keeper was killed by SIGKILL")


# contract 164
def test_it_gives_up_when_no_keeper_can_begin(tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    with Supervised(tmp_path, app=tmp_path / "deadly.py") as supervised:
        assert supervised.wait() == EXIT_FAILED
        *followed, told = supervised.events("supervisor:error")
        assert [each["context"] for each in followed] == ["keeper"] * 4
        assert told["context"] == "gave-up"
        assert told["error"].startswith("the start failed: was killed by SIGKILL")


# contract 66, 69
def test_a_run_that_kills_every_worker_fails_with_the_reason_after_its_last_interruption(tmp_path: Path) -> None:
    with Supervised(tmp_path, max_interruptions=2) as supervised:
        (run_id,) = supervised.trigger("deadly", None)
        eventually(lambda: status_of(supervised, run_id) == "failed", timeout=30)
        run = supervised.client.get_run(run_id)
        assert run is not None
        assert run.error_type == "TooManyInterruptions"
        assert "SIGKILL" in str(run.error)
        assert len(supervised.notes()) == 3
        assert [step.name for step in supervised.client.get_steps(run_id)] == ["before"]
        (failure,) = eventually(lambda: supervised.events("run:fail"))
        assert failure["interruptions"] == 3


# contract 157, 169
def test_sigterm_lets_a_held_run_end_and_claims_nothing_more(tmp_path: Path) -> None:
    with Supervised(tmp_path) as supervised:
        supervised.until_ready(2)
        (held,) = supervised.trigger("wait", 1.0)
        eventually(supervised.notes)
        supervised.process.terminate()
        eventually(lambda: status_of(supervised, held) == "completed")
        (late,) = supervised.trigger("count", 1)
        assert supervised.wait() == 0
        assert status_of(supervised, late) == "pending"


# contract 189a
@pytest.mark.own("sqlite")
def test_a_clean_stop_leaves_all_in_the_file_and_nothing_beside_it(tmp_path: Path) -> None:
    with Supervised(tmp_path, "--until-idle") as supervised:
        ids = supervised.trigger("count", 3, 3)
        supervised.client.database.close()
        assert supervised.wait() == 0
        file = str(make_url(supervised.url).database)
        assert not Path(f"{file}-wal").exists()
        shutil.copyfile(file, tmp_path / "copy.db")
    copy = Durably(f"sqlite:///{tmp_path / 'copy.db'}")
    assert {run.status for run in map(copy.get_run, ids) if run} == {"completed"}
    copy.database.close()


# contract 158, 169
def test_after_the_drain_timeout_a_run_is_released_at_its_next_step_boundary(tmp_path: Path) -> None:
    with Supervised(tmp_path, "--drain-timeout", "0.2") as supervised:
        supervised.until_ready(2)
        (run_id,) = supervised.trigger("wait", 1.0)
        eventually(supervised.notes)
        supervised.process.terminate()
        assert supervised.wait() == 0
        (note,) = notes(supervised)
        assert note.startswith("SIGTERM: 2 workers drain; runs that have not ended in 0.2 s")
        run = supervised.client.get_run(run_id)
        assert run is not None
        assert (run.status, run.interruptions, run.worker_id) == ("pending", 0, None)
        assert {step.name for step in supervised.client.get_steps(run_id)} == {"pid", "wait"}
        assert len(supervised.events("run:release")) == 1


# contract 169
def test_a_second_sigterm_releases_at_once(tmp_path: Path) -> None:
    with Supervised(tmp_path) as supervised:
        supervised.until_ready(2)
        (run_id,) = supervised.trigger("wait", 2.0)
        eventually(supervised.notes)
        supervised.process.terminate()
        eventually(lambda: notes(supervised))
        supervised.process.terminate()
        assert supervised.wait() == 0
        assert status_of(supervised, run_id) == "pending"
        assert notes(supervised)[-1].startswith("SIGTERM again: runs go back")


# contract 169, 170, 173
def test_what_has_no_step_boundary_is_killed_in_the_end_without_an_interruption(tmp_path: Path) -> None:
    with Supervised(tmp_path, "--drain-timeout", "0.2", kill_timeout=0.3) as supervised:
        supervised.until_ready(2)
        (run_id,) = supervised.trigger("stubborn", 60)
        eventually(supervised.notes)
        supervised.process.terminate()
        assert supervised.wait() == EXIT_KILLED
        run = supervised.client.get_run(run_id)
        assert run is not None
        assert (run.status, run.interruptions) == ("pending", 0)
        assert supervised.events("run:recover")[0]["reason"] == "drain"
        (told,) = [line for line in supervised.events("supervisor:error") if line["context"] == "drain"]
        assert f"(pid {supervised.events('run:start')[0]['process']['pid']})" in told["error"]


# contract 169
def test_sigquit_kills_at_once(tmp_path: Path) -> None:
    with Supervised(tmp_path) as supervised:
        supervised.until_ready(2)
        (run_id,) = supervised.trigger("stubborn", 60)
        eventually(supervised.notes)
        supervised.process.send_signal(signal.SIGQUIT)
        assert supervised.wait(10) == EXIT_KILLED
        assert status_of(supervised, run_id) == "pending"


# contract 171
def test_sighup_replaces_every_worker_and_interrupts_no_run(tmp_path: Path) -> None:
    with Supervised(tmp_path) as supervised:
        before = supervised.until_ready(2)
        (run_id,) = supervised.trigger("wait", 1.0)
        eventually(supervised.notes)
        supervised.process.send_signal(signal.SIGHUP)

        def replaced() -> bool:
            now = supervised.ready_workers()
            return len(now) == 2 and not now.keys() & before.keys()

        eventually(replaced, timeout=20)
        run = supervised.client.get_run(run_id)
        assert run is not None
        assert (run.status, run.interruptions, run.generation) == ("completed", 0, 1)


# contract 171
def test_a_reload_of_an_application_that_does_not_import_leaves_the_workers_and_says_why(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text("from durably import Durably\ndurably = Durably()\n")
    with Supervised(tmp_path, app=app) as supervised:
        before = supervised.until_ready(2)
        app.write_text("import no_such_module\n")
        supervised.process.send_signal(signal.SIGHUP)

        def told() -> set[str]:
            return {line["context"] for line in supervised.events("supervisor:error")}

        eventually(lambda: told() >= {"boot", "reload"}, timeout=20)
        (boot,) = [line for line in supervised.events("supervisor:error") if line["context"] == "boot"]
        assert "no_such_module" in boot["error"]
        assert supervised.ready_workers() == before
        supervised.process.terminate()
        assert supervised.wait() == 0


# contract 171d
def test_a_reload_that_fails_while_there_is_no_keeper_says_that_another_is_begun(tmp_path: Path) -> None:
    app, waits = tmp_path / "app.py", tmp_path / "waits"
    app.write_text("from durably import Durably\ndurably = Durably()\n")
    with Supervised(tmp_path, app=app) as supervised:
        before = supervised.until_ready(2)
        (keeper,) = [child for child in supervised.children() if child.pid not in before.values()]
        os.mkfifo(waits)
        app.write_text(f"open({str(waits)!r}).read()\nraise RuntimeError\n")
        supervised.process.send_signal(signal.SIGHUP)
        keeper.kill()

        def told(context: str) -> list[str]:
            return [e["error"] for e in supervised.events("supervisor:error") if e["context"] == context]

        eventually(lambda: told("keeper"))
        app.write_text("from durably import Durably\ndurably = Durably()\n")
        waits.write_text("")
        (failed,) = eventually(lambda: told("reload"), timeout=20)
        assert "the workers stay, and another keeper is begun" in failed
        eventually(lambda: len(supervised.children()) == 3)
        assert supervised.ready_workers() == before


# contract 171
def test_sigttin_adds_a_worker_and_sigttou_removes_one(tmp_path: Path) -> None:
    with Supervised(tmp_path) as supervised:
        supervised.until_ready(2)
        supervised.process.send_signal(signal.SIGTTIN)
        supervised.until_ready(3)
        supervised.process.send_signal(signal.SIGTTOU)
        eventually(lambda: len(supervised.ready_workers()) == 2)
        assert len(supervised.children()) == 3
        assert [note.partition(":")[0] for note in notes(supervised)] == ["SIGTTIN", "SIGTTOU"]


# contract 172, 62
def test_workers_whose_supervisor_was_killed_release_their_runs_and_exit(tmp_path: Path) -> None:
    with Supervised(tmp_path) as supervised:
        workers = supervised.until_ready(2)
        (run_id,) = supervised.trigger("wait", 0.5)
        eventually(supervised.notes)
        orphans = supervised.children()
        supervised.process.kill()
        _, alive = psutil.wait_procs(orphans, timeout=10)
        assert not alive, workers
        assert status_of(supervised, run_id) == "pending"


# contract 172
def test_an_orphan_in_a_step_that_hangs_ends_after_the_kill_timeout(tmp_path: Path) -> None:
    with Supervised(tmp_path, kill_timeout=0.5) as supervised:
        supervised.until_ready(2)
        (run_id,) = supervised.trigger("stubborn", 600)
        eventually(supervised.notes)
        orphans = supervised.children()
        supervised.process.kill()
        _, alive = psutil.wait_procs(orphans, timeout=10)
        assert not alive
        assert status_of(supervised, run_id) == "running"  # until somebody finds its worker gone


# contract 9b
@pytest.mark.parametrize("code", [0, 1])
def test_a_child_that_a_job_forks_and_lets_return_ends_there(tmp_path: Path, code: int) -> None:
    supervised = Supervised(tmp_path, "--until-idle")
    (run_id,) = supervised.trigger("fork", code)
    with supervised:
        assert supervised.wait() == 0
        run = supervised.client.get_run(run_id)
        assert run is not None
        assert (run.status, run.output) == ("completed", code)
        assert "printed by a forked child" in supervised.errors()


# contract 147
def test_what_a_program_prints_that_a_job_starts_does_not_get_between_the_logs_lines(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "--until-idle")
    supervised.trigger("program", None)
    with supervised:
        assert supervised.wait() == 0
        assert len(supervised.events("run:complete")) == 1  # every line is one of JSON
        assert "printed by a program" in supervised.errors()


# contract 189
@pytest.mark.own("sqlite", "libsql_file")
def test_a_database_file_that_is_removed_under_a_supervisor_is_told_and_nothing_goes_on_without_it(
    tmp_path: Path,
) -> None:
    with Supervised(tmp_path, heartbeat_interval=0.2, stale_threshold=5) as supervised:
        supervised.until_ready(2)
        ids = supervised.trigger("count", *[20] * 20)
        eventually(lambda: len(supervised.notes()) > 20)
        file = Path(str(make_url(supervised.url).database))
        file.rename(tmp_path / "elsewhere")
        with pytest.raises(DatabaseUnavailableError, match=f"{file.name}-wal"):
            Durably(supervised.url).get_runs()
        with pytest.raises(DatabaseUnavailableError, match=f"{file.name}-wal"):
            Durably(supervised.url).migrate()

        def told() -> list[dict[str, Any]]:
            return [line for line in supervised.events("supervisor:error") if line["context"] == "upkeep"]

        # The keeper may have been in the middle of a write, which is tried for database_timeout.
        assert "removed or replaced" in eventually(told, timeout=30)[0]["error"]
        assert not file.exists()
        assert len(supervised.notes()) < 400
        (tmp_path / "elsewhere").rename(file)
        assert {supervised.client.wait_for_run(run_id, timeout=30).output for run_id in ids} == {20}
        assert len(supervised.notes()) == len({tuple(note[:2]) for note in supervised.notes()}) == 400


# contract 62: a process that is gone from this machine needs no threshold
def test_a_new_supervisor_recovers_at_once_what_a_killed_family_held(tmp_path: Path) -> None:
    with Supervised(tmp_path) as supervised:
        supervised.until_ready(2)
        (run_id,) = supervised.trigger("wait", 30)
        eventually(supervised.notes)
        family = [supervised.process, *supervised.children()]
        for member in family:
            member.kill()
        psutil.wait_procs(family, timeout=10)
        assert status_of(supervised, run_id) == "running"
        with supervised:
            eventually(lambda: len(supervised.notes()) == 2)


# contract 52, 58, 165
def test_a_stopped_worker_is_killed_for_its_silence_and_its_run_resumes_elsewhere(tmp_path: Path) -> None:
    with Supervised(tmp_path, heartbeat_interval=0.2, stale_threshold=1) as supervised:
        supervised.until_ready(2)
        (run_id,) = supervised.trigger("stopped", None)
        eventually(lambda: status_of(supervised, run_id) == "completed", timeout=20)
        run = supervised.client.get_run(run_id)
        assert run is not None
        assert run.output != pid_of(supervised, run_id)
        (told,) = supervised.events("worker:suspect")
        assert told["reason"] == "silent"
        assert "in stopped" in told["stacks"] or told["stacks"] == "(none: it could not even write them)"
        assert [line for line in supervised.events("supervisor:error") if line["context"] == "silent"]


# contract 166
def test_a_worker_stopped_while_it_tells_much_does_not_hold_up_the_others(tmp_path: Path) -> None:
    with Supervised(tmp_path, heartbeat_interval=0.5, stale_threshold=60) as supervised:
        workers = supervised.until_ready(2)
        (flood,) = supervised.trigger("flood", 100_000)
        eventually(lambda: len(supervised.client.get_steps(flood)) > 20)
        flooding = supervised.client.get_run(flood)
        assert flooding is not None
        stop_between_commits(supervised.url, psutil.Process(workers[str(flooding.worker_id)]))
        (run_id,) = supervised.trigger("count", 3)
        eventually(lambda: status_of(supervised, run_id) == "completed")
        eventually(lambda: run_id in {line["run_id"] for line in supervised.events("run:complete")})


# contract 162, 6: the supervisor itself opens no database
def test_the_supervisor_has_one_thread_and_no_database_file_open(tmp_path: Path) -> None:
    with Supervised(tmp_path) as supervised:
        supervised.until_ready(2)
        assert supervised.process.num_threads() == 1
        assert not [file for file in supervised.process.open_files() if "runs.db" in file.path]


def test_what_jobs_print_and_log_is_in_the_log_with_run_and_step(tmp_path: Path) -> None:
    supervised = Supervised(tmp_path, "--until-idle")
    (run_id,) = supervised.trigger("talk", "word")
    with supervised:
        supervised.wait()
    lines = {line["event"]: line for line in supervised.lines()}
    assert lines["printed inside"]["step_name"] == "inside"
    assert "step_name" not in lines["printed outside"]
    assert lines["logged inside word"]["level"] == "warning"
    assert lines["logged inside word"]["logger"] == "talk"
    assert {lines[text]["run_id"] for text in ("printed inside", "printed outside", "logged inside word")} == {run_id}
    assert lines["log:write"]["message"] == "stored"


@pytest.mark.own("sqlite", "postgresql", "libsql_file")  # where nothing wakes workers, the first to look takes all
def test_two_supervisors_share_one_file(tmp_path: Path) -> None:
    one = Supervised(tmp_path)
    other = Supervised(tmp_path, url=one.url)
    with one:
        one.until_ready(2)
        with other:
            one.until_ready(4)
            runs = one.trigger("count", *[5] * 40)
            eventually(lambda: all(status_of(one, run) == "completed" for run in runs), timeout=30)
    steps = [(run, step) for run, step, _, _ in one.notes()]
    assert len(steps) == len(set(steps)) == 200
    assert len({pid for _, _, pid, _ in one.notes()}) > 2


# contract 164, 173
def test_it_gives_up_with_the_reason_when_no_worker_can_begin(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "import os\nfrom durably import Durably\n"
        "if 'worker' in __import__('multiprocess').current_process().name: raise RuntimeError('no luck')\n"
        "durably = Durably()\n"
    )
    with Supervised(tmp_path, app=tmp_path / "broken.py") as supervised:
        assert supervised.wait() == EXIT_FAILED
        (told,) = [line for line in supervised.events("supervisor:error") if line["context"] == "gave-up"]
        assert "no luck" in told["error"]


# contract 161
def test_an_application_that_does_not_import_fails_the_start_and_forks_no_worker(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
    with Supervised(tmp_path, app=tmp_path / "broken.py") as supervised:
        assert supervised.wait() != 0
        assert not supervised.events("worker:start")
        assert "nowhere_to_be_found" in supervised.errors() + str(supervised.lines())


# contract 144, 173: the library, without the command
def test_the_library_supervises_jobs_given_as_objects_and_calls_handlers(tmp_path: Path) -> None:
    def double(step: Any, value: int) -> int:
        return step.run("double", lambda: value * 2)  # type: ignore[no-any-return]

    job = define_job("double", double)
    url = databases().fresh_url(tmp_path, "runs")
    supervisor = Supervisor(dialect_url=url, jobs=[job], workers=1, until_idle=True)
    client = Supervised(tmp_path, url=url)
    (run_id,) = client.trigger("double", 21)
    heard: list[Any] = []
    supervisor.on("run:complete", heard.append)
    assert supervisor.run() == 0
    assert client.client.get_run(run_id).output == 42  # type: ignore[union-attr]
    assert [event.output for event in heard] == [42]
    client.client.database.close()


# contract 162
@pytest.mark.parametrize("seconds", [60])
def test_in_a_process_with_threads_it_spawns_instead_of_forking(tmp_path: Path, seconds: int) -> None:
    release = threading.Event()
    other = threading.Thread(target=release.wait, args=(seconds,))
    other.start()
    try:
        client = Supervised(tmp_path)
        (run_id,) = client.trigger("count", 3)
        supervisor = Supervisor(str(client_app()), dialect_url=client.url, workers=1, until_idle=True)
        assert supervisor.run() == 0
        assert client.client.get_run(run_id).output == 3  # type: ignore[union-attr]
        client.client.database.close()
    finally:
        release.set()
        other.join()


# contract 171c
def test_no_signal_ends_a_spawned_child_that_cannot_take_it_yet(tmp_path: Path) -> None:
    release = threading.Event()
    other = threading.Thread(target=release.wait, args=(60,))
    other.start()
    try:
        client = Supervised(tmp_path)
        supervisor = Supervisor(str(client_app()), dialect_url=client.url, workers=1, until_idle=True)
        begun, ended = [], []

        def send(event: Any) -> None:
            if event.state == "starting":
                begun.append(event.worker_pid)
                os.kill(event.worker_pid, signal.SIGUSR2)

        supervisor.on("worker:state", send)
        supervisor.on("worker:exit", lambda event: ended.append(event.signal))
        client.trigger("count", 1)
        assert supervisor.run() == 0
        assert (len(begun), ended) == (1, [None])
        client.client.database.close()
    finally:
        release.set()
        other.join()


@pytest.mark.own("sqlite", "postgresql", "libsql_file")  # a libSQL server wakes nobody
def test_a_worker_that_executes_a_run_alone_takes_no_other_workers_wake_up(tmp_path: Path) -> None:
    # contract 34, 67
    supervised = Supervised(tmp_path, "--concurrency", "4", polling_interval=5)
    (alone,) = supervised.trigger("heed", None)
    with supervised.client.database.writing() as connection:
        connection.execute(text("UPDATE durably_runs SET interruptions = 2"))
    with supervised:
        supervised.until_ready(2)
        eventually(supervised.notes)
        waited = []
        for _ in range(20):
            (run_id,) = supervised.trigger("talk", "hello")
            run = supervised.client.wait_for_run(run_id, timeout=30)
            assert run.started_at is not None
            waited.append((run.started_at - run.created_at).total_seconds())
        supervised.client.cancel(alone)
    assert max(waited) < 2, waited


def test_a_child_that_cannot_be_watched_does_not_live_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # contract 163
    def without_descriptors(process: Any) -> int:
        begun.append(process.pid)
        raise OSError(errno.EMFILE, "too many open files")

    begun: list[int] = []
    monkeypatch.setattr("durably.supervisor.nursery._handle_of", without_descriptors)
    nursery = Nursery(partial(load_app, str(client_app())), {}, until_idle=False)
    try:
        with pytest.raises(OSError, match="too many"):
            nursery.begin(0.0)
        assert nursery.living == []
        assert not psutil.pid_exists(begun[0])
    finally:
        nursery.close()


def test_a_reader_of_the_log_that_stalls_costs_lines_and_holds_up_nothing(tmp_path: Path) -> None:
    # contract 163, 168, 169, 174
    with Supervised(tmp_path) as other:  # for its database and its client; its own log is read
        other.until_ready(2)
        command = [sys.executable, "-m", "durably.cli.main", "supervise", str(client_app()), "--workers", "1"]
        environment = os.environ | {"DURABLY_DIALECT_URL": other.url, "JOURNAL": str(other.journal)}
        stalled = subprocess.Popen(
            [*command, "--log-level", "debug"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        try:
            eventually(lambda: len(other.client.database.read(get_workers)) == 3)
            other.process.send_signal(signal.SIGTERM)
            other.wait()
            (flood,) = other.trigger("flood", 60)
            other.client.wait_for_run(flood, timeout=60)
            (worker,) = [w for w in other.client.database.read(get_workers) if w.state == "alive"]
            os.kill(worker.pid, signal.SIGKILL)
            (after,) = other.trigger("count", 2)
            assert other.client.wait_for_run(after, timeout=30).output == 2
            stalled.send_signal(signal.SIGTERM)
            assert stalled.wait(30) == 0
        finally:
            stalled.kill()
            stalled.communicate()


def test_a_worker_that_a_real_time_signal_kills_is_replaced_and_the_signal_told(tmp_path: Path) -> None:
    # contract 163
    with Supervised(tmp_path) as supervised:
        ((victim, pid), *_) = supervised.until_ready(2).items()
        os.kill(pid, signal.SIGRTMIN + 1)
        (told,) = eventually(lambda: [e for e in supervised.events("worker:exit") if e["lost_worker"] == victim])
        assert told["signal"] == f"signal {signal.SIGRTMIN + 1}"
        supervised.until_ready(2)


def client_app() -> Path:
    from tests.e2e.harness import APP

    return APP
