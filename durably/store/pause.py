"""Growing, jittered pauses between attempts."""

from __future__ import annotations

import random
from typing import Final

_GROWTH: Final = 2.0


class Pause:
    """
    Pauses that double up to a bound; each is drawn from the upper half, so that many processes drift apart.

    Args:
        first: Seconds.
        longest: Seconds.
    """

    def __init__(self, first: float, longest: float) -> None:
        self._first = first
        self._longest = longest
        self._current = first

    def next(self) -> float:
        """Give the next pause in seconds, and grow."""
        drawn = self._current * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        self._current = min(self._current * _GROWTH, self._longest)
        return drawn

    def reset(self) -> None:
        """Begin with the first pause again."""
        self._current = self._first
