"""Trials one after the other in this process: the default, and the easiest to debug."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

from fxprune.search.executors import Event, Workers
from fxprune.search.trials import Trial, Work
from fxprune.search.work import carry_out, load_work, worker_name


@dataclass(frozen=True)
class InProcess:
    """One trial after the other in this process.

    A trial that hangs cannot be ended here, so there is no time-out; ``Processes(1, timeout=...)`` has one.
    """

    @property
    def label(self) -> str:
        """What it is, in words."""
        return "this process"

    def start(self, work: Work) -> Workers:
        """Return the only worker."""
        load_work(work)  # what cannot be found is refused before anything begins
        return _Here(work)


class _Here:
    def __init__(self, work: Work) -> None:
        self._work, self._queue, self._begun = work, deque[tuple[Trial, Path]](), False

    def submit(self, trial: Trial, folder: Path) -> None:
        self._queue.append((trial, folder))

    def wait(self) -> list[Event]:
        """Say that the first one is begun, and when called again, run it."""
        trial, folder = self._queue[0]
        if not self._begun:
            self._begun = True
            return [Event(trial.key, "started", worker_name())]
        self._begun = False
        self._queue.popleft()
        return [Event(trial.key, "finished", worker_name(), result=carry_out(trial, self._work, folder))]

    def close(self, kill: bool = False) -> None:
        """Nothing is left running."""
