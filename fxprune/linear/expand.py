r"""Write one kernel as a chain of wider ones whose product it is.

Kernels are (groups, outputs, inputs, \*taps), as in :mod:`fxprune.linear.taps`; each group is a map of its own. All is
computed in float64.

**Noise.** Random numbers in what the product cannot see (the null space of the outer factors) are what makes surplus
width matter: without them, stochastic gradient descent with momentum and weight decay keeps the factors in the
smallest subspace that holds the kernel, and every width gives the same training. ``noise`` scales them; 0 leaves them
out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fxprune.linear.taps import composed


def in_two(kernel: Tensor, width: int, noise: float, generator: torch.Generator) -> list[Tensor]:
    """Return two factors of a kernel whose taps are single cells: inputs -> ``width`` -> outputs.

    With orthonormal columns in ``A`` and random ``Z``: ``B = Z + (W - Z A) A^T``, and so ``B A = W``.

    Args:
        kernel: (groups, outputs, inputs, *ones).
        width: At least the inputs.
        noise: Scale of ``Z``, whose variance is 2 / width at 1.
        generator: Source of the random numbers, on the CPU.
    """
    groups, rows, columns, *taps = kernel.shape
    first = _orthonormal(groups, width, columns, generator).to(kernel.device)
    second = _normal((groups, rows, width), noise * math.sqrt(2 / width), generator).to(kernel.device)
    second = second + (kernel.reshape(groups, rows, columns) - second @ first) @ first.mT
    return [factor.reshape(*factor.shape, *taps) for factor in (first, second)]


def in_three(kernel: Tensor, widths: tuple[int, int], noise: float, generator: torch.Generator) -> list[Tensor]:
    """Return three factors, of which the middle one has the taps: inputs -> widths[0] -> widths[1] -> outputs.

    With orthonormal columns in ``A``, orthonormal rows in ``C`` and random ``Z``, for every tap:
    ``B = Z + C^T (W - C Z A) A^T``, and so ``C B A = W``; the correction is the one of least norm.

    Args:
        kernel: (groups, outputs, inputs, *taps).
        widths: At least the inputs, and at least the outputs.
        noise: Scale of ``Z``, whose variance is 2 / (widths[0] * taps) at 1.
        generator: Source of the random numbers, on the CPU.
    """
    groups, rows, columns, *taps = kernel.shape
    wide_in, wide_out = widths
    first = _orthonormal(groups, wide_in, columns, generator).to(kernel.device)
    third = _orthonormal(groups, wide_out, rows, generator).mT.to(kernel.device)
    deviation = noise * math.sqrt(2 / (wide_in * math.prod(taps)))
    middle = _normal((groups, wide_out, wide_in, math.prod(taps)), deviation, generator).to(kernel.device)
    seen = torch.einsum("goq,gqpt,gpi->goit", third, middle, first)
    missing = kernel.reshape(groups, rows, columns, -1) - seen
    middle = middle + torch.einsum("goq,goit,gpi->gqpt", third, missing, first)
    ones = [1] * len(taps)
    return [
        first.reshape(groups, wide_in, columns, *ones),
        middle.reshape(groups, wide_out, wide_in, *taps),
        third.reshape(groups, rows, wide_out, *ones),
    ]


def stages_of(taps: Sequence[int]) -> int:
    """Return how many stacked kernels of three taps stand for these, or 0 where :func:`stacked` has no such chain."""
    return {5: 2, 7: 3}.get(taps[0], 0) if taps and len(set(taps)) == 1 else 0


def least_widths(kernel: Tensor) -> list[int]:
    """Return the smallest widths per group with which :func:`stacked` can hold any kernel of this shape."""
    inputs, taps = kernel.shape[2], kernel.shape[3:]
    return [inputs * n ** len(taps) for n in range(2, stages_of(taps) + 1)]


def stacked(kernel: Tensor, widths: Sequence[int], noise: float, generator: torch.Generator) -> list[Tensor]:
    """Return kernels of three taps in each dimension whose chain is one of five or seven.

    The first passes its input on, shifted by each of {0, 2} per dimension (a further one makes that {0, 2, 4}); the
    last holds the pieces of the kernel, three taps wide, that belong to each shift. Channels beyond these are random,
    what they add to the product is taken out of the pieces again, and a random rotation between two stages mixes all.

    Args:
        kernel: (groups, outputs, inputs, *taps).
        widths: Channels per group between the stages, at least :func:`least_widths`.
        noise: Scale of the random channels.
        generator: Source of the random numbers, on the CPU.
    """
    groups, rows, columns, *taps = kernel.shape
    dims, dtype = len(taps), kernel.dtype
    chain = [_shifts(groups, columns, dims, 1, [columns, widths[0]], noise, generator)]
    chain += [
        _shifts(groups, columns, dims, stage, list(widths[stage - 2 : stage]), noise, generator)
        for stage in range(2, len(widths) + 1)
    ]
    deviation = noise * math.sqrt(2 / (widths[-1] * 3**dims))
    last = _normal((groups, rows, widths[-1], *[3] * dims), deviation, generator)
    seen = last
    for factor in reversed(chain):
        seen = composed(seen, factor, [1] * dims, [1] * dims)
    missing = kernel.cpu() - seen
    for position, tap in enumerate(itertools.product(range(taps[0]), repeat=dims)):
        shift = tuple(min(t // 2, len(widths)) for t in tap)
        channels = _place(shift, len(widths) + 1) * columns + torch.arange(columns)
        local = tuple(t - 2 * s for t, s in zip(tap, shift, strict=True))
        where: tuple[Any, ...] = (slice(None), slice(None), channels, *local)
        last[where] += missing.flatten(3)[..., position]
    chain.append(last)
    for position, width in enumerate(widths):
        turn = _orthonormal(groups, width, width, generator)
        chain[position] = torch.einsum("gab,gb...->ga...", turn, chain[position])
        chain[position + 1] = torch.einsum("gob...,gab->goa...", chain[position + 1], turn)
    return [factor.to(kernel.device, dtype) for factor in chain]


def _shifts(
    groups: int, inputs: int, dims: int, stage: int, widths: list[int], noise: float, generator: torch.Generator
) -> Tensor:
    """Return the stage that brings every input to ``stage + 1`` shifts per dimension, two cells apart.

    Args:
        groups: Number of groups.
        inputs: Inputs of the whole chain per group.
        dims: Number of dimensions.
        stage: Counted from 1.
        widths: Channels before it and behind it.
        noise: Scale of the channels that are none of these shifts.
        generator: Source of the random numbers.
    """
    deviation = noise / math.sqrt(widths[0] * 3**dims)
    kernel = _normal((groups, widths[1], widths[0], *[3] * dims), deviation, generator)
    used = (stage + 1) ** dims * inputs
    kernel[:, :used] = 0
    each = torch.arange(inputs)
    for shift in itertools.product(range(stage + 1), repeat=dims):
        before = tuple(min(s, stage - 1) for s in shift)  # what the stage before has reached; this one adds the rest
        tap = tuple(2 * (s - b) for s, b in zip(shift, before, strict=True))
        rows, columns = _place(shift, stage + 1) * inputs + each, _place(before, stage) * inputs + each
        where: tuple[Any, ...] = (slice(None), rows, columns, *tap)
        kernel[where] = 1
    return kernel


def _place(shift: Sequence[int], base: int) -> int:
    """Return the position of a shift among all of them."""
    position = 0
    for digit in shift:
        position = position * base + digit
    return position


def _orthonormal(groups: int, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Return random matrices with orthonormal columns; there are at least as many rows."""
    gaussian = torch.randn(groups, rows, columns, generator=generator, dtype=torch.float64)
    orthonormal: Tensor = torch.linalg.qr(gaussian).Q
    return orthonormal


def _normal(shape: Sequence[int], deviation: float, generator: torch.Generator) -> Tensor:
    return deviation * torch.randn(shape, generator=generator, dtype=torch.float64)
