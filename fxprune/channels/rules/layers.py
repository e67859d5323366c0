"""Linear layers, embeddings and experts: they end one set of channels and begin another, as convolutions do."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

from fxprune.channels.labels import Axes, Axis
from fxprune.channels.rules.convolutions import bias_axis
from fxprune.channels.rules.table import Flow, Held, argument_of, packets, rule


def _linear(flow: Flow, node: fx.Node, weight: Axes, bias: Axis | None) -> Axes:
    axes = flow.axes(node.args[0])
    flow.meet(axes[-1], weight[1], "reads an input that carries no channels")
    out = weight[0] if bias is None else flow.meet(weight[0], bias)
    return (*axes[:-1], out)


@rule(nn.Linear, held=Held.BIAS)
def linear_module(flow: Flow, node: fx.Node) -> Axes:
    """Ties the last dimension of the input to the columns of the weight; its rows, tied to the bias, go on."""
    layer: Any = flow.layer(node)
    bias = None if layer.bias is None else flow.parameter(layer.bias)[0]
    return _linear(flow, node, flow.parameter(layer.weight), bias)


@rule(*packets("linear"), held=Held.LOST)
def linear(flow: Flow, node: fx.Node) -> Axes:
    """Ties the last dimension of the input to the columns of the weight; its rows, tied to the bias, go on."""
    weight = flow.axes(node.args[1])
    if len(weight) == 1:
        flow.meet(flow.axes(node.args[0])[-1], weight[0])
        return flow.axes(node.args[0])[:-1]
    return _linear(flow, node, weight, bias_axis(flow, argument_of(node, "bias")))


@rule(*packets("bilinear"), held=Held.LOST)
def bilinear(flow: Flow, node: fx.Node) -> Axes:
    """Ties the last dimensions of both inputs to those of the weight; its rows, tied to the bias, go on."""
    one, other, weight = (flow.axes(value) for value in node.args[:3])
    flow.meet(one[-1], weight[1], "reads an input that carries no channels")
    flow.meet(other[-1], weight[2], "reads an input that carries no channels")
    bias = bias_axis(flow, argument_of(node, "bias"))
    out = weight[0] if bias is None else flow.meet(weight[0], bias)
    lead = [flow.meet(a, b) for a, b in zip(one[:-1], other[:-1], strict=True)]
    return (*lead, out)


@rule(*packets("_grouped_mm"), "transformers.grouped_mm_fallback", held=Held.LOST)
def grouped_product(flow: Flow, node: fx.Node) -> Any:
    """Rows, sorted by expert, are multiplied by the matrix of their expert: the experts stay, their widths can go."""
    rows, weight = node.args[:2]
    a, b = flow.axes(rows), flow.axes(weight)
    if len(a) != 2 or len(b) != 3:
        return flow.freeze_all(node, "a grouped product of other than rows and a stack of matrices")
    others = [value for value in flow.tensors(node) if value not in (rows, weight)]
    for axis in (a[0], b[0], *(axis for value in others for axis in flow.axes(value))):
        flow.freeze(axis, "which expert a row goes to is known only at run time")
    flow.meet(a[1], b[1])
    return (None, b[2])


@rule(*packets("_weight_norm"), held=Held.LOST)
def weight_norm(flow: Flow, node: fx.Node) -> Axes:
    """One gain per slice along one dimension; what is cut from the others adds nothing to the norms."""
    axes = list(flow.axes(node.args[0]))
    if argument_of(node, "dim") == -1:  # one norm and one gain for everything
        return tuple(axes)
    d = int(argument_of(node, "dim")) % len(axes)
    gain = flow.axes(node.args[1])
    axes[d] = flow.meet(axes[d], gain[d])
    return tuple(axes)


def _embed(flow: Flow, weight: Axes, indices: fx.Node) -> Axes:
    flow.freeze(weight[0], "its rows are looked up by id")
    return (*[None] * len(flow.shape(indices)), weight[1])


@rule(nn.Embedding, held=Held.LOST)
def embedding_module(flow: Flow, node: fx.Node) -> Axes:
    """Rows are frozen, because ids pick them; columns go on."""
    layer: Any = flow.layer(node)
    return _embed(flow, flow.parameter(layer.weight), node.args[0])  # type: ignore[arg-type]


@rule(*packets("embedding"), held=Held.LOST)
def embedding(flow: Flow, node: fx.Node) -> Axes:
    """Rows are frozen, because ids pick them; columns go on."""
    return _embed(flow, flow.axes(node.args[0]), node.args[1])  # type: ignore[arg-type]


@rule(*packets("embedding_bag"), held=Held.LOST)
def embedding_bag(flow: Flow, node: fx.Node) -> list[Axes]:
    """Rows are frozen, because ids pick them; columns go on, each summed, averaged or maximised by itself."""
    weight = flow.axes(node.args[0])
    flow.freeze(weight[0], "its rows are looked up by id")
    for value in flow.tensors(node):
        for axis in flow.axes(value) if value is not node.args[0] else ():
            flow.freeze(axis, "its values are ids, offsets or weights of rows")
    found = [flow.opaque(value) for value in node.meta["val"]]
    found[0] = (None, weight[1])
    for user in node.users:  # what was picked, and from where, is as wide as the columns in one mode of three
        if user.target is not operator.getitem or user.args[1] != 0:
            flow.freeze(weight[1], "positions in its columns are read")
    return found
