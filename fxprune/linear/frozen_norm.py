"""Norms that are written out: a scale and a shift per channel, computed from buffers alone, as frozen batch norms do.

Buffers are not trained, so what is computed from them alone is a constant of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.graph_tools import shape_of, wide

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class FrozenNorm:
    """``value * scale + shift``, channel by channel along dimension 1.

    Attributes:
        value: What is normalised.
        product: The call that scales; nothing else reads it.
        result: The call that shifts.
        scale: One factor per channel, in float64.
        shift: One summand per channel, in float64.
    """

    value: fx.Node
    product: fx.Node
    result: fx.Node
    scale: Tensor
    shift: Tensor


def frozen_norms(module: fx.GraphModule) -> Iterator[FrozenNorm]:
    """Yield the norms that are written out, in order."""
    constant: set[fx.Node] = set()
    for node in module.graph.nodes:
        if _is_constant(module, node, constant):
            constant.add(node)
        elif node.target is aten.add.Tensor and not node.kwargs and len(node.args) == 2:
            found = _norm(module, node, constant)
            if found is not None:
                yield found


def _is_constant(module: fx.GraphModule, node: fx.Node, known: set[fx.Node]) -> bool:
    if node.op == "get_attr":
        tensor = _held(module, node)
        return isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter)
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    seeded = torch.Tag.nondeterministic_seeded in node.target.tags
    return not seeded and bool(node.all_input_nodes) and known.issuperset(node.all_input_nodes)


def _norm(module: fx.GraphModule, result: fx.Node, constant: set[fx.Node]) -> FrozenNorm | None:
    product, shift = _split(result, constant)
    if product is None or product.target is not aten.mul.Tensor or len(product.users) != 1:
        return None
    value, scale = _split(product, constant)
    shape = shape_of(value) if value is not None else None
    if value is None or shape is None or len(shape) < 2 or shape_of(result) != shape:
        return None
    vectors = [_per_channel(_compute(module, part), shape) for part in (scale, shift)]
    if vectors[0] is None or vectors[1] is None:
        return None
    return FrozenNorm(value, product, result, vectors[0], vectors[1])


def _split(node: fx.Node, constant: set[fx.Node]) -> tuple[fx.Node | None, Any]:
    """Return the operand that is computed and the one that is constant; (None, None) where there are no such."""
    for value, other in (node.args[:2], node.args[1::-1]):
        if isinstance(value, fx.Node) and value not in constant and isinstance(other, fx.Node) and other in constant:
            return value, other
    return None, None


def _per_channel(value: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    sizes = [1] * (len(shape) - value.ndim) + list(value.shape)
    if len(sizes) != len(shape) or any(size != (shape[1] if d == 1 else 1) for d, size in enumerate(sizes)):
        return None
    return value.reshape(-1)


def _compute(module: fx.GraphModule, node: Any) -> Tensor:
    """Compute a constant in float64."""
    if node.op == "get_attr":
        return wide(_held(module, node))  # type: ignore[no-any-return]
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: _compute(module, n))
    args, kwargs = pytree.tree_map(wide, (args, kwargs))
    with torch.no_grad():
        found: Tensor = node.target(*args, **kwargs)
    return found


def _held(module: fx.GraphModule, node: fx.Node) -> Any:
    owner, _, name = str(node.target).rpartition(".")
    return getattr(module.get_submodule(owner), name, None)


def drop_unread_buffers(module: fx.GraphModule, targets: set[str]) -> None:
    """Remove those of these buffers that the graph no longer reads."""
    read = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    for target in targets - read:
        owner, _, name = target.rpartition(".")
        module.get_submodule(owner)._buffers.pop(name, None)
