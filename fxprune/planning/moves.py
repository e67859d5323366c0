"""The steps a plan is made of: quanta of units of one family, in the order in which they go."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxprune.channels import Groups
from fxprune.errors import InputError
from fxprune.planning.cost_model import Bools, CostModel, Ints

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Moves:
    """Removals in the order in which they are made; those of one family are only valid in that order.

    Attributes:
        classes: the class ids that all moves take away, one move after the other.
        start: where each move begins in ``classes``, and its length at the end.
        family: the family of each move.
        step: the multiple that kept widths were rounded to.
    """

    classes: Ints
    start: Ints
    family: Ints
    step: int

    def __len__(self) -> int:
        return len(self.family)


@dataclass(frozen=True)
class Family:
    """The units of one family that may go, lowest score first, out of ``total`` in all.

    ``narrowest`` is the number of indices per unit on the family's narrowest weight axis.
    """

    units: Ints
    scores: Scores
    total: int
    narrowest: int

    def chunks(self, step: int) -> list[int]:
        """Return where to cut ``units`` into moves, after each of which the family keeps a multiple of the quantum."""
        quantum = step // math.gcd(step, self.narrowest)
        kept = range((self.total - 1) // quantum * quantum, 0, -quantum)
        return [0, *(self.total - count for count in kept if self.total - count <= len(self.units))]


@dataclass(frozen=True)
class _Candidates:
    """All moves before they are ordered, one element per move; those of one family are neighbours, in their order.

    Attributes:
        family: the family of each move.
        size: how many units it takes.
        mean: their mean score, never falling within a family.
        done: the share of the family that is gone halfway through the move.
        pool: the pool of the family.
        pool_total: the units of that pool.
    """

    family: Ints
    size: Ints
    mean: Scores
    done: Scores
    pool: Ints
    pool_total: Ints


def find_families(groups: Groups, model: CostModel, removable: Bools, scores: Scores) -> list[Family]:
    """Return the families with their removable units in the order in which they go (units of equal score by index)."""
    narrowest = model.narrowest(len(groups.live))
    families = []
    for members in groups.families:
        units = np.asarray(members)[removable[members]]
        order = np.argsort(scores[units], kind="stable")
        families.append(
            Family(units[order], scores[units[order]], len(members), int(narrowest[members].min(initial=1)))
        )
    return families


def build_moves(families: list[Family], step: int, allocation: str, pools: list[int]) -> Moves:
    """Return all moves for widths that are multiples of ``step``, in the order of an allocation.

    Args:
        families: from ``find_families``; what is ranked together must have comparable scores.
        step: the multiple.
        allocation: ``uniform`` takes the same share of every family, ``global`` ranks all units, ``isomorphic`` ranks
            within ``pools`` and takes the same share of every pool (Fang et al. 2024, arXiv 2407.04616).
        pools: the pool of each family.
    """
    cuts = {number: family.chunks(step) for number, family in enumerate(families)}
    cuts = {number: ends for number, ends in cuts.items() if len(ends) > 1}
    if not cuts:
        return Moves(np.empty(0, np.int64), np.zeros(1, np.int64), np.empty(0, np.int64), step)
    candidates = _candidates(families, cuts, pools)
    order = np.lexsort((candidates.mean, ALLOCATIONS[allocation](candidates)))
    classes = np.concatenate([families[number].units[: ends[-1]] for number, ends in cuts.items()])
    size = candidates.size[order]
    start = np.concatenate([[0], np.cumsum(size)])
    shift = (np.cumsum(candidates.size) - candidates.size)[order] - start[:-1]  # where a move's units were before
    classes = classes[np.arange(len(classes)) + np.repeat(shift, size)]
    return Moves(classes, start, candidates.family[order], step)


def _candidates(families: list[Family], cuts: dict[int, list[int]], pools: list[int]) -> _Candidates:
    sizes = [np.diff(ends) for ends in cuts.values()]
    means, done = [], []
    for (number, ends), size in zip(cuts.items(), sizes, strict=True):
        mean = np.add.reduceat(families[number].scores[: ends[-1]], ends[:-1]) / size
        means.append(np.maximum.accumulate(mean))  # rounding errors must not change the order within a family
        done.append((np.array(ends[1:]) - size / 2) / families[number].total)
    family = np.repeat(list(cuts), [len(size) for size in sizes])
    pool = np.array(pools)[family]
    total = np.bincount(pools, [family.total for family in families]).astype(np.int64)
    return _Candidates(family, np.concatenate(sizes), np.concatenate(means), np.concatenate(done), pool, total[pool])


def _global(candidates: _Candidates) -> Scores:
    return candidates.mean


def _uniform(candidates: _Candidates) -> Scores:
    return candidates.done


def _isomorphic(candidates: _Candidates) -> Scores:
    """Return the share of its pool that is gone halfway through each move, when the pool's moves are made by score."""
    order = np.lexsort((candidates.mean, candidates.pool))
    size, pool = candidates.size[order], candidates.pool[order]
    before = np.cumsum(size) - size
    first = np.concatenate([[True], np.diff(pool) != 0])
    before = before - np.maximum.accumulate(np.where(first, before, 0))
    key = np.empty(len(order))
    key[order] = (before + size / 2) / candidates.pool_total[order]
    return key


ALLOCATIONS: dict[str, Callable[[_Candidates], Scores]] = {
    "uniform": _uniform,
    "global": _global,
    "isomorphic": _isomorphic,
}


def check_allocation(allocation: str) -> None:
    """Raise an ``InputError`` when there is no such allocation."""
    names = sorted([*ALLOCATIONS, "latency"])
    if allocation not in names:
        raise InputError(f"There is no allocation {allocation!r}; use one of {', '.join(names)}.")


def find_pools(groups: Groups) -> list[int]:
    """Return for each family the number of its pool: families of equal structure share one.

    The structure is the multiset of (layer type, parameter, dimension) that a family's units appear in, whatever its
    widths.
    """
    owner = np.full(len(groups.live), -1)
    for number, members in enumerate(groups.families):
        owner[members] = number
    structure: list[list[str]] = [[] for _ in groups.families]
    for name, dim in groups.parameters:
        labels = groups.axis(name, dim)
        path, _, leaf = name.rpartition(".")
        kind = f"{type(groups.traced.module.get_submodule(path)).__name__}.{leaf}:{dim}"
        for number in np.unique(owner[labels]) if labels is not None else ():
            if number >= 0:
                structure[number].append(kind)
    numbers: dict[tuple[str, ...], int] = {}
    return [numbers.setdefault(tuple(sorted(kinds)), len(numbers)) for kinds in structure]


def normalised(families: list[Family]) -> list[Family]:
    """Return the families with scores divided by their mean, which makes magnitudes of different layers comparable."""
    result = []
    for family in families:
        mean = float(family.scores.mean()) if len(family.units) else 0.0
        scores = family.scores / mean if mean > 0 else family.scores
        result.append(Family(family.units, scores, family.total, family.narrowest))
    return result
