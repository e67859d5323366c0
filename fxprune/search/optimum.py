"""The best depth, width and resolution under a budget.

The cost of a network is taken as ``d^a w^b r^c`` of the whole one's, with exponents that are fitted to networks that
were built (``1, 2, 2`` in theory; depthwise layers, the stem and the head deviate). Accuracy is maximised on a grid, of
networks on the budget and below it, and refined by sequential quadratic programming; the conditions of Karush, Kuhn and
Tucker, which the paper solves, hold at what is found. Then (:func:`buildable`) depths and resolutions are those that
exist, and the width takes what is left. The law is no more exact than its samples say, so that nothing is given up for
missing the budget by less than that: what is built is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from fxprune.errors import BudgetError
from fxprune.search.power_law import PowerLaw
from fxprune.search.predictor import DIMENSIONS, Floats, Point, Predictor

_GRID = 50  # steps of depth and width
_INSIDE = 16  # steps of the resolution, besides the largest that the budget allows
_STARTS = 5  # cells of the grid that are refined, far from each other
_APART = 0.15  # of the range of a dimension
_DRAWS = 200


@dataclass(frozen=True)
class Choice:
    """A network that may be built.

    Attributes:
        depth: Share of the depth.
        width: Share of the width.
        resolution: Share of the side of the images.
        accuracy: Predicted.
        cost: Predicted share of the whole network's.
    """

    depth: float
    width: float
    resolution: float
    accuracy: float
    cost: float

    @property
    def shares(self) -> tuple[float, float, float]:
        """Depth, width and resolution."""
        return self.depth, self.width, self.resolution


Bounds = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]


def sampled_bounds(points: Sequence[Point]) -> Bounds:
    """Return the smallest and largest share of each dimension: a polynomial says nothing beyond them."""
    columns = list(zip(*(point.shares for point in points), strict=True))
    low, high = [min(column) for column in columns], [max(column) for column in columns]
    return (low[0], high[0]), (low[1], high[1]), (low[2], high[2])


def maximise(
    predictor: Predictor, law: PowerLaw, budget: float, bounds: Bounds, *, margin: float | None = None
) -> Choice:
    """Return the best shares whose predicted cost is at most the budget, whether or not they can be built.

    Where the law puts even the smallest network above the budget, by no more than it may be wrong, that network is it.

    Args:
        predictor: Of accuracy.
        law: Of cost.
        budget: Share of the whole network's cost, in (0, 1].
        bounds: The smallest and largest share of each dimension.
        margin: By how much of itself a predicted cost may be wrong; None: the law's own largest error.

    Raises:
        BudgetError: The cheapest network within the bounds costs more; the message says how much.
    """
    check_reachable(law, budget, bounds, margin)
    budget = max(budget, law(*(low for low, _ in bounds)))
    grid = _grid(law, budget, bounds)
    value = predictor.at(grid)
    best, found = grid[np.argmax(value)], float(value.max())
    for start in _starts(grid, value, bounds):
        refined = _refined(predictor, law, budget, bounds, start)
        if refined is not None and predictor(*refined) > found:
            best, found = refined, predictor(*refined)
    shares = (float(best[0]), float(best[1]), float(best[2]))
    return Choice(*shares, found, law(*shares))


def _grid(law: PowerLaw, budget: float, bounds: Bounds) -> Floats:
    """Return shares within a budget, shape (n, 3): the largest resolution that it allows, and smaller ones.

    An accuracy that is fitted may be better below the budget than on it, and within a dimension than at its end.
    """
    (d0, d1), (w0, w1), (r0, r1) = bounds
    d, w = (axis.reshape(-1) for axis in np.meshgrid(np.linspace(d0, d1, _GRID), np.linspace(w0, w1, _GRID)))
    a, b, c = law.exponents
    limit = np.minimum((budget / (d**a * w**b)) ** (1 / c), r1)
    layers = [np.stack([d, w, limit], axis=1)[limit >= r0]]
    for resolution in np.unique(np.linspace(r0, r1, _INSIDE)):
        inside = limit >= resolution
        layers.append(np.stack([d[inside], w[inside], np.full(int(inside.sum()), resolution)], axis=1))
    corner = np.array([[d0, w0, r0]])  # it fits, even where no cell of the grid does
    return np.vstack([*layers, corner])


def _starts(grid: Floats, value: Floats, bounds: Bounds) -> list[Floats]:
    """Return the best cells, none of which is close to a better one: these climb the same hill."""
    low, high = np.array(bounds).T
    reach = _APART * np.maximum(high - low, 1e-12)
    found: list[Floats] = []
    left = value.copy()
    while len(found) < _STARTS and np.isfinite(left).any() and left.max() > -np.inf:
        start = grid[int(left.argmax())]
        found.append(start)
        left[(np.abs(grid - start) <= reach).all(axis=1)] = -np.inf
    return found


def check_reachable(law: PowerLaw, budget: float, bounds: Bounds, margin: float | None = None) -> None:
    """Raise a ``BudgetError`` where the law puts the cheapest network within the bounds above a budget for certain.

    Args:
        law: Of cost.
        budget: Share of the whole network's cost.
        bounds: The smallest and largest share of each dimension.
        margin: By how much of itself a predicted cost may be wrong; None: the law's own largest error.
    """
    least, wrong = law(*(low for low, _ in bounds)), law.error if margin is None else margin
    if least > budget * (1 + wrong) * (1 + 1e-9):
        named = ", ".join(f"{name} {low:.3g}" for name, (low, _) in zip(DIMENSIONS, bounds, strict=True))
        raise BudgetError(
            f"The budget of {budget:.3g} of the cost cannot be reached: the smallest network that was looked at "
            f"({named}) has {least:.3g} of it, as is estimated from the others (up to {wrong:.0%} wrong). Ask for at "
            f"least {rounded_up(least)}, or look at smaller networks (explore=, --explore)."
        )


def rounded_up(share: float) -> str:
    """Return a share that is no smaller, with three decimals."""
    return f"{np.ceil(share * 1000) / 1000:.3g}"


def _refined(predictor: Predictor, law: PowerLaw, budget: float, bounds: Bounds, start: Floats) -> Floats | None:
    """Return a local optimum near a start, in logarithms, where the constraint is a plane; None where there is none."""
    exponents, limits = np.array(law.exponents), np.log(np.array(bounds))
    found = minimize(
        lambda logs: -float(predictor.at(np.exp(logs)[None])[0]),
        np.clip(np.log(start), limits[:, 0], limits[:, 1]),
        method="SLSQP",
        bounds=limits,
        constraints=[{"type": "ineq", "fun": lambda logs: np.log(budget) - exponents @ logs}],
    )
    shares = np.exp(np.clip(found.x, limits[:, 0], limits[:, 1]))
    return shares if found.success and law(*shares) <= budget * (1 + 1e-9) else None


def buildable(
    predictor: Predictor,
    law: PowerLaw,
    budget: float,
    depths: Sequence[float],
    resolutions: Sequence[float],
    widths: tuple[float, float],
    *,
    margin: float | None = None,
) -> list[Choice]:
    """Return networks with depths and resolutions that exist and the width that the budget leaves, the best first.

    Where the law leaves a little less than the smallest width, by no more than it may be wrong, they get that one: only
    what is built shows whether it is within the budget.

    What is no larger in any dimension than another one of them is left out: that a network is better for being smaller
    is what noise says.

    Args:
        predictor: Of accuracy.
        law: Of cost.
        budget: Share of the whole network's cost.
        depths: Shares that can be built.
        resolutions: Shares that can be built.
        widths: The smallest and largest share; a network that fits with the largest is not made wider.
        margin: By how much of itself a predicted cost may be wrong; None: the law's own largest error.

    Raises:
        BudgetError: No combination fits.
    """
    found, wrong = [], law.error if margin is None else margin
    for depth in depths:
        for resolution in resolutions:
            width = min(law.solve(1, budget, (depth, resolution)), widths[1])
            shares = (depth, max(width, widths[0]), resolution)
            cost = law(*shares)
            if width >= widths[0] or cost <= budget * (1 + wrong) * (1 + 1e-9):
                found.append(Choice(*shares, predictor(*shares), cost))
    if not found:
        bounds = ((min(depths), 1.0), widths, (min(resolutions), 1.0))
        check_reachable(law, budget, bounds, margin)
        raise BudgetError(
            f"No depth and resolution that can be built leaves a width of {widths[0]:.3g} to {widths[1]:.3g} at a "
            f"budget of {budget:.3g}. Allow narrower networks, or ask for a larger budget."
        )
    sure = [choice for choice in found if choice.cost <= budget * (1 + 1e-9)]
    largest = [c for c in found if not any(_dominates(other, c) for other in sure)]
    return sorted(largest, key=lambda choice: (-choice.accuracy, choice.cost))


def _dominates(one: Choice, other: Choice) -> bool:
    """Whether a network is at least as large in every dimension, and larger in one."""
    pairs = list(zip(one.shares, other.shares, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


@dataclass(frozen=True)
class Stability:
    """How the optimum moves when accuracies are noisy.

    Attributes:
        noise: Standard deviation of the noise that was added.
        mean: Of the optimal depth, width and resolution.
        std: Their standard deviations.
        accuracy: Standard deviation of the predicted accuracy of the optimum.
    """

    noise: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    accuracy: float


def stability(
    points: Sequence[Point],
    best: Callable[[Sequence[Point]], Choice],
    noise: float,
    *,
    draws: int = _DRAWS,
    seed: int = 0,
) -> Stability:
    """Find the optimum again and again from accuracies with noise.

    Args:
        points: What was measured.
        best: Fits a predictor and returns the optimum.
        noise: Standard deviation of normal noise on every accuracy.
        draws: How often.
        seed: Of the noise.
    """
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        shaken = [replace(p, accuracy=float(p.accuracy + generator.normal(0, noise))) for p in points]
        found.append(best(shaken))
    shares = np.array([choice.shares for choice in found])
    mean, std = shares.mean(axis=0), shares.std(axis=0, ddof=1)
    return Stability(
        noise,
        (float(mean[0]), float(mean[1]), float(mean[2])),
        (float(std[0]), float(std[1]), float(std[2])),
        float(np.std([choice.accuracy for choice in found], ddof=1)),
    )
