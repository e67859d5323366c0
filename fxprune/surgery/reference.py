"""The masked reference: the original graph in float64 with removed indices zeroed, and statistics over what is left."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.propagate import flat_inputs
from fxprune.channels.rules.statistics import REDUCTIONS, statistic_dims
from fxprune.graph_tools import wide
from fxprune.surgery.kept import Kept

aten = torch.ops.aten


class Widened(fx.Interpreter):
    """Runs a graph in float64, casting one layer at a time, so that no second copy of the model is held."""

    def run_flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Run on example inputs and return the tensor outputs in order."""
        inputs = [wide(value) for value in flat_inputs(args, kwargs)]
        with torch.no_grad():
            outputs = self.run(*inputs, enable_io_processing=False)
        return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]

    def run_node(self, n: fx.Node) -> Any:
        """Run a node; one that reads the bits of a number has them in the width that they had."""
        if n.target is not aten.view.dtype:
            return super().run_node(n)
        (value, dtype), _ = self.fetch_args_kwargs_from_env(n)
        source: Any = n.args[0]
        return wide(value.to(source.meta["val"].dtype).view(dtype))

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Return a parameter or buffer in double precision."""
        return wide(super().get_attr(target, args, kwargs))

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call an operation, with every dtype that it is given widened."""
        if isinstance(target, torch._ops.OpOverload):
            args, kwargs = pytree.tree_map_only(torch.dtype, wide, (args, kwargs))
        return super().call_function(target, args, kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a layer with its tensors widened."""
        return self.call_layer(self.fetch_attr(target), args, kwargs)

    def call_layer(self, layer: Any, args: Any, kwargs: Any) -> Any:
        """Call a layer with its tensors widened."""
        tensors = {name: wide(t) for name, t in [*layer.named_parameters(), *layer.named_buffers()]}
        plain = isinstance(layer, nn.modules.conv._ConvNd) and not isinstance(layer, nn.modules.conv._ConvTransposeNd)
        if (
            plain
            and layer.groups == layer.in_channels > 1
            and not isinstance(layer.padding, str)
            and layer.padding_mode == "zeros"
        ):
            return _depthwise(layer, tensors["weight"], tensors.get("bias"), args[0])
        return torch.func.functional_call(layer, tensors, args, kwargs)


def _depthwise(layer: Any, weight: Tensor, bias: Tensor | None, value: Tensor) -> Tensor:
    """Depthwise convolution as a sum over kernel taps.

    Torch has no fast kernel for it in float64 (30 times slower on a CPU).
    """
    space = value.ndim - 2
    value = nn.functional.pad(value, [p for size in reversed(layer.padding) for p in (size, size)])
    if layer.out_channels != layer.in_channels:
        value = value.repeat_interleave(layer.out_channels // layer.in_channels, dim=1)
    spans = [layer.dilation[d] * (weight.shape[2 + d] - 1) + 1 for d in range(space)]
    sizes = [(value.shape[2 + d] - spans[d]) // layer.stride[d] + 1 for d in range(space)]
    shape = (1, -1, *[1] * space)
    total = value.new_zeros(())
    for tap in itertools.product(*[range(size) for size in weight.shape[2:]]):
        window = value
        for d, place in enumerate(tap):
            start = place * layer.dilation[d]
            stop = start + (sizes[d] - 1) * layer.stride[d] + 1
            window = window[(*[slice(None)] * (2 + d), slice(start, stop, layer.stride[d]))]
        at: Any = (slice(None), 0, *tap)
        total = total + window * weight[at].view(shape)
    return total if bias is None else total + bias.view(shape)


class Masked(Widened):
    """Runs the original graph in float64 as if the removed indices were not there.

    ``constants`` names layers that read removed channels as a constant instead of zero, in their padding too.
    """

    def __init__(self, module: fx.GraphModule, kept: Kept, constants: Mapping[str, Any] | None = None) -> None:
        super().__init__(module)
        self.kept = kept
        self.constants = constants or {}

    def run_node(self, node: fx.Node) -> Any:
        """Run a node, with what is removed zeroed in its value."""
        if node.name in self.constants:
            return self._zeroed(self._over_constants(node), self.kept.axes(node))
        masks = self._statistic_masks(node)
        value = self._over_kept(node, masks) if masks else super().run_node(node)
        return value if node.op == "output" else self._zeroed(value, self.kept.axes(node))

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call a layer; a recurrent one with the removed units silenced in its weights."""
        layer = self.fetch_attr(target)
        if not isinstance(layer, nn.RNNBase):
            return super().call_module(target, args, kwargs)
        # What a recurrent layer remembers never leaves it, so the removed units are silenced in its weights.
        axes = {
            name: [self.kept.groups.axis(f"{target}.{name}", d) for d in range(w.ndim)]
            for name, w in layer.named_parameters()
        }
        weights = {name: self._zeroed(wide(w), axes[name]) for name, w in layer.named_parameters()}
        return torch.func.functional_call(layer, weights, args, kwargs)

    def _zeroed(self, value: Any, axes: Any) -> Any:
        if isinstance(value, Tensor):
            for d, axis in enumerate(axes or ()):
                if axis is not None and self.kept.gone[axis].any():
                    value = value.index_fill(d, torch.from_numpy(np.flatnonzero(self.kept.gone[axis])), 0)
            return value
        if isinstance(value, (list, tuple)) and axes is not None:
            return type(value)(self._zeroed(v, a) for v, a in zip(value, axes, strict=True))
        return value

    def _over_constants(self, node: fx.Node) -> Tensor:
        """Call a convolution or linear layer on its input with the removed channels filled with their constants."""
        layer: Any = self.fetch_attr(str(node.target))
        weight, bias = wide(layer.weight), None if layer.bias is None else wide(layer.bias)
        (value,), _ = self.fetch_args_kwargs_from_env(node)
        if isinstance(layer, nn.Linear):
            return nn.functional.linear(self._filled(value, -1, self.constants[node.name]), weight, bias)
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        value = nn.functional.pad(value, layer._reversed_padding_repeated_twice, mode=mode)
        value = self._filled(value, -1 - len(layer.kernel_size), self.constants[node.name])
        convolve: Any = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)[len(layer.kernel_size) - 1]
        return convolve(value, weight, bias, layer.stride, 0, layer.dilation, layer.groups)  # type: ignore[no-any-return]

    def _filled(self, value: Tensor, d: int, constants: Any) -> Tensor:
        """Put a constant into each channel along ``d`` that has one; the others hold zero there, or what they held."""
        places = torch.from_numpy(np.flatnonzero(constants))
        shape = [-1 if k == d % value.ndim else 1 for k in range(value.ndim)]
        held = torch.from_numpy(constants)[places].view(shape)
        return value.index_copy(d % value.ndim, places, held.expand_as(value.index_select(d, places)))

    # statistics over what is left

    def _statistic_masks(self, node: fx.Node) -> dict[int, Any]:
        """Return, for an operation that takes statistics, which indices of each of its statistic dimensions stay."""
        dims = statistic_dims(node, self.module)
        if not dims:
            return {}
        masks = self.kept.masks(node.args[0])  # type: ignore[arg-type]
        return {d: masks[d] for d in dims if masks[d] is not None}

    def _over_kept(self, node: fx.Node, masks: dict[int, Any]) -> Any:
        """Gather what is left, run the operation on it, and put the result back in place."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        source, *rest = args
        places = {d: torch.from_numpy(np.flatnonzero(mask)) for d, mask in masks.items()}
        value = source
        for d, place in places.items():
            value = value.index_select(d, place)
        result = self._call_narrowed(node, value, rest, kwargs, places, source.ndim)
        if getattr(node.target, "overloadpacket", None) in REDUCTIONS:
            return result
        for d, place in places.items():
            shape = list(result.shape)
            shape[d] = source.shape[d]
            result = result.new_zeros(shape).index_copy(d, place, result)
        return result

    def _call_narrowed(
        self, node: fx.Node, value: Tensor, rest: list[Any], kwargs: Any, places: dict[int, Tensor], ndim: int
    ) -> Any:
        if node.op == "call_module":
            return self._call_narrowed_layer(node, value, places, ndim)
        packet = node.target.overloadpacket  # type: ignore[union-attr]
        if packet in (aten.layer_norm, aten.rms_norm):
            count = len(rest[0])
            rest[0] = list(value.shape[-count:])
            rest[1:] = [_narrow_last(r, places, ndim) if isinstance(r, Tensor) else r for r in rest[1:]]
        elif packet is aten.group_norm:
            rest[0] = self.kept.groups_left(node) or rest[0]
            rest[1:] = [r.index_select(0, places[1]) if isinstance(r, Tensor) else r for r in rest[1:]]
        return self.call_function(node.target, (value, *rest), kwargs)

    def _call_narrowed_layer(self, node: fx.Node, value: Tensor, places: dict[int, Tensor], ndim: int) -> Tensor:
        layer: Any = self.fetch_attr(str(node.target))
        weight, bias = (None if t is None else wide(t) for t in (layer.weight, getattr(layer, "bias", None)))
        if isinstance(layer, nn.GroupNorm):
            groups = self.kept.groups_left(node) or layer.num_groups
            weight, bias = (None if t is None else t.index_select(0, places[1]) for t in (weight, bias))
            return nn.functional.group_norm(value, groups, weight, bias, layer.eps)
        weight, bias = (None if t is None else _narrow_last(t, places, ndim) for t in (weight, bias))
        shape = list(value.shape[-len(layer.normalized_shape) :])
        if isinstance(layer, nn.RMSNorm):
            return nn.functional.rms_norm(value, shape, weight, layer.eps)
        return nn.functional.layer_norm(value, shape, weight, bias, layer.eps)


def _narrow_last(tensor: Tensor, places: dict[int, Tensor], ndim: int) -> Tensor:
    """Gather what is left of a weight that spans the last dimensions of an activation with ``ndim`` dimensions."""
    for d, place in places.items():
        tensor = tensor.index_select(d - ndim + tensor.ndim, place)
    return tensor
