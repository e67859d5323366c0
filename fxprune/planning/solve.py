"""Finds the removals: widths, minimum widths and the budget are solved together, never rounded afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fxprune.planning.budget import TOLERANCE
from fxprune.planning.cost_model import Bools, CostModel, Ints, Polynomial
from fxprune.planning.moves import Moves

_SWAPS = 64  # how many later moves to try in place of earlier ones when the first answer is too far below the budget
_SLACK = 1 + 1e-12  # keep * full is a float product: 0.29 * 100 must still allow 29


@dataclass(frozen=True)
class Selection:
    """The removed classes (a bool per class), what they leave of the metric, and the multiple rounded to."""

    removed: Bools
    value: float
    step: int

    def close(self, limit: float) -> bool:
        """Return whether it is within tolerance of a limit, from below."""
        return self.value >= (1 - TOLERANCE) * limit


class Search:
    """Evaluates prefixes of the moves, and single moves, on the cost model."""

    def __init__(self, moves: Moves, model: CostModel, metric: str, classes: int) -> None:
        self.moves, self.model, self.classes = moves, model, classes
        self.metric: Polynomial = model.metrics[metric]
        move_of = np.full(classes, -1)
        move_of[moves.classes] = np.repeat(np.arange(len(moves)), np.diff(moves.start))
        moved = move_of[model.entry_class]
        order = np.argsort(moved, kind="stable")
        order = order[np.searchsorted(moved[order], 0) :]
        self._axis, self._count = model.entry_axis[order], model.entry_count[order]
        self._start = np.searchsorted(moved[order], np.arange(len(moves) + 1))

    def prefix(self, length: int) -> Ints:
        """Return the axis sizes after the first ``length`` moves."""
        end = self._start[length]
        lost = np.bincount(self._axis[:end], weights=self._count[:end], minlength=len(self.model.full))
        return self.model.full - lost.astype(np.int64)

    def change(self, sizes: Ints, move: int, sign: int) -> Ints:
        """Return the axis sizes after one more move (``sign`` -1) or one taken back (+1)."""
        part = slice(self._start[move], self._start[move + 1])
        sizes = sizes.copy()
        np.add.at(sizes, self._axis[part], sign * self._count[part])
        return sizes

    def shortest(self, limit: float) -> int | None:
        """Return the fewest moves that meet the limit, None when all together do not."""
        low, high = 0, len(self.moves)
        if self.metric.at(self.prefix(high)) > limit:
            return None
        while low < high:
            middle = (low + high) // 2
            if self.metric.at(self.prefix(middle)) <= limit:
                high = middle
            else:
                low = middle + 1
        return low


def solve(moves: Moves, model: CostModel, metric: str, keep: float, classes: int) -> Selection | None:
    """Return removals that keep at most ``keep`` of the metric, close to it, or None when nothing is small enough.

    The shortest prefix of the moves that meets the limit is found by bisection; then moves are taken back, the best
    score first, while they fit. When that ends more than 1 % below the limit, a move that comes later is made instead,
    and the rest is filled up again.
    """
    search = Search(moves, model, metric, classes)
    limit = keep * search.metric.at(model.full) * _SLACK
    length = search.shortest(limit)
    if length is None:
        return None
    made = np.arange(len(moves)) < length
    best = _fill(search, made, search.prefix(length), limit, frozenset())
    for extra in range(length, min(length + _SWAPS, len(moves))):
        if best.close(limit):
            break
        family = moves.family[extra]
        added = np.flatnonzero(moves.family[length : extra + 1] == family) + length
        sizes = search.prefix(length)
        for move in added:
            sizes = search.change(sizes, int(move), -1)
        swapped = made.copy()
        swapped[added] = True
        other = _fill(search, swapped, sizes, limit, frozenset({int(family)}))
        best = other if other.value > best.value else best
    return best


def _fill(search: Search, made: Bools, sizes: Ints, limit: float, done: frozenset[int]) -> Selection:
    """Take moves back while the limit holds. A family whose last move does not fit is done."""
    made = made.copy()
    sizes = _take_back(search, made, sizes, limit, set(done))
    if done:
        sizes = _take_back(search, made, sizes, limit, set())  # at last even the move that was made on purpose
    removed = np.zeros(search.classes, bool)
    removed[search.moves.classes[np.repeat(made, np.diff(search.moves.start))]] = True
    return Selection(removed, search.metric.at(sizes), search.moves.step)


def _take_back(search: Search, made: Bools, sizes: Ints, limit: float, closed: set[int]) -> Ints:
    """Clear in ``made`` the moves that fit back in and return the axis sizes then."""
    for move in np.flatnonzero(made)[::-1]:
        family = int(search.moves.family[move])
        if family not in closed:
            larger = search.change(sizes, int(move), 1)
            if search.metric.at(larger) <= limit:
                made[move], sizes = False, larger
            else:
                closed.add(family)
    return sizes
