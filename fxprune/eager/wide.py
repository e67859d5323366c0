"""A model's own code in float64: casts that are written into it are widened, as those of a graph are."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.graph_tools import wide

_KEPT = (torch.ops.aten.view.dtype,)
"""What reads the bits of a number."""


class Widened(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs all operations in float64, as :class:`fxprune.runner.Runner` does those of a graph.

    A module in float64 is not enough: ``x.to(torch.float32)``, as the root mean square norms of Hugging Face have it,
    rounds, and constants of float32 make the result one. So every dtype that an operation is given is the wider one,
    and so are the tensors that it reads and makes. What it writes into stays the same tensor, and a view stays a view.
    """

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call an operation on wide inputs."""
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload) or func in _KEPT:
            return func(*args, **kwargs)
        if func.is_view and func is not torch.ops.aten.lift_fresh.default:
            return func(*args, **kwargs)
        written = {argument.name for argument in func._schema.arguments if _is_written(argument)}
        names = [argument.name for argument in func._schema.arguments]
        given = [
            value if name in written else pytree.tree_map(wide, value) for name, value in zip(names, args, strict=False)
        ]
        named = {name: value if name in written else pytree.tree_map(wide, value) for name, value in kwargs.items()}
        found = func(*given, **named)
        return found if written else pytree.tree_map(wide, found)


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and bool(argument.alias_info.is_write)
