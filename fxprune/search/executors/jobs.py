"""What executors with workers share: trials on their way, and refusals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fxprune.errors import InputError
from fxprune.search.executors import Event
from fxprune.search.trials import Trial, TrialResult, Work, read_result
from fxprune.search.work import attempts_of


@dataclass
class Job:
    """A trial on its way.

    Attributes:
        trial: What to run.
        folder: The trial's own.
        tries: How often it was lost.
    """

    trial: Trial
    folder: Path
    tries: int = 0

    def lost(self, reason: str, kind: Literal["lost", "timed out"], retries: int) -> Event:
        """Return what is to be said of an attempt that ended from outside; a result where it was the last one.

        It may have ended its trial all the same, between the last step and being heard of.
        """
        if (known := read_result(self.folder, self.trial.key)) is not None:
            return Event(self.trial.key, "finished", known.worker, result=known)
        self.tries += 1
        begun = attempts_of(self.folder)
        worker = begun[-1]["worker"] if begun else ""
        result = None
        if self.tries > retries:
            error = f"{reason}; begun {self.tries} time{'s' if self.tries > 1 else ''}"
            result = TrialResult(self.trial.key, "failed", worker=worker, attempts=len(begun), error=error)
        return Event(self.trial.key, kind, worker, reason, result)


def check_limits(workers: int, threads: int, timeout: float | None, retries: int) -> None:
    """Refuse options that make no sense.

    Raises:
        InputError: One does not.
    """
    for name, value, least in (("workers", workers, 1), ("threads", threads, 1), ("retries", retries, 0)):
        if value < least:
            raise InputError(f"{name} is {value}; give {least} or more")
    if timeout is not None and not timeout > 0:
        raise InputError(f"timeout is {timeout}; give seconds above 0, or None for no limit")


def unpicklable(work: Work, error: Exception) -> InputError:
    """Return the refusal of work that cannot be sent to another process."""
    return InputError(
        f"{work!r} cannot be sent to another process ({type(error).__name__}: {error}); give a function at the top of "
        "a module, its name (package.module:function), or an object of a class at the top of a module that holds only "
        "what can be pickled"
    )
