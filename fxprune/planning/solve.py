"""Finds the removals: widths, minimum widths and the budget are solved together, never rounded afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fxprune.planning.budget import TOLERANCE
from fxprune.planning.cost_model import Bools, CostModel, Ints, Polynomial
from fxprune.planning.moves import Moves

_SWAPS = 64  # how many later moves to try in place of earlier ones when the first answer is too far below the budget
_CLOSE = 1e-9  # of the limit: nearer than this, a sum of many changes is not trusted
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


class Widths:
    """Axis sizes that change move by move, and the metric there; a move takes time in step with what it touches."""

    def __init__(self, search: Search, sizes: Ints) -> None:
        self._search, self.sizes = search, sizes.copy()
        self.value = search.metric.at(sizes)

    def change(self, move: int, sign: int) -> float:
        """Return how the metric changes with one more move (``sign`` -1) or one taken back (+1)."""
        axes, count, rows = self._search.touched(move)
        before = self._search.metric.part(self.sizes, rows)
        self.sizes[axes] += sign * count
        change = self._search.metric.part(self.sizes, rows) - before
        self.sizes[axes] -= sign * count
        return change

    def make(self, move: int, sign: int) -> None:
        """Make a move, or take it back."""
        axes, count, _ = self._search.touched(move)
        self.value += self.change(move, sign)
        self.sizes[axes] += sign * count

    def fits(self, move: int, sign: int, limit: float) -> bool:
        """Return whether the metric is within a limit after a move; a close call is worked out from the beginning."""
        value = self.value + self.change(move, sign)
        if abs(value - limit) <= _CLOSE * limit:
            axes, count, _ = self._search.touched(move)
            sizes = self.sizes.copy()
            sizes[axes] += sign * count
            value = self._search.metric.at(sizes)
        return value <= limit


class Search:
    """Evaluates prefixes of the moves on the cost model, and knows what single moves touch."""

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
        self._touched: dict[int, tuple[Ints, Ints, Ints]] = {}

    def prefix(self, length: int) -> Ints:
        """Return the axis sizes after the first ``length`` moves."""
        end = self._start[length]
        lost = np.bincount(self._axis[:end], weights=self._count[:end], minlength=len(self.model.full))
        return self.model.full - lost.astype(np.int64)

    def touched(self, move: int) -> tuple[Ints, Ints, Ints]:
        """Return the axes that a move shortens, by how much, and the metric's products that they are factors of."""
        if move not in self._touched:
            part = slice(self._start[move], self._start[move + 1])
            axes, index = np.unique(self._axis[part], return_inverse=True)
            count = np.bincount(index, weights=self._count[part]).astype(np.int64)
            self._touched[move] = axes, count, self.metric.rows_of(axes)
        return self._touched[move]

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
        widths = Widths(search, search.prefix(length))
        for move in added:
            widths.make(int(move), -1)
        swapped = made.copy()
        swapped[added] = True
        other = _fill(search, swapped, widths.sizes, limit, frozenset({int(family)}))
        best = other if other.value > best.value else best
    return best


def _fill(search: Search, made: Bools, sizes: Ints, limit: float, done: frozenset[int]) -> Selection:
    """Take moves back while the limit holds. A family whose last move does not fit is done."""
    made, widths = made.copy(), Widths(search, sizes)
    _take_back(search, made, widths, limit, set(done))
    if done:
        _take_back(search, made, widths, limit, set())  # at last even the move that was made on purpose
    removed = np.zeros(search.classes, bool)
    removed[search.moves.classes[np.repeat(made, np.diff(search.moves.start))]] = True
    return Selection(removed, search.metric.at(widths.sizes), search.moves.step)


def _take_back(search: Search, made: Bools, widths: Widths, limit: float, closed: set[int]) -> None:
    """Clear in ``made`` the moves that fit back in, and undo them."""
    for move in np.flatnonzero(made)[::-1].tolist():
        family = int(search.moves.family[move])
        if family not in closed:
            if widths.fits(move, 1, limit):
                made[move] = False
                widths.make(move, 1)
            else:
                closed.add(family)
