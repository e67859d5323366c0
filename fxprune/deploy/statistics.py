"""An interval for how much slower one thing is than another, from pairs measured side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000

PERCENTILES = {"p50": (0.5, 2), "p90": (0.9, 64), "p99": (0.99, 662)}
"""Quantiles of single times, and how many there must be for one to mean anything: MLPerf's bounds, by which p90 from 64
runs and p99 from 662 are known with 99 % confidence."""


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

    def widened(self, factor: float) -> Estimate:
        """Return the estimate with each end moved outwards by a factor, whichever side of one the factor is on."""
        away = max(factor, 1 / factor)
        return Estimate(self.ratio, self.low / away, self.high * away)


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
    medians = _bootstrap_medians(np.sort(logs), np.random.default_rng(seed))
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(*(float(np.exp(value)) for value in (np.median(logs), low, high)))


def _bootstrap_medians(ordered: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw medians of resamples without drawing the resamples, which would cost more than what is measured.

    A resample picks n positions of the sorted values evenly, and its k-th smallest value lies at its k-th smallest
    position; the k-th smallest of n even draws from [0, 1) is Beta(k, n + 1 - k).
    """
    n = ordered.size
    middle = (n + 1) // 2
    draws = generator.beta(middle, n + 1 - middle, RESAMPLES)
    lower = ordered[np.minimum((draws * n).astype(np.int64), n - 1)]
    if n % 2:
        return lower
    draws += (1 - draws) * generator.beta(1, n - middle, RESAMPLES)  # the next smallest, given that one
    upper: NDArray[np.float64] = ordered[np.minimum((draws * n).astype(np.int64), n - 1)]
    return (lower + upper) / 2


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """Return the quantiles of :data:`PERCENTILES` for which there are enough times, in their unit."""
    return {
        name: float(np.quantile(times, share)) for name, (share, least) in PERCENTILES.items() if len(times) >= least
    }


def drift(times: Sequence[float]) -> float:
    """Return by what factor the last third of the times is longer than the first, by their medians."""
    third = max(len(times) // 3, 1)
    values: Any = np.asarray(times, dtype=np.float64)
    found = float(np.median(values[-third:]) / np.median(values[:third]))
    return found if math.isfinite(found) else 1.0
