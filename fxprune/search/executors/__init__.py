"""How trials are run: in this process, on processes of this machine, or on a Ray cluster.

An executor is a description; :meth:`Executor.start` makes workers for one work. All of them do the same with a trial
(:func:`fxprune.search.work.carry_out`), and none knows what the work is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from fxprune.search.trials import Trial, TrialResult, Work


@dataclass(frozen=True)
class Event:
    """News of one trial.

    Attributes:
        key: Of the trial.
        kind: ``started`` an attempt; ``lost`` or ``timed out``: the attempt ended without a result, and another one may
            follow; ``finished``, with a result.
        worker: Where.
        reason: Why it was lost.
        result: Of a trial that is finished.
    """

    key: str
    kind: Literal["started", "lost", "timed out", "finished"]
    worker: str = ""
    reason: str = ""
    result: TrialResult | None = None


class Workers(Protocol):
    """Workers that run, for one work."""

    def submit(self, trial: Trial, folder: Path) -> None:
        """Queue a trial.

        Args:
            trial: What to run.
            folder: The trial's own; it exists.
        """

    def wait(self) -> list[Event]:
        """Return the next news in the order of their happening; waits until there are some.

        Raises:
            InputError: No trial can be run, for a reason that concerns all: a full disk, work that workers cannot load.
        """

    def close(self, kill: bool = False) -> None:
        """End the workers.

        Args:
            kill: At once, in the middle of what they do.
        """


class Executor(Protocol):
    """A way to run trials."""

    @property
    def label(self) -> str:
        """What it is, in words."""

    def start(self, work: Work) -> Workers:
        """Start workers.

        Raises:
            InputError: The work cannot be sent to them, or they cannot be reached.
            EnvironmentProblem: A package is missing.
        """
