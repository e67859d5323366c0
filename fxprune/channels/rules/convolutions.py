"""Convolutions: plain, grouped, transposed, deformable, and with the samples as groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from fxprune.channels.labels import Axes, Axis
from fxprune.channels.rules.table import Flow, Held, argument_of, integer, packets, rule


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


def bias_axis(flow: Flow, value: Any) -> Axis | None:
    """Return the labels of a bias, None where there is none."""
    return flow.axes(value)[0] if isinstance(value, fx.Node) else None


@rule(*packets("conv1d", "conv2d", "conv3d"), held=Held.LOST)
def conv(flow: Flow, node: fx.Node) -> Axes:
    """Ends the input's channels at dimension 1 of the weight and begins those of dimension 0 (see ``_convolve``)."""
    weight = node.args[1]
    bias, shape = bias_axis(flow, argument_of(node, "bias")), flow.shape(weight)
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
    axes = (flow.axes(weight), bias_axis(flow, bias), argument_of(node, "groups"), flow.shape(weight))
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
    bias = bias_axis(flow, argument_of(node, "bias"))
    return _transposed(flow, node, flow.axes(weight), bias, argument_of(node, "groups"), flow.shape(weight))
