"""Whether a graph returned what the model did, on the same inputs and in the same precision.

Of all comparisons the one in the model's own precision: the tolerance is by type, relative to the largest entry of each
output; NaN and infinities have to be at the same places; and of integers a thousandth may differ, since ties fall
another way where floats are rounded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.capture.no_graph import first_line
from fxprune.distance import differing, distance, relative, top

_TOLERANCE = {torch.float64: 1e-9, torch.complex128: 1e-9, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_SINGLE = 1e-3
"""Relative to the largest entry. Both run the same kernels, so that they hardly differ; another function does."""


def disagreement(module: fx.GraphModule, leaves: Sequence[Any], returned: Any) -> str:
    """Run a graph on inputs in flat order, and say how it differs from what the model returned, "" where it agrees.

    What it raises is told too: its operations may not take sizes that they were not captured for.
    """
    try:
        with torch.no_grad():
            found = fx.Interpreter(module).run(*leaves, enable_io_processing=False)
    except Exception as error:  # a graph raises whatever its operations raise
        return first_line(error)
    return difference(found, returned)


def difference(found: Any, expected: Any) -> str:
    """Say how two results differ, "" where they agree. How they are nested does not matter."""
    one, other = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    if len(one) != len(other):
        return f"{len(one)} values instead of {len(other)}"
    return next((said for mine, theirs in zip(one, other, strict=True) if (said := _unlike(mine, theirs))), "")


def is_random(graph: fx.Graph) -> bool:
    """Whether a graph draws random numbers."""
    tag = torch.Tag.nondeterministic_seeded
    return any(isinstance(n.target, torch._ops.OpOverload) and tag in n.target.tags for n in graph.nodes)


def _unlike(found: Any, expected: Any) -> str:
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        if isinstance(found, Tensor) or isinstance(expected, Tensor) or found != expected:
            return f"{_short(found)} instead of {_short(expected)}"
        return ""
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return f"{found.dtype} of {list(found.shape)} instead of {expected.dtype} of {list(expected.shape)}"
    if not found.is_floating_point() and not found.is_complex():
        share = differing(found, expected) / (found.numel() or 1)
        return f"{share:.1%} of the entries differ" if share > 1e-3 else ""  # ties may fall another way
    return _far(found, expected)


def _far(found: Tensor, expected: Tensor) -> str:
    gap = distance(found, expected, same_nan=True)
    if math.isinf(gap):
        return "NaN or infinity at places where the other has something else"
    error = relative(gap, top(expected))
    if error <= _TOLERANCE.get(expected.dtype, _SINGLE):
        return ""
    return f"a relative difference of {error:.1e}" if top(expected) else f"numbers up to {gap:.1e} instead of zeros"


def _short(value: Any) -> str:
    text = f"a tensor of {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
