"""An interval for how much slower one thing is than another, from pairs measured side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A ratio of times with its confidence interval."""

    ratio: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the interval's width, as a factor around one: 0.01 is give or take one per cent."""
        return float(np.sqrt(self.high / self.low) - 1)


def paired_ratio(
    numerator: Sequence[float], denominator: Sequence[float], *, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Estimate the ratio of two times from pairs measured side by side.

    The estimate is the exponential of the median log ratio, which neither a burst of other work on the machine nor its
    slow drift moves; the interval is the percentile bootstrap over pairs.

    Args:
        numerator: Times of one, in any unit.
        denominator: Times of the other, in the same unit and order.
        level: Confidence of the interval.
        seed: Seed of the resampling.
    """
    logs = np.log(np.asarray(numerator, dtype=np.float64) / np.asarray(denominator, dtype=np.float64))
    picks = np.random.default_rng(seed).integers(0, logs.size, (RESAMPLES, logs.size))
    low, high = np.quantile(np.median(logs[picks], axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(*(float(np.exp(value)) for value in (np.median(logs), low, high)))
