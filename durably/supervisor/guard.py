"""Looks at each child: keeps the deadlines of its drain, and ends one that is silent, hangs or overruns a timeout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from durably import events
from durably.supervisor.suspicion import Evidence, Patience, Suspicion, suspect

if TYPE_CHECKING:
    from collections.abc import Callable

    from durably.settings import Settings
    from durably.supervisor.children import Child
    from durably.supervisor.voice import Voice
    from durably.worker.timeouts import Timed

_FEWEST_BOOT_SECONDS: Final = 60.0
_SECONDS_BETWEEN_BOARDS: Final = 0.1
_MOST_STACKS: Final = 64 * 1024
_WORDS: Final = {
    "silent": "was silent for {:.1f} s",
    "hung": "had an event loop that stood still for {:.1f} s",
    "timeout": "was {:.1f} s past a timeout",
}


class Guard:
    """
    Judges children by the evidence, and does what follows.

    A suspect writes its stacks to the log. One that hangs or overruns a timeout is told to hand back what it can, and
    killed kill_timeout later; one that is silent could not heed that, and is killed at once.

    Args:
        voice: Tells.
        settings: Gives the settings of now: the application's are known only after the start.
        had_to_kill: Called when a child did not end in time in a drain.
    """

    def __init__(self, voice: Voice, settings: Callable[[], Settings], had_to_kill: Callable[[], None]) -> None:
        self._voice = voice
        self._settings = settings
        self._had_to_kill = had_to_kill

    def look_at(self, child: Child, now: float) -> None:
        """
        Do what has become due with a child.

        Args:
            now: Monotonic seconds.
        """
        if child.keep_deadlines(now):
            self.tell_killed(child)
        overdue = self._overdue(child, now)
        evidence = Evidence(now - child.heard_at, child.stuck_for, overdue[0][0] if overdue else 0.0)
        found = suspect(evidence, Patience(self._patience_with(child), self._settings().hang_threshold))
        suspicion = child.suspicion
        if found is None:
            if suspicion is not None and not suspicion.is_told:
                child.suspicion = None
        elif suspicion is None:
            child.suspicion = Suspicion(found[0], now)
            child.ask_for_stacks()
        elif suspicion.is_ripe(now):
            suspicion.reason, suspicion.is_told = found[0], True
            self._end(child, found[1], overdue[0][1] if overdue and found[0] == "timeout" else None, now)

    def _overdue(self, child: Child, now: float) -> list[tuple[float, Timed]]:
        """Look at a worker's board, but no more often than is of use; give what is overdue by its own doing."""
        if child.board is None:
            return []
        if now >= child.board_read_at + _SECONDS_BETWEEN_BOARDS:
            child.look_at_board(now)
        return child.blamed

    def _end(self, child: Child, seconds: float, work: Timed | None, now: float) -> None:
        """Tell what a child is suspected of, and begin its end."""
        assert child.suspicion is not None
        reason = child.suspicion.reason
        stacks = child.stacks.read()[-_MOST_STACKS:] or "(none: it could not even write them)"
        who = "the keeper" if child.is_keeper else f"worker {child.id}"
        what = f"{who} (pid {child.pid}) " + _WORDS[reason].format(seconds)
        if child.is_keeper:
            self._voice.report("silent", "error", f"{what} and is killed; its stacks:\n{stacks}")
            child.kill("silent", now)
            return
        about: dict[str, Any] = {"run_id": child.stuck_in if reason == "hung" else None, "step_name": None}
        if work is not None:
            about = {"run_id": work.run_id, "step_name": work.step_name}
        self._voice.emit(
            events.WorkerSuspect(
                worker=child.id, worker_pid=child.pid, reason=reason, seconds=seconds, stacks=stacks, **about
            )
        )
        if reason == "silent":
            self._voice.report("silent", "error", f"{what} and is killed")
            child.kill("silent", now)
        else:
            child.ending_if_killed = reason
            child.release(now, self._settings().kill_timeout)

    def _patience_with(self, child: Child) -> float:
        """Give the seconds that a child may be silent."""
        settings = self._settings()
        patience = settings.stale_threshold
        if child.is_booting:
            patience = max(patience, _FEWEST_BOOT_SECONDS)
        if child.is_keeper or child.is_booting:
            # Between its beats it asks the database, and that may take its time, and the last try as long again.
            patience += 2 * settings.database_timeout
        return patience

    def tell_killed(self, child: Child) -> None:
        """Tell that a child had to be killed because it did not end in time."""
        if child.ending == "drain":
            self._had_to_kill()
            self._voice.report(
                "drain", "warning", f"child {child.id} (pid {child.pid}) did not end in time and is killed"
            )
        else:
            suspected = "hung" if child.ending == "hung" else "past a timeout"
            self._voice.report(
                child.ending, "error", f"child {child.id} (pid {child.pid}), which is {suspected}, is killed"
            )
