"""Random inputs for a loaded model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fxprune.deploy.runtimes.base import Array, TensorSpec
from fxprune.errors import InputError


def random_feeds(
    inputs: Sequence[TensorSpec], *, batch: int = 1, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Return random inputs.

    Floats are standard normal; integers come out of {0, 1}, which are valid ids and masks nearly everywhere.

    Args:
        inputs: :attr:`Session.inputs` of a loaded model.
        batch: Size of dimension 0 where it is dynamic.
        seed: Seed of the random numbers.
        sizes: Sizes of other dynamic dimensions, by name.

    Raises:
        InputError: A dynamic dimension has no size.
    """
    generator = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for spec in inputs:
        shape = [_size(spec.name, d, size, batch, sizes or {}) for d, size in enumerate(spec.shape)]
        if np.issubdtype(spec.dtype, np.floating):
            feeds[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
        else:
            feeds[spec.name] = generator.integers(0, 2, shape).astype(spec.dtype)
    return feeds


def _size(name: str, dimension: int, size: int | str, batch: int, sizes: Mapping[str, int]) -> int:
    if isinstance(size, int):
        return size
    if size in sizes:
        return sizes[size]
    if dimension == 0:
        return batch
    raise InputError(f"dimension {dimension} of input {name} is dynamic ({size}) and has no size: give one as {size}=N")
