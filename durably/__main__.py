"""The program `durably`: ends silently if it is interrupted while it is still being imported."""

import os
import signal
import sys
from typing import Any, Final

_EXIT_INTERRUPTED: Final = 130


def main() -> int:
    """Carry out the process's command line; give the exit code."""
    # Not by an exception: some imports put another in its place. A SIGINT that is ignored, as of what a script runs
    # in the background, stays so.
    is_heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_heeded:
        signal.signal(signal.SIGINT, _end)
    from durably.cli.main import main as carry_out

    if is_heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return carry_out()


def _end(*_: Any) -> None:
    os._exit(_EXIT_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
