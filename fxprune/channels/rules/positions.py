"""Operations that read or write places along one dimension that are found while the model runs."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxprune.channels.labels import Axes, Axis
from fxprune.channels.rules.table import Flow, Held, integer, packets, rule

_FOUND = "its positions are picked by value"


def _tied(flow: Flow, d: int, first: Axes, *others: Axes) -> Axes:
    """Tie all dimensions of tensors but the one that positions refer to, which stays in each; return those of one."""
    result: list[Axis | None] = list(first)
    for axes in (first, *others):
        flow.freeze(axes[d], _FOUND)
    for axes in others:
        for k, axis in enumerate(axes):
            if k != d:
                result[k] = flow.meet(result[k], axis)
    result[d] = None
    return tuple(result)


@rule(*packets("gather"), held=Held.LOST)
def gather(flow: Flow, node: fx.Node) -> Axes:
    """What is picked is laid out like the index; along all other dimensions the two are read index by index."""
    index = flow.axes(node.args[2])
    return _tied(flow, integer(node.args[1]) % len(index), index, flow.axes(node.args[0])) if index else ()


@rule(*packets("scatter", "scatter_add", "scatter_reduce"), held=Held.LOST)
def scatter(flow: Flow, node: fx.Node) -> Axes:
    """Index and source are read index by index along all other dimensions than the one that is written to."""
    base, *others = (flow.axes(node.args[at]) for at in (0, 2, 3) if flow.is_tensor(node.args[at]))
    return _tied(flow, integer(node.args[1]) % len(base), base, *others) if base else ()


@rule(*packets("index_add", "index_copy"), held=Held.LOST)
def add_at(flow: Flow, node: fx.Node) -> Axes:
    """Slices of the source go to places along one dimension; the others are tied."""
    base, source = flow.axes(node.args[0]), flow.axes(node.args[3])
    for axis in flow.axes(node.args[2]):
        flow.freeze(axis, _FOUND)
    if len(base) != len(source) or not base:
        return flow.freeze_all(node, _FOUND)  # type: ignore[no-any-return]
    return _tied(flow, integer(node.args[1]) % len(base), base, source)


@rule(*packets("max_unpool2d", "max_unpool3d"), held=Held.LOST)
def unpool(flow: Flow, node: fx.Node) -> Axes:
    """Values go back to where maxima were taken from: channels are tied, and space carries none."""
    sizes: Any = node.args[2]
    values, places = flow.axes(node.args[0]), flow.axes(node.args[1])
    keep = len(values) - len(sizes)
    for axis in (*values[keep:], *places[keep:]):
        flow.freeze(axis, "a space dimension")
    lead = [flow.meet(one, other) for one, other in zip(values[:keep], places[:keep], strict=True)]
    return (*lead, *[None] * len(sizes))
