"""Operations that only move elements: the labels move the same way."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.channels.labels import Axes, Axis
from fxprune.channels.rules.same import DRAWN, broadcast
from fxprune.channels.rules.table import Flow, Held, integer, packets, rule

aten = torch.ops.aten


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Return an argument given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


@rule(
    *packets(
        "view",
        "reshape",
        "_unsafe_view",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "atleast_1d",
        "atleast_2d",
        "ravel",
    ),
    held=Held.MOVED,
)
def reshape(flow: Flow, node: fx.Node) -> Axes:
    """Labels follow the common factors of both shapes: one dimension split is a grid, several merged are one too."""
    if node.target is aten.view.dtype:
        return flow.freeze_all(node, "its bits are read as another type")  # type: ignore[no-any-return]
    return flow.reshape(node.args[0], node)  # type: ignore[arg-type]


@rule(*packets("view_as", "reshape_as"), held=Held.MOVED)
def reshape_as(flow: Flow, node: fx.Node) -> Axes:
    """A reshape whose sizes are another tensor's, so that every dimension has to shrink with it."""
    found = flow.reshape(node.args[0], node)  # type: ignore[arg-type]
    return tuple(flow.meet(one, other) for one, other in zip(found, flow.axes(node.args[1]), strict=True))


@rule(
    *packets(
        "permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "numpy_T", "mT", "mH", "adjoint"
    ),
    held=Held.MOVED,
)
def permute(flow: Flow, node: fx.Node) -> Axes:
    """Dimensions change places and take their labels along."""
    axes = flow.axes(node.args[0])
    # Permuting a tensor whose strides are all different shows where each dimension went.
    probe = torch.empty_strided([2] * len(axes), [3 * 10**d for d in range(len(axes))], device="meta")
    moved = node.target(probe, *node.args[1:], **node.kwargs)  # type: ignore[operator]
    order = {3 * 10**d: d for d in range(len(axes))}
    return tuple(axes[order[stride]] for stride in moved.stride())


@rule(*packets("expand"), held=Held.MOVED)
def expand(flow: Flow, node: fx.Node) -> Axes:
    """A dimension that is repeated by stride gets labels of its own, unless its size is known only at run time."""
    source, sizes = node.args[0], argument(node, 1, "size")
    axes, before, after = flow.axes(source), flow.shape(source), flow.shape(node)
    lead = len(after) - len(before)
    result: list[Axis | None] = []
    for d, size in enumerate(after):
        if d >= lead and before[d - lead] == size:
            result.append(axes[d - lead])
        else:
            result.append(None if isinstance(sizes[d], fx.Node) else flow.labels.fresh(size))
    return tuple(result)


@rule(*packets("expand_as"), held=Held.MOVED)
def expand_as(flow: Flow, node: fx.Node) -> Axes:
    """The result meets what it is expanded to, index by index."""
    return broadcast(flow, [(flow.axes(n), flow.shape(n)) for n in node.args[:2]], flow.shape(node))


@rule(*packets("repeat", "tile"), held=Held.MOVED)
def repeat(flow: Flow, node: fx.Node) -> Axes:
    """The labels repeat as a whole, so all copies of a channel go together; those of a single value are new ones."""
    source, times = node.args[0], node.args[1]
    axes, before, after = flow.axes(source), flow.shape(source), flow.shape(node)
    lead = len(after) - len(before)
    result: list[Axis | None] = [None] * lead
    for d, (axis, old, new) in enumerate(zip(axes, before, after[lead:], strict=True)):
        if axis is not None:
            result.append(np.tile(axis, new // old))
        else:
            stated = old == 1 and new > 1 and isinstance(times[d - len(before)], int)  # type: ignore[index]
            result.append(flow.labels.fresh(new) if stated else None)
    return tuple(result)


@rule(*packets("repeat_interleave"), held=Held.MOVED)
def repeat_interleave(flow: Flow, node: fx.Node) -> Axes:
    """Each label repeats in place, so all copies of a channel go together."""
    axes = list(flow.axes(node.args[0]))
    times, d = node.args[1], argument(node, 2, "dim")
    if not isinstance(times, int) or d is None:
        return flow.freeze_all(node, "repeated by a tensor of counts")  # type: ignore[no-any-return]
    axes[d] = None if axes[d] is None else np.repeat(axes[d], times)
    return tuple(axes)


@rule(*packets("cat", "concat", "concatenate"), held=Held.MOVED)
def cat(flow: Flow, node: fx.Node) -> Axes:
    """The labels of the joined dimension follow each other; every other dimension is tied across the pieces."""
    pieces: list[Any] = [p for p in node.args[0] if flow.shape(p) != (0,)]  # type: ignore[union-attr]
    d = int(argument(node, 1, "dim", 0)) % len(flow.shape(pieces[0]))
    result = list(_tied_but(flow, pieces, d))
    if any(flow.axes(p)[d] is not None for p in pieces):
        parts = []
        for p in pieces:
            axis = flow.axes(p)[d]
            if axis is None:  # an opaque part beside labelled ones: it stays, the others need not
                axis = flow.labels.fresh(flow.shape(p)[d])
                flow.freeze(axis, "part of a concatenation that carries no channels")
            parts.append(axis)
        result[d] = np.concatenate(parts)
    else:
        result[d] = None
    return tuple(result)


def _tied_but(flow: Flow, pieces: list[Any], skip: int) -> Axes:
    """Tie all dimensions of equal-shaped pieces but one."""
    first = list(flow.axes(pieces[0]))
    sizes = flow.shape(pieces[0])
    for piece in pieces[1:]:
        for d, axis in enumerate(flow.axes(piece)):
            if d != skip and sizes[d] > 1:
                first[d] = flow.meet(first[d], axis)
    return tuple(first)


@rule(*packets("stack"), held=Held.MOVED)
def stack(flow: Flow, node: fx.Node) -> Axes:
    """All dimensions are tied across the pieces; the new one carries no channels."""
    pieces = list(node.args[0])  # type: ignore[arg-type]
    axes = list(_tied_but(flow, pieces, -1))
    d = int(argument(node, 1, "dim", 0)) % (len(axes) + 1)
    return (*axes[:d], None, *axes[d:])


@rule(*packets("chunk", "split", "split_with_sizes", "tensor_split"), held=Held.MOVED)
def split(flow: Flow, node: fx.Node) -> list[Axes]:
    """Each piece has its run of the labels; every other dimension is shared."""
    axes = flow.axes(node.args[0])
    d = int(argument(node, 2, "dim", 0)) % len(axes)
    axis = axes[d]
    results, start = [], 0
    for value in node.meta["val"]:
        stop = start + int(value.shape[d])
        piece = None if axis is None else axis[start:stop]
        results.append((*axes[:d], piece, *axes[d + 1 :]))
        start = stop
    return results


@rule(*packets("unbind"), held=Held.MOVED)
def unbind(flow: Flow, node: fx.Node) -> list[Axes]:
    """The dimension that is taken apart is frozen; the others pass to every piece."""
    axes = flow.axes(node.args[0])
    d = int(argument(node, 1, "dim", 0)) % len(axes)
    flow.freeze(axes[d], "its indices are taken apart one by one")
    return [(*axes[:d], *axes[d + 1 :])] * len(node.meta["val"])


@rule(*packets("select"), held=Held.MOVED)
def select(flow: Flow, node: fx.Node) -> Axes:
    """The dimension that an index is picked from is frozen and gone; the others pass."""
    axes = flow.axes(node.args[0])
    d = integer(node.args[1]) % len(axes)
    flow.freeze(axes[d], "one of its indices is picked by number")
    return (*axes[:d], *axes[d + 1 :])


@rule(*packets("slice"), held=Held.MOVED)
def slice_(flow: Flow, node: fx.Node) -> Axes:
    """The labels inside the bounds stay."""
    axes = list(flow.axes(node.args[0]))
    d = int(argument(node, 1, "dim", 0)) % len(axes)
    bounds = [argument(node, 2, "start"), argument(node, 3, "end"), argument(node, 4, "step", 1)]
    axis = axes[d]
    if axis is not None and any(isinstance(bound, fx.Node) for bound in bounds):
        flow.freeze(axis, "sliced at a place known only at run time")
        axis = None
    axes[d] = None if axis is None else axis[slice(*bounds)]
    return tuple(axes)


@rule(*packets("narrow"), held=Held.MOVED)
def narrow(flow: Flow, node: fx.Node) -> Axes:
    """The dimension that is cut out of is frozen; the labels inside the bounds stay."""
    axes = list(flow.axes(node.args[0]))
    d, start, length = integer(node.args[1]) % len(axes), node.args[2], node.args[3]
    axis = axes[d]
    flow.freeze(axis, "cut out by narrow")
    known = not isinstance(start, fx.Node) and not isinstance(length, fx.Node)
    axes[d] = axis[np.arange(integer(length)) + integer(start) % len(axis)] if axis is not None and known else None
    return tuple(axes)


def constant(module: fx.GraphModule, value: Any) -> np.ndarray[Any, Any] | None:
    """Return the values of an operand that is a buffer or a constant of the model's code."""
    copies = packets("lift_fresh_copy", "_to_copy", "to", "clone", "alias", "detach", "contiguous", "detach_copy")
    while isinstance(value, fx.Node) and getattr(value.target, "overloadpacket", None) in copies:
        value = value.args[0]
    if not isinstance(value, fx.Node) or value.op != "get_attr":
        return None
    found: Any = module
    for atom in str(value.target).split("."):
        found = getattr(found, atom)
    trainable = isinstance(found, Tensor) and found.requires_grad
    return None if trainable else np.asarray(found.detach().cpu())


@rule(*packets("index_select"), held=Held.MOVED)
def index_select(flow: Flow, node: fx.Node) -> Axes:
    """Labels are picked like the elements, where the positions are constant."""
    axes = list(flow.axes(node.args[0]))
    d = integer(node.args[1]) % len(axes)
    axes[d] = _picked(flow, axes[d], node.args[2])
    return tuple(axes)


def _picked(flow: Flow, axis: Axis | None, index: Any) -> Axis | None:
    values = constant(flow.module, index)
    for own in flow.axes(index):
        flow.freeze(own, "its values are positions")
    if axis is None:
        return None
    if values is None or values.ndim != 1 or values.dtype == np.bool_:
        flow.freeze(axis, "indexed by a tensor that is not a constant list of positions")
        return None
    picked: Axis = axis[values]
    return picked


@rule(*packets("index"), held=Held.MOVED)
def index(flow: Flow, node: fx.Node) -> Axes:
    """Labels are picked like the elements by one constant list of positions; any other index freezes."""
    axes = flow.axes(node.args[0])
    indices = list(node.args[1])  # type: ignore[arg-type]
    used = [d for d, i in enumerate(indices) if i is not None]
    shapes = [tuple(indices[d].meta["val"].shape) for d in used]
    if any(indices[d].meta["val"].dtype == torch.bool for d in used):
        return flow.freeze_all(node, "indexed by a mask")  # type: ignore[no-any-return]
    if len(used) == 1 and len(shapes[0]) == 1:
        d = used[0]
        return (*axes[:d], _picked(flow, axes[d], indices[d]), *axes[d + 1 :])
    for d in used:
        flow.freeze(axes[d], "indexed by a tensor")
        for axis in flow.axes(indices[d]):
            flow.freeze(axis, "its values are positions")
    width = len(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
    rest = [axis for d, axis in enumerate(axes) if d not in used]
    together = used == list(range(used[0], used[-1] + 1))
    at = used[0] if together else 0
    return (*rest[:at], *[None] * width, *rest[at:])


@rule(*packets("flip"), held=Held.MOVED)
def flip(flow: Flow, node: fx.Node) -> Axes:
    """The labels turn around."""
    axes = list(flow.axes(node.args[0]))
    for d in node.args[1]:  # type: ignore[union-attr]
        axes[d] = None if axes[d] is None else axes[d][::-1]  # type: ignore[index]
    return tuple(axes)


@rule(*packets("roll"), held=Held.MOVED)
def roll(flow: Flow, node: fx.Node) -> Axes:
    """The labels turn over the end."""
    axes = list(flow.axes(node.args[0]))
    shifts, dims = argument(node, 1, "shifts"), argument(node, 2, "dims", [])
    if not dims:
        return flow.freeze_all(node, "rolled across dimensions")  # type: ignore[no-any-return]
    for shift, d in zip(shifts if isinstance(shifts, (list, tuple)) else [shifts], dims, strict=True):
        if axes[d] is not None and isinstance(shift, fx.Node):
            flow.freeze(axes[d], "turned by a size of the input")
        elif axes[d] is not None:
            axes[d] = np.roll(axes[d], shift)
    return tuple(axes)


@rule(*packets("pad", "constant_pad_nd"), held=Held.MOVED)
def pad(flow: Flow, node: fx.Node) -> Axes:
    """Padding adds constants.

    On a channel dimension these get labels of their own, so that they can go with what they are added to.
    """
    axes = list(flow.axes(node.args[0]))
    widths, mode = node.args[1], argument(node, 2, "mode", "constant")
    zero = (
        mode == "constant" and not argument(node, 3, "value")
        if node.target is aten.pad.default
        else not argument(node, 2, "value", 0)
    )
    for k in range(len(widths) // 2):  # type: ignore[arg-type]
        before, after = widths[2 * k], widths[2 * k + 1]  # type: ignore[index]
        d = len(axes) - 1 - k
        axis = axes[d]
        if axis is None or (isinstance(before, int) and before == 0 and after == 0):
            continue
        if not zero or not isinstance(before, int) or not isinstance(after, int) or before < 0 or after < 0:
            flow.freeze(axis, "padded by something other than zeros")
            axes[d] = None
            continue
        axes[d] = np.concatenate([flow.labels.fresh(before), axis, flow.labels.fresh(after)])
    return tuple(axes)


@rule(*packets("pixel_shuffle"), held=Held.MOVED)
def pixel_shuffle(flow: Flow, node: fx.Node) -> Axes:
    """Channels are a grid of (channel, tap); the taps are frozen, because they become space."""
    axes, r = flow.axes(node.args[0]), integer(node.args[1])
    *lead, channels, height, width = axes
    flow.freeze(height, "a space dimension")
    flow.freeze(width, "a space dimension")
    size = flow.shape(node)[-3]
    kept, taps = (None, None) if channels is None else flow.labels.split(channels, (size, r * r), flow.place)
    flow.freeze(taps, "pixel shuffle spreads it over space")
    return (*lead, kept, None, None)


@rule(*packets("pixel_unshuffle", "im2col"), held=Held.MOVED)
def gather_space(flow: Flow, node: fx.Node) -> Axes:
    """Space moves into channels: each channel is followed by its taps."""
    source = node.args[0]
    axes, before, after = flow.axes(source), flow.shape(source), flow.shape(node)
    d = len(before) - 3
    axis, taps = axes[d], after[d] // before[d]
    merged = None if axis is None else np.repeat(axis, taps)
    return (*axes[:d], merged, *[None] * (len(after) - d - 1))


@rule(*packets("col2im"), held=Held.MOVED)
def col2im(flow: Flow, node: fx.Node) -> Axes:
    """Channels are a grid of (channel, tap); the taps are frozen, because they become space."""
    axes, after = flow.axes(node.args[0]), flow.shape(node)
    d = len(after) - 3
    source = flow.shape(node.args[0])
    axis, taps_each = axes[d], source[d] // after[d]
    kept, taps = (None, None) if axis is None else flow.labels.split(axis, (after[d], taps_each), flow.place)
    flow.freeze(taps, "its taps are spread over space")
    return (*axes[:d], kept, None, None)


@rule(*packets("channel_shuffle"), held=Held.MOVED)
def channel_shuffle(flow: Flow, node: fx.Node) -> Axes:
    """Channels are a grid of (group, member), read as (member, group) afterwards."""
    axes, groups = list(flow.axes(node.args[0])), integer(node.args[1])
    if axes[1] is not None:
        rows, columns = flow.labels.split(axes[1], (groups, axes[1].size // groups), flow.place)
        flow.groups[node] = rows
        axes[1] = flow.labels.merge((columns, rows), (axes[1].size // groups, groups), flow.place)
    return tuple(axes)


@rule(*packets("glu"), held=Held.MOVED)
def glu(flow: Flow, node: fx.Node) -> Axes:
    """Each channel of the first half is tied to its gate in the second."""
    axes = list(flow.axes(node.args[0]))
    d = int(argument(node, 1, "dim", -1))
    axis = axes[d]
    if axis is not None:
        half = axis.size // 2
        flow.labels.tie(axis[:half], axis[half:])
        axes[d] = axis[:half]
    return tuple(axes)


@rule(*packets("slice_scatter", "select_scatter"), held=Held.MOVED)
def scatter(flow: Flow, node: fx.Node) -> Axes:
    """A part of a tensor is overwritten, index by index; the result is labelled like what it was written into."""
    base, source = node.args[:2]
    d = int(argument(node, 2, "dim", 0)) % len(flow.shape(base))
    axes, others = list(flow.axes(base)), list(flow.axes(source))
    if node.target is aten.select_scatter.default:
        flow.freeze(axes[d], "one of its indices is overwritten by number")
        axes[d] = None
        others.insert(d, None)
    else:
        axes[d] = _overwritten(flow, node, axes[d], others[d])
    for k, other in enumerate(others):
        if k != d and flow.shape(node)[k] > 1:
            axes[k] = flow.meet(axes[k], other)
    return tuple(axes)


def _overwritten(flow: Flow, node: fx.Node, axis: Axis | None, other: Axis | None) -> Axis | None:
    bounds = [argument(node, 3, "start"), argument(node, 4, "end"), argument(node, 5, "step", 1)]
    if axis is None or any(isinstance(bound, fx.Node) for bound in bounds) or bounds[2] != 1:
        flow.freeze(axis, "part of it is overwritten")
        flow.freeze(other, "it overwrites a part of another tensor")
        return None
    flow.meet(axis[slice(*bounds)], other)
    return axis


@rule(*packets("zeros", "ones", "full", "new_zeros", "new_ones", "new_full"), held=Held.MOVED)
@rule(*packets("empty", "new_empty"), held=Held.LOST)
def factory(flow: Flow, node: fx.Node) -> Axes:
    """A constant may be as wide as what it meets needs it to be, unless its size is known only at run time."""
    sizes = node.args[1] if str(node.target).startswith("aten.new_") else node.args[0]
    return tuple(None if isinstance(size, fx.Node) or size == 1 else flow.labels.fresh(size) for size in sizes)  # type: ignore[union-attr, arg-type]


@rule(*packets("rand", "randn", "randint"), held=Held.LOST)
def noise(flow: Flow, node: fx.Node) -> Axes:
    """Random numbers, which would be others for fewer indices: what they meet stays."""
    axes = tuple(flow.labels.fresh(int(size)) for size in flow.shape(node))
    for axis in axes:
        flow.freeze(axis, DRAWN)
    return axes


@rule(*packets("arange", "linspace", "eye", "scalar_tensor"), held=Held.MOVED)
def positions(flow: Flow, node: fx.Node) -> Any:
    """Values that count positions: opaque."""
    return flow.opaque(node.meta["val"])
