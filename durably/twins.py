"""The asynchronous twin of a call that waits for the database: the same call, in a thread."""

from __future__ import annotations

import asyncio
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


def twin(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """
    Make the awaitable form of *method*, with its arguments, result and errors.

    Args:
        method: Blocks its thread for the database's sake, bounded by database_timeout.
    """

    @wraps(method)
    async def call(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(method, self, *args, **kwargs)

    call.__name__ = f"a{method.__name__}"
    call.__qualname__ = method.__qualname__.removesuffix(method.__name__) + call.__name__
    call.__doc__ = f"Await `{method.__name__}`, which runs in a thread."
    return cast("Callable[Concatenate[S, P], Coroutine[Any, Any, T]]", call)
