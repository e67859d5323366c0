"""The exact cost of every possible removal: products over kept axis sizes, evaluated without touching the graph."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fxprune.capture import Traced
from fxprune.channels import Groups
from fxprune.planning.cost import Cost, named_state, products
from fxprune.planning.cost_rules import Size

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Labels = Ints | None


@dataclass(frozen=True)
class Polynomial:
    """A sum of products: ``sum(coefficient * prod(sizes[factors]))``, padded with axis 0, whose size is always 1.

    Sizes are rounded up to a multiple of ``step``, as by kernels that work in blocks of channels. There are ``axes`` of
    them.
    """

    coefficient: NDArray[np.float64]
    factors: Ints
    labels: tuple[str, ...]
    axes: int
    step: int = 1

    def terms(self, sizes: Ints) -> NDArray[np.float64]:
        """Return the value of every product."""
        return np.asarray(self.coefficient * self._blocked(sizes)[self.factors].prod(axis=1))

    def at(self, sizes: Ints) -> float:
        """Return the sum for the given axis sizes."""
        return float(np.dot(self.coefficient, self._blocked(sizes)[self.factors].prod(axis=1)))

    def part(self, sizes: Ints, rows: Ints) -> float:
        """Return the sum of some of the products only."""
        factors = self.factors[rows]
        taken = np.where(factors == 0, 1, -(-sizes[factors] // self.step) * self.step)
        return float(np.dot(self.coefficient[rows], taken.prod(axis=1)))

    def rows_of(self, axes: Ints) -> Ints:
        """Return the products that some of these axes are factors of."""
        start, rows = self._rows
        return np.unique(np.concatenate([rows[start[axis] : start[axis + 1]] for axis in axes.tolist()]))

    @functools.cached_property
    def _rows(self) -> tuple[Ints, Ints]:
        """The products of each axis, one axis after the other, and where each axis begins."""
        flat = self.factors.reshape(-1)
        order = np.argsort(flat, kind="stable")
        start = np.searchsorted(flat[order], np.arange(self.axes + 1))
        return start, order // self.factors.shape[1]

    def _blocked(self, sizes: Ints) -> Ints:
        if self.step == 1:
            return sizes
        blocked = -(-sizes // self.step) * self.step
        blocked[0] = 1
        return blocked


@dataclass(frozen=True)
class CostModel:
    """How many indices of each axis each class takes, and what is multiplied.

    ``entry_class``, ``entry_axis`` and ``entry_count`` are the non-zero elements of the classes x axes count matrix,
    ordered by class. Axes with the same labels are one axis. ``weight_axes`` are those of parameters with two
    dimensions or more.
    """

    full: Ints
    entry_class: Ints
    entry_axis: Ints
    entry_count: Ints
    weight_axes: Bools
    metrics: dict[str, Polynomial]

    def sizes(self, removed: Bools) -> Ints:
        """Return what is left of every axis when the classes marked in ``removed`` go."""
        gone = removed[self.entry_class]
        lost = np.bincount(self.entry_axis[gone], weights=self.entry_count[gone], minlength=len(self.full))
        return self.full - lost.astype(np.int64)

    def cost(self, sizes: Ints) -> Cost:
        """Return the cost of a model with these axis sizes."""
        values = {name: round(self.metrics[name].at(sizes)) for name in ("params", "macs", "bytes")}
        return Cost(**values)

    def narrowest(self, classes: int) -> Ints:
        """Return for each class the fewest indices that it takes on a weight axis, 1 where it is on none."""
        least = np.full(classes, np.iinfo(np.int64).max)
        on_weight = self.weight_axes[self.entry_axis]
        np.minimum.at(least, self.entry_class[on_weight], self.entry_count[on_weight])
        return np.where(least == np.iinfo(np.int64).max, 1, least)


class Builder:
    """Collects axes and products, and sorts them into arrays."""

    def __init__(self) -> None:
        self._axes: list[Ints] = [np.empty(0, np.int64)]
        self._ids: dict[bytes, int] = {}
        self._weights: set[int] = set()
        self._terms: dict[str, list[tuple[float, list[int], str]]] = {}
        self.steps: dict[str, int] = {}

    def axis(self, labels: Ints, weight: bool = False) -> int:
        """Return the number of an axis, the same one for the same labels."""
        labels = np.ascontiguousarray(labels, np.int64)
        key = labels.tobytes()
        if key not in self._ids:
            self._ids[key] = len(self._axes)
            self._axes.append(labels)
        if weight:
            self._weights.add(self._ids[key])
        return self._ids[key]

    def add(self, metric: str, coefficient: float, factors: Iterable[int | Labels], label: str = "") -> None:
        """Add one product: plain numbers are multiplied into the coefficient, labelled axes stay factors."""
        axes = []
        for factor in factors:
            if isinstance(factor, np.ndarray):
                axes.append(self.axis(factor))
            elif factor is not None:
                coefficient *= factor
        self._terms.setdefault(metric, []).append((coefficient, axes, label))

    def build(self) -> CostModel:
        """Return the finished model."""
        number = np.repeat(np.arange(len(self._axes)), [len(labels) for labels in self._axes])
        labels = np.concatenate(self._axes)
        pairs, counts = np.unique(labels * len(self._axes) + number, return_counts=True)
        full = np.array([len(axis) for axis in self._axes], np.int64)
        full[0] = 1
        weight = np.zeros(len(full), bool)
        weight[list(self._weights)] = True
        metrics = {name: _polynomial(terms, len(full), self.steps.get(name, 1)) for name, terms in self._terms.items()}
        return CostModel(full, pairs // len(full), pairs % len(full), counts.astype(np.int64), weight, metrics)


def _polynomial(terms: list[tuple[float, list[int], str]], axes: int, step: int) -> Polynomial:
    width = max((len(mine) for _, mine, _ in terms), default=0)
    factors = np.zeros((len(terms), max(width, 1)), np.int64)
    for row, (_, mine, _) in enumerate(terms):
        factors[row, : len(mine)] = mine
    coefficient = np.array([term[0] for term in terms], np.float64)
    return Polynomial(coefficient, factors, tuple(term[2] for term in terms), axes, step)


def start_cost_model(traced: Traced, groups: Groups, units: Ints) -> Builder:
    """Return the builder of a graph's cost model, with every metric that can be counted.

    Args:
        traced: the graph.
        groups: its channel groups.
        units: class ids that the ``channels`` metric counts, one each however many indices they have.
    """
    builder = Builder()
    axes = axes_of(groups)
    for name, tensor in named_state(traced.module):
        labels: list[Labels] = [axes.get((name, dim)) for dim in range(tensor.dim())]
        factors = [size if axis is None else axis for axis, size in zip(labels, tensor.shape, strict=True)]
        if isinstance(tensor, nn.Parameter):
            for axis in labels:
                if axis is not None and tensor.dim() > 1:
                    builder.axis(axis, weight=True)
            builder.add("params", 1.0, factors, name)
        builder.add("bytes", float(tensor.element_size()), factors, name)
    for product in products(traced):
        builder.add("macs", product.share, [labels_of(size, groups, axes) for size in product.sizes], product.node.name)
    builder.add("channels", 1.0, [np.sort(units)], "")
    for metric in ("params", "bytes", "macs"):
        builder.add(metric, 0.0, [])  # a model without parameters or products still has all metrics
    return builder


def build_cost_model(traced: Traced, groups: Groups, units: Ints) -> CostModel:
    """Return the cost model of a graph, with every metric that can be counted (see ``start_cost_model``)."""
    return start_cost_model(traced, groups, units).build()


def axes_of(groups: Groups) -> dict[tuple[str, int], Labels]:
    """Return the labels of every labelled dimension of every parameter and buffer."""
    return {(name, dim): groups.axis(name, dim) for name, dim in groups.parameters}


def labels_of(size: Size, groups: Groups, axes: Mapping[tuple[str, int], Labels]) -> int | Ints:
    """Return the labels of one factor of a product, or its plain size where it has none."""
    labels = None
    if size.node is not None:
        found = groups.of(size.node)
        labels = None if found is None else found[size.dim]
    elif size.parameter:
        labels = axes.get((size.parameter, size.dim))
    return size.size if labels is None else labels
