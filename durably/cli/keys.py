"""Keys as they are pressed, while something is shown on a terminal."""

from __future__ import annotations

import os
import select
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def keys() -> Iterator[Callable[[float], str]]:
    """
    Take keys without their line's end, and without showing them; Ctrl-C stays an interrupt.

    Returns:
        A function that waits so many seconds for keys, and gives those that came; none where stdin is no terminal.
    """
    stdin = sys.stdin
    if stdin is None or not stdin.isatty():
        yield _sleep
        return
    import termios
    import tty

    descriptor = stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)

    def wait(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return os.read(descriptor, 64).decode(errors="replace") if ready else ""

    try:
        yield wait
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return ""
