"""The application under fire: what a job does leaves a line outside of the database, as `history` reads it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections import deque
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from durably import AsyncStep, Durably, StepContext
from durably.worker.context import current_execution

if TYPE_CHECKING:
    from collections.abc import Callable

durably = Durably()
_witness = os.open(os.environ.get("JOURNAL", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
DIED = 9
MEBIBYTE = 1 << 20
LONG = 600


def leave(what: str, run_id: str, generation: int, step: str = "-", nonce: str = "-") -> None:
    """Write a line by one call: O_APPEND keeps those of several processes whole; a kill comes before or after."""
    line = f"{what} {run_id} {generation} {step} {nonce} {os.getpid()} {time.monotonic()}\n"
    os.write(_witness, line.encode())


def called(run_id: str) -> int:
    """Witness that the job's function was called; give the generation of this execution."""
    execution = current_execution.get()
    assert execution is not None
    leave("called", run_id, execution.run.generation)
    return execution.run.generation


def die(run_id: str, generation: int) -> None:
    leave("dying", run_id, generation)
    os._exit(DIED)


def compute(seconds: float) -> None:
    """Compute in Python, which lets other threads have its lock now and then."""
    until, total = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        for n in range(100_000):
            total ^= n


def keep_lock(seconds: float) -> None:
    """Compute in C, in calls that keep Python's lock for a second or two each."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        deque(repeat(0, _TURNS_OF_A_CALL), maxlen=0)


def share_threads(seconds: float) -> None:
    """Compute a little in each of some threads, without Python's lock."""
    until = time.monotonic() + seconds

    def hash_now_and_then() -> None:
        while time.monotonic() < until:
            hashlib.sha256(bytes(MEBIBYTE)).hexdigest()
            time.sleep(1)

    threads = [threading.Thread(target=hash_now_and_then) for _ in range(_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


_TURNS_OF_A_CALL: Final = 200_000_000
_THREADS: Final = 8
WAYS: Final[dict[str, Callable[[float], None]]] = {
    "sleep": time.sleep,
    "compute": compute,
    "keep-lock": keep_lock,
    "threads": share_threads,
}


class Act:
    """
    A step's function: takes its time, and gives a value that no other execution gives.

    Args:
        plan: The run's input: `acts`, what each step does and for how many seconds; `deaths`, how many generations die
            in the step `at`, `after` so many seconds behind its last line, or in the middle if that is None.
    """

    def __init__(self, run_id: str, generation: int, plan: dict[str, Any], n: int) -> None:
        self.name = f"{n}"
        self._run_id, self._generation = run_id, generation
        self._how, self._seconds = plan["acts"][n]
        self._dies = generation <= plan.get("deaths", 0) and n == plan["at"]
        self._after: Any = plan.get("after")

    def __call__(self) -> dict[str, Any]:
        nonce = self._begin()
        WAYS[self._how](self._seconds)
        return self._end(nonce)

    async def on_loop(self) -> dict[str, Any]:
        """Do the same on the event loop, and keep that if need be."""
        nonce = self._begin()
        if self._how == "await":
            await asyncio.sleep(self._seconds)
        else:
            WAYS[self._how](self._seconds)
        return self._end(nonce)

    def returned(self, value: dict[str, Any]) -> str:
        """Witness that the checkpoint is committed, whoever made it: step.run has returned."""
        leave("returned", self._run_id, self._generation, self.name, value["nonce"])
        return str(value["nonce"])

    def _begin(self) -> str:
        nonce = uuid4().hex[:16]
        leave("began", self._run_id, self._generation, self.name, nonce)
        return nonce

    def _end(self, nonce: str) -> dict[str, Any]:
        if self._dies and self._after is None:
            die(self._run_id, self._generation)
        leave("ended", self._run_id, self._generation, self.name, nonce)
        if self._dies:  # somewhere in the commit, which comes now
            threading.Timer(self._after, die, (self._run_id, self._generation)).start()
        return {"generation": self._generation, "nonce": nonce}


def acts_of(run_id: str, generation: int, plan: dict[str, Any]) -> list[Act]:
    return [Act(run_id, generation, plan, n) for n in range(len(plan["acts"]))]


@durably.job("work")
def work(step: StepContext, plan: dict[str, Any]) -> dict[str, Any]:
    """Run step after step, and die where the plan says so."""
    generation = called(step.run_id)
    acts = acts_of(step.run_id, generation, plan)
    return {"generation": generation, "nonces": [act.returned(step.run(act.name, act)) for act in acts]}


@durably.job("work-async")
async def work_async(step: AsyncStep, plan: dict[str, Any]) -> dict[str, Any]:
    """Do the same in an async job."""
    generation = called(step.run_id)
    acts = acts_of(step.run_id, generation, plan)
    return {"generation": generation, "nonces": [act.returned(await step.run(act.name, act)) for act in acts]}


@durably.job("work-on-loop")
async def work_on_loop(step: AsyncStep, plan: dict[str, Any]) -> dict[str, Any]:
    """Do the same, with the steps too on the event loop."""
    generation = called(step.run_id)
    acts = acts_of(step.run_id, generation, plan)
    return {"generation": generation, "nonces": [act.returned(await step.run(act.name, act.on_loop)) for act in acts]}


@durably.job("hang")
async def hang(step: AsyncStep, plan: dict[str, Any]) -> dict[str, Any]:
    """Keep the event loop, or Python's lock too, but only in the first generation."""
    generation = called(step.run_id)
    act = Act(step.run_id, generation, plan, 0)
    if generation == 1:
        leave("hanging", step.run_id, generation)
        if plan["keeps_gil"]:
            deque(repeat(0), maxlen=0)  # a loop in C
        while True:
            pass
    return {"generation": generation, "nonces": [act.returned(await step.run(act.name, act))]}


@durably.job("overrun")
def overrun(step: StepContext, plan: dict[str, Any]) -> None:
    """Hang in a step with a timeout, always."""
    generation = called(step.run_id)
    leave("hanging", step.run_id, generation)
    step.run("0", time.sleep, LONG, timeout=plan["timeout"])


@durably.job("devour")
def devour(step: StepContext, plan: dict[str, Any]) -> dict[str, Any]:
    """Take more memory than a small control group has, but only in the first generation."""
    generation = called(step.run_id)
    act = Act(step.run_id, generation, plan, 0)
    if generation == 1:
        leave("devouring", step.run_id, generation)
        hoard = [bytearray(os.urandom(MEBIBYTE)) for _ in range(plan["mebibytes"])]
        hoard.clear()
    return {"generation": generation, "nonces": [act.returned(step.run(act.name, act))]}
