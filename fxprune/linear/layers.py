"""Which calls of a graph are linear layers, and whether their weights are theirs alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.graph_tools import calls_of, module_of, why_hooked

aten = torch.ops.aten

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (*CONVS, nn.Linear)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

FUNCTIONAL = {
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
    aten.linear.default,
}  # fmt: skip
COMPUTED = "its weight is computed (a parametrisation, a quantised layer) or shared with a call of another kind"


def why_not_alone(module: fx.GraphModule, node: fx.Node, uses: dict[int, list[str]]) -> str:
    """Return why the weights of a called layer cannot be replaced; empty if they can.

    Args:
        module: The graph.
        node: The call.
        uses: What :func:`fxprune.graph_tools.tensor_uses` says of the graph.
    """
    return why_shared(module, node, uses) or why_hooked(module_of(module, node))


def why_shared(module: fx.GraphModule, node: fx.Node, uses: dict[int, list[str]]) -> str:
    """Return what else than one call of a layer reads its weights; empty if nothing does.

    Args:
        module: The graph.
        node: The call.
        uses: What :func:`fxprune.graph_tools.tensor_uses` says of the graph.
    """
    layer: Any = module_of(module, node)
    times = len(calls_of(module, layer))
    if times > 1:
        return f"it is called {times} times"
    names = {f"{node.target}.{part}" for part in (*layer._parameters, *layer._buffers)}
    tensors = [tensor for tensor in (*layer._parameters.values(), *layer._buffers.values()) if tensor is not None]
    others = sorted({use for tensor in tensors for use in uses.get(id(tensor), [])} - names)
    return f"it shares its weights with {', '.join(others)}" if others else ""


def why_not_plain(layer: nn.Module) -> str:
    """Return why a convolution or linear layer is not what its class computes; empty if it is, or is neither."""
    if type(layer) not in LAYERS:
        kinds = [kind.__name__ for kind in LAYERS if isinstance(layer, kind)]
        return f"it is a {type(layer).__name__}, which may do more than {kinds[0]}" if kinds else ""
    if layer._modules:
        return "it holds other modules"
    weight = layer._parameters.get("weight")
    if not isinstance(weight, Tensor):
        return "its weight is no parameter of its own"
    if weight.is_complex() or not weight.is_floating_point():
        return f"its weight is {weight.dtype}"
    return "" if type(weight) is nn.Parameter else f"its weight is a {type(weight).__name__}"
