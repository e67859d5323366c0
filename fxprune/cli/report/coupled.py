"""Which layers share channels: the coupling graph as plain values for ``report.json`` and the pictures made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

if TYPE_CHECKING:
    from fxprune.channels.groups import Group, Groups


def coupled(groups: Groups, removed: Mapping[str, Mapping[int, list[int]]]) -> dict[str, list[dict[str, Any]]]:
    """Return every group with what a removal takes from it, and the groups that each layer reads and writes.

    Layers come in the order in which the graph runs them. Those without a matrix or kernel, such as norms, are left
    out: they follow the layer before them, and add no coupling of their own.
    """
    gone = groups.classes(removed)
    listed = groups.groups
    index = {place: number for number, group in enumerate(listed) for place in group.parameters}
    return {
        "coupled": [_group(groups, group, gone) for group in listed],
        "layers": [{"name": layer, **_sides(groups, layer, names, index)} for layer, names in _layers(groups).items()],
    }


def _group(groups: Groups, group: Group, gone: np.ndarray) -> dict[str, Any]:
    axes = [groups.axis(name, dim) for name, dim in group.parameters]
    classes = np.unique(np.concatenate([axis for axis in axes if axis is not None]))
    return {
        "parameters": [list(place) for place in group.parameters],
        "units": group.units,
        "removed": int(gone[classes].sum()),
        "frozen": group.frozen,
        "reason": group.reason,
    }


def _layers(groups: Groups) -> dict[str, list[str]]:
    """Return the matrices and kernels of each layer; layers by where the graph first uses one of them."""
    graph = groups.traced.module.graph
    position = {node: number for number, node in enumerate(graph.nodes)}
    first: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            first.setdefault(str(node.target), position[node])
        elif node.op == "get_attr" and node.users:
            first.setdefault(_layer_of(str(node.target)), min(position[user] for user in node.users))
    found: dict[str, list[str]] = {}
    for name, parameter in groups.traced.module.named_parameters():
        if parameter.ndim > 1:
            found.setdefault(_layer_of(name), []).append(name)
    return {layer: found[layer] for layer in sorted(found, key=lambda layer: first.get(layer, len(position)))}


def _layer_of(parameter: str) -> str:
    """Return the layer of a weight; any other matrix, such as an embedding of positions, stands for itself."""
    path, _, name = parameter.rpartition(".")
    return path if path and "weight" in name else parameter


def _sides(groups: Groups, layer: str, names: list[str], index: dict[tuple[str, int], int]) -> dict[str, list[int]]:
    module = dict(groups.traced.module.named_modules()).get(layer)
    reads, writes = ((), (0, 1, 2, 3)) if layer in names else _dimensions(module)
    return {
        side: sorted({index[name, dim] for name in names for dim in dims if (name, dim) in index})
        for side, dims in (("reads", reads), ("writes", writes))
    }


def _dimensions(module: nn.Module | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the dimensions of a weight along which a layer reads channels, and along which it writes them."""
    if isinstance(module, nn.modules.conv._ConvTransposeNd | nn.Embedding):
        return (0,), (1,)
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
        return (0, 1), (0,)  # its input channels are split among the outputs', so both sides hang on the same dimension
    return (1,), (0,)
