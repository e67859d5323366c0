"""Normalisations, reductions, pooling, and what gives a channel a meaning of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.channels.labels import Axes
from fxprune.channels.rules.same import DRAWN
from fxprune.channels.rules.table import Flow, Held, argument_of, integer, packets, rule

aten = torch.ops.aten


def _per_channel(flow: Flow, axes: Axes, vectors: list[Axes], d: int = 1) -> Axes:
    """Vectors with one value per channel go with the channels; those that carry no labels keep them whole."""
    result = list(axes)
    for (axis,) in vectors:
        result[d] = flow.meet(result[d], axis, "meets a vector of values that stay")
    return tuple(result)


def _vectors(flow: Flow, operands: Iterable[Any]) -> list[Axes]:
    """Return the labels of the operands that hold more than a single value."""
    return [flow.axes(n) for n in operands if flow.is_tensor(n) and flow.shape(n) not in ((), (1,))]


def _own_vectors(flow: Flow, layer: nn.Module, *names: str) -> list[Axes]:
    """Return the labels of a layer's own vectors of these names, which may be missing or hold a single value."""
    tensors = [getattr(layer, name, None) for name in names]
    return [flow.parameter(t) for t in tensors if isinstance(t, Tensor) and t.numel() > 1]


@rule(
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    held=Held.BIAS,
)
@rule(nn.PReLU, held=Held.MOVED)
def per_channel_module(flow: Flow, node: fx.Node) -> Axes:
    """Weights, biases and running statistics are tied to the channels, and the channels pass."""
    vectors = _own_vectors(flow, flow.layer(node), "weight", "bias", "running_mean", "running_var")
    return _per_channel(flow, flow.axes(node.args[0]), vectors, 1 if len(flow.shape(node)) > 1 else 0)


@rule(*packets("batch_norm", "instance_norm", "prelu"), held=Held.LOST)
def per_channel(flow: Flow, node: fx.Node) -> Axes:
    """Vectors with one value per channel are tied to the channels, and the channels pass."""
    return _per_channel(flow, flow.axes(node.args[0]), _vectors(flow, node.args[1:]))


def _over_last(flow: Flow, node: fx.Node, tensors: list[Any]) -> Axes:
    axes = list(flow.axes(node.args[0]))
    for found in tensors:
        offset = len(axes) - len(found)
        for d, axis in enumerate(found):
            if flow.shape(node)[offset + d] > 1:
                axes[offset + d] = flow.meet(axes[offset + d], axis)
    return tuple(axes)


@rule(nn.LayerNorm, nn.RMSNorm, held=Held.BIAS)
def layer_norm_module(flow: Flow, node: fx.Node) -> Axes:
    """Weight and bias are tied to the last dimensions, which they cover."""
    layer = flow.layer(node)
    tensors = [getattr(layer, name, None) for name in ("weight", "bias")]
    return _over_last(flow, node, [flow.parameter(t) for t in tensors if isinstance(t, Tensor)])


@rule(*packets("layer_norm", "rms_norm"), held=Held.LOST)
def layer_norm(flow: Flow, node: fx.Node) -> Axes:
    """Weight and bias are tied to the last dimensions, which they cover."""
    return _over_last(flow, node, [flow.axes(n) for n in node.args[1:] if flow.is_tensor(n)])


def _group_norm(flow: Flow, node: fx.Node, groups: int, vectors: list[Axes]) -> Axes:
    axes = _per_channel(flow, flow.axes(node.args[0]), vectors)
    if axes[1] is not None and groups > 1:
        rows, _ = flow.labels.split(axes[1], (groups, axes[1].size // groups), flow.place)
        flow.groups[node] = rows
    return axes


@rule(nn.GroupNorm, held=Held.BIAS)
def group_norm_module(flow: Flow, node: fx.Node) -> Axes:
    """Channels are a grid of (group, member), and its affine vectors are tied to them."""
    layer: Any = flow.layer(node)
    return _group_norm(flow, node, layer.num_groups, _own_vectors(flow, layer, "weight", "bias"))


@rule(*packets("group_norm"), held=Held.LOST)
def group_norm(flow: Flow, node: fx.Node) -> Axes:
    """Channels are a grid of (group, member), and its affine vectors are tied to them."""
    return _group_norm(flow, node, integer(node.args[1]), _vectors(flow, node.args[2:]))


@rule(*packets("softmax", "log_softmax", "softmin", "_softmax"), held=Held.LOST)
def softmax(flow: Flow, node: fx.Node) -> Axes:
    """Taken over channels it is a statistic of those that are left."""
    return flow.axes(node.args[0])


@rule(
    *packets(
        "mean", "sum", "amax", "amin", "var", "std", "prod", "linalg_vector_norm", "norm", "logsumexp", "any", "all"
    ),
    held=Held.MOVED,
)
def reduce(flow: Flow, node: fx.Node) -> Axes:
    """What is reduced over ends here, and what is left of it enters the statistic; the other dimensions pass."""
    axes = flow.axes(node.args[0])
    shape = flow.shape(node)
    dims = reduced(node, len(axes))
    if len(shape) == len(axes):
        return tuple(None if d in dims else axis for d, axis in enumerate(axes))
    return tuple(axis for d, axis in enumerate(axes) if d not in dims)


def reduced(node: fx.Node, ndim: int) -> set[int]:
    """Return the dimensions that a reduction or a normalisation takes its statistics over."""
    name = "dim" if any(a.name == "dim" for a in node.target._schema.arguments) else ""  # type: ignore[union-attr]
    dims = argument_of(node, name) if name else None
    if dims is None or dims == []:
        return set(range(ndim))
    return {int(d) % ndim for d in (dims if isinstance(dims, (list, tuple)) else [dims])}


def statistic_dims(node: fx.Node, module: nn.Module) -> set[int]:
    """Return the dimensions that an operation takes statistics over: what is left of them changes the result."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor):
        return set()
    ndim = source.meta["val"].ndim
    if node.op == "call_module":
        return _of_layer(module.get_submodule(str(node.target)), ndim)
    packet = getattr(node.target, "overloadpacket", None)
    if packet in _NORMS:
        return _of_norm(node, packet, ndim)
    if packet in (aten.max, aten.min) and len(node.all_input_nodes) > 1:  # of two tensors, element by element
        return set()
    return reduced(node, ndim) if packet in _STATISTICS else set()


_NORMS = {aten.layer_norm, aten.rms_norm, aten.group_norm, aten.batch_norm, aten.instance_norm}


def _of_norm(node: fx.Node, packet: Any, ndim: int) -> set[int]:
    if packet is aten.group_norm:
        return set(range(1, ndim))
    if packet is aten.batch_norm:
        return _but_channels(0, ndim) if argument_of(node, "training") else set()
    if packet is aten.instance_norm:
        return _but_channels(2, ndim) if argument_of(node, "use_input_stats") else set()
    return set(range(ndim - len(node.args[1]), ndim))  # type: ignore[arg-type]


def _of_layer(layer: Any, ndim: int) -> set[int]:
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        return set(range(ndim - len(layer.normalized_shape), ndim))
    if isinstance(layer, nn.modules.batchnorm._NormBase) and (layer.training or layer.running_mean is None):
        return _but_channels(2 if isinstance(layer, nn.modules.instancenorm._InstanceNorm) else 0, ndim)
    return set(range(1, ndim)) if isinstance(layer, nn.GroupNorm) else set()


def _but_channels(first: int, ndim: int) -> set[int]:
    """Return the dimensions that a batch norm (from 0) or instance norm (from 2) takes its statistics over."""
    return set(range(first, ndim)) - {1}


def spread_correction(node: fx.Node) -> int:
    """Return what a variance takes from the number of values that it divides by; 0 for any other statistic."""
    if getattr(node.target, "overloadpacket", None) not in _SPREADS:
        return 0
    correction = argument_of(node, "correction")
    return int(argument_of(node, "unbiased", True)) if correction is None else int(correction)


_SPREADS = {aten.var, aten.std}
REDUCTIONS = _SPREADS | {aten.mean, aten.amax, aten.amin, aten.max, aten.min, aten.prod, aten.logsumexp}
REDUCTIONS |= {aten.all, aten.norm, aten.linalg_vector_norm}  # a norm of negative order is an extreme value
_STATISTICS = REDUCTIONS | {aten.softmax, aten.log_softmax, aten._softmax}


def _space(flow: Flow, node: fx.Node) -> Any:
    """Pooling and resampling: channels pass, space does not carry any."""
    source = node.args[0]
    axes = flow.axes(source)
    value = node.meta["val"]
    result = value[0] if isinstance(value, (list, tuple)) else value
    keep = len(axes) - SPACE[node.target.overloadpacket]  # type: ignore[union-attr]
    for axis in axes[keep:]:
        flow.freeze(axis, "a space dimension")
    out = (*axes[:keep], *[None] * (result.ndim - keep))
    return [out, out] if isinstance(value, (list, tuple)) else out


SPACE: dict[Any, int] = {
    getattr(aten, f"{name}{n}d"): n
    for name in (
        "max_pool",
        "avg_pool",
        "adaptive_avg_pool",
        "adaptive_max_pool",
        "_adaptive_avg_pool",
        "lp_pool",
        "fractional_max_pool",
        "upsample_nearest",
        "_upsample_nearest_exact",
        "reflection_pad",
        "replication_pad",
    )
    for n in (1, 2, 3)
    if hasattr(aten, f"{name}{n}d")
}
SPACE |= {
    getattr(aten, f"max_pool{n}d_with_indices"): n for n in (1, 2, 3) if hasattr(aten, f"max_pool{n}d_with_indices")
}
SPACE |= {
    getattr(aten, name): n
    for name, n in {
        "upsample_linear1d": 1,
        "upsample_bilinear2d": 2,
        "upsample_bicubic2d": 2,
        "upsample_trilinear3d": 3,
        "_upsample_bicubic2d_aa": 2,
        "_upsample_bilinear2d_aa": 2,
    }.items()
    if hasattr(aten, name)
}
rule(*SPACE, held=Held.PASSED)(_space)


@rule(*packets("grid_sampler"), held=Held.LOST)
def grid_sampler(flow: Flow, node: fx.Node) -> Axes:
    """Batch and channels pass; space and the coordinates that address it are frozen."""
    axes, grid = flow.axes(node.args[0]), flow.axes(node.args[1])
    for axis in (*axes[2:], *grid):
        flow.freeze(axis, "a space dimension or a coordinate")
    return (*axes[:2], *[None] * (len(axes) - 2))


@rule(*packets("argmax", "argmin"), held=Held.LOST)
def argmax(flow: Flow, node: fx.Node) -> Axes:
    """What it searches is frozen, because its result is a position; the other dimensions pass."""
    axes = flow.axes(node.args[0])
    dims = reduced(node, len(axes))
    for d in dims:
        flow.freeze(axes[d], "the position of the extreme value has a meaning")
    keep = len(flow.shape(node)) == len(axes)
    return tuple(None if d in dims else axis for d, axis in enumerate(axes) if keep or d not in dims)


@rule(*packets("affine_grid_generator"), held=Held.LOST)
def coordinates(flow: Flow, node: fx.Node) -> Any:
    """A table of coordinates from matrices, whose entries have a place."""
    return flow.freeze_all(node, "its entries are coordinates of an affine map")


@rule(*packets("randn_like", "randint_like", "rand_like", "bernoulli"), held=Held.LOST)
def drawn(flow: Flow, node: fx.Node) -> Any:
    """Random numbers, which would be others for fewer indices, so that nothing could be compared."""
    return flow.freeze_all(node, DRAWN)


@rule(*packets("triu", "tril"), held=Held.LOST)
def triangle(flow: Flow, node: fx.Node) -> Axes:
    """A row and the column of the same index go together: what is left of a triangle is then a triangle again."""
    axes = flow.axes(node.args[0])
    diagonal = integer(argument_of(node, "diagonal"))
    if diagonal not in ((0, 1) if node.target.overloadpacket is aten.triu else (0, -1)):  # type: ignore[union-attr]
        for axis in axes[-2:]:
            flow.freeze(axis, "the place of an index decides what is kept of a triangle")
    elif axes[-1] is not None or axes[-2] is not None:
        flow.meet(axes[-2], axes[-1], "the place of an index decides what is kept of a triangle")
    return axes


@rule(*packets("topk", "sort", "argsort", "meshgrid", "unfold", "nonzero", "diff"), held=Held.LOST)
def ordered(flow: Flow, node: fx.Node) -> Any:
    """The order of the indices matters to these."""
    return flow.freeze_all(node, f"{node.target} depends on the order of the indices")
