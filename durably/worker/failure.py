"""An exception as it is stored: message, type, traceback."""

from __future__ import annotations

import asyncio
import os
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from durably.errors import ControlFlow
from durably.forks import end_if_forked

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

T = TypeVar("T")
_OWN_FOLDER: Final = str(Path(__file__).parents[1])
_LONGEST: Final = 64 * 1024


class Description(NamedTuple):
    """What is stored of an exception; each text at most 64 KiB."""

    error: str
    error_type: str
    error_traceback: str


def describe(error: BaseException) -> Description:
    """Put *error* into words: its chain of causes, without durably's own frames at the top."""
    return Description(_storable(_message(error)), type_name(error), _storable(_traceback(error)))


def type_name(error: BaseException) -> str:
    """Name an exception's class: with its module, unless that is Python or durably."""
    kind = type(error)
    module = str(kind.__module__)  # which a class may have made anything
    own = module == "builtins" or module.split(".", maxsplit=1)[0] == "durably"
    return kind.__qualname__ if own else f"{module}.{kind.__qualname__}"


def has_control_flow(error: BaseException) -> bool:
    """
    Tell what ends a run from outside, also inside a group, where it outweighs ordinary errors.

    The run's task is cancelled when its loop is being ended, by Ctrl-C say.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(has_control_flow(part) for part in error.exceptions)
    return isinstance(error, (ControlFlow, asyncio.CancelledError))


def call_plain(fn: Callable[..., T], *args: Any) -> T:
    """
    Call *fn*; what generators and tasks take for their own end becomes a RuntimeError, as Python does.

    Returns:
        In this process only: a child that *fn* has forked, and that gets here, ends.
    """
    process = os.getpid()
    try:
        return fn(*args)
    except (StopIteration, GeneratorExit) as error:
        raise RuntimeError(f"{getattr(fn, '__qualname__', fn)} raised {type(error).__name__}") from error
    finally:
        end_if_forked(process)


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(type(error), error, _first_foreign(error.__traceback__)))
    except BaseException as worse:  # noqa: BLE001 - nor may a chain of them that is too deep, or a broken __str__ in it
        return f"<no traceback: {type(worse).__qualname__}>"


def _message(error: BaseException) -> str:
    try:
        return str.__str__(str(error))  # exactly a str, whatever the class made of it
    except BaseException as worse:  # noqa: BLE001 - a broken __str__ must not hide the failure
        return f"<no message: __str__ raised {type(worse).__qualname__}>"


def _first_foreign(frames: TracebackType | None) -> TracebackType | None:
    """Skip our frames at the top; if there are only ours, keep them."""
    foreign = frames
    while foreign is not None and foreign.tb_frame.f_code.co_filename.startswith(_OWN_FOLDER):
        foreign = foreign.tb_next
    return foreign or frames


def _storable(text: str) -> str:
    """Cut what is too long in its middle, and replace what no database stores."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}\n[...]\n{text[-_LONGEST // 2 :]}"
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")
