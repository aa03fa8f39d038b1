"""One write, attempted again until it is committed, and never after that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from durably.store.dialects import InDoubtError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sqlalchemy import Connection

T = TypeVar("T")


class Attempts(Generic[T]):
    """The attempts at one write. A commit whose answer was lost is asked after before the next."""

    def __init__(self) -> None:
        self._doubt: InDoubtError | None = None
        self._answer: T

    @property
    def is_in_doubt(self) -> bool:
        """Whether the last attempt may have been committed."""
        return self._doubt is not None

    def write(
        self, transaction: Callable[[], AbstractContextManager[Connection]], change: Callable[[Connection], T]
    ) -> T:
        """
        Attempt it.

        Args:
            transaction: Begins a write transaction.
            change: What to do in it.

        Returns:
            What *change* returned in the transaction that was committed.

        Raises:
            InDoubtError: It may have been committed: attempt it again to find out.
        """
        if self._doubt is not None:
            if self._doubt.was_committed():
                return self._answer
            self._doubt = None
        try:
            with transaction() as connection:
                self._answer = change(connection)
        except InDoubtError as doubt:
            self._doubt = doubt
            raise
        return self._answer
