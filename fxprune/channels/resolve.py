"""Close the ties, decide every grid, and spread what is frozen: from labels to classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from fxprune.channels.labels import Axis, Grid, Labels

RETURNED = "the model returns it"
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Classes:
    """The closed labels.

    Attributes:
        of: Class id of every label.
        frozen: For every class, whether it stays.
        origin: For every class, the position in ``Labels.frozen`` of what froze it (-1: nothing).
    """

    of: Axis
    frozen: Bools
    origin: Axis


class _Resolver:
    def __init__(self, labels: Labels, choice: str) -> None:
        self.labels = labels
        self.choice = choice
        self.sources = [np.concatenate([a.reshape(-1) for a, _ in labels.ties])] if labels.ties else []
        self.targets = [np.concatenate([b.reshape(-1) for _, b in labels.ties])] if labels.ties else []
        self.heads = np.unique(np.concatenate(labels.heads)) if labels.heads else np.empty(0, np.int64)

    def run(self) -> Classes:
        pending = list(self.labels.grids)
        self.close()
        while pending:
            rest = [grid for grid in pending if not self._settle(grid)]
            if len(rest) == len(pending):
                self._choose(rest)
            self.close()
            pending = rest
        return Classes(self.of, self.frozen, self.origin)

    def close(self) -> None:
        """Compute connected components of all ties so far, and spread freezes over them."""
        n = self.labels.count
        rows = np.concatenate(self.sources) if self.sources else np.empty(0, np.int64)
        columns = np.concatenate(self.targets) if self.targets else np.empty(0, np.int64)
        count, of = connected_components(
            coo_matrix((np.ones(rows.size, np.int8), (rows, columns)), shape=(n, n)), directed=False
        )
        self.of = of.astype(np.int64)
        self._head_classes: Bools | None = None
        self.origin = np.full(count, -1, np.int64)
        for index in range(len(self.labels.frozen) - 1, -1, -1):  # the first freeze of a class is the one it reports
            self.origin[self.of[self.labels.frozen[index][0].reshape(-1)]] = index
        for index, (axis, reason, _) in enumerate(self.labels.frozen):
            if reason == RETURNED:  # of several reasons this is the one that people expect
                self.origin[self.of[axis.reshape(-1)]] = index
        self.frozen = self.origin >= 0

    def _live(self, labels: Axis) -> bool:
        return bool((~self.frozen[self.of[labels.reshape(-1)]]).any())

    def _settle(self, grid: Grid) -> bool:
        """Decide a grid that leaves no choice: at most one of its factors can still be cut."""
        live = [d for d, factor in enumerate(grid.factors) if self._live(factor)]
        if len(live) > 1 and not self._live(grid.flat):
            for d in live:
                self.labels.freeze(grid.factors[d], self._why(grid.flat), grid.place)
            return True
        if len(live) > 1:
            return False
        if not live:
            self.labels.freeze(grid.flat, self._why(grid.factors[0]), grid.place)
            return True
        self._carry(grid, live[0])
        return True

    def _why(self, labels: Axis) -> str:
        origins = self.origin[self.of[labels.reshape(-1)]]
        origins = origins[origins >= 0]
        return self.labels.frozen[int(origins[0])][1] if origins.size else "its grid cannot be cut"

    def _carry(self, grid: Grid, d: int) -> None:
        """Tie every flat label to its label along factor ``d``."""
        shape = [1] * grid.flat.ndim
        shape[d] = -1
        self.sources.append(grid.flat.reshape(-1))
        self.targets.append(
            np.ascontiguousarray(np.broadcast_to(grid.factors[d].reshape(shape), grid.flat.shape)).reshape(-1)
        )

    def _choose(self, pending: list[Grid]) -> None:
        """Pick the factor that carries the first undecided grid of each set of grids that share classes."""
        classes = [self.of[np.concatenate([grid.flat.reshape(-1), *grid.factors])] for grid in pending]
        rows = np.repeat(np.arange(len(pending)), [found.size for found in classes])
        columns = np.concatenate(classes) + len(pending)
        size = len(pending) + self.frozen.size
        links = coo_matrix((np.ones(rows.size, np.int8), (rows, columns)), shape=(size, size))
        _, together = connected_components(links, directed=False)
        _, first = np.unique(together[: len(pending)], return_index=True)
        for index in first:
            self._pick(pending[index])

    def _pick(self, grid: Grid) -> None:
        """Freeze all factors of a grid but one: heads in attention, elsewhere the one that gives the finer units."""
        live = [d for d, factor in enumerate(grid.factors) if self._live(factor)]
        best = max(live, key=lambda d: (self._preferred(grid.factors[d]), self._cuttable(grid, d)))
        for d in live:
            if d != best:
                reason = "its dimension is factored, and another factor is the one that is cut"
                self.labels.freeze(grid.factors[d], reason, grid.place)

    def _preferred(self, factor: Axis) -> int:
        """Attention offers heads and head width; the choice of the caller decides which of them wins."""
        is_heads = bool(self._are_heads()[self.of[factor]].any())
        return int(is_heads) if self.choice == "heads" else -int(is_heads)

    def _are_heads(self) -> Bools:
        """Return which classes are heads, or what heads are factored into: those of keys, and the queries of each."""
        if self._head_classes is None:
            found = np.zeros(self.frozen.size, bool)
            found[self.of[self.heads]] = True
            rest = list(self.labels.grids) if self.heads.size else []
            while inside := [grid for grid in rest if found[self.of[grid.flat]].all()]:
                for grid in inside:
                    for factor in grid.factors:
                        found[self.of[factor]] = True
                rest = [grid for grid in rest if not found[self.of[grid.flat]].all()]
            self._head_classes = found
        return self._head_classes

    def _cuttable(self, grid: Grid, d: int) -> int:
        """How many indices of factor ``d`` could still be cut if it carried the grid."""
        stays = self.frozen[self.of[grid.flat]]
        other = tuple(a for a in range(grid.flat.ndim) if a != d)
        return int((~(stays.any(axis=other) | self.frozen[self.of[grid.factors[d]]])).sum())


def resolve(labels: Labels, attention: str = "heads") -> Classes:
    """Close all ties and decide all grids.

    Args:
        labels: What the rules collected; freezes made by the decisions are added to it.
        attention: ``"heads"`` or ``"head_dim"``: which factor attention cuts.
    """
    return _Resolver(labels, attention).run()
