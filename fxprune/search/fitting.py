"""What is asked of a search, what was measured, and what that says: accuracy and cost as functions of three shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fxprune.errors import InputError
from fxprune.search.meters import Measuring
from fxprune.search.optimum import Bounds, Choice, Stability, maximise, sampled_bounds, stability
from fxprune.search.power_law import PowerLaw, Sample, fit_power_law
from fxprune.search.predictor import (
    DIMENSIONS,
    Point,
    Predictor,
    choose_degree,
    fit_full,
    fit_specialised,
    leave_one_out,
)
from fxprune.search.pruning import Choices
from fxprune.search.space import POINTS
from fxprune.search.trials import Trial, TrialResult

NOISE = 0.005
"""Standard deviation of an accuracy, for the stability of the optimum, where nobody says better."""
_DRAWS = 50
_NEAR = 1.1  # how near to the smallest network the points have to come, as a factor, to count as reaching it


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        macs: Share of the multiply-accumulates to keep; or
        latency: share of the measured latency to keep.
        epochs: Of training at each point, and of the final network.
        dimensions: Those to search over.
        points: Along each, besides the whole network.
        choices: How layers and channels are chosen.
        measuring: How latencies are measured.
        alternatives: Whether the networks that one dimension alone gives, and the uniform one, are trained too.
        noise: Standard deviation of an accuracy, for the stability of the optimum.
        explore: Down to which budget points are taken, where they are to serve smaller budgets too; None: this one.
        seed: Of all trainings.
    """

    macs: float | None = None
    latency: float | None = None
    epochs: tuple[int, int] = (2, 10)
    dimensions: tuple[str, ...] = DIMENSIONS
    points: int = POINTS
    choices: Choices = field(default_factory=Choices)
    measuring: Measuring = field(default_factory=Measuring)
    alternatives: bool = False
    noise: float = NOISE
    explore: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.macs is None) == (self.latency is None):
            raise InputError("a search needs one budget: macs= or latency=, the share to keep; macs=0.5 keeps half")
        if self.explore is not None and not 0 < self.explore <= self.budget:
            raise InputError(f"explore={self.explore:g} is no budget of at most {self.metric}={self.budget:g}")
        if not 0 < self.budget < 1:
            raise InputError(f"the budget {self.metric}={self.budget:g} is outside (0, 1): it is the share to keep")
        if len(self.epochs) != 2 or any(isinstance(e, bool) or not isinstance(e, int) or e < 0 for e in self.epochs):
            raise InputError(f"epochs is {self.epochs!r}; give those at each point and those of the final network")

    @property
    def metric(self) -> str:
        """What the budget counts."""
        return "macs" if self.latency is None else "latency"

    @property
    def budget(self) -> float:
        """The share to keep."""
        return float(self.macs if self.latency is None else self.latency)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Measured:
    """A network that was trained during the search."""

    trial: Trial
    result: TrialResult
    point: Point
    cost: float


@dataclass(frozen=True)
class Fitted:
    """What the points say.

    Attributes:
        predictor: Of accuracy: the specialised polynomial.
        degree: Its degree, the one with the least leave-one-out error.
        errors: Leave-one-out errors by degree, and of the full polynomial (``full``).
        law: Of cost.
        optimum: The best shares under the budget, whether or not they can be built.
        stability: How it moves when accuracies are noisy.
        margin: By how much of itself a predicted cost may be wrong, as far as was seen.
    """

    predictor: Predictor
    degree: int
    errors: Mapping[str, float]
    law: PowerLaw
    optimum: Choice
    stability: Stability
    margin: float = 0.0


def fit(measured: Sequence[Measured], asked: Request, smallest: Sample | None = None) -> Fitted:
    """Fit accuracy and cost to the points, and find the optimum under the budget.

    Args:
        measured: The points.
        asked: Budget and choices.
        smallest: What the smallest network costs, which meets the budget; it says how far the fitted cost can be
            trusted between the dimensions, where no point lies.

    Raises:
        BudgetError: No network between the points meets the budget.
        InputError: There are too few points, or the cost does not fall along a dimension.
    """
    points = [each.point for each in measured]
    if len(points) < 2:
        raise InputError("nothing but the whole network could be trained, so that nothing can be said of smaller ones")
    law = fit_power_law(Sample(*each.point.shares, each.cost) for each in measured)
    degree, by_degree = choose_degree(points)
    errors = {str(k): error for k, error in by_degree.items()}
    errors["full"] = leave_one_out(points, lambda rest: fit_full(rest, degree))
    bounds = sampled_bounds(points)
    margin = _margin(law, bounds, smallest, asked.budget)

    def best(given: Sequence[Point]) -> Choice:
        return maximise(fit_specialised(given, degree), law, asked.budget, bounds, margin=margin)

    optimum = best(points)
    steady = stability(points, best, asked.noise, draws=_DRAWS, seed=asked.seed)
    return Fitted(fit_specialised(points, degree), degree, errors, law, optimum, steady, margin)


def _margin(law: PowerLaw, bounds: Bounds, smallest: Sample | None, budget: float) -> float:
    """Return by how much of itself a predicted cost may be wrong."""
    if smallest is None:
        return law.error
    lows = [low for low, _ in bounds]
    shares = (smallest.depth, smallest.width, smallest.resolution)
    found = max(law.error, abs(law(*shares) / smallest.cost - 1))
    same = all(low <= _NEAR * share for low, share in zip(lows, shares, strict=True))
    return max(found, law(*lows) / budget - 1) if same else found
