"""Example inputs from a line of text: ``1x3x224x224``, ``1x128:int64``, or a list for a detector: ``3x480x640,``."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from fxprune.errors import InputError

DEFAULT_INPUT = "1x3x224x224"


def example_inputs(specs: Sequence[str], seed: int = 0) -> tuple[Tensor | list[Tensor], ...]:
    """Return random tensors for specifications, an image of 224 x 224 for none; integers are small ids.

    A specification with commas is one input, a list of tensors.
    """
    generator = torch.Generator().manual_seed(seed)

    def made(spec: str) -> Tensor:
        shape, dtype = parse_input(spec)
        if dtype.is_floating_point:
            return torch.randn(shape, generator=generator).to(dtype)
        return torch.randint(0, 2 if dtype is torch.bool else 8, shape, generator=generator).to(dtype)

    given = [parts_of(spec) for spec in specs or [DEFAULT_INPUT]]
    return tuple([made(part) for part in parts] if isinstance(parts, list) else made(parts) for parts in given)


def parts_of(spec: str) -> str | list[str]:
    """Return the specification of one tensor, or those of a list: commas stand between them, or behind a single one."""
    return spec.removesuffix(",").split(",") if "," in spec else spec


def parse_input(spec: str) -> tuple[list[int], torch.dtype]:
    """Return the sizes and the dtype that ``1x3x224x224[:dtype]`` names.

    Raises:
        InputError: It names none.
    """
    found = re.fullmatch(r"(\d+(?:x\d+)*)(?::(\w+))?", spec)
    if found is None:
        raise InputError(
            f"input {spec!r} is no shape; write sizes joined by x, and a dtype after a colon if it is not "
            "float32: 1x128:int64; for a list of tensors, commas between them: 3x480x640,3x640x480"
        )
    dtype = getattr(torch, found[2] or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise InputError(
            f"input {spec!r}: torch has no dtype {found[2]!r}; use float32, float16, int64, bool and the like"
        )
    return [int(size) for size in found[1].split("x")], dtype
