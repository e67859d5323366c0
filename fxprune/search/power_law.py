"""What a network of other depth, width and resolution costs: a power of each, fitted to what others cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fxprune.errors import InputError
from fxprune.search.predictor import DIMENSIONS, Floats


@dataclass(frozen=True)
class Sample:
    """What a network costs, as shares of the whole one."""

    depth: float
    width: float
    resolution: float
    cost: float


@dataclass(frozen=True)
class PowerLaw:
    """``cost = depth^a width^b resolution^c``.

    Attributes:
        exponents: Of depth, width and resolution; all above 0.
        error: The largest relative deviation of a sample.
    """

    exponents: tuple[float, float, float] = (1.0, 2.0, 2.0)
    error: float = 0.0

    def at(self, shares: Floats) -> Floats:
        """Return shares of the cost, shape (n,), for shares of the dimensions, shape (n, 3)."""
        return np.asarray((shares ** np.array(self.exponents)).prod(axis=1))

    def __call__(self, depth: float, width: float, resolution: float) -> float:
        """Return the share of the cost of one network."""
        return float(self.at(np.array([[depth, width, resolution]], np.float64))[0])

    def solve(self, dimension: int, budget: float, others: Sequence[float]) -> float:
        """Return the share of one dimension that makes the cost equal to a budget, given those of the other two."""
        powers = [e for d, e in enumerate(self.exponents) if d != dimension]
        rest = float(np.prod([share**power for share, power in zip(others, powers, strict=True)]))
        return float((budget / rest) ** (1 / self.exponents[dimension]))


def fit_power_law(samples: Iterable[Sample]) -> PowerLaw:
    """Fit exponents to costs by least squares of logarithms; a dimension that never changes keeps the theory's.

    Raises:
        InputError: A cost or share is not above 0, or costs do not fall with a dimension.
    """
    rows = [s for s in samples if (s.depth, s.width, s.resolution) != (1.0, 1.0, 1.0)]
    if not rows:
        return PowerLaw()
    shares = np.array([(s.depth, s.width, s.resolution) for s in rows], np.float64)
    costs = np.array([s.cost for s in rows], np.float64)
    if not ((shares > 0).all() and (costs > 0).all() and np.isfinite(costs).all()):
        raise InputError("To fit costs, they and the shares of depth, width and resolution must be above 0.")
    logs, exponents = np.log(shares), np.array(PowerLaw().exponents)
    varies = (np.abs(logs) > 1e-12).any(axis=0)
    if varies.any():
        known = logs[:, ~varies] @ exponents[~varies]
        exponents[varies] = np.linalg.lstsq(logs[:, varies], np.log(costs) - known, rcond=None)[0]
    flat = [name for name, exponent in zip(DIMENSIONS, exponents, strict=True) if not exponent > 0]
    if flat:
        raise InputError(
            f"The cost does not fall with the {' and the '.join(flat)}: the networks that were built along it are not "
            "cheaper than the whole one. Leave that dimension out, or measure with more repetitions."
        )
    law = PowerLaw((float(exponents[0]), float(exponents[1]), float(exponents[2])))
    return replace(law, error=float(np.abs(law.at(shares) / costs - 1).max()))
