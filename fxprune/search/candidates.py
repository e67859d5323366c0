"""Networks that meet the budget: the one that is predicted to be best, and those that it is compared with."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from fxprune.errors import BudgetError, InputError
from fxprune.search.fitting import Fitted, Request
from fxprune.search.meters import Meter
from fxprune.search.network import Network, Subject, depth_of, rebuild
from fxprune.search.optimum import Choice, buildable
from fxprune.search.predictor import Point
from fxprune.search.space import Space
from fxprune.search.trials import Trial, TrialResult

_TRIED = {"macs": 4, "latency": 1}  # where building takes measuring, only the first


@dataclass(frozen=True)
class Built:
    """A network that meets the budget, and what it reached.

    Attributes:
        choice: What was predicted of it.
        network: It, not trained.
        point: Its real shares, with the accuracy that it reached (NaN where it was not trained, or failed).
        cost: Share of the dense network's.
        trial: By which it was trained; None where it was not.
        result: What came of that.
    """

    choice: Choice
    network: Network = field(repr=False)
    point: Point
    cost: float
    trial: Trial | None = None
    result: TrialResult | None = None


class Candidates:
    """Builds networks out of the dense one: depth first, then width, which takes what the budget leaves."""

    def __init__(self, subject: Subject, space: Space, meter: Meter, asked: Request) -> None:
        self.subject, self.space, self.meter, self.asked = subject, space, meter, asked

    @functools.cached_property
    def depths(self) -> dict[int, float]:
        """The share of the depth by the number of layers that go, one of each share, up to the most that were tried."""
        found = {0: 1.0}
        dense = rebuild(self.subject, (), self.space.side)
        for count in range(1, max(self.space.removed, default=0) + 1):
            try:
                left = dense.without(self.asked.choices.layers(dense, count))
            except (BudgetError, InputError):  # a number that no removal of whole layers meets
                continue
            share = depth_of(left.traced) / self.space.depth
            if share not in found.values():  # a layer that runs beside a longer one makes nothing shallower
                found[count] = share
        return found

    @property
    def sides(self) -> tuple[int | None, ...]:
        """The sides between those that were trained at: a polynomial says nothing beyond them."""
        space = self.space
        if not space.resolutions:
            return (space.side,)
        return tuple(side for side in space.sides if side >= min(space.resolutions))

    def best(self, fitted: Fitted) -> Built:
        """Return the network of the best prediction that can be built within the budget.

        Which are worth building is told by the fitted cost; a few of these are built, and have real widths then.

        Raises:
            BudgetError: There is none.
        """
        counts = {share: count for count, share in self.depths.items()}
        sides = {self.space.resolution(side): side for side in self.sides}
        widths = (min(self.space.widths, default=1.0), 1.0)
        budget = self.asked.budget
        found = buildable(fitted.predictor, fitted.law, budget, list(counts), list(sides), widths, margin=fitted.margin)
        if self.asked.metric == "latency":  # what only may be within the budget is measured where nothing else is
            found.sort(key=lambda choice: choice.cost > budget * (1 + 1e-9))
        problem, fitting = "", list[Built]()
        for choice in found:
            built = self.build(counts[choice.depth], sides[choice.resolution], fitted)
            if isinstance(built, Built):
                fitting.append(built)
            else:
                problem = built
            if len(fitting) == _TRIED[self.asked.metric]:
                break
        if fitting:
            return max(fitting, key=lambda built: built.choice.accuracy)
        raise BudgetError(
            f"no network that was predicted to meet the budget {self.asked.metric}={self.asked.budget:g} can be built; "
            f"the last that was tried: {problem}"
        )

    def build(self, count: int, side: int | None, fitted: Fitted, *, narrow: bool = True) -> Built | str:
        """Return the network with so many layers less, at a resolution; or say why it does not meet the budget.

        Args:
            count: How many layers go.
            side: Of the images.
            fitted: What predicts its accuracy.
            narrow: Whether channels may go as well.
        """
        network, asked = rebuild(self.subject, (), side), self.asked
        try:
            if count:
                network = network.without(asked.choices.layers(network, count))
            if narrow and self.space.widths:
                network = self.meter.narrowed(network, asked.budget, asked.choices)
            cost = self.meter.share(network.traced)
        except (BudgetError, InputError) as error:
            return str(error)
        if cost > asked.budget * (1 + 1e-9):
            return f"it has {cost:.3g} of the {asked.metric}"
        shares = (depth_of(network.traced) / self.space.depth, network.width, self.space.resolution(side))
        choice = Choice(*shares, fitted.predictor(*shares), fitted.law(*shares))
        return Built(choice, network, Point(*shares, math.nan), cost)

    def alternatives(self, fitted: Fitted) -> dict[str, Built | str]:
        """Return what one dimension alone gives, and what an equal share from each gives; or why there is no such."""
        space, found = self.space, dict[str, Built | str]()
        if space.removed:
            found["depth only"] = _first(self.build(c, space.side, fitted, narrow=False) for c in self.depths if c)
        if space.widths:
            found["width only"] = self.build(0, space.side, fitted)
        if space.resolutions:
            smaller = [side for side in space.sides if side != space.side]
            found["resolution only"] = _first(self.build(0, side, fitted, narrow=False) for side in smaller)
        used = (bool(space.removed), bool(space.widths), bool(space.resolutions))
        if sum(used) > 1:
            share = self.asked.budget ** (1 / sum(used))
            deep, _, large = (share ** (1 / exponent) for exponent in fitted.law.exponents)
            count = min(self.depths, key=lambda c: abs(self.depths[c] - (deep if used[0] else 1)))
            side = min(self.sides, key=lambda s: abs(space.resolution(s) - (large if used[2] else 1)))
            found["uniform"] = self.build(count, side, fitted)
        return found


def _first(built: Iterable[Built | str]) -> Built | str:
    """Return the first that meets the budget, or why even the last does not."""
    problem = "there is none"
    for each in built:
        if isinstance(each, Built):
            return each
        problem = each
    return f"not reachable: of the smallest, {problem}"
