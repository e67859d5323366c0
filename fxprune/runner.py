"""Running a graph to look at its numbers: in float64, twice alike, and without a trace in the module.

The one interpreter of all checks; what differs between them is what they do with a node's value.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.graph_tools import wide

Weights = Callable[[str], Tensor]
"""From the name of a parameter or buffer to its values."""


class Runner(fx.Interpreter):
    """Runs a graph without changing anything that it holds, in float64 unless told otherwise.

    - Every value is widened as it arises, weights one layer at a time, so that no second copy of the model is held.
      Casts to lower precision are widened with them.
    - What reads the bits of a number has them in the width that they had.
    - Random numbers are the same in each run, and the generator is left as it was.
    - A layer in training mode writes into copies of its buffers.
    - ``seen`` is told the value of each node.
    - ``weights``, where it is given, is asked for every parameter and buffer by name when it is needed, and its answer
      is not kept: for models whose own tensors hold no data.

    Subclasses say in :meth:`value_of` what else a node's value is.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        *,
        double: bool = True,
        seen: Callable[[fx.Node, Any], None] | None = None,
        weights: Weights | None = None,
    ) -> None:
        super().__init__(module)
        self.double = double
        self.seen = seen
        self.weights = weights

    def flat(self, inputs: Iterable[Any], known: dict[fx.Node, Any] | None = None) -> list[Any]:
        """Run on inputs in the order of the placeholders; return the output's leaves in order, whatever they are.

        Nodes whose value is known are not run, and get no input.
        """
        given = [self._widened(leaf) for leaf in inputs]
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            outputs = self.run(*given, initial_env=known and dict(known), enable_io_processing=False)
        return pytree.tree_leaves(outputs)

    def run_flat(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """Run on example inputs and return the tensor outputs in order."""
        leaves = self.flat(pytree.tree_leaves((args, kwargs)))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and show its value."""
        value = self.value_of(n)
        if self.seen is not None:
            self.seen(n, value)
        return value

    def value_of(self, n: fx.Node) -> Any:
        """Return what a node gives."""
        if self.double and n.target is torch.ops.aten.view.dtype:
            (value, dtype), _ = self.fetch_args_kwargs_from_env(n)
            source: Any = n.args[0]
            return wide(value.to(source.meta["val"].dtype).view(dtype))
        value = super().run_node(n)
        return value if n.op == "output" else pytree.tree_map(self._widened, value)

    def fetch_attr(self, target: str) -> Any:
        """Return a layer or tensor of the model, with the weights that it is to have."""
        found = super().fetch_attr(target)
        return found if self.weights is None else _filled(found, target, self.weights)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an operation, with every dtype that it is given widened."""
        if self.weights is not None:  # a graph captured on no device says so where it makes tensors
            args, kwargs = pytree.tree_map_only(torch.device, _real, (args, kwargs))
        if self.double and isinstance(target, torch._ops.OpOverload):
            args, kwargs = pytree.tree_map_only(torch.dtype, wide, (args, kwargs))
        return super().call_function(target, args, kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a layer on its tensors, widened."""
        layer: Any = self.fetch_attr(target)
        tensors = {name: self._widened(tensor.detach()) for name, tensor in layer.named_parameters()}
        for name, buffer in layer.named_buffers():
            tensors[name] = self._widened(buffer.clone() if layer.training else buffer)
        if self.double and _is_depthwise(layer):
            return _depthwise(layer, tensors["weight"], tensors.get("bias"), args[0])
        return torch.func.functional_call(layer, tensors, args, kwargs)

    def _widened(self, value: Any) -> Any:
        return wide(value) if self.double else value


def _filled(value: Any, path: str, weights: Weights) -> Any:
    """Return a copy of a layer, or a tensor, with other values."""
    if isinstance(value, Tensor):
        return weights(path)
    layer = copy.copy(value)
    layer._parameters = {
        name: None if old is None else nn.Parameter(weights(f"{path}.{name}"), requires_grad=False)
        for name, old in value._parameters.items()
    }
    layer._buffers = {name: None if old is None else weights(f"{path}.{name}") for name, old in value._buffers.items()}
    layer._modules = {
        name: None if child is None else _filled(child, f"{path}.{name}", weights)
        for name, child in value._modules.items()
    }
    if isinstance(layer, nn.RNNBase):
        layer._init_flat_weights()
    return layer


def _real(device: torch.device) -> torch.device:
    return torch.device("cpu") if device.type == "meta" else device


def _is_depthwise(layer: Any) -> bool:
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) or layer.padding_mode != "zeros":
        return False
    return layer.groups == layer.in_channels > 1 and not isinstance(layer.padding, str)


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
