"""Finds the application: the Durably instance that a reference names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from durably.client import Durably
from durably.errors import ApplicationError, DurablyError, ValidationError
from durably.settings import load_settings
from durably.words import in_words

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_OWN_FOLDER: Final = Path(__file__).parent
_FILES: Final = ("app.py", "jobs.py")
_NONE_FOUND: Final = """there is none here. Write app.py:
    from durably import Durably
    durably = Durably("sqlite:///durably.db")
    @durably.job("hello")
    def hello(step, name: str) -> str: return step.run("greet", lambda: f"Hello {name}")
or name yours: an argument "module:attribute", DURABLY_APP, or app in [tool.durably] of pyproject.toml"""


class Found(NamedTuple):
    """
    Where an application was found.

    Args:
        reference: "module:attribute", a module, or a path to a file, also with ":attribute".
        source: What named it, for people.
    """

    reference: str
    source: str


def find_app(argument: str | None = None) -> Found:
    """
    Find the application's reference: the argument, else DURABLY_APP or [tool.durably], else app.py or jobs.py here.

    Raises:
        ValidationError: There is none; the message says what to write.
    """
    if argument:
        return Found(argument, "the argument")
    if configured := load_settings().app:
        return Found(configured, "the setting app")
    for name in _FILES:
        if Path(name).is_file():
            return Found(name, "the file in this folder")
    raise ValidationError("app", _NONE_FOUND)


def load_app(reference: str) -> Durably:
    """
    Import an application.

    Args:
        reference: As in `Found`.

    Returns:
        The instance that the attribute is, or the only one of the module.

    Raises:
        ValidationError: There is no such file, module or attribute, or no single instance in it. On `app`, or on what
            the module itself gave a wrong value.
        ApplicationError: The module raises while it is imported, which is the cause.
    """
    place, attribute = _split(reference)
    module = _load_file(Path(place)) if _is_file(place) else _load_module(place)
    if attribute:
        found = getattr(module, attribute, None)
        if found is None:
            there = [name for name, value in vars(module).items() if isinstance(value, Durably)]
            raise ValidationError(
                "app",
                f"{reference!r}: there is no {attribute!r} in it; Durably instances: {', '.join(there) or 'none'}",
            )
        if not isinstance(found, Durably):
            raise ValidationError("app", f"{reference!r}: {attribute!r} is {found!r}, not a Durably instance")
        return found
    instances = {id(value): name for name, value in vars(module).items() if isinstance(value, Durably)}
    if len(instances) != 1:
        names = ", ".join(sorted(instances.values())) or "none"
        raise ValidationError(
            "app",
            f"{place!r} must have one Durably instance at module level (or name it: '{place}:attribute'), has {names}",
        )
    app: Durably = getattr(module, next(iter(instances.values())))
    return app


def check_app(reference: str) -> None:
    """
    Make sure that a reference names a file or a module that is there, without importing it.

    Raises:
        ValidationError: On `app`; it is not.
    """
    place, _ = _split(reference)
    if _is_file(place):
        _check_file(Path(place))
        return
    sys.path.insert(0, str(Path.cwd()))
    package = place.partition(".")[0]
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # no name that a module could have
        found = None
    if found is None:
        raise _no_module(package)


def _split(reference: str) -> tuple[str, str]:
    place, _, attribute = reference.partition(":")
    return place, attribute


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ValidationError("app", f"there is no file {path}")
    if path.stem == _OWN_FOLDER.name:
        raise ValidationError("app", f"{path} hides the library of that name from all that import it: call it app.py")


def _no_module(name: str) -> ValidationError:
    return ValidationError("app", f"there is no module {name!r} here or installed")


def _load_file(path: Path) -> ModuleType:
    _check_file(path)
    name = path.stem
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path.resolve()):
        return loaded
    # Its neighbours are importable, as they are when the file is run.
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None  # a .py file always has one
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _importing(str(path)):
        try:
            spec.loader.exec_module(module)
        except BaseException:
            sys.modules.pop(name, None)  # half a module must not pass for a whole one the next time
            raise
    return module


def _load_module(name: str) -> ModuleType:
    sys.path.insert(0, str(Path.cwd()))
    with _importing(name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module exists, something that it imports does not
    raise _no_module(name)


@contextmanager
def _importing(place: str) -> Iterator[None]:
    """Put into one line whatever ends an import, a `sys.exit()` too."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise _failure(place, error) from error


def _failure(place: str, error: BaseException) -> DurablyError:
    where = _own_place(error)
    if isinstance(error, ValidationError):
        return ValidationError(error.field, f"{error.message} (in {where or place})")
    # A syntax error's text ends with its place, in a form of its own.
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    what = in_words(type(error).__qualname__, " ".join(text.split()))
    return ApplicationError(f"{place} cannot be imported: {what}{f' ({where})' if where else ''}")


def _own_place(error: BaseException) -> str | None:
    """Find the last line of the user's own code that an error came from; None if it passed through none."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}:{error.lineno}"
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return next((f"{frame.filename}:{frame.lineno}" for frame in frames if _is_own(frame.filename)), None)


def _is_own(file_name: str) -> bool:
    """Tell a user's file from Python's, durably's and those installed."""
    path = Path(file_name)
    installed = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib", "platlib")]
    return path.is_file() and not any(path.is_relative_to(folder) for folder in (*installed, _OWN_FOLDER))
