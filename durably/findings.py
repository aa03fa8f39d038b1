"""What a look at the set-up found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """
    One thing that was looked at.

    Args:
        check: What was looked at, in a word or two.
        level: "warning" if durably works, but not as well or not for long; "error" if it does not.
        message: What was found, in a line.
        remedy: What to do about it, in a line; None if there is nothing to do.
    """

    check: str
    level: Level
    message: str
    remedy: str | None = None
