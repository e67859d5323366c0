"""Which basis vectors go under a budget of parameters or multiply-accumulates, as ``MergeBasis`` will count them.

[DESIGN, as how Basis Scaling (arXiv 2108.02893) ranks and when it prunes could not be found]: vectors of all layers are
ranked together, by what is lost for each parameter (or multiply-accumulate) that is saved; the lowest go until the
budget is met. A vector costs ten times as much in the last layers of a network as in the first, so that ranking without
its cost, or by its share of its layer, leaves cheap and narrow layers a vector or two, which everything has to pass.
What was dropped without effect on the count (a layer that is one layer again, as its split does not pay) is given back,
and so is whatever else fits, the most important first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fxprune.capture import Traced
from fxprune.errors import BudgetError, InputError
from fxprune.linear.basis import Block
from fxprune.linear.basis_costs import BasisCosts, BasisCounts
from fxprune.planning.budget import Budget, parse_budget

Ranking = Literal["cost", "layer", "plain"]
"""How scores of different layers are compared; see :func:`choose_vectors`."""
RANKINGS: tuple[Ranking, ...] = get_args(Ranking)


@dataclass(frozen=True)
class VectorChoice:
    """What goes, and what that makes of the model.

    Attributes:
        dropped: Path of a decomposed layer -> positions in its scales, in increasing order; layers that keep all are
            left out. :func:`fxprune.linear.basis.with_vectors_dropped` carries it out.
        metric: ``params`` or ``macs``.
        keep: Share of it that was asked for.
        counts: The model with what is left, and with single layers.
    """

    dropped: dict[str, list[int]]
    metric: str
    keep: float
    counts: BasisCounts


def choose_vectors(
    traced: Traced,
    scores: Mapping[str, Tensor],
    *,
    params: float | None = None,
    macs: float | None = None,
    ranking: Ranking = "cost",
    merge: bool = True,
) -> VectorChoice:
    """Decide which basis vectors to drop, so that a share of the model with single layers is kept.

    In a grouped layer each group drops as many, each its own least important ones.

    Args:
        traced: The capture with decomposed layers.
        scores: Path of a decomposed layer -> (groups * rank,) numbers, the lower the sooner a vector goes. Layers that
            are not named keep all their vectors. Vectors whose scale is zero already go first.
        params: Share of the parameters to keep, in (0, 1].
        macs: Share of the multiply-accumulates of one sample to keep, in (0, 1].
        ranking: How layers are compared: ``"cost"``, scores divided by what their vectors cost in the budget's metric;
            ``"layer"``, by the Euclidean norm of their layer's scores; ``"plain"``, as they are.
        merge: Count each layer as whatever is cheaper, one layer or two; False counts two even where that is more.

    Raises:
        InputError: There is not exactly one budget, the ranking is unknown, or the scores do not fit the model.
        BudgetError: The budget is not met with one vector per group left.
    """
    budget = parse_budget(params=params, macs=macs)
    if ranking not in RANKINGS:
        raise InputError(f"ranking is {ranking!r}; basis vectors are ranked by {', '.join(map(repr, RANKINGS))}")
    costs = BasisCosts(traced)
    ranked = {path: _ranked(costs, path, values, ranking, budget.metric) for path, values in scores.items()}
    search = _Search(costs, {path: values for path, (_, values) in ranked.items()}, budget, merge)
    gone = search.run()
    dropped = {}
    for path, count in gone.items():
        positions, block = ranked[path][0][:, :count], costs.blocks[path]
        offsets = block.rank * torch.arange(block.groups)[:, None]
        if count:
            dropped[path] = sorted((positions + offsets).flatten().tolist())
    return VectorChoice(dropped, budget.metric, budget.keep, search.counts(gone))


def _ranked(costs: BasisCosts, path: str, given: Tensor, ranking: Ranking, metric: str) -> tuple[Tensor, list[float]]:
    """Return positions in each group (groups, rank), the least important first, and the scores of these columns."""
    block = costs.blocks.get(path)
    if block is None or block.scales is None:
        raise InputError(f"there are scores for {path}, which is no decomposed layer with scales of this model")
    values = torch.as_tensor(given).detach().double().cpu()
    if values.shape != block.scales.shape or not values.isfinite().all() or (values < 0).any():
        raise InputError(
            f"the scores of {path} must be {block.scales.numel()} finite numbers of at least 0, and are "
            f"{values.dtype}{list(values.shape)}"
        )
    values = values / _unit(costs, block, values, ranking, metric)
    values[block.scales.detach().cpu() == 0] = -1  # these give nothing: before all others
    ordered, positions = values.reshape(block.groups, block.rank).sort(dim=1, stable=True)
    return positions, ordered.mean(0).tolist()


def _unit(costs: BasisCosts, block: Block, values: Tensor, ranking: Ranking, metric: str) -> float:
    """Return what the scores of a layer are divided by."""
    if ranking == "plain":
        return 1.0
    if ranking == "layer":
        return float(values.norm()) or 1.0
    return costs.layer(block.path, 1, metric, merge=False) / block.groups  # one vector in each group


class _Search:
    """The lowest scores of all layers together, until the budget is met."""

    def __init__(self, costs: BasisCosts, scores: Mapping[str, list[float]], budget: Budget, merge: bool) -> None:
        self.costs, self.budget, self.merge = costs, budget, merge
        # A layer's columns are in increasing order, so that a prefix of this list is a prefix of each layer's.
        flat = [(score, path) for path, values in scores.items() for score in values[:-1]]
        self.order = [path for _, path in sorted(flat, key=lambda item: item[0])]
        self.none = dict.fromkeys(scores, 0)
        self.most = budget.keep * getattr(self.counts(self.none).single, budget.metric)

    def counts(self, gone: Mapping[str, int]) -> BasisCounts:
        """Return the counts with so many vectors per group gone."""
        return self.costs.counts({path: self.costs.blocks[path].rank - count for path, count in gone.items()})

    def layer(self, path: str, gone: int) -> float:
        return self.costs.layer(path, self.costs.blocks[path].rank - gone, self.budget.metric, merge=self.merge)

    def cost(self, gone: Mapping[str, int]) -> int:
        layers = sum(self.layer(path, gone.get(path, 0)) for path in self.costs.blocks)
        return self.costs.total(layers, self.budget.metric)

    def prefix(self, length: int) -> dict[str, int]:
        gone = dict(self.none)
        for path in self.order[:length]:
            gone[path] += 1
        return gone

    def run(self) -> dict[str, int]:
        """Return how many vectors of each group of each layer go."""
        low, high = 0, len(self.order)
        if self.cost(self.prefix(high)) > self.most:
            raise self._shortfall()
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.cost(self.prefix(middle)) <= self.most else (middle + 1, high)
        return self._with_gifts(low)

    def _with_gifts(self, length: int) -> dict[str, int]:
        """Give back what saves nothing, then what still fits."""
        gone = self.prefix(length)
        for path, count in gone.items():
            block = self.costs.blocks[path]
            if self.merge and not block.pays(block.rank - count):
                gone[path] = 0
        spare = self.most - self.cost(gone)
        for path in reversed(self.order[:length]):
            if gone[path]:
                more = self.layer(path, gone[path] - 1) - self.layer(path, gone[path])
                if more <= spare:
                    gone[path], spare = gone[path] - 1, spare - more
        return gone

    def _shortfall(self) -> BudgetError:
        metric = self.budget.metric
        floor, whole = self.cost(self.prefix(len(self.order))), getattr(self.counts(self.none).single, metric)
        return BudgetError(
            f"The budget {self.budget} cannot be met by dropping basis vectors: with one left per group of each of "
            f"{len(self.none)} decomposed layers, {100 * floor / whole:.3g} % of the {metric} are left. Ask for more, "
            "decompose more layers, or prune channels too."
        )
