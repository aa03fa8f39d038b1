"""How an error is put into words."""

from __future__ import annotations


def in_words(error_type: str | None, message: str | None) -> str:
    """Spell an error as its type and its message; either may say nothing."""
    return ": ".join(part for part in (error_type, (message or "").strip()) if part)
