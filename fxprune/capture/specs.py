"""Example inputs from a line of text: ``1x3x224x224`` or ``1x128:int64``."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from fxprune.errors import InputError

DEFAULT_INPUT = "1x3x224x224"


def example_inputs(specs: Sequence[str], seed: int = 0) -> tuple[Tensor, ...]:
    """Return random tensors for specifications, an image of 224 x 224 for none; integers are small ids."""
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for spec in specs or [DEFAULT_INPUT]:
        shape, dtype = parse_input(spec)
        if dtype.is_floating_point:
            tensors.append(torch.randn(shape, generator=generator).to(dtype))
        else:
            tensors.append(torch.randint(0, 2 if dtype is torch.bool else 8, shape, generator=generator).to(dtype))
    return tuple(tensors)


def parse_input(spec: str) -> tuple[list[int], torch.dtype]:
    """Return the sizes and the dtype that ``1x3x224x224[:dtype]`` names.

    Raises:
        InputError: It names none.
    """
    found = re.fullmatch(r"(\d+(?:x\d+)*)(?::(\w+))?", spec)
    if found is None:
        raise InputError(
            f"input {spec!r} is no shape; write sizes joined by x, and a dtype after a colon if it is not "
            "float32: 1x128:int64"
        )
    dtype = getattr(torch, found[2] or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(
            f"input {spec!r}: torch has no dtype {found[2]!r}; use float32, float16, int64, bool and the like"
        )
    return [int(size) for size in found[1].split("x")], dtype
