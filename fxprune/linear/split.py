r"""A layer whose pruned weights hold a mean, as a sparse layer and a box sum: the same function without filling in.

With the pruned entries ``P`` of a filter ``w`` holding ``c``, and the kept entries ``m`` (section 2.4 [DER])::

    conv(x, w) = conv(x, (w - c) * m) + c * box(sum of the channels of x)

where ``box`` is a convolution of ones that moves as the layer does, on one channel per group. A layer at path ``X``
becomes ``X.sparse``, which has the bias too, ``X.box`` (absent where every cell is read for itself) and ``X.fill``
(single taps: the ``c`` of each filter), and ``X.sum`` where several groups have several channels each. All are plain
nodes. It is exact at borders, and for every stride, padding, dilation and padding mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import InputError
from fxprune.graph_tools import assign
from fxprune.linear.sparsity import fills_of

SPLIT = "fxprune.split"
"""Key in a graph module's ``meta``: paths of the layers that were split."""

PARTS = ("sparse", "sum", "box", "fill")
"""Names of the layers that take the place of one, those of which there is need."""


def split_paths(module: fx.GraphModule) -> tuple[str, ...]:
    """Return the paths of the layers that were split and still are."""
    called = {str(node.target) for node in module.graph.find_nodes(op="call_module")}
    return tuple(path for path in module.meta.get(SPLIT, ()) if {f"{path}.sparse", f"{path}.fill"} <= called)


def why_split(module: fx.GraphModule, path: str) -> str:
    """Return what a part of a layer that was split stands for, as a reason to leave it; empty for other layers.

    Its parts are no layers of their own: the zeros of the sparse one are to stay, and the ones of the sums as well.
    """
    owner, _, part = path.rpartition(".")
    if owner not in module.meta.get(SPLIT, ()) or part not in PARTS:
        return ""
    return f"it is part of {owner}, which PruneWeights wrote as a sparse layer and a box sum; do this before"


def whole_weight(module: fx.GraphModule, path: str) -> Tensor:
    """Return the weight of a layer, in float64; of a split one the weight that the layer would have."""
    if path not in split_paths(module):
        return module.get_parameter(f"{path}.weight").detach().double()
    sparse = module.get_parameter(f"{path}.sparse.weight").detach().double()
    fill = module.get_parameter(f"{path}.fill.weight").detach().double()
    return sparse + fill.reshape(-1, *[1] * (sparse.ndim - 1))


def set_whole_weight(module: fx.GraphModule, path: str, weight: Tensor, pruned: Tensor) -> None:
    """Give a layer a weight, split or not.

    Raises:
        InputError: The layer is split, and pruned entries of a filter hold several values.
    """
    if path not in split_paths(module):
        assign(module.get_submodule(path), "weight", weight)
        return
    fills = fills_of(weight, pruned)
    if fills is None:
        raise InputError(
            f"{path} was split by an earlier pruning, and holds one value per filter for all that is pruned; use a "
            "fill that is one value per filter, or exclude it"
        )
    fill = module.get_submodule(f"{path}.fill")
    assign(module.get_submodule(f"{path}.sparse"), "weight", difference(weight, pruned, fills))
    assign(fill, "weight", fills.reshape(fill.weight.shape))  # type: ignore[arg-type]


def difference(weight: Tensor, pruned: Tensor, fills: Tensor) -> Tensor:
    """Return what is kept of a weight, less the value that the pruned entries of its filter hold; else zeros."""
    column = fills.reshape(-1, *[1] * (weight.ndim - 1))
    return torch.where(pruned, torch.zeros_like(weight), weight - column)


def split(module: fx.GraphModule, node: fx.Node, pruned: Tensor, fills: Tensor) -> None:
    """Write a layer as its sparse difference and a box sum.

    Args:
        module: The graph; it is changed.
        node: The only call of an ``nn.Conv`` or ``nn.Linear``.
        pruned: The pruned entries of its weight, as booleans.
        fills: (filters,) what these hold.
    """
    path, layer = str(node.target), module.get_submodule(str(node.target))
    parts = _parts(layer, pruned, fills)
    container = nn.Module().train(layer.training)
    container._modules = dict(parts)
    parent, _, name = path.rpartition(".")
    module.get_submodule(parent)._modules[name] = container
    with module.graph.inserting_before(node):
        sparse = module.graph.call_module(f"{path}.sparse", node.args)
        value = node.args[0]
        if "sum" not in parts and _reads_several(layer):
            channels = -1 - len(getattr(layer, "kernel_size", ()))
            value = module.graph.call_function(torch.ops.aten.sum.dim_IntList, (value, [channels], True))
            value.meta = dict(node.meta)
        for part in PARTS[1:]:
            if part in parts:
                value = module.graph.call_module(f"{path}.{part}", (value,))
                value.meta = dict(node.meta)
        total = module.graph.call_function(torch.ops.aten.add.Tensor, (sparse, value))
    sparse.meta, total.meta = dict(node.meta), dict(node.meta)
    node.replace_all_uses_with(total)
    module.graph.erase_node(node)
    module.meta[SPLIT] = (*module.meta.get(SPLIT, ()), path)


def _parts(layer: Any, pruned: Tensor, fills: Tensor) -> dict[str, Any]:
    """Return the layers that take the place of one, in float64, by their names."""
    weight = layer.weight.detach().double()
    sparse = difference(weight, pruned, fills.double())
    trainable = layer.weight.requires_grad
    if isinstance(layer, nn.Linear):
        outputs, inputs = weight.shape
        parts: dict[str, Any] = {"sparse": nn.Linear(inputs, outputs, bias=layer.bias is not None, device="meta")}
        parts["fill"] = nn.Linear(1, outputs, bias=False, device="meta")
    else:
        parts = _conv_parts(layer)
    parts["sparse"].weight = nn.Parameter(sparse, requires_grad=trainable)
    if layer.bias is not None:
        parts["sparse"].bias = layer.bias
    for name, part in parts.items():
        if name == "fill":
            part.weight = nn.Parameter(fills.double().reshape(part.weight.shape), requires_grad=trainable)
        elif name != "sparse":  # sums: ones that nobody trains
            part.weight = nn.Parameter(
                torch.ones(part.weight.shape, device=weight.device).double(), requires_grad=False
            )
        part.train(layer.training)
    return parts


def _conv_parts(layer: Any) -> dict[str, Any]:
    kind, groups, outputs = type(layer), layer.groups, layer.out_channels
    moves = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    moves |= {"padding_mode": layer.padding_mode}
    options: dict[str, Any] = {"groups": groups, "bias": False, "device": "meta"}
    parts = {
        "sparse": kind(
            layer.in_channels, outputs, layer.kernel_size, **{**options, "bias": layer.bias is not None}, **moves
        )
    }
    if groups > 1 and _reads_several(layer):
        parts["sum"] = kind(layer.in_channels, groups, 1, **options)
    padding = () if isinstance(layer.padding, str) else layer.padding
    if any(size != 1 for size in (*layer.kernel_size, *layer.stride)) or any(padding):
        parts["box"] = kind(groups, groups, layer.kernel_size, **options, **moves)
    parts["fill"] = kind(groups, outputs, 1, **options)
    return parts


def _reads_several(layer: Any) -> bool:
    """Whether a filter reads more than one channel."""
    return int(layer.weight.shape[1]) > 1
