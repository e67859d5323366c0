"""The masked reference: the original graph in float64 with removed indices zeroed, and statistics over what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.channels.rules.statistics import REDUCTIONS, statistic_dims
from fxprune.graph_tools import wide
from fxprune.runner import Runner, Weights
from fxprune.surgery.kept import Kept

aten = torch.ops.aten


class Masked(Runner):
    """Runs the original graph in float64 as if the removed indices were not there.

    ``constants`` names layers that read removed channels as a constant instead of zero, in their padding too.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        kept: Kept,
        constants: Mapping[str, Any] | None = None,
        *,
        seen: Callable[[fx.Node, Any], None] | None = None,
        weights: Weights | None = None,
    ) -> None:
        super().__init__(module, seen=seen, weights=weights)
        self.kept = kept
        self.constants = constants or {}

    def value_of(self, node: fx.Node) -> Any:
        """Return what a node gives, with what is removed zeroed."""
        if node.name in self.constants:
            return self._zeroed(self._over_constants(node), self.kept.axes(node))
        masks = self._statistic_masks(node)
        value = self._over_kept(node, masks) if masks else super().value_of(node)
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
            rest[1:] = [_narrow_channels(r, places) if isinstance(r, Tensor) else r for r in rest[1:]]
        return self.call_function(node.target, (value, *rest), kwargs)

    def _call_narrowed_layer(self, node: fx.Node, value: Tensor, places: dict[int, Tensor], ndim: int) -> Tensor:
        layer: Any = self.fetch_attr(str(node.target))
        if isinstance(layer, nn.modules.batchnorm._NormBase):  # over all but the channels, which its vectors are for
            return super().call_module(node.target, (value,), {})  # type: ignore[no-any-return]
        weight, bias = (None if t is None else wide(t) for t in (layer.weight, getattr(layer, "bias", None)))
        if isinstance(layer, nn.GroupNorm):
            groups = self.kept.groups_left(node) or layer.num_groups
            weight, bias = (None if t is None else _narrow_channels(t, places) for t in (weight, bias))
            return nn.functional.group_norm(value, groups, weight, bias, layer.eps)
        weight, bias = (None if t is None else _narrow_last(t, places, ndim) for t in (weight, bias))
        shape = list(value.shape[-len(layer.normalized_shape) :])
        if isinstance(layer, nn.RMSNorm):
            return nn.functional.rms_norm(value, shape, weight, layer.eps)
        return nn.functional.layer_norm(value, shape, weight, bias, layer.eps)


def _narrow_channels(tensor: Tensor, places: dict[int, Tensor]) -> Tensor:
    return tensor.index_select(0, places[1]) if 1 in places else tensor


def _narrow_last(tensor: Tensor, places: dict[int, Tensor], ndim: int) -> Tensor:
    """Gather what is left of a weight that spans the last dimensions of an activation with ``ndim`` dimensions."""
    for d, place in places.items():
        tensor = tensor.index_select(d - ndim + tensor.ndim, place)
    return tensor
