"""Kernels as plain arrays of taps: composing two, and giving one another number of groups.

A kernel is a float64 tensor of shape (groups, outputs per group, inputs per group, *taps); a linear layer is one
without taps. A tap reads its input ``step`` cells behind the tap before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def grouped(weight: Tensor, groups: int) -> Tensor:
    """Return a layer's weight (outputs, inputs per group, *taps) as a kernel in float64."""
    return weight.detach().double().reshape(groups, -1, *weight.shape[1:])


def flat(kernel: Tensor) -> Tensor:
    """Return a kernel as the weight of a layer: (outputs, inputs per group, *taps)."""
    return kernel.flatten(0, 1)


def regrouped(kernel: Tensor, groups: int) -> Tensor:
    """Return the same map with fewer groups, which divide those that it has: blocks on the diagonal, else zeros."""
    have, rows, columns, *taps = kernel.shape
    each = have // groups
    if each == 1:
        return kernel
    wide = kernel.new_zeros(groups, each, rows, each, columns, *taps)
    blocks = kernel.reshape(groups, each, rows, columns, *taps)
    for block in range(each):
        wide[:, block, :, block] = blocks[:, block]
    return wide.reshape(groups, each * rows, each * columns, *taps)


def composed(second: Tensor, first: Tensor, second_step: Sequence[int], first_step: Sequence[int]) -> Tensor:
    """Return the kernel of one layer behind another, both with the same number of groups.

    Args:
        second: (groups, outputs, middle, *taps).
        first: (groups, middle, inputs, *taps).
        second_step: Cells of the input of ``first`` from one tap of ``second`` to the next (its dilation times the
            stride of ``first``), in units of the common step, per dimension.
        first_step: The same for ``first``.

    Returns:
        (groups, outputs, inputs, *taps), one tap per unit of the common step.
    """
    spans = [
        (a - 1) * s + (b - 1) * t
        for a, s, b, t in zip(second.shape[3:], second_step, first.shape[3:], first_step, strict=True)
    ]
    groups, rows, columns = second.shape[0], second.shape[1], first.shape[2]
    result = first.new_zeros(groups, rows, columns, *(span + 1 for span in spans))
    flat_first = first.reshape(groups, first.shape[1], -1)
    by_tap = second.reshape(*second.shape[:3], -1).unbind(-1)
    places = itertools.product(*(range(size) for size in second.shape[3:]))
    for tap, matrix in zip(places, by_tap, strict=True):
        product = torch.bmm(matrix, flat_first).reshape(groups, rows, *first.shape[2:])
        window: tuple[Any, ...] = tuple(
            slice(at * step, at * step + (size - 1) * other + 1, other)
            for at, step, size, other in zip(tap, second_step, first.shape[3:], first_step, strict=True)
        )
        result[..., *window] += product
    return result
