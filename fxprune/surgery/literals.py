"""Rewrite the numbers that a graph carries (sizes, split sections, bounds, group counts) to what is left."""

from __future__ import annotations

import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.channels.rules.move import argument, constant
from fxprune.channels.rules.table import integer, key_of
from fxprune.surgery.kept import Kept

aten = torch.ops.aten
Rewrite = Callable[["Rewriter", fx.Node, fx.Node], None]
REWRITES: dict[Any, Rewrite] = {}


def rewrites(*names: str) -> Callable[[Rewrite], Rewrite]:
    """Register a rewrite for ATen packets, or operations of other libraries by ``"library.name"``."""

    def register(function: Rewrite) -> Rewrite:
        for name in names:
            if "." in name:
                REWRITES[name] = function
            elif hasattr(aten, name):
                REWRITES[getattr(aten, name)] = function
        return function

    return register


class Rewriter:
    """Rewrites the nodes of a copied graph; ``old`` nodes carry the shapes and labels, ``new`` nodes are changed."""

    def __init__(self, kept: Kept, module: fx.GraphModule) -> None:
        self.kept = kept
        self.source = module
        self.constants: dict[str, Tensor] = {}

    def run(self, pairs: list[tuple[fx.Node, fx.Node]]) -> None:
        """Rewrite every (old, new) pair of nodes."""
        for old, new in pairs:
            if old.op == "call_function" and isinstance(old.target, torch._ops.OpOverload):
                rewrite = REWRITES.get(key_of(old, self.source))
                if rewrite is not None:
                    rewrite(self, old, new)

    def set(self, node: fx.Node, position: int, name: str, value: Any) -> None:
        """Replace one argument, wherever it was given."""
        if len(node.args) > position:
            node.args = (*node.args[:position], value, *node.args[position + 1 :])
        else:
            node.kwargs = {**node.kwargs, name: value}

    def sizes(
        self, old: fx.Node, new: fx.Node, literals: Any, before: tuple[int, ...], after: tuple[int, ...]
    ) -> list[Any]:
        """Return the sizes of a call brought to what is left: numbers are replaced, size expressions are scaled."""
        result = []
        for literal, was, now in zip(literals, before, after, strict=True):
            if was == now or (isinstance(literal, int) and literal == -1):
                result.append(literal)
            elif isinstance(literal, int):
                result.append(now)
            else:
                result.append(self._scaled(new, literal, Fraction(now, was)))
        return result

    def _scaled(self, new: fx.Node, size: fx.Node, by: Fraction) -> fx.Node:
        with new.graph.inserting_before(new):
            product = new.graph.call_function(operator.mul, (size, by.numerator))
            return new.graph.call_function(operator.floordiv, (product, by.denominator))

    def pick(self, new: fx.Node, source: fx.Node, dim: int, positions: Any) -> None:
        """Turn a node into an index_select with a constant list of positions."""
        name = f"{new.name}_positions"
        while hasattr(self.source, name):  # an earlier cut may have made one
            name += "_"
        self.constants[name] = torch.as_tensor(np.asarray(positions), dtype=torch.int64)
        with new.graph.inserting_before(new):
            index = new.graph.get_attr(name)
        new.target, new.args, new.kwargs = aten.index_select.default, (source, dim, index), {}


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(s) for s in node.meta["val"].shape)


@rewrites("view", "reshape", "_unsafe_view", "expand", "new_zeros", "new_ones", "new_full", "new_empty")
def sizes_second(rewriter: Rewriter, old: fx.Node, new: fx.Node) -> None:
    """Bring the sizes in the second argument to what is left."""
    after = rewriter.kept.shape(old)
    if after != _shape(old):
        rewriter.set(new, 1, "size", rewriter.sizes(old, new, new.args[1], _shape(old), after))


@rewrites("zeros", "ones", "full", "empty", "rand", "randn")
def sizes_first(rewriter: Rewriter, old: fx.Node, new: fx.Node) -> None:
    """Bring the sizes in the first argument to what is left."""
    after = rewriter.kept.shape(old)
    if after != _shape(old):
        rewriter.set(new, 0, "size", rewriter.sizes(old, new, new.args[0], _shape(old), after))


@rewrites("unflatten")
def unflatten(rewriter: Rewriter, old: fx.Node, new: fx.Node) -> None:
    """Bring the sizes of the new dimensions to what is left."""
    before, after = _shape(old), rewriter.kept.shape(old)
    d = integer(old.args[1]) % old.args[0].meta["val"].ndim  # type: ignore[union-attr]
    count = len(old.args[2])  # type: ignore[arg-type]
    rewriter.set(new, 2, "sizes", rewriter.sizes(old, new, new.args[2], before[d : d + count], after[d : d + count]))


@rewrites("squeeze")
def squeeze(rewriter: Rewriter, old: fx.Node, new: fx.Node) -> None:
    """Drop the dimensions that were dropped, also where one single channel is left of another."""
    source: Any = old.args[0]
    if rewriter.kept.shape(source) != _shape(source):
        sizes = _shape(source)
        named = argument(old, 1, "dim", range(len(sizes)))
        dims = [d % len(sizes) for d in ([named] if isinstance(named, int) else named)]
        new.target, new.kwargs = aten.squeeze.dims, {}
        new.args = (new.args[0], [d for d in dims if sizes[d] == 1])


@rewrites("chunk", "split", "split_with_sizes", "tensor_split")
def split(rewriter: Rewriter, old: fx.Node, new: fx.Node) -> None:
    """Split into what is left of each piece, whatever the sections were before."""
    axes = rewriter.kept.axes(old)
    d = int(argument(old, 2, "dim", 0)) % len(axes[0])
    if all(piece[d] is None or not rewriter.kept.gone[piece[d]].any() for piece in axes):
        return
    sections = [
        int(value.shape[d]) if piece[d] is None else int(rewriter.kept.mask(piece[d]).sum())  # a single channel stays
        for piece, value in zip(axes, old.meta["val"], strict=True)
    ]
    new.target, new.args, new.kwargs = aten.split_with_sizes.default, (new.args[0], sections, d), {}


def _positions(rewriter: Rewriter, source: fx.Node, d: int, picked: Any) -> Any | None:
    """Return where the picked old positions that stay are afterwards; None if the dimension does not change."""
    axis = rewriter.kept.axes(source)[d]
    if axis is None or not rewriter.kept.gone[axis].any():
        return None
    stays = rewriter.kept.mask(axis)
    picked = np.asarray(picked)
    return (np.cumsum(stays) - 1)[picked[stays[picked]]]


@rewrites("slice")
def slice_(rewriter: Rewriter, old: fx.Node, new: fx.Node) -> None:
    """Move the bounds to where what is left begins and ends, or pick it where it is not one run."""
    source: Any = old.args[0]
    d = int(argument(old, 1, "dim", 0)) % source.meta["val"].ndim
    bounds = slice(argument(old, 2, "start"), argument(old, 3, "end"), argument(old, 4, "step", 1))
    if any(isinstance(bound, fx.Node) for bound in (bounds.start, bounds.stop)):
        return
    positions = _positions(rewriter, source, d, np.arange(_shape(source)[d])[bounds])
    if positions is None:
        return
    if len(positions) and (np.diff(positions) == 1).all():
        new.args, new.kwargs = (new.args[0], d, int(positions[0]), int(positions[-1]) + 1), {}
    else:
        rewriter.pick(new, new.args[0], d, positions)  # type: ignore[arg-type]


@rewrites("slice_scatter")
def slice_scatter(rewriter: Rewriter, old: fx.Node, new: fx.Node) -> None:
    """Move the bounds to where what is left of the overwritten part begins and ends."""
    source: Any = old.args[0]
    d = int(argument(old, 2, "dim", 0)) % source.meta["val"].ndim
    bounds = slice(argument(old, 3, "start"), argument(old, 4, "end"))
    if any(isinstance(bound, fx.Node) for bound in (bounds.start, bounds.stop)):
        return
    positions = _positions(rewriter, source, d, np.arange(_shape(source)[d])[bounds])
    if positions is not None:
        if not len(positions):  # nothing is left of what is overwritten
            new.target, new.args, new.kwargs = aten.alias.default, new.args[:1], {}
            return
        new.args, new.kwargs = (*new.args[:2], d, int(positions[0]), int(positions[-1]) + 1), {}


@rewrites("index_select")
def index_select(rewriter: Rewriter, old: fx.Node, new: fx.Node) -> None:
    """Pick the positions that stay, counted in what is left."""
    source: Any = old.args[0]
    d = integer(old.args[1]) % source.meta["val"].ndim
    _reindex(rewriter, new, source, d, old.args[2])


@rewrites("index")
def index(rewriter: Rewriter, old: fx.Node, new: fx.Node) -> None:
    """Pick the positions that stay, counted in what is left, where one constant list of them is given."""
    used = [d for d, i in enumerate(old.args[1]) if i is not None]  # type: ignore[arg-type]
    if len(used) == 1:
        _reindex(rewriter, new, old.args[0], used[0], old.args[1][used[0]])  # type: ignore[index]


def _reindex(rewriter: Rewriter, new: fx.Node, source: Any, d: int, index_node: Any) -> None:
    values = constant(rewriter.source, index_node)
    if rewriter.kept.axes(source)[d] is None or values is None or values.ndim != 1:
        return
    positions = _positions(rewriter, source, d, values)
    if positions is not None:
        rewriter.pick(new, new.args[0], d, positions)  # type: ignore[arg-type]


@rewrites("repeat_interleave")
def repeat_interleave(rewriter: Rewriter, old: fx.Node, new: fx.Node) -> None:
    """Set the size of the result, where the call states it."""
    d = argument(old, 2, "dim")
    if isinstance(old.kwargs.get("output_size"), int) and isinstance(d, int):
        new.kwargs = {**new.kwargs, "output_size": rewriter.kept.shape(old)[d]}


@rewrites("repeat", "tile")
def repeat(rewriter: Rewriter, old: fx.Node, new: fx.Node) -> None:
    """Repeat a single value as often as is left; what repeats channels goes on as often as before."""
    source: Any = old.args[0]
    times, before, after = list(new.args[1]), _shape(source), rewriter.kept.shape(old)  # type: ignore[arg-type]
    for d in range(-len(before), 0):
        if before[d] == 1 and after[d] != _shape(old)[d]:
            times[d] = after[d]
    rewriter.set(new, 1, "repeats", times)


@rewrites("roll")
def roll(rewriter: Rewriter, old: fx.Node, new: fx.Node) -> None:
    """Turn by as many indices as are left of those that turn over the end."""
    source: Any = old.args[0]
    shifts, dims = argument(new, 1, "shifts"), argument(new, 2, "dims", [])
    if not dims:  # across all dimensions, of which none is cut
        return
    result = []
    for shift, d in zip(shifts if isinstance(shifts, (list, tuple)) else [shifts], dims, strict=True):
        axis = rewriter.kept.axes(source)[d]
        size = _shape(source)[d]
        # what turns over the end is what is left of the last indices, as many as were turned by
        fixed = axis is None or isinstance(shift, fx.Node)  # by a size of the input: the rule freezes what that turns
        result.append(shift if fixed else int(rewriter.kept.mask(axis)[size - shift % size :].sum()))
    rewriter.set(new, 1, "shifts", result)


@rewrites("pad", "constant_pad_nd")
def pad(rewriter: Rewriter, old: fx.Node, new: fx.Node) -> None:
    """Pad by the constants that are left."""
    axes, widths = rewriter.kept.axes(old), list(new.args[1])  # type: ignore[arg-type]
    for k in range(len(widths) // 2):
        axis = axes[len(axes) - 1 - k]
        before, after = widths[2 * k], widths[2 * k + 1]
        if axis is not None and isinstance(before, int) and isinstance(after, int):
            stays = rewriter.kept.mask(axis)
            widths[2 * k] = int(stays[:before].sum()) if before > 0 else before
            widths[2 * k + 1] = int(stays[len(stays) - after :].sum()) if after > 0 else after
    rewriter.set(new, 1, "pad", widths)


@rewrites(
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "group_norm",
    "channel_shuffle",
    "torchvision.deform_conv2d",
)
def group_count(rewriter: Rewriter, old: fx.Node, new: fx.Node) -> None:
    """Set the number of groups to those that are left."""
    left = rewriter.kept.groups_left(old)
    if left is None:
        return
    for position, found in enumerate(old.target._schema.arguments):  # type: ignore[union-attr]
        if found.name in ("groups", "num_groups"):
            rewriter.set(new, position, found.name, left)


@rewrites("layer_norm", "rms_norm")
def normalized_shape(rewriter: Rewriter, old: fx.Node, new: fx.Node) -> None:
    """Set the normalized shape to what is left of the last dimensions."""
    count = len(old.args[1])  # type: ignore[arg-type]
    full, left = _shape(old)[-count:], rewriter.kept.shape(old)[-count:]
    rewriter.set(new, 1, "normalized_shape", rewriter.sizes(old, new, new.args[1], full, left))


@rewrites("scaled_dot_product_attention")
def attention_scale(rewriter: Rewriter, old: fx.Node, new: fx.Node) -> None:
    """Cutting the width of the heads must not change the scale of the scores."""
    query: Any = old.args[0]
    width = _shape(query)[-1]
    if rewriter.kept.shape(query)[-1] != width and new.kwargs.get("scale") is None:
        new.kwargs = {**new.kwargs, "scale": width**-0.5}
