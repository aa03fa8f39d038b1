"""Telling who waits for a database's first answer that it is this that they wait for."""

from __future__ import annotations

import logging
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

LOGGER: Final = "durably.database"
TOLD_AFTER_SECONDS: Final = 1.5


@contextmanager
def telling_if_late(url: str, timeout: float) -> Iterator[None]:
    """
    Log a warning, by Python's own logging, if what is done here takes longer than a person waits without a word.

    In a thread, because an attempt to connect may wait for all its time.

    Args:
        url: The database's, without its password.
        timeout: Seconds after which no attempt is made any more.
    """
    timer = threading.Timer(TOLD_AFTER_SECONDS, _tell, (url, timeout))
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:  # no room for a thread, or the interpreter is ending: then it is not told
        yield
        return
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # a supervisor forks only where there is no other thread


def _tell(url: str, timeout: float) -> None:
    logging.getLogger(LOGGER).warning("waiting for %s; if it does not answer, that ends after some %g s", url, timeout)
