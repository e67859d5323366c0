"""Minimum widths: what has to be left for an operation to have a result at all.

A slice of the channels may lose all of them without any parameter shrinking to nothing. A mean, a maximum or a softmax
of nothing is no number, a variance of one value is none either, and pooling refuses an image without channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from fxprune.channels.labels import Axis
from fxprune.channels.rules import Flow, key_of
from fxprune.channels.rules.statistics import SPACE, spread_correction, statistic_dims

aten = torch.ops.aten
_INSTANCE_NORMS = {aten.instance_norm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d}
_NEVER_EMPTY = {*SPACE, aten.im2col}
_INFERS = {aten.view, aten.reshape, aten._unsafe_view, aten.unflatten}  # a size of -1 cannot be told from no elements


@dataclass(frozen=True)
class Minimum:
    """How many values of what an operation reads have to stay.

    Attributes:
        axes: Class ids along each dimension that counts.
        rest: How many values there are for each combination of their indices.
        least: How many values have to stay in all.
        place: What reads them and where, in words.
    """

    axes: tuple[Axis, ...]
    rest: int
    least: int
    place: str

    def left(self, stays: npt.NDArray[np.bool_]) -> int:
        """Return how many values are left where these classes stay (a bool per class)."""
        return self.rest * math.prod(int(stays[axis].sum()) for axis in self.axes)


def find_minimums(flow: Flow, of: Axis, live: npt.NDArray[np.bool_]) -> list[Minimum]:
    """Return the minimum widths of a graph that some removal could fall below, each once.

    Args:
        flow: The labels of every value.
        of: The class of every label.
        live: Which classes can be removed.
    """
    found: dict[Any, Minimum] = {}
    for node in flow.module.graph.nodes:
        for axes, rest, least in _needs(flow, node):
            classes = tuple(of[axis] for axis in axes)
            if classes and any(live[axis].any() for axis in classes):
                key = (tuple(axis.tobytes() for axis in classes), rest, least)
                place = f"{node.target} at {node.name}, {flow.sources[node.name]}".rstrip(", ")
                found.setdefault(key, Minimum(classes, rest, least, place))
    return list(found.values())


def _needs(flow: Flow, node: fx.Node) -> Iterator[tuple[list[Axis], int, int]]:
    """Yield what a node needs: labels that count, values for each combination of them, and the least number."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor):
        return
    axes, sizes = flow.axes(source), flow.shape(source)
    if _refuses_emptiness(node):
        yield from (([axis], 1, 1) for axis in axes if axis is not None)
        return
    dims = statistic_dims(node, flow.module)
    least = 1 + spread_correction(node)
    if key_of(node, flow.module) in _INSTANCE_NORMS:
        least = 2  # the layer refuses to normalise one value
    if dims and math.prod(sizes[d] for d in dims) >= least:
        rest = math.prod(sizes[d] for d in dims if axes[d] is None)
        yield [axis for d in sorted(dims) if (axis := axes[d]) is not None], rest, least


def _refuses_emptiness(node: fx.Node) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    if packet not in _INFERS:
        return packet in _NEVER_EMPTY
    sizes = node.args[-1]
    return isinstance(sizes, (list, tuple)) and any(isinstance(size, int) and size == -1 for size in sizes)
