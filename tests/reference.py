"""
The API reference, from the docstrings; `python -m tests.reference` writes docs/api.

Objects are inspected rather than read as source, because the awaitable twins are made when their class is.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import griffe

import durably
from durably import errors, events, findings, model, settings, status
from durably.client import Options
from durably.store import dialects
from durably.worker.step import StepLog
from durably.worker.token import Token

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

FOLDER: Final = Path(__file__).parents[1] / "docs" / "api"
_TWIN: Final = "Await `"
_SECTIONS: Final = {"parameters": "Args", "returns": "Returns", "raises": "Raises", "attributes": "Attributes"}


class Page(NamedTuple):
    """One file: its name, its heading, a sentence, and what it describes."""

    file: str
    title: str
    about: str
    objects: Sequence[Any]


PAGES: Final = (
    Page(
        "application.md",
        "The application",
        "What an application holds: it defines jobs, triggers and finds runs, and may execute them itself.",
        (durably.Durably, durably.define_job, durably.Job, durably.JobHandle, durably.BatchItem),
    ),
    Page(
        "steps.md",
        "Inside a job",
        "What a job's function is given. A synchronous job gets a StepContext, an asynchronous one an AsyncStep.",
        (durably.StepContext, durably.AsyncStep, StepLog, Token),
    ),
    Page(
        "records.md",
        "Records",
        "Frozen copies of what is stored; changing one changes nothing.",
        (
            model.Run,
            model.Step,
            model.LogEntry,
            model.Progress,
            model.Worker,
            status.SystemStatus,
            status.Queue,
            status.HeldKey,
            status.Failure,
        ),
    ),
    Page(
        "errors.md",
        "Errors",
        "Everything that durably raises. [The contract](../contract.md) has a table of when, under U.",
        tuple(
            value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__
        ),
    ),
    Page(
        "settings.md",
        "Settings",
        "A keyword of `Durably` and `Supervisor`, else `DURABLY_<NAME>`, else `[tool.durably]` of pyproject.toml.",
        (settings.Settings, Options),
    ),
    Page(
        "supervisor.md",
        "The supervisor",
        "Worker processes: migrated, recovered, forked, watched, logged.",
        (durably.Supervisor,),
    ),
    Page(
        "events.md",
        "Events",
        "The records that handlers are called with; [docs/events.md](../events.md) says who tells each, and when.",
        (durably.is_domain_event, events.Event, events.Process, *events.CATALOGUE.values()),
    ),
    Page(
        "dialects.md",
        "Dialects",
        "What a database's dialect gives, for those who write one.",
        (dialects.Dialect, dialects.Capabilities, dialects.Watch, findings.Finding),
    ),
)


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """List what is public of a class and documented by us: methods and properties, also inherited from our classes."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("durably")]
    for name, value in {name: value for base in reversed(ours) for name, value in vars(base).items()}.items():
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            yield name, value


def render(page: Page) -> str:
    """Write a page."""
    parts = [f"# {page.title}", page.about]
    for thing in page.objects:
        parts += _describe_class(thing) if isinstance(thing, type) else _describe_plain_function(thing)
    parts.append("*Generated from the docstrings by `python -m tests.reference`.*")
    return "\n\n".join(parts) + "\n"


def render_index() -> str:
    """Write the page that lists the others."""
    lines = [
        f"- [{page.title}]({page.file}): {', '.join(f'`{thing.__name__}`' for thing in page.objects)}" for page in PAGES
    ]
    return "\n".join(
        [
            "# API reference",
            "",
            *lines,
            "",
            "*Generated from the docstrings by `python -m tests.reference`.*",
            "",
        ]
    )


def pages() -> dict[str, str]:
    """Give the text of every file, by name."""
    return {"README.md": render_index()} | {page.file: render(page) for page in PAGES}


def _describe_class(cls: type) -> Iterator[str]:
    yield f"## {cls.__name__}"
    yield _origin(cls)
    bases = [base.__name__ for base in cls.__bases__ if base is not object and not base.__name__.startswith("_")]
    if bases:
        yield f"*{', '.join(bases)}*"
    if dataclasses.is_dataclass(cls):
        yield _code(f"{cls.__name__}({_fields(cls)})")
    elif "__init__" in vars(cls) and not getattr(cls, "_is_protocol", False):
        yield _code(f"{cls.__name__}{_signature(cls.__init__)}")  # type: ignore[misc] # of this very class
    yield from _sections(cls)
    twins: list[str] = []
    for name, value in members(cls):
        if (inspect.getdoc(value) or "").startswith(_TWIN):
            twins.append(name)
        elif isinstance(value, property):
            yield f"### {cls.__name__}.{name}"
            yield from _sections(value)
        else:
            yield from _describe_function(value, "###", f"{cls.__name__}.{name}")
    if twins:
        yield "### Awaitable twins"
        yield "The same arguments, results and errors, in a thread: " + ", ".join(f"`{name}`" for name in twins) + "."


def _describe_plain_function(function: Any) -> Iterator[str]:
    heading, *rest = _describe_function(function, "##", function.__name__)
    yield from (heading, _origin(function), *rest)


def _origin(thing: Any) -> str:
    """Say where a name is imported from."""
    public = [name for name in durably.__all__ if getattr(durably, name) is thing]
    return f"`from durably import {public[0]}`" if public else f"`from {thing.__module__} import {thing.__name__}`"


def _describe_function(function: Any, level: str, name: str) -> Iterator[str]:
    yield f"{level} {name}"
    kind = "async " if inspect.iscoroutinefunction(function) else ""
    yield _code(f"{kind}{name.rpartition('.')[2]}{_signature(function)}")
    yield from _sections(function)


def _fields(cls: Any) -> str:
    return ", ".join(
        f"{field.name}: {field.type}" + ("" if field.default is dataclasses.MISSING else f" = {field.default!r}")
        for field in dataclasses.fields(cls)
    )


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    shown = [p for name, p in signature.parameters.items() if name != "self"]
    return str(signature.replace(parameters=shown)).replace("'", "")


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _sections(thing: Any) -> Iterator[str]:
    for section in parse(thing):
        kind = section.kind.value
        if kind == "text":
            yield section.value
        elif kind in _SECTIONS:
            yield f"**{_SECTIONS[kind]}**"
            yield "\n".join(_item(kind, item) for item in section.value)


def _item(kind: str, item: Any) -> str:
    description = " ".join(item.description.split())
    if kind in ("parameters", "attributes"):
        return f"- `{item.name}`: {description}"
    return f"- `{item.annotation}`: {description}" if kind == "raises" else f"- {description}"


def parse(thing: Any) -> list[Any]:
    """Take a docstring apart."""
    logging.getLogger("griffe").setLevel(logging.ERROR)  # types stand in the signature, not in the docstring
    docstring = griffe.Docstring(inspect.getdoc(thing) or "")
    return docstring.parse("google", returns_named_value=False, warnings=False)


def main() -> int:
    """Write the reference; give the exit code."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"{len(pages())} files in docs/api")
    return 0


if __name__ == "__main__":
    sys.exit(main())
