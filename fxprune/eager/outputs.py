"""How far the outputs of a model's own code are from what they have to be, whatever kind of thing they are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.distance import distance, relative, top

_SMALL = 1e-3
"""An output is compared with its own largest value, but with no less than this part of the largest of all."""


def leaves_of(value: Any, seen: tuple[int, ...] = ()) -> Iterator[Any]:
    """Give all that an output is made of, also what plain objects hold, such as boxes in a class of their own."""
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor) or not hasattr(leaf, "__dict__") or isinstance(leaf, (nn.Module, type)):
            yield leaf
        elif id(leaf) not in seen:
            yield from leaves_of(list(vars(leaf).values()), (*seen, id(leaf)))


def difference(found: list[Any], expected: list[Any]) -> float:
    """Return the largest relative difference of outputs one by one; infinite for another shape, number or kind.

    Floats, also those of Python, are relative to the largest value of their output, but to no less than a thousandth of
    the largest of all outputs. Everything else has to be equal: detections may come in any number, and a box more or
    less is a difference.
    """
    if len(found) != len(expected):
        return math.inf
    tops = [top(leaf) for leaf in expected if is_float(leaf)]
    least = _SMALL * max(tops, default=0.0)
    return max((_of_leaf(a, b, least) for a, b in zip(found, expected, strict=True)), default=0.0)


def is_float(leaf: Any) -> bool:
    """Whether it is a tensor of numbers that may differ a little."""
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def _of_leaf(found: Any, expected: Any, least: float) -> float:
    if isinstance(expected, float) and isinstance(found, float):
        found, expected = (torch.tensor(value, dtype=torch.float64) for value in (found, expected))
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return 0.0 if type(found) is type(expected) and _equal(found, expected) else math.inf
    return relative(distance(found, expected), max(top(expected), least) or 1.0)


def _equal(found: Any, expected: Any) -> bool:
    """Compare what is no tensor; objects that say nothing about themselves, such as functions, count as equal."""
    told = isinstance(expected, (int, str, bytes, complex)) or expected is None
    return not told or bool(found == expected)
