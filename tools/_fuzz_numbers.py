"""Decisions of a random case as numbers: kept, made again, left out to find a smaller case, and bounded in time."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from tools._fuzz_program import Seeded


class Replayed:
    """The decisions of a list; behind its end, the simplest."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = iter(numbers)

    def integer(self, low: int, high: int) -> int:
        """Return a number from low to high."""
        return low + next(self.numbers, 0) % (high - low + 1)


class Recorded:
    """Decisions by a seed, kept."""

    def __init__(self, seed: int) -> None:
        self.source, self.numbers = Seeded(seed), list[int]()

    def integer(self, low: int, high: int) -> int:
        """Return a number from low to high."""
        number = self.source.integer(low, high)
        self.numbers.append(number - low)
        return number


def variants(numbers: list[int], at: int, width: int) -> Iterator[list[int]]:
    """Yield decisions without a run of them, and with the run lowered to the simplest."""
    yield numbers[:at] + numbers[at + width :]
    if any(numbers[at : at + width]):
        yield numbers[:at] + [0] * len(numbers[at : at + width]) + numbers[at + width :]


class TooLong(BaseException):
    """A case that took longer than it may.

    It is raised in the middle of the library, or of torch, which take any Exception for a failure of what they try.
    """


@contextlib.contextmanager
def bounded(seconds: int) -> Iterator[None]:
    """Raise TooLong in what takes longer."""

    def stop(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
