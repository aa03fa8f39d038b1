"""Statements, values and errors as Hrana writes them in JSON."""

from __future__ import annotations

import base64
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from durably.store.dialects.libsql.pep249 import OperationalError, checked

if TYPE_CHECKING:
    from collections.abc import Sequence

LOST: Final = "CONNECTION_LOST"
"""The code of what the network did, not the server."""
NOT_FORESEEN: Final = "NOT_FORESEEN"
"""The code of a statement that has changed another number of rows than was foreseen."""

_SERVER_AT_FAULT: Final = 500
# Of a message; a proxy sends whole pages.
_LONGEST_TEXT: Final = 500


def statement(sql: str, parameters: Sequence[Any], *, wants_rows: bool) -> dict[str, Any]:
    """
    Write a statement.

    Raises:
        DataError, ProgrammingError: As of `checked`.
    """
    return {"sql": sql, "args": [_argument(one) for one in parameters], "want_rows": wants_rows}


def _argument(given: Any) -> dict[str, Any]:
    plain = checked(given)
    match plain:
        case None:
            return {"type": "null"}
        case int():
            return {"type": "integer", "value": str(plain)}
        case float():
            return {"type": "float", "value": plain}
        case str():
            return {"type": "text", "value": plain}
    return {"type": "blob", "base64": base64.b64encode(plain).decode()}


def value(argument: dict[str, Any]) -> Any:
    """Read a value; integers come as text, so that none loses a digit."""
    match argument["type"]:
        case "null":
            return None
        case "integer":
            return int(argument["value"])
        case "float":
            return float(argument["value"])
        case "text":
            return argument["value"]
    encoded = argument["base64"]
    return base64.b64decode(encoded + "=" * (-len(encoded) % 4))


def http_error(status: int, content: bytes) -> OperationalError:
    """Put into words what the server says to a request as a whole: an unknown stream, a wrong token, its end."""
    text = content.decode(errors="replace")
    code = None
    try:
        said = json.loads(text)
        text, code = said.get("message") or said.get("error") or text, said.get("code")
    except (ValueError, AttributeError):
        pass
    if status >= _SERVER_AT_FAULT:
        code = LOST  # what was asked for may have been done, and a proxy not have learned it
    elif status == HTTPStatus.NOT_FOUND and text.startswith("Namespace "):
        code = LOST  # a server that shuts down has closed its only one, and still listens
    elif "baton" in text:
        code = "STREAM_EXPIRED"  # the server was restarted
    return OperationalError(f"{text[:_LONGEST_TEXT]} (HTTP {status})", code or f"HTTP_{status}", is_disconnect=True)
