"""Layers with weights: they end one set of channels and begin another."""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.channels.labels import Axes, Axis
from fxprune.channels.rules.same import broadcast
from fxprune.channels.rules.table import Flow, Held, argument_of, packets, rule

aten = torch.ops.aten


def _convolve(flow: Flow, node: fx.Node, weight: Axes, bias: Axis | None, groups: Any, shape: tuple[int, ...]) -> Axes:
    """Plain and grouped convolution, which share one group factor between input and output.

    The input is a grid of (group, input of the group), the output one of (group, output of the group).
    """
    source = node.args[0]
    axes = flow.axes(source)
    channel = len(axes) - len(shape) + 1  # an unbatched input has no dimension before its channels
    for axis in axes[channel + 1 :]:
        flow.freeze(axis, "a space dimension")
    for axis in weight[2:]:
        flow.freeze(axis, "kernel taps")
    out = weight[0]
    if isinstance(groups, fx.Node):
        return flow.freeze_all(node, "the number of groups is known only at run time")  # type: ignore[no-any-return]
    if groups == 1:
        flow.meet(axes[channel], weight[1], "reads an input that carries no channels")
    elif out is None:
        flow.freeze(axes[channel], "the groups of this convolution have no output channels to go with")
        flow.freeze(weight[1], "the groups of this convolution have no output channels to go with")
    else:
        entering = axes[channel]
        inputs = (None, None) if entering is None else flow.labels.split(entering, (groups, shape[1]), flow.place)
        row, _ = flow.labels.split(out, (groups, shape[0] // groups), flow.place)
        flow.groups[node] = flow.meet(
            row, inputs[0], "the groups of this convolution cannot be told apart in its input"
        )
        if shape[1] > 1:
            flow.meet(inputs[1], weight[1], "the inputs of each group cannot be told apart")
    if bias is not None:
        out = flow.meet(out, bias)
    return (*axes[:channel], out, *[None] * (len(shape) - 2))


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, held=Held.BIAS)
def conv_module(flow: Flow, node: fx.Node) -> Axes:
    """Ends the input's channels at dimension 1 of the weight and begins those of dimension 0 (see ``_convolve``)."""
    layer: Any = flow.layer(node)
    weight = flow.parameter(layer.weight, 2)
    bias = None if layer.bias is None else flow.parameter(layer.bias)[0]
    return _convolve(flow, node, weight, bias, layer.groups, tuple(layer.weight.shape))


def _bias(flow: Flow, value: Any) -> Axis | None:
    return flow.axes(value)[0] if isinstance(value, fx.Node) else None


@rule(*packets("conv1d", "conv2d", "conv3d"), held=Held.LOST)
def conv(flow: Flow, node: fx.Node) -> Axes:
    """Ends the input's channels at dimension 1 of the weight and begins those of dimension 0 (see ``_convolve``)."""
    weight = node.args[1]
    bias = _bias(flow, argument_of(node, "bias"))
    return _convolve(flow, node, flow.axes(weight), bias, argument_of(node, "groups"), flow.shape(weight))


def _transposed(
    flow: Flow, node: fx.Node, weight: Axes, bias: Axis | None, groups: Any, shape: tuple[int, ...]
) -> Axes:
    axes = flow.axes(node.args[0])
    channel = len(axes) - len(shape) + 1
    for axis in (*axes[channel + 1 :], *weight[2:]):
        flow.freeze(axis, "a space dimension")
    flow.meet(axes[channel], weight[0], "reads an input that carries no channels")
    out = weight[1]
    if isinstance(groups, fx.Node):
        return flow.freeze_all(node, "the number of groups is known only at run time")  # type: ignore[no-any-return]
    if groups > 1 and weight[0] is not None:
        row, _ = flow.labels.split(weight[0], (groups, shape[0] // groups), flow.place)
        flow.groups[node] = row
        out = flow.labels.merge((row, weight[1]), (groups, shape[1]), flow.place)
    if bias is not None:
        out = flow.meet(out, bias)
    return (*axes[:channel], out, *[None] * (len(shape) - 2))


@rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, held=Held.BIAS)
def transposed_module(flow: Flow, node: fx.Node) -> Axes:
    """Ends the input's channels at dimension 0 of the weight; each group begins those of dimension 1."""
    layer: Any = flow.layer(node)
    bias = None if layer.bias is None else flow.parameter(layer.bias)[0]
    return _transposed(flow, node, flow.parameter(layer.weight, 2), bias, layer.groups, tuple(layer.weight.shape))


@rule(*packets("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), held=Held.LOST)
def transposed(flow: Flow, node: fx.Node) -> Axes:
    """Ends the input's channels at dimension 0 of the weight; each group begins those of dimension 1."""
    weight = node.args[1]
    bias = _bias(flow, argument_of(node, "bias"))
    return _transposed(flow, node, flow.axes(weight), bias, argument_of(node, "groups"), flow.shape(weight))


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
    return _linear(flow, node, weight, _bias(flow, argument_of(node, "bias")))


@rule(*packets("_weight_norm"), held=Held.LOST)
def weight_norm(flow: Flow, node: fx.Node) -> Axes:
    """One gain per slice along one dimension; what is cut from the others adds nothing to the norms."""
    axes = list(flow.axes(node.args[0]))
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


@rule(nn.LSTM, nn.GRU, nn.RNN, held=Held.LOST)
def recurrent(flow: Flow, node: fx.Node) -> Any:
    """Hidden units repeat once per gate along the rows of every weight; layers read what the layer below gives."""
    layer: Any = flow.layer(node)
    source, state = node.args[0], node.args[1] if len(node.args) > 1 else None
    gates = {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
    axes = flow.axes(source)
    feed, directions = axes[-1], 2 if layer.bidirectional else 1
    outs: list[Axis] = []
    for depth in range(layer.num_layers):
        outs = [_cell(flow, layer, f"_l{depth}{'_reverse' if k else ''}", gates, feed) for k in range(directions)]
        feed = np.concatenate(outs)
        _meet_state(flow, state, outs)
    return [(*axes[:-1], feed), _final_state(node, outs[0], layer)]


def _final_state(node: fx.Node, out: Axis, layer: Any) -> Any:
    """The final state of every layer and direction is as wide as the hidden units, which all shrink in step."""
    value = node.meta["val"][1]
    units = out if not layer.proj_size else None  # with a projection the cell state is wider than what the layer gives
    if isinstance(value, Tensor):
        return (*[None] * (value.ndim - 1), out)
    lead = [None] * (value[0].ndim - 1)
    return [(*lead, out), (*lead, units)]


def _cell(flow: Flow, layer: Any, suffix: str, gates: int, feed: Axis | None) -> Axis:
    def weight(name: str) -> Axes | None:
        tensor = getattr(layer, name + suffix, None)
        return flow.parameter(tensor) if isinstance(tensor, Tensor) else None

    inputs, hidden, projection = weight("weight_ih"), weight("weight_hh"), weight("weight_hr")
    assert inputs is not None
    assert hidden is not None
    units = flow.labels.fresh(layer.hidden_size)
    rows = np.tile(units, gates)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        found = weight(name)
        if found is not None:
            assert found[0] is not None
            flow.labels.tie(rows, found[0])
    flow.meet(feed, inputs[1], "reads an input that carries no channels")
    result = units
    if projection is not None:
        flow.freeze(units, "a projected cell keeps its units; its projection can be cut")
        flow.meet(projection[1], units)
        result = projection[0] if projection[0] is not None else units
    flow.meet(hidden[1], result)
    if layer.num_layers > 1 or layer.bidirectional:
        # All layers and directions of one module share one hidden size, so their units can only shrink in step.
        flow.labels.tie(result, flow.labels.shared_units(id(layer), result))
    return result


def _meet_state(flow: Flow, state: Any, outs: list[Axis]) -> None:
    """The initial state is as wide as the hidden units, and so is the final one, which its readers keep whole."""
    states = state if isinstance(state, (list, tuple)) else [state]
    for value in states:
        if flow.is_tensor(value):
            for out in outs:
                axis = flow.axes(value)[-1]
                if axis is not None and axis.size == out.size:
                    flow.labels.tie(axis, out)
                else:
                    flow.meet(axis, None)


# contractions of two activations


def _product(flow: Flow, one: tuple[Axes, tuple[int, ...]], other: tuple[Axes, tuple[int, ...]]) -> Axes:
    (a, sa), (b, sb) = one, other
    flow.meet(a[-1], b[-2] if len(b) > 1 else b[-1])
    lead: tuple[int, ...] = torch.broadcast_shapes(sa[:-2], sb[:-2])  # type: ignore[no-untyped-call]
    batch = broadcast(flow, [(a[:-2], sa[:-2]), (b[:-2], sb[:-2])], tuple(lead))
    for axis in batch:
        if axis is not None:
            flow.labels.heads.append(axis)
    rows = a[-2:-1] if len(a) > 1 else ()
    columns = b[-1:] if len(b) > 1 else ()
    return (*batch, *rows, *columns)


@rule(*packets("matmul", "bmm", "mm", "mv", "dot"), held=Held.LOST)
def matmul(flow: Flow, node: fx.Node) -> Axes:
    """Ties what is summed over and the batch dimensions of both operands; rows and columns go on."""
    a, b = node.args[:2]
    return _product(flow, (flow.axes(a), flow.shape(a)), (flow.axes(b), flow.shape(b)))


@rule(*packets("addmm", "baddbmm", "addbmm"), held=Held.LOST)
def addmm(flow: Flow, node: fx.Node) -> Axes:
    """A product whose result meets the added operand, after broadcasting."""
    bias, a, b = node.args[:3]
    found = _product(flow, (flow.axes(a), flow.shape(a)), (flow.axes(b), flow.shape(b)))
    shape = flow.shape(node)
    return broadcast(flow, [(found, shape), (flow.axes(bias), flow.shape(bias))], shape)


@rule(*packets("scaled_dot_product_attention"), held=Held.LOST)
def attention(flow: Flow, node: fx.Node) -> Axes:
    """Ties the widths of query and key, and the heads of all three; the tokens that are read stay, like the causal."""
    q, k, v = node.args[:3]
    aq, ak, av = flow.axes(q), flow.axes(k), flow.axes(v)
    sq, sk, sv = flow.shape(q), flow.shape(k), flow.shape(v)
    flow.meet(aq[-1], ak[-1])
    for axis in (ak[-2], av[-2]):
        flow.freeze(axis, "a token that attention reads has a share in every softmax")
    if argument_of(node, "is_causal"):
        flow.freeze(aq[-2], "what a token of causal attention reads follows from its position")
    outer = 2
    if min(len(aq), len(ak)) > 2 and 1 not in (sq[-3], sk[-3]) and sq[-3] != sk[-3]:
        outer = 3  # each key head serves several query heads
        _grouped_heads(flow, aq[-3], ak[-3], (sq[-3], sk[-3]))
        flow.meet(ak[-3], av[-3])
    sizes: tuple[int, ...] = torch.broadcast_shapes(sq[:-outer], sk[:-outer], sv[:-outer])  # type: ignore[no-untyped-call]
    operands = [(aq[:-outer], sq[:-outer]), (ak[:-outer], sk[:-outer]), (av[:-outer], sv[:-outer])]
    lead = (*broadcast(flow, operands, tuple(sizes)), *aq[-outer:-2])
    for axis in (*aq[:-2], *ak[:-2]):
        if axis is not None:
            flow.labels.heads.append(axis)
    mask = argument_of(node, "attn_mask")
    scores = (*flow.shape(node)[:-1], sk[-2])
    if isinstance(mask, fx.Node):
        broadcast(flow, [(flow.axes(mask), flow.shape(mask)), ((*lead, aq[-2], None), scores)], scores)
    return (*lead, aq[-2], av[-1])


def _grouped_heads(flow: Flow, queries: Axis | None, keys: Axis | None, sizes: tuple[int, int]) -> None:
    rows, rest = None, None
    if queries is not None:
        rows, rest = flow.labels.split(queries, (sizes[1], sizes[0] // sizes[1]), flow.place)
    flow.freeze(rest, "every key head serves the same number of query heads")
    flow.meet(rows, keys)


def _spelled_out(equation: str, ndims: list[int]) -> tuple[str, str]:
    """Return the operands and the result of an einsum with letters for every dimension, where it leaves some out.

    An ellipsis stands for the leading dimensions that are not named, aligned at their end; without an arrow the result
    has the letters that occur once, in alphabetical order, after the ellipsis.
    """
    terms, arrow, result = equation.partition("->")
    listed = terms.split(",")
    if not arrow:
        once = sorted(letter for letter in set(terms) - set(",.") if terms.count(letter) == 1)
        result = ("..." if "..." in terms else "") + "".join(once)
    free = [letter for letter in string.ascii_letters if letter not in equation]
    widths = [
        ndim - len(term.replace("...", "")) if "..." in term else 0 for term, ndim in zip(listed, ndims, strict=True)
    ]
    hidden = "".join(free[: max(widths, default=0)])
    filled = [term.replace("...", hidden[len(hidden) - width :]) for term, width in zip(listed, widths, strict=True)]
    return ",".join(filled), result.replace("...", hidden)


@rule(*packets("einsum"), held=Held.LOST)
def einsum(flow: Flow, node: fx.Node) -> Axes:
    """Dimensions under one letter are tied; the letters of the result go on."""
    operands: Any = node.args[1]
    equation = str(node.args[0]).replace(" ", "")
    terms, result = _spelled_out(equation, [len(flow.shape(operand)) for operand in operands])
    found: dict[str, Axis | None] = {}
    seen: dict[str, int] = {}
    for term, operand in zip(terms.split(","), operands, strict=True):
        if len(set(term)) != len(term):
            return flow.freeze_all(node, "an einsum that takes a diagonal")  # type: ignore[no-any-return]
        for letter, axis, size in zip(term, flow.axes(operand), flow.shape(operand), strict=True):
            if size == 1:
                found.setdefault(letter, None)
                continue
            found[letter] = flow.meet(found[letter], axis) if letter in seen else axis
            seen[letter] = size
    for letter in result:  # letters of every operand and of the result are batch letters: heads in attention
        if found[letter] is not None and all(letter in term for term in terms.split(",")):
            flow.labels.heads.append(found[letter])  # type: ignore[arg-type]
    return tuple(found[letter] for letter in result)
