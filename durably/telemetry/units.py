"""Numbers and texts as a person reads them, and texts cut to what a channel carries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_TEXT_BYTES: Final = 16 * 1_024

_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR
_LONG: Final = ((_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "min"), (_MINUTE, "min", 1, "s"))
_KIB: Final = 1_024
# Room for the note that cut_text appends.
_MARK_BYTES: Final = 32


def human_duration(seconds: float) -> str:
    """
    Spell a duration in the unit that suits it.

    Args:
        seconds: From 0.
    """
    for unit, name, smaller_unit, smaller_name in _LONG:
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name} {seconds % unit // smaller_unit:.0f} {smaller_name}"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1_000:.1f} ms"


def human_size(size_bytes: int) -> str:
    """Spell a size in bytes, KiB or MiB."""
    if size_bytes < _KIB:
        return f"{size_bytes} B"
    if size_bytes < _KIB * _KIB:
        return f"{size_bytes / _KIB:.0f} KiB"
    return f"{size_bytes / _KIB / _KIB:.1f} MiB"


def shorten(text: str, limit: int) -> str:
    """Cut a text to *limit* characters, the last of them an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def split_text(text: str, limit: int = MAX_TEXT_BYTES) -> Iterator[str]:
    """
    Split a text into pieces that a channel carries whole.

    Args:
        text: Half a character in it (a lone surrogate) is escaped, because UTF-8 has no form for it.
        limit: The most bytes of a piece in UTF-8, from 4.
    """
    rest = text.encode(errors="backslashreplace")
    while rest:
        piece = rest[:limit].decode(errors="ignore")
        yield piece
        rest = rest[len(piece.encode()) :]


def cut_text(text: str, limit: int = MAX_TEXT_BYTES) -> str:
    """
    Cut a text to what a channel carries, and say so where it was cut.

    Args:
        text: Half a character in it is escaped.
        limit: The most bytes of the result in UTF-8, from 64.
    """
    encoded = text.encode(errors="backslashreplace")
    if len(encoded) <= limit:
        return encoded.decode()
    kept = encoded[: limit - _MARK_BYTES].decode(errors="ignore")
    return f"{kept}… ({human_size(len(encoded))} in all)"
