"""What somebody is told who reaches for what is not there: what to write in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from durably.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")


def hints(instead: Mapping[str, str], *, called: str | None = None) -> Callable[[type[T]], type[T]]:
    """
    Have a class answer likely mistakes with the remedy.

    At run time only, and only for who would get an AttributeError or TypeError anyway: type checkers, which know the
    class as it is written, still find the mistake first.

    Args:
        instead: What to write in the place of an attribute that people expect, by its name; several names of one
            remedy are separated by blanks.
        called: What to write in the place of a call of the object; None leaves that to Python.
    """
    remedies = {name: remedy for names, remedy in instead.items() for name in names.split()}

    def give_hints(cls: type[T]) -> type[T]:
        def missing(self: object, name: str) -> NoReturn:
            text = f"{type(self).__name__!r} object has no attribute {name!r}"
            remedy = f"; {remedies[name]}" if name in remedies else ""
            raise AttributeError(text + remedy, name=name, obj=self)

        def refuse(_self: object, *_args: Any, **_kwargs: Any) -> NoReturn:
            raise UsageError(str(called))

        cls.__getattr__ = missing  # type: ignore[attr-defined] # for the interpreter, not for type checkers
        if called is not None:
            cls.__call__ = refuse  # type: ignore[method-assign] # the same
            _NOT_CALLED.add(cls)
        return cls

    return give_hints


def is_function(thing: object) -> bool:
    """Tell whether a call of *thing* is meant to work, and not only answered with a remedy."""
    return callable(thing) and type(thing) not in _NOT_CALLED


_NOT_CALLED: Final[set[type]] = set()
