"""The runs that a campaign asks for, drawn by chance: the same for the same seed, but for their ids."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from durably.ids import new_id
from durably.store.triggers import NewRun
from tests.chaos.disk import MEMORY_MEBIBYTES
from tests.chaos.history import Asked

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

_KEYS: Final = 12
_EXIT_STEPS: Final = 4
# More generations than any run has: it kills every worker that it meets.
_ALWAYS: Final = 1_000_000
# What computes rests twice as long as it has computed; of sixteen slots this makes some half a core.
_STEADY: Final = {
    "quick": 24,
    "sleep": 12,
    "await": 12,
    "threads": 8,
    "compute": 1,
    "keep-lock": 1,
    "compute-on-loop": 1,
}


class Wanted(NamedTuple):
    """A run to be triggered, and what is to become of it."""

    asked: Asked
    new: NewRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """
    What is asked for all through a campaign.

    Args:
        draw: One run.
        backlog: Runs that are kept pending or running.
        seconds_to_end: In which all that was asked for has ended, once nothing more is.
    """

    draw: Callable[[random.Random], Wanted]
    backlog: int
    seconds_to_end: float


def draw_short(chance: random.Random) -> Wanted:
    """Draw a run of 2 to 12 short steps, half of them with a key."""
    key = f"key {chance.randrange(_KEYS)}" if chance.random() < 1 / 2 else None
    acts = [["sleep", chance.uniform(0.002, 0.03)]] * chance.randint(2, 12)
    return _run(chance.choice(("work", "work-async")), {"acts": acts}, key=key)


def draw_steady(chance: random.Random) -> Wanted:
    """Draw a run that a hasty supervisor may take for one that hangs, or one with many short steps."""
    (kind,) = chance.choices(list(_STEADY), list(_STEADY.values()))
    seconds = chance.random()
    match kind:
        case "quick":
            acts = [["sleep", chance.uniform(0.002, 0.03)]] * chance.randint(20, 80)
            return _run(chance.choice(("work", "work-async")), {"acts": acts}, key=f"key {chance.randrange(_KEYS)}")
        case "await":
            return _run("work-on-loop", {"acts": [["await", 1 + 70 * seconds]]})
        case "compute-on-loop":
            acts = _with_rest("compute", 1 + 20 * seconds, "await") * chance.randint(1, 3)
            return _run("work-on-loop", {"acts": acts})
        case "compute" | "keep-lock":
            return _run("work", {"acts": _with_rest(kind, 5 + 70 * seconds)})  # also past hang_threshold
    return _run("work", {"acts": [[kind, 1 + 70 * seconds]]})


def draw_bad(chance: random.Random, what: str) -> Wanted:
    """Draw a run that does what a fault is named for."""
    acts = [["sleep", chance.uniform(0.002, 0.03)]] * _EXIT_STEPS
    dying = {"acts": acts, "at": chance.randrange(_EXIT_STEPS), "deaths": 1}
    job = chance.choice(("work", "work-async"))
    at_once: list[list[Any]] = [["sleep", 0.0]]
    match what:
        case "exit-in-step":
            return _run(job, dying, key=f"key {chance.randrange(_KEYS)}")
        case "exit-in-commit":
            return _run(job, dying | {"after": chance.uniform(0, 0.01)})
        case "poison":
            return _run(job, dying | {"deaths": _ALWAYS}, fails_with="TooManyInterruptions")
        case "hang" | "hang-with-gil":
            return _run("hang", {"acts": at_once, "keeps_gil": what == "hang-with-gil"})
        case "overrun":
            return _run("overrun", {"acts": [], "timeout": 0.3}, fails_with="StepTimeoutError")
        case "out-of-memory":
            return _run("devour", {"acts": at_once, "mebibytes": MEMORY_MEBIBYTES})
    raise ValueError(what)


FIERCE: Final = Mix(draw=draw_short, backlog=60, seconds_to_end=180)
STEADY: Final = Mix(draw=draw_steady, backlog=20, seconds_to_end=420)


def _with_rest(how: str, seconds: float, rest: str = "sleep") -> list[list[Any]]:
    return [[how, seconds], [rest, 2 * seconds]]


def _run(job: str, plan: dict[str, Any], *, key: str | None = None, fails_with: str | None = None) -> Wanted:
    run = new_id()
    asked = Asked(run=run, job=job, steps=len(plan["acts"]), key=key, fails_with=fails_with)
    return Wanted(asked, NewRun(id=run, job_name=job, input=json.dumps(plan), concurrency_key=key))
