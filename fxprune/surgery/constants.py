"""What removed channels hold when their layers' weights are zero, wherever they appear in a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture import Traced
from fxprune.capture.propagate import flat_inputs
from fxprune.channels.rules import RULES, Held, key_of
from fxprune.channels.rules.table import argument_of
from fxprune.graph_tools import evaluating, wide
from fxprune.surgery.kept import Kept

aten = torch.ops.aten
Constant = npt.NDArray[np.float64]


def constants(traced: Traced, kept: Kept) -> dict[fx.Node, Constant]:
    """Return, per node with removed channels along one dimension, what each holds (0 for those that stay).

    A convolution or linear layer without weights gives its bias, a norm without a scale its shift; activations, pooling
    and whatever only moves elements carry that on. A node is missing where some removed channel has no constant: it is
    multiplied with data, or differs from place to place.
    """
    walk = _Walk(traced.module, kept)
    with torch.no_grad(), evaluating(traced.module):
        walk.run(*[wide(x) for x in flat_inputs(traced.args, traced.kwargs)], enable_io_processing=False)
    return {node: vector.numpy() for node, vector in walk.vectors.items()}


class _Walk(fx.Interpreter):
    """Runs a graph on stand-ins: removed channels hold their constant, and all else, which nobody looks at, is zero."""

    def __init__(self, module: fx.GraphModule, kept: Kept) -> None:
        super().__init__(module)
        self.kept = kept
        self.vectors: dict[fx.Node, Tensor] = {}
        self.lost: set[fx.Node] = set()  # nodes some of whose removed channels have no constant

    def run_node(self, n: fx.Node) -> Any:
        if n.op in ("placeholder", "get_attr"):
            return pytree.tree_map(wide, super().run_node(n))
        if n.op == "output":
            return None
        if not isinstance(n.meta.get("val"), Tensor):
            return self._structure(n)
        d = self._place(n)
        vector = None if d is None else self._vector(n, d)
        if vector is None:
            self.lost.add(n)
            return _zeros(n.meta["val"])
        self.vectors[n] = vector
        return _along(vector, d, n)  # type: ignore[arg-type]

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Call an operation; a view copies where it has to, because stand-ins are laid out otherwise."""
        view = target in (aten.view.default, aten._unsafe_view.default)
        return super().call_function(aten.reshape.default if view else target, args, kwargs)

    def _structure(self, node: fx.Node) -> Any:
        """Run what gives a number or a list of pieces; the parts of anything else are not known."""
        if self.lost.intersection(node.all_input_nodes):
            self.lost.add(node)
        if node.op == "call_function" and (self._held(node) is Held.MOVED or _is_number(node)):
            return self._call(node)
        self.lost.add(node)
        return pytree.tree_map_only(Tensor, _zeros, node.meta.get("val"))

    def _vector(self, node: fx.Node, d: int) -> Tensor | None:
        """Return what the channels along dimension ``d`` hold; None if that is not known."""
        held = self._held(node)
        if held is Held.BIAS:
            layer: Any = self.fetch_attr(str(node.target))
            size = node.meta["val"].shape[d]
            if d not in _own_dims(layer, node.meta["val"].ndim):  # what it does to channels of another dimension
                return None
            if layer.weight is None and not self._is_centred(node, layer):
                return None
            if getattr(layer, "bias", None) is None:
                return torch.zeros(size, dtype=torch.float64)
            return wide(layer.bias.detach()).cpu() if layer.bias.shape == (size,) else None
        if held is Held.PASSED:
            return self.vectors.get(node.args[0]) if _averages(node) else None  # type: ignore[arg-type]
        if not self._follows(node, held):
            return None
        value = self._call(node)
        gone = torch.from_numpy(np.flatnonzero(~self.kept.masks(node)[d]))  # type: ignore[operator]
        taken = value.detach().cpu().index_select(d, gone).transpose(0, d).reshape(gone.numel(), -1)
        if not value.is_floating_point() or not taken.isfinite().all() or (taken != taken[:, :1]).any():
            return None
        vector = torch.zeros(value.shape[d], dtype=torch.float64)
        vector[gone] = taken[:, 0]
        return vector

    def _is_centred(self, node: fx.Node, layer: Any) -> bool:
        """Whether a norm that scales by nothing of its own makes zero of each channel that holds one value."""
        return isinstance(layer, nn.modules.instancenorm._InstanceNorm) and node.args[0] in self.vectors

    def _follows(self, node: fx.Node, held: Held) -> bool:
        """Whether what removed channels hold in a node follows from what they hold in its operands."""
        operands = [n for n in node.all_input_nodes if n.op != "get_attr"]
        if self.lost.intersection(n for n in operands if self._is_cut(n)):
            return False
        if held is Held.COMPUTED:  # an operand that is the same for all channels brings data into them
            return all(self._is_cut(n) for n in operands if isinstance(n.meta.get("val"), Tensor))
        return held is Held.MOVED

    def _is_cut(self, node: fx.Node) -> bool:
        if not isinstance(node.meta.get("val"), Tensor):
            return True
        return any(mask is not None for mask in self.kept.masks(node))

    def _place(self, node: fx.Node) -> int | None:
        """Return the one dimension of a node that has removed channels; None where there is none, or several."""
        found = [d for d, mask in enumerate(self.kept.masks(node)) if mask is not None]
        return found[0] if len(found) == 1 else None

    def _held(self, node: fx.Node) -> Held:
        entry = RULES.get(key_of(node, self.module))
        return Held.LOST if entry is None else entry.held

    def _call(self, node: fx.Node) -> Any:
        args, kwargs = pytree.tree_map(wide, self.fetch_args_kwargs_from_env(node))
        if node.op == "call_function":
            return self.call_function(node.target, args, kwargs)
        layer: Any = self.fetch_attr(str(node.target))
        tensors = {name: wide(tensor) for name, tensor in layer.named_parameters()}
        return torch.func.functional_call(layer, tensors, args, kwargs)


def channel_dim(layer: Any, ndim: int) -> int:
    """Return which dimension of its input and output a convolution or linear layer has its channels in."""
    return ndim - 1 if isinstance(layer, nn.Linear) else ndim - len(layer.kernel_size) - 1


def _own_dims(layer: Any, ndim: int) -> range:
    """Return the dimensions of a layer's output that its weight and bias are laid along."""
    if isinstance(layer, (nn.LayerNorm, nn.RMSNorm)):
        return range(ndim - len(layer.normalized_shape), ndim)
    if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
        return range(d := channel_dim(layer, ndim), d + 1)
    return range(1, 2) if ndim > 1 else range(1)


def _averages(node: fx.Node) -> bool:
    """Whether pooling or resampling gives a constant back: not where it divides by a number of the caller's."""
    return argument_of(node, "divisor_override") is None


def _is_number(node: fx.Node) -> bool:
    return not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(node.meta.get("val")))


def _zeros(value: Tensor) -> Tensor:
    """Stand in for a value that nobody looks at, at the cost of one element."""
    dtype = torch.float64 if value.dtype.is_floating_point else value.dtype
    return torch.zeros((), dtype=dtype).expand([int(size) for size in value.shape])


def _along(vector: Tensor, d: int, node: fx.Node) -> Tensor:
    """Return a value of a node's shape that holds a vector along one dimension."""
    shape = [int(size) for size in node.meta["val"].shape]
    return vector.view(*[-1 if k == d else 1 for k in range(len(shape))]).expand(shape)
