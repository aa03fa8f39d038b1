"""`durably top`: what its page shows, how it fits, and its life on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from sqlalchemy import make_url

from durably import Durably, define_job
from durably.cli.main import main
from durably.cli.output import text
from durably.cli.page import page, read_view
from durably.store.running import RATE_SECONDS, read_rate, read_running
from durably.testing.dialects.databases import databases
from durably.testing.dialects.suite.support import add_worker, claim, eventually, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from durably.testing.dialects.suite.support import AppMaker


def behave(step: Any, input: Any) -> Any:
    for name in ("fetch", "parse"):
        step.run(name, lambda: None)
    step.progress(2, 5, "parsed")
    if input == "fail":
        raise ValueError("no route")
    return input


@pytest.fixture
def app(make_app: AppMaker) -> Durably:
    app = make_app()
    app.register(define_job("mail", behave))
    return app


def trigger(app: Durably, count: int, **options: Any) -> list[str]:
    handle = app.get_job("mail")
    assert handle is not None
    return [handle.trigger(n, **options).id for n in range(count)]


def shown(app: Durably, *, width: int = 80, height: int | None = 24) -> list[str]:
    """Render the page for a terminal of a size; give its lines."""
    view = app.database.read(lambda connection: read_view(connection, 30))
    console = Console(width=width, force_terminal=True, color_system=None, highlight=False)
    with console.capture() as captured:
        console.print(page(view, text("title"), height=height))
    return [line.rstrip() for line in captured.get().rstrip("\n").split("\n")]


def test_running_runs_tell_the_step_that_they_are_past_and_their_progress(app: Durably) -> None:
    # contract 203
    (run_id,) = trigger(app, 1)
    app.process_until_idle()
    waiting = trigger(app, 1)
    worker = add_worker(app, "mail")
    claim(app, worker)
    sql(app, "UPDATE durably_steps SET run_id = :new WHERE run_id = :id", new=waiting[0], id=run_id)
    told = '{"current":2,"total":5}'
    sql(app, "UPDATE durably_runs SET progress = :told WHERE id = :id", told=told, id=waiting[0])
    (running,) = app.database.read(read_running)
    assert (running.run_id, running.job_name, running.worker_id) == (waiting[0], "mail", worker)
    assert (running.last_step, running.last_position) == ("parse", 1)
    line = next(line for line in shown(app) if line.startswith(waiting[0][-8:]))
    assert line.split()[1:3] == ["mail", worker[-8:]]
    assert line.endswith("2 parse     2/5")


def test_the_rate_counts_the_runs_that_ended_in_each_second_of_the_last_minute(app: Durably) -> None:
    # contract 203
    runs = trigger(app, 5)
    app.process_until_idle()
    sql(
        app, "UPDATE durably_runs SET completed_at = completed_at - 30000000 WHERE id IN (:a, :b)", a=runs[0], b=runs[1]
    )
    sql(app, "UPDATE durably_runs SET completed_at = completed_at - 61000000 WHERE id = :id", id=runs[2])
    rate = app.database.read(read_rate)
    assert len(rate) == RATE_SECONDS
    assert sum(rate) == 4
    assert sum(rate[20:32]) == 2
    assert sum(rate[-12:]) == 2


def test_a_page_has_all_that_there_is_to_tell(app: Durably) -> None:
    # contract 203
    trigger(app, 1)
    handle = app.get_job("mail")
    assert handle is not None
    handle.trigger("fail")
    app.process_until_idle()
    add_worker(app, "mail", silent_for=60)
    trigger(app, 1, concurrency_key="ada")
    claim(app, add_worker(app, "mail"))
    trigger(app, 2, concurrency_key="ada")
    lines = shown(app, width=120, height=60)
    headings = [
        line for line in lines if line in ("workers", "running", "waiting", "keys that runs wait for", "failed last")
    ]
    assert headings == ["workers", "running", "waiting", "keys that runs wait for", "failed last"]
    states = [line.split()[4] for line in lines if " elsewhere " in line]
    assert states == ["silent", "alive"]
    assert any("ValueError: no route" in line for line in lines)
    assert any("█" in line for line in lines[:6])


@pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 14), (80, 9), (200, 60)])
def test_a_page_fits_its_terminal_and_says_what_it_leaves_out(app: Durably, width: int, height: int) -> None:
    # contract 203
    for n in range(12):
        app.register(define_job(f"a job with a name of some length {n}", behave))
        add_worker(app, "mail")
        handle = app.get_job(f"a job with a name of some length {n}")
        assert handle is not None
        handle.trigger("fail")
    app.process_until_idle()
    trigger(app, 40)
    claim(app, add_worker(app, "mail"), "mail", limit=30)
    lines = shown(app, width=width, height=height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert ("running (" in "\n".join(lines)) == (height > 12)


# --- the command ----------------------------------------------------------------------------------------------


class Terminal:
    """A command on a terminal of 80 by 24."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._before = termios.tcgetattr(theirs)
        self._theirs = theirs
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "durably.cli.main", *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm"}, start_new_session=True,
        )  # fmt: skip
        self.written = ""

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def shows(self, words: str) -> bool:
        """Read what was written so far, and look for *words*."""
        while select.select([self._ours], [], [], 0)[0]:
            self.written += os.read(self._ours, 65536).decode(errors="replace")
        return words in self.written

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self._theirs) == self._before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> Terminal:
            return stack.enter_context(contextlib.closing(Terminal(*arguments)))

        yield start


def test_top_shows_what_changes_and_q_quits_it(app: Durably, url: str, terminal: Callable[..., Terminal]) -> None:
    # contract 203
    screen = terminal("top", "--dialect-url", url, "--interval", "0.5")
    eventually(lambda: screen.shows("0 pending"), timeout=30)
    trigger(app, 3)
    eventually(lambda: screen.shows("3 pending"))
    screen.press("q")
    assert screen.process.wait(10) == 0
    assert screen.shows("\x1b[?1049l")  # back from the alternate screen
    assert screen.is_as_before()


def test_another_key_looks_at_once(app: Durably, url: str, terminal: Callable[..., Terminal]) -> None:
    # contract 203
    screen = terminal("top", "--dialect-url", url, "--interval", "1h")
    eventually(lambda: screen.shows("0 pending"), timeout=30)
    trigger(app, 3)
    screen.press(" ")
    eventually(lambda: screen.shows("3 pending"))


def test_an_interrupt_quits_top_and_leaves_the_terminal_as_it_was(
    app: Durably, url: str, terminal: Callable[..., Terminal]
) -> None:
    # contract 203
    screen = terminal("top", "--dialect-url", url, "--interval", "1h")
    eventually(lambda: screen.shows("0 pending"), timeout=30)
    screen.process.send_signal(signal.SIGINT)
    assert screen.process.wait(10) == 130
    assert screen.is_as_before()


@pytest.mark.own("postgresql")
def test_an_outage_is_shown_beside_what_was_seen_last(
    app: Durably, url: str, terminal: Callable[..., Terminal]
) -> None:
    # contract 203
    screen = terminal("top", "--dialect-url", url, "--interval", "0.5")
    eventually(lambda: screen.shows("0 pending"), timeout=30)
    app.database.close()
    databases()._drop(str(make_url(url).database))  # type: ignore[attr-defined]
    eventually(lambda: screen.shows("as it was at "), timeout=30)
    screen.press("q")
    assert screen.process.wait(10) == 0


def test_in_a_pipe_top_looks_once(app: Durably, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    # contract 203
    trigger(app, 2)
    began = time.monotonic()
    assert main(["top", "--dialect-url", url, "--interval", "1h"]) == 0
    assert time.monotonic() - began < 30
    out = capsys.readouterr().out
    assert "2 pending" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("interval", ["0.1", "soon", "-1"])
def test_an_interval_that_is_none_is_wrong_usage(
    app: Durably, url: str, capsys: pytest.CaptureFixture[str], interval: str
) -> None:
    # contract 203
    assert main(["top", "--dialect-url", url, f"--interval={interval}"]) == 2
    assert capsys.readouterr().err.startswith("durably: interval: ")
