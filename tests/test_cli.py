"""The command line: what each command prints, where it looks, and how it fails."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from durably.apps import load_app
from durably.cli.application import application
from durably.cli.main import main
from durably.cli.options import parse_timeout
from durably.cli.output import printable
from durably.cli.timeline import bar
from durably.errors import ApplicationError, SchemaOutdatedError, ValidationError
from durably.model import Step
from durably.testing.dialects.suite.support import eventually, sql

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APP = """
import time
from pathlib import Path
from pydantic import BaseModel
from durably import Durably

print("the application prints as it is imported")
durably = Durably("sqlite:///jobs.db")

class User(BaseModel):
    name: str
    age: int

@durably.job("greet")
def greet(step, user: User) -> str:
    for done in range(3):
        step.run(f"greet {done}", time.sleep, 0.02)
        step.progress(done + 1, 3, "greeting")
    step.log.info("greeted", name=user.name)
    return f"Hello {user.name}"

@durably.job("count")
def count(step, n: int) -> dict[str, list[int]]:
    return {"numbers": step.run("count", lambda: list(range(n)))}

def explode():
    raise OSError("no route\\nto \\x1b[31mhost")

@durably.job("break")
def break_(step, _):
    step.run("prepare", lambda: None)
    step.run("explode", explode)

@durably.job("hold")
def hold(step, path: str):
    step.progress(1, 2, "holding")
    step.log.warning("held", path=path)
    n = 0
    while not Path(path).exists():
        step.run(f"look {n}", time.sleep, 0.02)
        n += 1
    return n
"""
ADA = '{"name": "Ada", "age": 36}'
COMMANDS = (
    "supervise", "migrate", "trigger", "wait", "runs", "show", "logs", "retry", "retrigger", "cancel", "delete",
    "purge", "workers", "status", "top", "doctor", "copy",
)  # fmt: skip
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ID = re.compile(r"[0-9A-Z]{26}")
DURABLY = [sys.executable, "-m", "durably.cli.main"]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("DURABLY_") or name in {"NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "COLUMNS"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("TERM", "xterm")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with nothing in it, in which commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("app", None)


@pytest.fixture
def folder(here: Path) -> Path:
    """A folder with an application whose database is migrated."""
    (here / "app.py").write_text(APP)
    with application(None) as app:
        app.migrate()
    return here


class Done:
    """What a command did: its exit code, and what it wrote."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err.replace("the application prints as it is imported\n", "")

    @property
    def data(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Carry out a command line in this process, which imports the application anew each time."""

    def run(*arguments: str) -> Done:
        sys.modules.pop("app", None)
        capsys.readouterr()
        code = main(arguments)
        return Done(code, *capsys.readouterr())

    return run


def execute() -> None:
    with application(None) as app:
        app.process_until_idle()


def command(*arguments: str, cwd: Path, **options: Any) -> Done:
    """Carry out a command line in a process of its own."""
    done = subprocess.run(
        [*DURABLY, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False, **options
    )
    return Done(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def started(*arguments: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """Carry out a command line in a process of its own, which is killed if it outlives the test."""
    process = subprocess.Popen(
        [*DURABLY, *arguments], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


class Terminal(io.StringIO):
    """A stdout that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def on_terminal(*arguments: str, columns: int = 140, **environment: str) -> str:
    """Carry out a command line in this process, with a terminal for stdout, and give what it wrote there."""
    sys.modules.pop("app", None)
    terminal = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"COLUMNS": str(columns), "LINES": "40", **environment}.items():
            patch.setenv(name, value)
        patch.setattr(sys, "stdout", terminal)
        assert main(arguments) == 0
    return terminal.getvalue()


def on_pseudo_terminal(*arguments: str, cwd: Path) -> str:
    """Carry out a command line in a process of its own on a terminal, and give all that it wrote there."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "140", "LINES": "40"}
    process = subprocess.Popen(
        [*DURABLY, *arguments], cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while read := os.read(ours, 65536):
            written += read
    os.close(ours)
    process.wait(60)
    return written.decode().replace("\r\n", "\n")


@contextlib.contextmanager
def supervised(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Supervise in a process of its own, with its log in log.jsonl."""
    with (folder / "log.jsonl").open("w") as log, (folder / "errors.txt").open("w") as errors:
        process = subprocess.Popen(
            [*DURABLY, "supervise", "--workers", "1", *arguments], cwd=folder, stdout=log, stderr=errors, text=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)


def log_of(folder: Path) -> list[dict[str, Any]]:
    """Read the whole lines of a supervisor's log."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines(keepends=True) if "\n" in line]


def has_told(folder: Path, event: str) -> bool:
    return any(line["event"] == event for line in log_of(folder))


@pytest.fixture(scope="module")
def busy_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an application and a living worker, for commands that wait."""
    folder = tmp_path_factory.mktemp("busy")
    (folder / "app.py").write_text(APP)
    with supervised(folder):
        eventually(lambda: has_told(folder, "worker:start"), timeout=30)
        yield folder


@pytest.fixture
def busy(busy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder with the living worker, in which commands run."""
    monkeypatch.chdir(busy_folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield busy_folder
    sys.modules.pop("app", None)


# --- help and usage -----------------------------------------------------------------------------------------


def test_version_is_printed(run: Callable[..., Done]) -> None:
    assert re.fullmatch(r"durably \d+\.\d+\.\d+\S*\n", run("--version").out)


def test_without_a_command_help_lists_all_commands(run: Callable[..., Done]) -> None:
    done = run()
    assert done.code == 0
    assert all(f" {name} " in done.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(run: Callable[..., Done], name: str) -> None:
    done = run(name, "--help")
    assert done.code == 0
    assert f"Usage: durably {name}" in done.out
    assert re.search(rf"Examples\s+durably {name}", ESCAPES.sub("", done.out))


def test_help_of_supervise_tells_the_signals_and_the_exit_codes(run: Callable[..., Done]) -> None:
    out = run("supervise", "--help").out
    assert all(name in out for name in ("TERM, INT", "QUIT", "HUP", "TTIN, TTOU"))
    assert re.search(r"Exit codes\s+0 .*\n\s+1 .*\n\s+2 .*\n\s+3 ", out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frobnicate"], "durably: No such command 'frobnicate'; see durably --help\n"),
        (["show"], "durably: Missing argument 'RUN'; see durably show --help\n"),
        (["runs", "--traceback"], "durably: --traceback stands before the command: durably --traceback COMMAND\n"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    run: Callable[..., Done], here: Path, arguments: list[str], message: str
) -> None:
    done = run(*arguments)
    assert (done.code, done.out, done.err) == (2, "", message)


def test_help_groups_commands_and_options(run: Callable[..., Done]) -> None:
    out = run("--help").out
    positions = [out.index(text) for text in (" Work ", " Look ", " Change ", " Database ", "Exit codes", "Examples")]
    assert positions == sorted(positions)
    out = run("supervise", "--help").out
    panels = (" Application and database ", " Workers ", " Health and metrics ", " Log ")
    assert all(panel in out for panel in panels)


def test_an_option_of_a_setting_says_what_the_setting_says(run: Callable[..., Done]) -> None:
    out = " ".join(run("supervise", "--help").out.replace("│", " ").split())
    assert "Runs that one worker executes at once, 1 to 1,000. [default: (1)]" in out
    assert "How long stopping waits for held runs before it releases them. [default: (30 s)]" in out


def test_a_number_that_is_none_is_wrong_usage(run: Callable[..., Done], here: Path) -> None:
    done = run("runs", "--limit", "many")
    assert done.code == 2
    assert done.err.startswith("durably: Invalid value for '--limit'")


def test_an_interrupt_while_the_program_is_imported_ends_it_silently(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(
        "import signal, sys\nsys.stdout.write('importing\\n')\nsys.stdout.flush()\nwhile True: signal.pause()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "durably", "runs"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 130


def test_the_program_is_imported_by_nothing_that_takes_its_time() -> None:
    program = "import sys, durably.__main__; print([m for m in sys.modules if m.startswith(('durably.', 'pydantic'))])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "['durably.__main__']\n"


def test_every_public_name_is_there() -> None:
    import durably

    assert all(getattr(durably, name) is not None for name in durably.__all__)
    assert set(durably.__all__) <= set(dir(durably))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        durably.Nothing  # noqa: B018


# --- where the application and the database are ------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["supervise"], ["trigger", "greet"]])
def test_without_an_application_its_first_lines_are_advised(
    run: Callable[..., Done], here: Path, arguments: list[str]
) -> None:
    done = run(*arguments)
    assert done.code == 2
    assert done.err.startswith("durably: app: ")
    assert "from durably import Durably" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("name", ["runs", "workers", "migrate"])
def test_without_a_database_the_ways_to_name_one_are_told(run: Callable[..., Done], here: Path, name: str) -> None:
    done = run(name)
    assert done.code == 2
    assert re.fullmatch("durably: dialect_url: .*--dialect-url.*DURABLY_DIALECT_URL.*\n", done.err)


def test_an_application_that_does_not_import_is_one_line_with_its_place(run: Callable[..., Done], here: Path) -> None:
    (here / "app.py").write_text("from durably import Durably\n\nimport nothing_of_this_name\n")
    done = run("trigger", "greet")
    assert done.code == 1
    place = re.escape(f"({here / 'app.py'}:3)")
    assert re.fullmatch(
        rf"durably: app\.py cannot be imported: ModuleNotFoundError: .*nothing_of_this_name.* {place}\n", done.err
    )


def test_a_wrong_setting_in_an_application_is_named_with_its_place(run: Callable[..., Done], here: Path) -> None:
    (here / "app.py").write_text("from durably import Durably\ndurably = Durably('sqlite:///a.db', workers=0)\n")
    done = run("migrate")
    assert done.code == 2
    assert re.fullmatch(
        rf"durably: workers: 0 is out of range: .* \(in {re.escape(str(here / 'app.py'))}:2\); for a look .*\n",
        done.err,
    )


def test_an_attribute_that_an_application_lacks_is_told_with_those_that_it_has(here: Path) -> None:
    (here / "app.py").write_text("from durably import Durably\nshop = Durably('sqlite:///a.db')\n")
    with pytest.raises(ValidationError, match=r"there is no 'nothing' in it; Durably instances: shop"):
        load_app("app.py:nothing")


def test_an_application_is_imported_anew_after_an_import_that_failed(here: Path) -> None:
    (here / "app.py").write_text("from durably import Durably\ndurably = Durably('sqlite:///a.db')\nnothing\n")
    for _ in range(2):
        with pytest.raises(ApplicationError, match="cannot be imported: NameError"):
            load_app("app.py")


def test_an_application_that_exits_as_it_is_imported_does_not_end_the_command_its_way(
    run: Callable[..., Done], here: Path
) -> None:
    (here / "app.py").write_text("raise SystemExit('set API_KEY')")
    done = run("migrate")
    assert done.code == 1
    assert "app.py cannot be imported: SystemExit: set API_KEY" in done.err


def test_traceback_shows_where_an_import_failed(run: Callable[..., Done], here: Path) -> None:
    (here / "app.py").write_text("def boom():\n    return 1 / 0\nboom()\n")
    done = run("--traceback", "trigger", "greet")
    assert done.code == 1
    assert "Traceback (most recent call last)" in done.err
    assert "in boom" in done.err
    assert "durably: app.py cannot be imported: ZeroDivisionError" in done.err


@pytest.mark.parametrize(
    "arguments",
    [["trigger", "greet", "--app"], ["supervise"], ["migrate"], ["status", "--app"], ["doctor", "--app"]],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nowhere.py", "there is no file nowhere.py"),
        ("nowhere", "there is no module 'nowhere' here or installed"),
        ("nowhere.jobs:app", "there is no module 'nowhere.* here or installed"),
    ],
)
def test_a_reference_to_nothing_is_wrong_usage_of_every_command(
    run: Callable[..., Done], here: Path, arguments: list[str], reference: str, message: str
) -> None:
    done = run(*arguments, reference)
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(f"durably: app: {message}.*\n", done.err)


@pytest.mark.parametrize("arguments", [["supervise"], ["trigger", "greet", "--app"]], ids=lambda given: given[0])
def test_an_application_that_hides_the_library_is_refused(
    run: Callable[..., Done], here: Path, arguments: list[str]
) -> None:
    (here / "durably.py").write_text(APP)
    done = run(*arguments, "durably.py")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "durably: app: durably.py hides the library of that name from all that import it: call it app.py\n"
    )


@pytest.mark.parametrize(
    ("text", "reference"), [(APP, "app.py:typo"), ("import durably\ndurably.Durably(workers=0)\n", "app.py")]
)
def test_what_only_an_import_shows_to_be_wrong_is_wrong_usage_too(here: Path, text: str, reference: str) -> None:
    (here / "app.py").write_text(text)
    for arguments in (["supervise"], ["trigger", "greet", "--app"]):
        assert command(*arguments, reference, cwd=here).code == 2


@pytest.mark.parametrize(
    "arguments", [["trigger", "greet"], ["supervise"], ["migrate"], ["status"], ["doctor"]], ids=lambda given: given[0]
)
def test_an_application_that_raises_as_it_is_imported_is_no_wrong_usage(here: Path, arguments: list[str]) -> None:
    (here / "app.py").write_text("raise RuntimeError('the vault is away')\n")
    done = command(*arguments, cwd=here)
    assert done.code == 1
    assert "app.py cannot be imported: RuntimeError: the vault is away" in " ".join((done.out + done.err).split())


@pytest.mark.parametrize("name", ["status", "runs", "top"])
def test_a_look_with_a_broken_application_says_how_to_do_without_it(
    run: Callable[..., Done], here: Path, name: str
) -> None:
    (here / "app.py").write_text("import nothing_of_this_name\n")
    done = run(name)
    assert done.code == 1
    assert done.err.endswith("; for a look without the application, name its database: --dialect-url URL\n")
    assert run("migrate", "--dialect-url", "sqlite:///jobs.db").code == 0
    assert run(name, "--dialect-url", "sqlite:///jobs.db").code == 0


def test_commands_about_the_database_need_no_application(
    run: Callable[..., Done], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    triggered = run("trigger", "greet", "--input", ADA).out.strip()
    (folder / "app.py").write_text("raise RuntimeError")
    url = f"sqlite:///{folder}/jobs.db"
    assert [one["id"] for one in run("runs", "--json", "--dialect-url", url).data] == [triggered]
    monkeypatch.setenv("DURABLY_DIALECT_URL", url)
    assert run("show", triggered, "--json").data["id"] == triggered
    monkeypatch.delenv("DURABLY_DIALECT_URL")
    (folder / "pyproject.toml").write_text(f'[tool.durably]\ndialect_url = "{url}"\n')
    assert run("cancel", triggered, "--json").data["status"] == "cancelled"


def test_the_url_of_the_command_line_wins_over_the_applications(run: Callable[..., Done], folder: Path) -> None:
    other = ["--dialect-url", "sqlite:///other.db"]
    assert run("migrate", *other).code == 0
    triggered = run("trigger", "greet", "--input", ADA, *other).out.strip()
    assert [one["id"] for one in run("runs", "--json", *other).data] == [triggered]
    assert run("runs", "--json").data == []


# contract 185
@pytest.mark.parametrize("arguments", [["runs"], ["status"], ["trigger", "greet", "--input", ADA], ["migrate"]])
def test_a_database_that_does_not_answer_is_told_while_it_is_waited_for(
    run: Callable[..., Done], here: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    (here / "app.py").write_text(APP.replace("sqlite:///jobs.db", "postgresql://ada:secret@127.0.0.1:9/none"))
    monkeypatch.setenv("DURABLY_DATABASE_TIMEOUT", "0.3")
    monkeypatch.setattr("durably.store.lateness.TOLD_AFTER_SECONDS", 0.05)
    done = run(*arguments)
    assert done.code == 1
    waiting, refused = done.err.splitlines()[:2]
    assert waiting == (
        "durably: waiting for postgresql://ada:***@127.0.0.1:9/none; if it does not answer, that ends after some 0.3 s"
    )
    assert refused.startswith("durably: postgresql://ada:***@127.0.0.1:9/none: ")


# contract 185
def test_supervise_logs_that_it_waits_for_its_database(here: Path) -> None:
    (here / "app.py").write_text(APP.replace("sqlite:///jobs.db", "postgresql://ada:secret@127.0.0.1:9/none"))
    done = command("supervise", "--workers", "1", cwd=here, env=os.environ | {"DURABLY_DATABASE_TIMEOUT": "2.5"})
    assert done.code == 1
    told = [json.loads(line) for line in done.out.splitlines()]
    (waiting,) = [line for line in told if line.get("logger") == "durably.database"]
    assert (waiting["level"], waiting["process"]["role"]) == ("warning", "keeper")
    assert waiting["event"].endswith("if it does not answer, that ends after some 2.5 s")


# --- migrate ------------------------------------------------------------------------------------------------


def test_migrate_makes_the_tables_once(run: Callable[..., Done], here: Path) -> None:
    url = ["--dialect-url", "sqlite:///new.db"]
    assert run("migrate", *url).out == "sqlite:///new.db: migrated\n"
    assert run("migrate", *url).out == "sqlite:///new.db: is current\n"


def test_migrate_tells_as_json_what_it_did(run: Callable[..., Done], here: Path) -> None:
    url = "sqlite:///new.db"
    assert run("migrate", "--dialect-url", url, "--json").data == {"dialect_url": url, "migrated": True}
    assert run("migrate", "--dialect-url", url, "--json").data == {"dialect_url": url, "migrated": False}


def test_migrate_and_supervise_take_the_application_as_the_other_commands_do_too(
    run: Callable[..., Done], here: Path
) -> None:
    (here / "mine.py").write_text(APP)
    assert run("migrate", "--app", "mine.py").out == "sqlite:///jobs.db: migrated\n"
    assert run("migrate", "mine.py", "--app", "mine.py").out == "sqlite:///jobs.db: is current\n"
    done = command("supervise", "--app", "mine.py", "--until-idle", "--workers", "1", cwd=here)
    assert (done.code, done.err) == (0, "durably: the application is mine.py (the argument)\n")
    for name in ("migrate", "supervise"):
        done = run(name, "mine.py", "--app", "app.py")
        assert (done.code, done.err) == (2, "durably: app: given twice: mine.py and --app app.py\n")


def test_a_database_that_cannot_be_made_is_exit_code_1(run: Callable[..., Done], here: Path) -> None:
    done = run("migrate", "--dialect-url", f"sqlite:///{here}/nowhere/new.db")
    assert done.code == 1
    assert re.fullmatch("durably: .*there is no folder.*\n", done.err)


# contract 185
@pytest.mark.parametrize("arguments", [["migrate"], ["runs"]])
def test_a_folder_in_a_databases_place_is_named(run: Callable[..., Done], here: Path, arguments: list[str]) -> None:
    done = run(*arguments, "--dialect-url", f"sqlite:///{here}")
    assert (done.code, done.err) == (1, f"durably: {here} is a folder, not a database file\n")


# contract 185
@pytest.mark.parametrize("is_there", [False, True])
def test_a_database_without_tables_is_named_with_the_command_that_migrates_it(
    run: Callable[..., Done], here: Path, *, is_there: bool
) -> None:
    if is_there:
        (here / "my jobs.db").touch()
    url = "sqlite:///my jobs.db"
    done = run("runs", "--dialect-url", url)
    state = "has no durably tables" if is_there else f"is not there yet (there is no file {here / 'my jobs.db'})"
    assert done.err.startswith(f"durably: the database {url} {state}, ")
    remedy = re.findall("`durably (.*)`", done.err.replace("or call `migrate()`", ""))[0]
    assert run(*shlex.split(remedy)).out == f"{url}: migrated\n"
    assert run("runs", "--dialect-url", url).code == 0


def test_a_password_is_in_no_error_and_no_remedy() -> None:
    error = SchemaOutdatedError(None, "0001", url="postgresql://me:***@host/shop")
    assert "run `durably migrate --dialect-url URL` or" in str(error)


@pytest.mark.parametrize("arguments", [["runs"], ["workers"], ["show", "x"], ["trigger", "greet", "--input", ADA]])
def test_a_database_that_is_not_migrated_says_what_to_run(
    run: Callable[..., Done], here: Path, arguments: list[str]
) -> None:
    (here / "app.py").write_text(APP)
    done = run(*arguments)
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch("durably: .*durably migrate.*\n", done.err)


# --- trigger ------------------------------------------------------------------------------------------------


def test_trigger_prints_the_id_alone(run: Callable[..., Done], folder: Path) -> None:
    done = run("trigger", "greet", "--input", ADA)
    assert (done.code, done.err) == (0, "")
    assert ID.fullmatch(done.out.strip())


def test_trigger_prints_the_run_as_json(run: Callable[..., Done], folder: Path) -> None:
    options = ["--label", "tenant=acme", "--label", "note=a=b", "--idempotency-key", "i", "--concurrency-key", "c"]
    run_ = run("trigger", "greet", "--input", ADA, "--json", *options).data
    assert run_["status"] == "pending"
    assert run_["input"] == {"name": "Ada", "age": 36}
    assert run_["labels"] == {"tenant": "acme", "note": "a=b"}
    assert (run_["idempotency_key"], run_["concurrency_key"], run_["disposition"]) == ("i", "c", "created")
    assert datetime.fromisoformat(run_["created_at"]).tzinfo is not None


def test_trigger_reads_its_input_from_stdin(
    run: Callable[..., Done], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("3"))
    assert run("trigger", "count", "--input", "-", "--json").data["input"] == 3


def test_trigger_without_input_gives_null(run: Callable[..., Done], folder: Path) -> None:
    assert run("trigger", "break", "--json").data["input"] is None


@pytest.mark.parametrize(
    ("job", "example"),
    [
        ("greet", '{"name": "text", "age": 1}'),
        ("count", "1"),
        ("hold", '"text"'),
    ],
)
def test_a_trigger_without_the_input_that_its_job_needs_shows_one(
    run: Callable[..., Done], folder: Path, job: str, example: str
) -> None:
    done = run("trigger", job)
    assert (done.code, done.out) == (2, "")
    shown = shlex.quote(example)
    assert done.err.startswith(
        f"durably: input: job {job!r} needs one, and none was given; it looks like --input {shown} (input: "
    )
    assert run("trigger", job, "--input", example).code == 0


def test_a_trigger_with_another_input_than_its_job_takes_shows_one(run: Callable[..., Done], folder: Path) -> None:
    assert run("trigger", "count", "--input", '"many"').err.endswith("; it looks like --input 1\n")
    done = run("trigger", "hold", "--input", "flag.txt")
    assert done.err.startswith("durably: input: not JSON: ")
    assert 'as a text it has quotes of its own: "flag.txt"' in done.err
    assert "the input is an option: --input JSON" in run("trigger", "count", "3").err


def test_a_trigger_answered_with_an_older_run_says_so(run: Callable[..., Done], folder: Path) -> None:
    keyed = ["trigger", "count", "--input", "1", "--concurrency-key", "c", "--coalesce", "skip"]
    first = run(*keyed, "--idempotency-key", "i").out
    again = run("trigger", "count", "--input", "1", "--idempotency-key", "i")
    joined = run(*keyed)
    assert again.out == joined.out == first
    assert "has the idempotency key already; it is pending" in again.err
    assert "stands for this one too; it is pending" in joined.err


def test_an_unknown_job_is_one_line_with_the_known_ones(run: Callable[..., Done], folder: Path) -> None:
    done = run("trigger", "great")
    assert done.code == 2
    assert done.err == "durably: job: there is no 'great'; the application's jobs: break, count, greet, hold\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", '{"name": '], "input: not JSON"),
        (["--input", '{"name": "Ada", "age": "old"}'], r"input\.age: .*integer"),
        (["--input", "null"], "input: "),
        (["--input", ADA, "--label", "tenant"], "label: 'tenant' is not NAME=VALUE"),
        (["--input", ADA, "--coalesce", "skip"], "coalesce: needs a concurrency_key"),
        (["--input", ADA, "--timeout", "3"], "timeout: .*--wait"),
        (["--input", ADA, "--wait", "--timeout", "soon"], "timeout: 'soon' is no duration"),
    ],
)
def test_what_is_wrong_with_a_trigger_is_one_line_that_names_the_field(
    run: Callable[..., Done], folder: Path, arguments: list[str], message: str
) -> None:
    done = run("trigger", "greet", *arguments)
    assert (done.code, done.out) == (2, "")
    assert re.fullmatch(f"durably: {message}.*\n", done.err)
    assert run("runs", "--json").data == []


# --- trigger --wait -----------------------------------------------------------------------------------------


def test_waiting_prints_the_output_and_on_stderr_what_was_logged(run: Callable[..., Done], busy: Path) -> None:
    done = run("trigger", "greet", "--input", ADA, "--wait")
    assert (done.code, done.out) == (0, "Hello Ada\n")
    assert re.search(r"\d\d:\d\d:\d\d\.\d{3} info    greeted \{\"name\":\"Ada\"\}\n", done.err)
    assert done.err.count("greeted") == 1
    assert "completed in" in done.err


def test_waiting_prints_an_output_that_is_no_text_as_json(run: Callable[..., Done], busy: Path) -> None:
    assert run("trigger", "count", "--input", "2", "--wait").data == {"numbers": [0, 1]}


def test_waiting_prints_the_ended_run_as_json(run: Callable[..., Done], busy: Path) -> None:
    done = run("trigger", "greet", "--input", ADA, "--wait", "--json")
    assert (done.code, done.data["status"], done.data["output"]) == (0, "completed", "Hello Ada")


def test_waiting_for_a_run_that_fails_ends_with_1_and_its_error(run: Callable[..., Done], busy: Path) -> None:
    done = run("trigger", "break", "--wait")
    assert (done.code, done.out) == (1, "")
    assert done.err.endswith("failed: OSError: no route\n")
    assert "Traceback" not in done.err


def test_traceback_shows_where_the_job_failed(run: Callable[..., Done], busy: Path) -> None:
    done = run("--traceback", "trigger", "break", "--wait", "--json")
    assert done.code == 1
    assert done.data["status"] == "failed"
    assert "in explode" in done.err
    assert "\x1b" not in done.err


def test_a_wait_that_takes_too_long_ends_with_1_and_the_run_goes_on(run: Callable[..., Done], busy: Path) -> None:
    done = run("trigger", "hold", "--input", '"goes-on"', "--wait", "--timeout", "0.2")
    assert done.code == 1
    assert done.err.endswith("it goes on\n")
    run_id = ID.findall(done.err)[0]
    assert run("show", run_id, "--json").data["status"] in {"pending", "running"}
    (busy / "goes-on").touch()


def test_waiting_shows_a_bar_on_a_terminal_and_nothing_of_it_remains(run: Callable[..., Done], busy: Path) -> None:
    written = on_pseudo_terminal("trigger", "greet", "--input", ADA, "--wait", cwd=busy)
    assert re.search("━.*[123]/3.*greeting", ESCAPES.sub("", written))
    assert ESCAPES.sub("", written.split("\n")[-2]).endswith("Hello Ada")


def test_waiting_is_interrupted_by_control_c_and_the_run_goes_on(busy: Path) -> None:
    with started("trigger", "hold", "--input", '"interrupted"', "--wait", cwd=busy) as process:
        assert process.stderr is not None
        assert any("held" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=30)
    assert process.returncode == 130
    assert rest.endswith("goes on\n")
    assert "Traceback" not in rest
    (busy / "interrupted").touch()


def test_waiting_for_a_run_that_is_cancelled_ends_with_1(run: Callable[..., Done], busy: Path) -> None:
    listing = ("runs", "--label", "to=cancel", "--status", "running", "--json")
    options = ("--input", '"never"', "--label", "to=cancel", "--wait")
    with started("trigger", "hold", *options, cwd=busy) as process:
        running = eventually(lambda: run(*listing).data, timeout=30)
        assert run("cancel", running[0]["id"]).code == 0
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.endswith("was cancelled\n")


def test_waiting_without_a_worker_says_so(run: Callable[..., Done], folder: Path) -> None:
    done = run("trigger", "greet", "--input", ADA, "--wait", "--timeout", "0")
    assert done.code == 1
    told = "no worker is alive at the moment; the run waits for one: start some with `durably supervise`, unless a "
    assert told in done.err


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def three_runs(run: Callable[..., Done], folder: Path) -> list[str]:
    """The ids of a completed, a failed and a pending run, in this order."""
    ids = [
        run("trigger", "greet", "--input", ADA, "--label", "tenant=acme").out.strip(),
        run("trigger", "break", "--label", "tenant=other").out.strip(),
    ]
    execute()
    return [*ids, run("trigger", "count", "--input", "1").out.strip()]


def test_runs_are_listed_newest_first(run: Callable[..., Done], three_runs: list[str]) -> None:
    done = run("runs")
    heading, *lines = done.out.splitlines()
    assert heading.split() == ["id", "job", "status", "progress", "attempt", "age", "duration", "error"]
    assert [line.split()[:3] for line in lines] == [
        [three_runs[2], "count", "pending"],
        [three_runs[1], "break", "failed"],
        [three_runs[0], "greet", "completed"],
    ]
    assert lines[1].endswith("OSError: no route")
    assert "3/3 greeting" in lines[2]
    assert done.err == ""


def test_runs_are_listed_as_json(run: Callable[..., Done], three_runs: list[str]) -> None:
    listed = run("runs", "--json").data
    assert [one["id"] for one in listed] == three_runs[::-1]
    assert listed[2]["progress"] == {"current": 3, "total": 3, "message": "greeting"}
    assert listed[2]["output"] == "Hello Ada"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--status", "failed"], [1]),
        (["--status", "failed", "--status", "pending"], [2, 1]),
        (["--job", "greet", "--job", "count"], [2, 0]),
        (["--label", "tenant=acme"], [0]),
        (["--limit", "1"], [2]),
        (["--job", "nothing"], []),
    ],
)
def test_runs_are_filtered(
    run: Callable[..., Done], three_runs: list[str], arguments: list[str], expected: list[int]
) -> None:
    assert [one["id"] for one in run("runs", "--json", *arguments).data] == [three_runs[i] for i in expected]


def test_a_full_page_says_how_to_get_the_next(run: Callable[..., Done], three_runs: list[str]) -> None:
    done = run("runs", "--limit", "2")
    assert done.err == f"durably: there may be more: --before {three_runs[1]}\n"
    assert [one["id"] for one in run("runs", "--json", "--before", three_runs[1]).data] == [three_runs[0]]


def test_no_runs_leave_stdout_empty(run: Callable[..., Done], folder: Path) -> None:
    assert (run("runs").out, run("runs").err) == ("", "durably: there are no runs\n")
    assert run("runs", "--status", "failed").err == "durably: there are no such runs\n"


def test_an_unknown_status_is_refused_with_the_known_ones(run: Callable[..., Done], folder: Path) -> None:
    done = run("runs", "--status", "broken")
    assert done.code == 2
    assert done.err.startswith("durably: status: 'broken' is none of pending, running")


def test_a_table_in_a_pipe_is_plain_and_not_cut(folder: Path, run: Callable[..., Done]) -> None:
    run("trigger", "break")
    execute()
    piped = command("runs", cwd=folder, env={**os.environ, "COLUMNS": "40"})
    assert "\x1b" not in piped.out
    assert all(line == line.rstrip() for line in piped.out.splitlines())
    assert ID.match(piped.out.splitlines()[1])
    assert piped.out.splitlines()[1].endswith("OSError: no route")


def test_a_terminal_gets_colours_unless_it_does_not_want_them(three_runs: list[str], folder: Path) -> None:
    coloured = on_terminal("runs")
    assert re.search(r"\x1b\[[0-9;]*32m\s*completed", coloured)
    assert "\x1b" not in on_terminal("runs", NO_COLOR="1")
    assert "\x1b" not in on_terminal("runs", TERM="dumb")


def test_a_narrow_terminal_gets_the_ends_of_ids_which_other_commands_take(
    run: Callable[..., Done], three_runs: list[str], folder: Path
) -> None:
    lines = on_terminal("runs", columns=90, NO_COLOR="1").splitlines()
    ending = next(line for line in lines if " failed " in line).split()[0]
    assert three_runs[1].endswith(ending)
    assert len(ending) < 26
    assert run("show", ending, "--json").data["id"] == three_runs[1]


def without(*streams: int, cwd: Path, arguments: tuple[str, ...]) -> int:
    """Carry out a command line in a process that is begun without some of its standard streams."""
    closing = " ".join(f"{number}>&-" for number in streams)
    script = f'exec "$0" "$@" {closing}'
    return subprocess.run(["sh", "-c", script, *DURABLY, *arguments], cwd=cwd, timeout=60, check=False).returncode


# contract 173
@pytest.mark.parametrize("streams", [(1,), (2,), (0, 1, 2)])
def test_commands_do_their_work_without_standard_streams(
    run: Callable[..., Done], three_runs: list[str], folder: Path, streams: tuple[int, ...]
) -> None:
    assert without(*streams, cwd=folder, arguments=("runs",)) == 0
    assert without(*streams, cwd=folder, arguments=("show", three_runs[1], "--json")) == 0
    assert without(*streams, cwd=folder, arguments=("retry", three_runs[1])) == 0
    assert without(*streams, cwd=folder, arguments=("retry", three_runs[0])) == 1
    assert without(*streams, cwd=folder, arguments=("runs", "--limit", "many")) == 2
    assert without(*streams, cwd=folder, arguments=("supervise", "--until-idle", "--workers", "1")) == 0
    listed = {one["id"]: (one["status"], one["attempt"]) for one in run("runs", "--json").data}
    assert listed == {
        three_runs[0]: ("completed", 1),
        three_runs[1]: ("failed", 2),
        three_runs[2]: ("completed", 1),
    }


def test_a_reader_that_goes_away_ends_a_command_quietly(three_runs: list[str], folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*DURABLY, "runs"], cwd=folder, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    os.close(writing)
    assert done.returncode == 141
    assert Done(0, "", done.stderr).err == ""


# --- show ---------------------------------------------------------------------------------------------------


def test_show_tells_fields_steps_and_log(run: Callable[..., Done], three_runs: list[str]) -> None:
    out = run("show", three_runs[0]).out
    assert re.search(r"job +greet\n", out)
    assert re.search(r"status +completed \(attempt 1\)\n", out)
    assert re.search(r"labels +tenant=acme\n", out)
    assert re.search(r"input +\{\"name\":\"Ada\",\"age\":36\}\n", out)
    assert re.search(r"output +\"Hello Ada\"\n", out)
    assert re.search(r"greet 2 +\+\d.* ━+", out)
    assert re.search(r"info +greeted \{\"name\":\"Ada\"\}\n", out)


def test_show_tells_why_a_run_failed_and_lets_nothing_move_the_cursor(
    run: Callable[..., Done], three_runs: list[str]
) -> None:
    out = run("show", three_runs[1]).out
    assert re.search(r"explode .*━ +OSError: no route\n", out)
    assert re.search(r"error +OSError: no route\n +to \\x1b\[31mhost\n", out)
    assert "in explode" in out.partition("traceback")[2]
    assert "\x1b" not in out


# contract 185
def test_an_error_without_a_message_is_its_type_alone(run: Callable[..., Done], here: Path) -> None:
    (here / "app.py").write_text(
        APP
        + "def fail():\n    raise OSError\n\n@durably.job('fail')\ndef fail_(step, _):\n    step.run('fail', fail)\n"
    )
    assert run("migrate").code == 0
    run_id = run("trigger", "fail").out.strip()
    done = command("supervise", "--until-idle", "--workers", "1", "--log-format", "console", cwd=here)
    shown = [*done.out.splitlines(), *run("show", run_id).out.partition("traceback")[0].splitlines()]
    shown += [run("runs").out.rstrip(), run("wait", run_id).err.rstrip()]
    told = [line for line in shown if "OSError" in line]
    assert len(told) == 6
    assert all(line.endswith("OSError") for line in told)


def test_show_colours_failed_attempts_red_on_a_terminal(three_runs: list[str], folder: Path) -> None:
    assert re.search(r"\x1b\[31m *━", on_terminal("show", three_runs[1]))


def test_show_gives_the_run_with_steps_and_logs_as_json(run: Callable[..., Done], three_runs: list[str]) -> None:
    shown = run("show", three_runs[1], "--json").data
    assert shown["error_type"] == "OSError"
    assert [(step["name"], step["status"]) for step in shown["steps"]] == [
        ("prepare", "completed"),
        ("explode", "failed"),
    ]
    assert run("show", three_runs[0], "--json").data["logs"][0]["data"] == {"name": "Ada"}


def test_show_shows_a_run_that_waits(run: Callable[..., Done], three_runs: list[str]) -> None:
    out = run("show", three_runs[2]).out
    assert re.search(r"status +pending", out)
    assert "output" not in out


@pytest.mark.parametrize("name", ["show", "logs", "wait", "retry", "retrigger", "cancel", "delete"])
def test_a_run_that_is_not_there_is_exit_code_1(run: Callable[..., Done], folder: Path, name: str) -> None:
    done = run(name, "01JNG30F5M7C1E9R6XZ4Q7TN2A")
    assert (done.code, done.out, done.err) == (1, "", "durably: there is no run '01JNG30F5M7C1E9R6XZ4Q7TN2A'\n")


def test_the_end_of_an_id_must_tell_the_run_apart(
    run: Callable[..., Done], three_runs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("show", three_runs[0][-7:].lower(), "--json").data["id"] == three_runs[0]
    assert run("show", three_runs[0][-3:]).code == 1
    monkeypatch.setattr("durably.cli.application._FEWEST_LETTERS", 0)
    done = run("show", "")
    assert done.code == 2
    assert re.fullmatch("durably: run: '' ends the ids of 3 runs, .*\n", done.err)


# --- logs, wait ---------------------------------------------------------------------------------------------


def test_logs_are_printed_in_their_order(run: Callable[..., Done], three_runs: list[str]) -> None:
    done = run("logs", three_runs[0])
    assert re.fullmatch(r'\d\d:\d\d:\d\d\.\d{3} info +greeted \{"name":"Ada"\}\n', done.out)
    entry = run("logs", three_runs[0], "--json").data
    assert (entry["level"], entry["message"], entry["data"]) == ("info", "greeted", {"name": "Ada"})
    assert run("logs", three_runs[2], "--json").out == ""


def test_logs_are_followed_until_the_run_ends(busy: Path, run: Callable[..., Done]) -> None:
    gate = busy / "follow"
    run_id = run("trigger", "hold", "--input", json.dumps(str(gate))).out.strip()
    with started("logs", run_id, "--follow", cwd=busy) as following:
        assert following.stdout is not None
        assert "held" in following.stdout.readline()
        assert following.poll() is None
        gate.touch()
        assert following.wait(30) == 0
        assert following.stdout.read() == ""


def test_wait_prints_the_output_of_a_run_that_somebody_triggered(run: Callable[..., Done], busy: Path) -> None:
    run_id = run("trigger", "greet", "--input", ADA).out.strip()
    done = run("wait", run_id, "--timeout", "30")
    assert (done.code, done.out) == (0, "Hello Ada\n")
    assert run("wait", run_id, "--json").data["status"] == "completed"


def test_wait_ends_with_1_when_the_run_failed_or_takes_too_long(run: Callable[..., Done], busy: Path) -> None:
    failed = run("trigger", "break").out.strip()
    done = run("wait", failed)
    assert (done.code, done.out) == (1, "")
    assert f"run {failed} of job 'break' failed" in done.err
    held = run("trigger", "hold", "--input", json.dumps(str(busy / "late"))).out.strip()
    assert run("wait", held, "--timeout", "0").code == 1
    (busy / "late").touch()
    assert run("wait", held).code == 0


# --- retry, retrigger, cancel, delete, purge ------------------------------------------------------------------


def test_retry_puts_a_failed_run_back(run: Callable[..., Done], three_runs: list[str]) -> None:
    assert run("retry", three_runs[1]).out == f"{three_runs[1]} is pending (attempt 2)\n"
    assert run("show", three_runs[1], "--json").data["status"] == "pending"


def test_retry_prints_the_run_as_json(run: Callable[..., Done], three_runs: list[str]) -> None:
    assert run("retry", three_runs[1], "--json").data["attempt"] == 2


def test_a_completed_run_is_not_retried(run: Callable[..., Done], three_runs: list[str]) -> None:
    done = run("retry", three_runs[0])
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(f"durably: run {three_runs[0]} is completed; .*\n", done.err)


def test_cancel_cancels_a_pending_run_once(run: Callable[..., Done], three_runs: list[str]) -> None:
    assert run("cancel", three_runs[2]).out == f"{three_runs[2]} is cancelled (attempt 1)\n"
    done = run("cancel", three_runs[2])
    assert (done.code, done.out) == (1, "")
    assert "is cancelled; only a pending or running run" in done.err


def test_retrigger_prints_the_id_of_the_new_run(run: Callable[..., Done], three_runs: list[str]) -> None:
    done = run("retrigger", three_runs[0])
    assert ID.fullmatch(done.out.strip())
    assert done.out.strip() not in three_runs
    created = run("show", done.out.strip(), "--json").data
    assert (created["status"], created["labels"], created["steps"]) == ("pending", {"tenant": "acme"}, [])
    assert run("retrigger", three_runs[1], "--json").data["job_name"] == "break"


def test_a_pending_run_is_not_triggered_again(run: Callable[..., Done], three_runs: list[str]) -> None:
    done = run("retrigger", three_runs[2])
    assert (done.code, done.out) == (1, "")
    assert f"run {three_runs[2]} is pending; " in done.err


def test_delete_removes_an_ended_run_alone(run: Callable[..., Done], three_runs: list[str]) -> None:
    assert run("delete", three_runs[1]).out == f"{three_runs[1]} is deleted\n"
    assert run("show", three_runs[1]).code == 1
    assert run("delete", three_runs[0], "--json").data == {"deleted": three_runs[0]}
    done = run("delete", three_runs[2])
    assert (done.code, done.out) == (1, "")
    assert "cancel it before deleting it" in done.err


def test_purge_deletes_what_ended_so_long_ago(run: Callable[..., Done], three_runs: list[str]) -> None:
    assert run("purge", "--older-than", "1h").out == "0 runs deleted\n"
    with application(None) as app:
        sql(app, "UPDATE durably_runs SET completed_at = completed_at - 7200000000 WHERE completed_at IS NOT NULL")
    assert run("purge", "--older-than", "1h", "--limit", "1").out == "1 run deleted\n"
    assert run("purge", "--older-than", "1h", "--json").data == {"purged": 1}
    assert [found["id"] for found in run("runs", "--json").data] == three_runs[2:]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("--older-than", "long"), "older_than"),
        (("--older-than", "30"), "30d"),
        ((), "--older-than"),
        (("--older-than", "1h", "--limit", "0"), "limit"),
    ],
)
def test_what_is_wrong_with_a_purge_is_one_line(
    run: Callable[..., Done], three_runs: list[str], arguments: tuple[str, ...], names: str
) -> None:
    done = run("purge", *arguments)
    assert (done.code, done.out) == (2, "")
    assert names in done.err
    assert done.err.count("\n") == 1
    assert len(run("runs", "--json").data) == 3


def test_an_attempt_after_a_retry_shows_in_the_timeline(run: Callable[..., Done], three_runs: list[str]) -> None:
    run("retry", three_runs[1])
    execute()
    out = run("show", three_runs[1]).out
    assert re.search(r"explode \(attempt 2\) .*OSError", out)
    assert re.search(r"status +failed \(attempt 2, 2 claims\)", out)


# --- workers ------------------------------------------------------------------------------------------------


def test_workers_are_listed(run: Callable[..., Done], busy: Path) -> None:
    heading, line = run("workers").out.splitlines()
    first = ["id", "host", "pid", "state", "jobs", "running", "heartbeat"]
    assert heading.split() in (first, [*first, "oldest", "step"])  # once a heartbeat has told of a step
    seconds = r"\d+\.\d m?s"
    expected = rf"[0-9A-Z]{{26}} +\S+ +\d+ +alive +break, count, greet, hold +[01]/1 +{seconds} ago( +{seconds})?"
    assert re.fullmatch(expected, line)
    (worker,) = run("workers", "--json").data
    assert (worker["state"], sorted(worker["jobs"])) == ("alive", ["break", "count", "greet", "hold"])


@pytest.mark.parametrize("columns", [80, 90, 100, 110])
def test_where_room_is_short_the_jobs_of_workers_are_cut_first(
    run: Callable[..., Done], folder: Path, columns: int
) -> None:
    many = json.dumps([f"a job whose number is {n}" for n in range(9)])
    with application(None) as app:
        for number, state in enumerate(("alive", "stopped", "dead")):
            sql(
                app,
                "INSERT INTO durably_workers (id, host, pid, jobs, concurrency, state, started_at, "
                f"heartbeat_at) VALUES ('0123456789ABCDEFGHJKMNPQR{number}', 'fedcba987654', 4194304, '{many}', "
                f"10, '{state}', 1, 1700000000000000)",
            )
    heading, *lines = on_terminal("workers", columns=columns, NO_COLOR="1").splitlines()
    assert heading.split() == ["id", "host", "pid", "state", "jobs", "running", "heartbeat"]
    assert [line.split()[3] for line in lines] == ["alive", "dead", "stopped"]
    for line in lines:
        assert re.search(r"^[0-9A-Z]+R\d +fedcba987654 +4194304 +[a-z]+ +a job.*… +0/10 +\d+ d \d+ h ago$", line)
        assert len(line) <= columns


def test_no_workers_leave_stdout_empty(run: Callable[..., Done], folder: Path) -> None:
    done = run("workers")
    assert (done.code, done.out) == (0, "")
    assert "durably supervise" in done.err
    assert run("workers", "--json").data == []


# --- supervise ----------------------------------------------------------------------------------------------


def test_supervise_until_idle_migrates_executes_and_ends_cleanly(run: Callable[..., Done], here: Path) -> None:
    (here / "app.py").write_text(APP)
    assert run("migrate").code == 0
    triggered = [run("trigger", "greet", "--input", ADA).out.strip() for _ in range(3)]
    done = command("supervise", "--until-idle", "--workers", "2", "--concurrency", "2", cwd=here)
    assert done.code == 0
    assert done.err == "durably: the application is app.py (the file in this folder)\n"
    told = [json.loads(line) for line in done.out.splitlines()]
    assert sorted(line["run_id"] for line in told if line["event"] == "run:complete") == triggered
    assert next(line["concurrency"] for line in told if line["event"] == "worker:start") == 2
    assert told[-1]["event"] == "supervisor:stop"
    assert not [line for line in told if line.get("logger", "").startswith("alembic")]
    assert all(one["status"] == "completed" for one in run("runs", "--json").data)


def test_supervise_logs_for_people_if_that_is_wanted(here: Path) -> None:
    (here / "app.py").write_text(APP)
    done = command("supervise", "app.py", "--until-idle", "--log-format", "console", "--log-level", "debug", cwd=here)
    assert done.code == 0
    assert done.err == "durably: the application is app.py (the argument)\n"
    assert re.search(r"\d I supervisor:start +supervisor ", done.out)


def test_supervise_says_once_that_nobody_reads_its_log_and_works_on(here: Path, run: Callable[..., Done]) -> None:
    (here / "app.py").write_text(APP)
    assert run("migrate").code == 0
    for _ in range(3):
        run("trigger", "greet", "--input", ADA)
    with subprocess.Popen(
        [*DURABLY, "supervise", "--until-idle", "--workers", "1"],
        cwd=here,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait(60) == 0
    assert said.count("durably: the log takes no lines (Broken pipe); all else goes on, and they are lost\n") == 1
    assert said.count("\n") == 2
    assert all(one["status"] == "completed" for one in run("runs", "--json").data)


def test_supervise_ends_with_0_after_sigterm(here: Path) -> None:
    (here / "app.py").write_text(APP)
    with supervised(here, "--dialect-url", "sqlite:///other.db") as process:
        eventually(lambda: has_told(here, "worker:start"), timeout=30)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert log_of(here)[-1]["reason"] == "SIGTERM"
    assert (here / "other.db").exists()
    assert not (here / "jobs.db").exists()


# contract 161
def test_supervise_tells_in_one_line_that_it_has_migrated(here: Path) -> None:
    (here / "app.py").write_text(APP)
    done = command("supervise", "--until-idle", "--workers", "1", cwd=here)
    told = [json.loads(line) for line in done.out.splitlines()]
    logged = [line for line in told if line.get("logger") and "imported" not in line["event"]]
    (logged,) = [line for line in logged if line["logger"] != "durably.supervisor"]
    assert (logged["logger"], logged["level"]) == ("durably", "info")
    assert re.fullmatch("migrated sqlite:///jobs.db to revision .*", logged["event"])


# contract 173, 185
@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("\nimport nothing_of_this_name\n", "ModuleNotFoundError: No module named 'nothing_of_this_name' ({place}:2)"),
        ("x = 1\nif x\n", "SyntaxError: expected ':' ({place}:2)"),
        ("import sys\nsys.exit('set API_KEY')\n", "SystemExit: set API_KEY ({place}:2)"),
        ("raise RuntimeError\n", "RuntimeError ({place}:1)"),
    ],
)
def test_supervise_tells_in_one_line_why_an_application_does_not_import(
    here: Path, source: str, reason: str, log_format: str
) -> None:
    (here / "app.py").write_text(source)
    done = command("supervise", "--log-format", log_format, cwd=here)
    assert done.code == 1
    (told,) = [line for line in done.out.splitlines() if "supervisor:error" in line]
    error = json.loads(told)["error"] if log_format == "json" else told
    assert error.endswith("the start failed: app.py cannot be imported: " + reason.format(place=here / "app.py"))
    assert "Traceback" not in done.out + done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "workers: 0 is out of range"),
        (["--drain-timeout", "soon"], "drain_timeout: 'soon' is no duration"),
        (["--log-level", "loud"], "Invalid value for '--log-level'"),
    ],
)
def test_wrong_options_of_supervise_start_nothing(
    run: Callable[..., Done], folder: Path, arguments: list[str], message: str
) -> None:
    done = run("supervise", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"durably: {message}")
    assert done.err.count("\n") == 1


README = Path(__file__).parents[1] / "README.md"


def test_the_first_example_of_the_readme_runs_as_it_stands(run: Callable[..., Done], here: Path) -> None:
    text = README.read_text()
    (here / "app.py").write_text(text.partition("```python\n")[2].partition("```")[0])
    commands = re.findall(
        r"^    durably (.*?)(?: +#.*)?$", text.partition("## Use it")[2].partition("## ")[0], re.MULTILINE
    )
    supervise, trigger = (shlex.split(line) for line in commands[:2])
    with subprocess.Popen(
        [*DURABLY, *supervise], cwd=here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            eventually(lambda: run("runs").code == 0, timeout=30)
            done = run(*trigger)
            assert done.out == "parcel of payment-42\n"
            assert done.err.splitlines()[-1].startswith("durably: completed in")
        finally:
            process.terminate()
            assert process.wait(60) == 0
    first = here / "elsewhere.py"
    first.write_text("from app import order\nprint(order.trigger(42, idempotency_key='order-42').status)\n")
    assert (
        subprocess.run([sys.executable, first], cwd=here, capture_output=True, text=True, check=True).stdout
        == "pending\n"
    )
    run_id = run("runs", "--json", "--status", "completed").data[0]["id"]
    for name in ("show", "logs", "retrigger"):
        assert run(name, run_id).code == 0
    named = {line.split()[0] for line in commands}
    assert named < set(COMMANDS)


# --- without a command line ---------------------------------------------------------------------------------


def test_an_unforeseen_error_is_one_line(
    run: Callable[..., Done], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the unforeseen\nhappened")

    monkeypatch.setattr("durably.cli.application.find_run", fail)
    done = run("show", "x")
    assert done.code == 1
    assert done.err == "durably: RuntimeError: the unforeseen (durably --traceback ... shows where)\n"


NOON = datetime(2025, 3, 4, 12, tzinfo=UTC)


def a_step(begun: float, ended: float) -> Step:
    return Step(
        run_id="r",
        name="s",
        index=0,
        attempt=1,
        status="completed",
        output=None,
        error=None,
        error_type=None,
        error_traceback=None,
        started_at=NOON + timedelta(seconds=begun),
        completed_at=NOON + timedelta(seconds=ended),
    )


@pytest.mark.parametrize(
    ("begun", "ended", "drawn"),
    [
        (0, 10, "━━━━━━━━━━"),
        (0, 5, "━━━━━     "),
        (5, 10, "     ━━━━━"),
        (5, 5.001, "     ━    "),
        (10, 10, "         ━"),
        (-1, 0, "━         "),
        (9, 99, "         ━"),
    ],
)
def test_a_step_is_drawn_where_it_was(begun: float, ended: float, drawn: str) -> None:
    assert bar(a_step(begun, ended), NOON, NOON + timedelta(seconds=10), width=10) == drawn


def test_a_step_of_a_run_that_took_no_time_is_drawn_whole() -> None:
    assert bar(a_step(0, 0), NOON, NOON, width=4) == "━━━━"


def test_text_of_strangers_moves_no_cursor() -> None:
    assert printable("a\tb\n\x1b[2Jé\u202e") == "a   b\n\\x1b[2Jé\\u202e"


@pytest.mark.parametrize(("given", "seconds"), [(None, None), ("0", 0.0), ("1.5", 1.5), ("5m", 300.0)])
def test_a_timeout_is_seconds_or_a_duration(given: str | None, seconds: float | None) -> None:
    assert parse_timeout(given) == seconds


def test_a_negative_timeout_is_refused() -> None:
    with pytest.raises(ValidationError, match="timeout: '-1' is no duration"):
        parse_timeout("-1")
