"""Shape-keeping layers of plain networks: a convolution with its norm and activation that gives what it takes in size.

These are the layers that "depth" means where there are no residual sums (VGG): DBP (arXiv 1912.10178, [ABS]) takes
Conv-BN-ReLU sequences as the blocks of a network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture import Traced
from fxprune.depth.branches import Branch, is_sum, sums_of
from fxprune.depth.flow import Flow, sole_reader
from fxprune.graph_tools import module_of, place_of, shape_of
from fxprune.report import Skip

aten = torch.ops.aten

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)
_ACTIVATIONS = (nn.PReLU, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
ELEMENTWISE = frozenset(
    (
        aten.relu, aten.relu6, aten.hardtanh, aten.leaky_relu, aten.elu, aten.selu, aten.celu, aten.silu, aten.gelu,
        aten.mish, aten.hardswish, aten.hardsigmoid, aten.softplus, aten.sigmoid, aten.tanh, aten.clamp, aten.dropout,
        aten.alias, aten.clone, aten.detach,
    )
)  # fmt: skip
"""Operations that take one value and give one of its size, place by place."""


@dataclass(frozen=True)
class Sequence:
    """A convolution with what follows it; the value in front of it can stand for its output."""

    source: fx.Node
    output: fx.Node
    nodes: tuple[fx.Node, ...]


def find_sequences(traced: Traced, flow: Flow, branches: list[Branch]) -> tuple[list[Sequence], list[Skip]]:
    """Return the sequences, in order, and the convolutions beside them that are none, with the reason."""
    found: list[Sequence] = []
    refused: list[Skip] = []
    beside = _beside(flow, branches)
    for node in flow.nodes:
        if node.op != "call_module" or type(module_of(traced.module, node)) not in _CONVS:
            continue
        nodes = _run_from(traced, node)
        why = _why_not(traced, node, nodes[-1])
        if not why and node in beside:
            why = f"another way leads around it into {place_of(beside[node])}"
        if why:
            refused.append(Skip(place_of(node), why))
        else:
            found.append(Sequence(node.args[0], nodes[-1], tuple(nodes)))  # type: ignore[arg-type]
    return found, refused


def _run_from(traced: Traced, node: fx.Node) -> list[fx.Node]:
    """Return a convolution with at most one norm, and the activation, that read nothing else."""
    nodes, normed = [node], False
    while (reader := sole_reader(nodes[-1])) is not None:
        layer = module_of(traced.module, reader) if reader.op == "call_module" else None
        is_norm = type(layer) in _NORMS
        follows = (
            is_norm or type(layer) in _ACTIVATIONS or getattr(reader.target, "overloadpacket", None) in ELEMENTWISE
        )
        if not follows or (is_norm and normed) or reader.args[0] is not nodes[-1]:
            break
        nodes.append(reader)
        normed |= is_norm
    return nodes


def _why_not(traced: Traced, node: fx.Node, last: fx.Node) -> str:
    """Return why a convolution does not keep its input's shape at every size of image; "" where it does."""
    layer: Any = module_of(traced.module, node)
    source = node.args[0]
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor):
        return "its input is no tensor"
    if layer.groups == layer.in_channels > 1:
        return "it is depthwise: half of a layer, which mixes no channels"
    if layer.in_channels != layer.out_channels:
        return f"it changes the channels from {layer.in_channels} to {layer.out_channels}"
    if any(stride != 1 for stride in layer.stride):
        return f"it has stride {'x'.join(map(str, layer.stride))}"
    pads = layer.padding
    same = pads == "same" or (
        not isinstance(pads, str)
        and all(2 * p == d * (k - 1) for p, d, k in zip(pads, layer.dilation, layer.kernel_size, strict=True))
    )
    if not same or shape_of(source) != shape_of(last):
        return "its padding does not keep the size of its input"
    if source.meta["val"].dtype != last.meta["val"].dtype:
        return f"its input is {source.meta['val'].dtype} and its output {last.meta['val'].dtype}"
    return ""


def _beside(flow: Flow, branches: list[Branch]) -> dict[fx.Node, fx.Node]:
    """Return what has another way beside it: node -> where the ways meet.

    A way around a part of the network (a U-Net's skip, a sum around many branches, the input added to the output) is
    none around a layer.
    """
    tops = dict(sums_of(flow))
    branching = {branch.sum for branch in branches}
    found: dict[fx.Node, fx.Node] = {}
    for node in flow.nodes:
        sources = tops.get(node) or dict.fromkeys(flow.reads(node))
        entry = flow.entry(node)
        if entry is None or sum(entry is source or flow.depends(source, entry) for source in sources) < 2:
            continue
        inside = flow.between(entry, node)
        around = len(branching.intersection(inside)) > 1 or _is_part(flow, entry, node, inside)
        if around and entry in sources and not branching & set(_additions(tops, node)):
            continue
        for inner in inside:
            found.setdefault(inner, node)
    return found


def _additions(tops: dict[fx.Node, dict[fx.Node, fx.Node]], node: fx.Node) -> list[fx.Node]:
    return list(tops[node].values()) if node in tops else []


def _is_part(flow: Flow, entry: fx.Node, end: fx.Node, inside: list[fx.Node]) -> bool:
    """Whether what lies between a value and where it is read again is a part of the network, not a layer."""
    if entry.op == "placeholder" and is_sum(end):
        return True
    size = _space(entry)
    return any(1 < max(_space(node), default=0) < max(size, default=0) for node in inside)


def _space(node: fx.Node) -> tuple[int, ...]:
    shape = shape_of(node)
    return shape[2:] if shape is not None and len(shape) > 3 else ()
