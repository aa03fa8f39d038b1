"""What a process is called by `ps`, `top` and `pgrep`, where the system lets it say so."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_SET_NAME: Final = 15  # PR_SET_NAME of prctl(2)


def call_process(name: str) -> None:
    """
    Give this process a name of at most 15 bytes; what is longer is cut. On Linux only; else nothing is done.

    Called in the main thread, whose name is the process's. Threads begun later have it too.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_NAME, name.encode(), 0, 0, 0)
