"""Layers with weights: they end one set of channels and begin another."""

from __future__ import annotations

import operator
import string
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from fxprune.channels.labels import Axes, Axis
from fxprune.channels.rules.same import broadcast
from fxprune.channels.rules.table import Flow, Held, argument_of, integer, packets, rule

aten = torch.ops.aten


def _convolve(
    flow: Flow,
    node: fx.Node,
    weight: Axes,
    bias: Axis | None,
    groups: Any,
    shape: tuple[int, ...],
    moves: Sequence[bool] = (),
) -> Axes:
    """Plain and grouped convolution, which share one group factor between input and output.

    The input is a grid of (group, input of the group), the output one of (group, output of the group). ``moves`` says
    of each space dimension whether a position reads others than itself; where it does not, its labels pass.
    """
    source = node.args[0]
    axes = flow.axes(source)
    channel = len(axes) - len(shape) + 1  # an unbatched input has no dimension before its channels
    space = list(axes[channel + 1 :])
    for d, axis in enumerate(space):
        if not moves or moves[d]:
            flow.freeze(axis, "a space dimension")
            space[d] = None
    for axis in weight[2:]:
        flow.freeze(axis, "kernel taps")
    out = weight[0]
    if isinstance(groups, fx.Node):
        groups = _groups_of_samples(flow, groups, axes[channel], out)
        if groups is None:
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
    return (*axes[:channel], out, *space)


def _groups_of_samples(flow: Flow, groups: fx.Node, entering: Axis | None, out: Axis | None) -> int | None:
    """Return how many groups there are where each is a sample, whose channels are labelled like every other's.

    Then the group is no channel, and their number needs no label. Any other number of groups that is known only at run
    time gives None.
    """
    count = int(groups.meta["val"])
    for axis in (entering, out):
        if axis is None or axis.size % count:
            return None
        if (axis.reshape(count, -1) != axis[: axis.size // count]).any():
            return None
    return count


def _moves(sizes: Sequence[int], stride: Any, padding: Any) -> list[bool]:
    """Return, for each dimension of space, whether a position of the result reads others than itself."""
    steps, pads = (list(v) if isinstance(v, (list, tuple)) else [v] for v in (stride, padding))
    count = len(sizes)
    steps, pads = (v * count if len(v) == 1 else v for v in (steps, pads))
    return [
        size != 1 or step != 1 or pad not in (0, "valid", "same")
        for size, step, pad in zip(sizes, steps, pads, strict=True)
    ]


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, held=Held.BIAS)
def conv_module(flow: Flow, node: fx.Node) -> Axes:
    """Ends the input's channels at dimension 1 of the weight and begins those of dimension 0 (see ``_convolve``)."""
    layer: Any = flow.layer(node)
    weight = flow.parameter(layer.weight, 2)
    bias = None if layer.bias is None else flow.parameter(layer.bias)[0]
    moves = _moves(layer.kernel_size, layer.stride, layer.padding)
    return _convolve(flow, node, weight, bias, layer.groups, tuple(layer.weight.shape), moves)


def _bias(flow: Flow, value: Any) -> Axis | None:
    return flow.axes(value)[0] if isinstance(value, fx.Node) else None


@rule(*packets("conv1d", "conv2d", "conv3d"), held=Held.LOST)
def conv(flow: Flow, node: fx.Node) -> Axes:
    """Ends the input's channels at dimension 1 of the weight and begins those of dimension 0 (see ``_convolve``)."""
    weight = node.args[1]
    bias, shape = _bias(flow, argument_of(node, "bias")), flow.shape(weight)
    moves = _moves(shape[2:], argument_of(node, "stride"), argument_of(node, "padding"))
    return _convolve(flow, node, flow.axes(weight), bias, argument_of(node, "groups"), shape, moves)


@rule("torchvision.deform_conv2d", held=Held.LOST)
def deformable(flow: Flow, node: fx.Node) -> Axes:
    """A convolution whose taps lie where the offsets say: these keep their channels, which are coordinates.

    An offset group moves a run of the input's channels, so that each run loses as many.
    """
    source, weight, offset, mask, bias = node.args[:5]
    for value in (offset, mask):
        for axis in flow.axes(value)[1:]:
            flow.freeze(axis, "each of its channels is a coordinate or weight of one tap")
        flow.freeze(flow.axes(value)[0], "a batch dimension")
    entering, groups = flow.axes(source)[1], integer(argument_of(node, "offset_groups"))
    if entering is not None and groups > 1:
        rows, _ = flow.labels.split(entering, (groups, entering.size // groups), flow.place)
        flow.freeze(rows, "the offsets of its group stay")
    axes = (flow.axes(weight), _bias(flow, bias), argument_of(node, "groups"), flow.shape(weight))
    return _convolve(flow, node, *axes)


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


@rule(*packets("bilinear"), held=Held.LOST)
def bilinear(flow: Flow, node: fx.Node) -> Axes:
    """Ties the last dimensions of both inputs to those of the weight; its rows, tied to the bias, go on."""
    one, other, weight = (flow.axes(value) for value in node.args[:3])
    flow.meet(one[-1], weight[1], "reads an input that carries no channels")
    flow.meet(other[-1], weight[2], "reads an input that carries no channels")
    bias = _bias(flow, argument_of(node, "bias"))
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


@rule(*packets("matmul", "bmm", "mm", "mv", "dot", "vdot"), held=Held.LOST)
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
