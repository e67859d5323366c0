"""Labels: one integer for each index of each dimension, and what ties them together.

Every dimension of every tensor carries an array with a label per index, or None where it is opaque (batch, space,
sequence). Two labels that meet are tied; a grid relates the labels of one flat dimension to those of its factors.
Nothing here knows operations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Axis = npt.NDArray[np.int64]  # a label per index
Axes = tuple[Axis | None, ...]  # one entry per dimension


@dataclass(frozen=True)
class Grid:
    """``flat[i, j, ...]`` belongs to ``factors[0][i]``, ``factors[1][j]``, ...; what is left must stay rectangular."""

    flat: Axis  # reshaped to the factors' sizes
    factors: tuple[Axis, ...]
    place: str


class Labels:
    """Collects labels, ties, grids and freezes while the rules walk over the graph."""

    def __init__(self) -> None:
        self.count = 0
        self.batches: list[tuple[int, int]] = []  # (first label, size) of every call of fresh
        self.ties: list[tuple[Axis, Axis]] = []
        self.grids: list[Grid] = []
        self.frozen: list[tuple[Axis, str, str]] = []  # labels, reason, place
        self.heads: list[Axis] = []  # labels that a choice between factors prefers to cut
        self._factored: dict[Any, tuple[Axis | None, ...]] = {}
        self._units: dict[int, Axis] = {}

    def fresh(self, size: int) -> Axis:
        """Return ``size`` new labels."""
        labels = np.arange(self.count, self.count + size, dtype=np.int64)
        self.batches.append((self.count, size))
        self.count += size
        return labels

    def tie(self, one: Axis, other: Axis) -> None:
        """Declare that ``one[i]`` and ``other[i]`` go together, for every i."""
        if one is not other:
            self.ties.append((one, other))

    def freeze(self, labels: Axis | None, reason: str, place: str) -> None:
        """Declare that these labels stay, and why."""
        if labels is not None and labels.size:
            self.frozen.append((labels, reason, place))

    def shared_units(self, key: int, units: Axis) -> Axis:
        """Return the units that everything under one key must shrink with (the first that were given)."""
        return self._units.setdefault(key, units)

    def split(self, flat: Axis, sizes: Sequence[int], place: str) -> tuple[Axis | None, ...]:
        """Factor the labels of a flat dimension into a label vector per factor (None: they do not vary along it).

        One varying factor carries the labels as they are. Several make a grid, shared by all splits of the same labels
        into the same sizes.
        """
        key = (flat.tobytes(), tuple(sizes))
        if key not in self._factored:
            self._factored[key] = self._split(flat.reshape(tuple(sizes)), place)
        return self._factored[key]

    def _split(self, block: Axis, place: str) -> tuple[Axis | None, ...]:
        varying = [d for d in range(block.ndim) if block.shape[d] > 1 and (np.take(block, [0], d) != block).any()]
        corner = block[tuple(slice(None) if d in varying else 0 for d in range(block.ndim))]
        if len(varying) <= 1:
            factors: list[Axis] = [corner] if varying else []
        else:
            factors = [self.fresh(block.shape[d]) for d in varying]
            self.grids.append(Grid(corner, tuple(factors), place))
        found = dict(zip(varying, factors, strict=True))
        if not varying:  # all one label: nothing may be cut out of a dimension that is a single unit
            self.freeze(block.reshape(-1)[:1], "one channel fills a whole dimension", place)
        return tuple(found.get(d) for d in range(block.ndim))

    def merge(self, factors: Sequence[Axis | None], sizes: Sequence[int], place: str) -> Axis | None:
        """Return the labels of the flat dimension made of these factors: the inverse of :meth:`split`."""
        labelled = [d for d, labels in enumerate(factors) if labels is not None]
        if not labelled:
            return None
        full = tuple(sizes)
        if len(labelled) == 1:
            d = labelled[0]
            shape = [1] * len(full)
            shape[d] = full[d]
            return np.ascontiguousarray(np.broadcast_to(factors[d].reshape(shape), full)).reshape(-1)  # type: ignore[union-attr]
        key = (tuple(None if f is None else f.tobytes() for f in factors), full)
        if key not in self._factored:
            core = self.fresh(int(np.prod([full[d] for d in labelled]))).reshape([full[d] for d in labelled])
            self.grids.append(Grid(core, tuple(factors[d] for d in labelled), place))  # type: ignore[misc]
            shape = [full[d] if d in labelled else 1 for d in range(len(full))]
            flat = np.ascontiguousarray(np.broadcast_to(core.reshape(shape), full)).reshape(-1)
            self._factored[key] = (flat,)
            self._factored.setdefault(
                (flat.tobytes(), full), tuple(factors)
            )  # splitting it again gives these factors back
        return self._factored[key][0]


def factor_sizes(before: Sequence[int], after: Sequence[int]) -> tuple[list[list[int]], list[list[int]]] | None:
    """Refine two shapes with the same number of elements into common factors.

    Returns, for each dimension of ``before`` and of ``after``, the sizes of the factors it consists of (both lists read
    the same factors in the same order); None where the boundaries do not divide each other.
    """
    cuts = sorted({*_bounds(before), *_bounds(after)})
    for low, high in itertools.pairwise(cuts):
        if high % low:
            return None
    return _pieces(before, cuts), _pieces(after, cuts)


Factor = tuple[int, int, int, int, int]  # dimension and stride before, size, dimension and stride after


def factors_of(before: Sequence[int], after: Sequence[int]) -> list[Factor]:
    """Return the common factors of two shapes in order, with where each lies; none where there are no such."""
    if 0 in before or math.prod(before) != math.prod(after):
        return []
    pieces = factor_sizes(before, after)
    if pieces is None:
        return []
    sides = [
        [(d, math.prod(parts[i + 1 :]), size) for d, parts in enumerate(side) for i, size in enumerate(parts)]
        for side in pieces
    ]
    return [(d, stride, size, e, step) for (d, stride, size), (e, step, _) in zip(*sides, strict=True)]


def _bounds(shape: Sequence[int]) -> list[int]:
    """Suffix products: the strides at which dimensions begin and end."""
    bounds = [1]
    for size in reversed(shape):
        bounds.append(bounds[-1] * int(size))
    return bounds


def _pieces(shape: Sequence[int], cuts: list[int]) -> list[list[int]]:
    pieces: list[list[int]] = []
    low = 1
    for size in reversed(shape):
        high = low * int(size)
        inside = [cut for cut in cuts if low <= cut <= high]
        pieces.append([b // a for a, b in itertools.pairwise(inside)][::-1])
        low = high
    return pieces[::-1]
