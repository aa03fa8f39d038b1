"""Identifiers that sort by time and strictly ascend within a process."""

from __future__ import annotations

import os
import threading
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM_BITS = 80
_LENGTH = 26
_lock = threading.Lock()
# Owned by `new_id`, under the lock: the number that the latest id spells.
_latest = 0


def new_id() -> str:
    """
    Make an identifier of 26 characters: 48 bits of milliseconds, then 80 random bits, in Crockford's base 32.

    The form is ULID's (the public ULID specification). Ids made by one process strictly ascend in the
    order of the calls, also within one millisecond and when the clock steps back.

    Returns:
        The identifier, upper case.
    """
    global _latest  # noqa: PLW0603 - the order of a process's ids is the process's
    with _lock:
        now = (time.time_ns() // 1_000_000) << _RANDOM_BITS
        if now > _latest:
            _latest = now | int.from_bytes(os.urandom(_RANDOM_BITS // 8)) >> 1
        else:
            # Same millisecond, or the clock went back: a random step keeps other processes' ids apart.
            _latest += 1 + int.from_bytes(os.urandom(4))
        return _spell(_latest)


def is_id(text: object) -> bool:
    """Tell whether *text* has the form of an identifier, so that a database need not be asked about any other."""
    return isinstance(text, str) and len(text) == _LENGTH and all(letter in _ALPHABET for letter in text)


def _spell(number: int) -> str:
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -5, -5))


def _forget() -> None:
    """Start a forked child with numbers of its own."""
    global _latest, _lock  # noqa: PLW0603 - a lock held by another thread at the fork would never open
    _lock = threading.Lock()
    _latest = 0


os.register_at_fork(after_in_child=_forget)
