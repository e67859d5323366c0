"""What each call of a graph does to its input, where that is linear: layers, norms, constants, sums, means, padding.

Constants are whatever no input of the model goes into: parameters, buffers, and what is computed from them alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.graph_tools import module_of, place_of, shape_of, tensor_uses, why_hooked, wide
from fxprune.linear.combine import branches, chain
from fxprune.linear.forms import Form, NotOneLayer, affine, average, layer_form, padded
from fxprune.linear.layers import LAYERS, why_not_alone, why_not_plain

aten = torch.ops.aten

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_ADD = (aten.add.Tensor, aten.add.Scalar)
_SUB = (aten.sub.Tensor, aten.sub.Scalar)
_RSUB = (aten.rsub.Tensor, aten.rsub.Scalar)
_MUL = (aten.mul.Tensor, aten.mul.Scalar)
_DIV = (aten.div.Tensor, aten.div.Scalar)
_PADS = (aten.pad.default, aten.constant_pad_nd.default)
_MEANS = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}


@dataclass(frozen=True)
class Frame:
    """How the values of a region are seen: channels in one dimension, and ``dims`` that windows move over."""

    rank: int
    axis: int
    dims: int

    @classmethod
    def of(cls, layer: nn.Module, shape: tuple[int, ...] | None) -> Frame | None:
        """Return the frame that a convolution or linear layer needs for values of this shape; None if there is none."""
        if shape is None:
            return None
        if isinstance(layer, nn.Linear):
            return cls(len(shape), len(shape) - 1, 0)
        dims = len(layer.kernel_size)  # type: ignore[arg-type]
        return cls(dims + 2, 1, dims) if len(shape) == dims + 2 else None


@dataclass(frozen=True)
class Operation:
    """A call that is linear in the values it reads.

    Attributes:
        kind: "layer", "norm", "constant", "sum", "mean", "pad" or "same" (it passes its input on).
        sources: The values that it reads, constants left out.
        apply: Makes the form of what it gives from those of the values. It raises ``NotOneLayer`` where it does not
            fit into the frame, or is no layer together with them.
        macs_per_output: Multiply-accumulates for each number of its output.
        constants: The nodes of its constants.
    """

    kind: str
    sources: tuple[fx.Node, ...]
    apply: Callable[[Frame, list[Form]], Form]
    macs_per_output: int = 0
    constants: tuple[fx.Node, ...] = ()


class Operations:
    """Looks up what the nodes of a graph do. Make a new one after the graph has changed."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.uses = tensor_uses(module)
        self._known: dict[fx.Node, Operation | str] = {}
        self._constant: dict[fx.Node, bool] = {}
        for node in module.graph.nodes:
            self._constant[node] = _may_be_constant(node) and all(self._constant[n] for n in node.all_input_nodes)

    def __getitem__(self, node: fx.Node) -> Operation | str:
        """Return the operation, or why it is none (to be read after its name)."""
        if node not in self._known:
            self._known[node] = self._look(node)
        return self._known[node]

    def behind(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """Return these constants and all that they are computed from."""
        found, pending = set[fx.Node](), list(nodes)
        while pending:
            node = pending.pop()
            if node not in found:
                found.add(node)
                pending += node.all_input_nodes
        return found

    def _look(self, node: fx.Node) -> Operation | str:
        if node.op == "call_module":
            return self._module(node, module_of(self.module, node))
        if node.op == "placeholder":
            return "is an input of the model"
        if node.op != "call_function":
            return "is no linear operation"
        if node.target in (*_MEANS, *_PADS):
            return _mean(node) if node.target in _MEANS else _pad(node)
        if node.target is aten.neg.default:
            return self._affine(node, node.args[0], lambda _: (torch.tensor(-1.0, dtype=torch.float64), None), ())
        if node.target in (*_ADD, *_SUB, *_RSUB):
            return self._addition(node)
        if node.target in (*_MUL, *_DIV) and not node.kwargs:
            return self._product(node)
        return "is no linear operation"

    # ------------------------------------------------------------ modules

    def _module(self, node: fx.Node, layer: Any) -> Operation | str:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if type(layer) is nn.Identity or (type(layer) in DROPOUTS and not (layer.training and layer.p)):
            hooked = why_hooked(layer).removeprefix("it ")
            return hooked or Operation("same", (source,), _passed_on)
        if isinstance(layer, BATCH_NORMS):
            return self._norm(node, layer, source)
        if not isinstance(layer, LAYERS):
            return "is no linear operation"
        reason = why_not_plain(layer) or why_not_alone(self.module, node, self.uses)
        if reason:
            return f"stays as it is: {reason}"
        own = Frame.of(layer, shape_of(source))
        form = layer_form(layer)

        def apply(frame: Frame, forms: list[Form]) -> Form:
            if own != frame:
                raise NotOneLayer(f"{place_of(node)} takes other dimensions for channels")
            return chain(forms[0], form)

        return Operation("layer", (source,), apply, form.macs_per_output)

    def _norm(self, node: fx.Node, norm: Any, source: fx.Node) -> Operation | str:
        if norm.training or norm.running_mean is None:
            why = "is in training mode" if norm.training and norm.running_mean is not None else "has no statistics"
            return f"{why} and normalises by the batch that it sees"
        if type(norm) not in BATCH_NORMS:
            return f"is a {type(norm).__name__}, which may do more than normalise"
        reason = why_not_alone(self.module, node, self.uses)
        if reason:
            return f"stays as it is: {reason}"

        def apply(frame: Frame, forms: list[Form]) -> Form:
            if frame.axis != 1:
                raise NotOneLayer(f"{place_of(node)} takes another dimension for channels")
            scale = (norm.running_var.double() + norm.eps).rsqrt()
            scale = scale if norm.weight is None else scale * norm.weight.detach().double()
            shift = -norm.running_mean.double() * scale
            shift = shift if norm.bias is None else shift + norm.bias.detach().double()
            return chain(forms[0], affine(scale, shift, norm.num_features, frame.dims))

        return Operation("norm", (source,), apply)

    # ------------------------------------------------------------ arithmetic

    def _is_constant(self, value: Any) -> bool:
        return self._constant[value] if isinstance(value, fx.Node) else isinstance(value, int | float)

    def _value(self, value: Any) -> Tensor:
        """Compute a constant in float64."""
        if not isinstance(value, fx.Node):
            return torch.tensor(float(value), dtype=torch.float64)
        if value.op == "get_attr":
            owner, _, name = str(value.target).rpartition(".")
            found: Tensor = wide(getattr(self.module.get_submodule(owner), name))
            return found
        args, kwargs = fx.node.map_arg((value.args, value.kwargs), self._value)
        args, kwargs = pytree.tree_map(wide, (args, kwargs))
        with torch.no_grad():
            computed: Tensor = value.target(*args, **kwargs)  # type: ignore[operator]
        return computed

    def _addition(self, node: fx.Node) -> Operation | str:
        """Look at ``a + alpha * b``, ``a - alpha * b``, or the latter with a and b swapped."""
        first, second = node.args[:2] if node.target not in _RSUB else reversed(node.args[:2])
        alpha = node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1)
        if not isinstance(alpha, int | float):
            return "is no linear operation"
        factor = float(alpha) if node.target in _ADD else -float(alpha)
        if self._is_constant(second):
            return self._affine(node, first, lambda value: (None, factor * value(second)), (second,))
        if self._is_constant(first):
            scale = torch.tensor(factor, dtype=torch.float64)
            return self._affine(node, second, lambda value: (scale, value(first)), (first,))
        sources = tuple(source for source in (first, second) if isinstance(source, fx.Node))
        if len(sources) < 2 or any(_differs(source, node) for source in sources):
            return "adds values of different shapes or dtypes, or no floats"
        return Operation("sum", sources, lambda frame, forms: branches(forms, [1.0, factor]))

    def _product(self, node: fx.Node) -> Operation | str:
        """Look at ``a * b`` or ``a / b``, where one is constant."""
        first, second = node.args[:2]
        if self._is_constant(second):
            inverse = node.target in _DIV
            return self._affine(
                node, first, lambda v: (v(second).double().reciprocal() if inverse else v(second), None), (second,)
            )
        if self._is_constant(first) and node.target in _MUL:
            return self._affine(node, second, lambda value: (value(first), None), (first,))
        return "is no linear operation"

    def _affine(
        self,
        node: fx.Node,
        source: Any,
        numbers: Callable[[Callable[[Any], Tensor]], tuple[Tensor | None, Tensor | None]],
        constants: tuple[Any, ...],
    ) -> Operation | str:
        """Return the operation that scales and shifts, where it does so channel by channel."""
        if not isinstance(source, fx.Node) or _differs(source, node):
            return "changes the shape or dtype of what it reads, or that is no float"
        shape = shape_of(source) or ()
        names = self._read_elsewhere(node, constants)
        if names:
            return f"stays as it is: its constant is also {names}"

        def apply(frame: Frame, forms: list[Form]) -> Form:
            def vector(value: Tensor | None) -> Tensor | None:
                return None if value is None else _per_channel(value, frame, shape, place_of(node))

            scale, shift = (vector(value) for value in numbers(self._value))
            return chain(forms[0], affine(scale, shift, shape[frame.axis], frame.dims))

        nodes = tuple(constant for constant in constants if isinstance(constant, fx.Node))
        return Operation("constant", (source,), apply, constants=nodes)

    def _read_elsewhere(self, node: fx.Node, constants: tuple[Any, ...]) -> str:
        """Return who else reads the constants of a node, or under which other names they go; empty if nobody."""
        inside = self.behind(constant for constant in constants if isinstance(constant, fx.Node))
        readers = {place_of(user) for part in inside for user in part.users if user is not node and user not in inside}
        if readers:
            return f"read by {', '.join(sorted(readers))}"
        for part in inside:
            if part.op == "get_attr":
                owner, _, name = str(part.target).rpartition(".")
                tensor = getattr(self.module.get_submodule(owner), name)
                others = sorted(set(self.uses.get(id(tensor), [])) - {str(part.target), part.name})
                if others:
                    return f"{', '.join(others)}"
        return ""


def _may_be_constant(node: fx.Node) -> bool:
    """Whether a node is the same in each run if what it reads is."""
    if node.op == "get_attr":
        return isinstance(node.meta.get("val"), Tensor)
    tags = getattr(node.target, "tags", ())
    pure = isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded not in tags
    return node.op == "call_function" and pure and bool(node.all_input_nodes)


def _passed_on(frame: Frame, forms: list[Form]) -> Form:
    return forms[0]


def _differs(source: fx.Node, node: fx.Node) -> bool:
    """Whether a call gives anything but floats of the shape and dtype of those that it reads."""
    read, given = source.meta.get("val"), node.meta.get("val")
    if not isinstance(read, Tensor) or not isinstance(given, Tensor):
        return True
    return not read.is_floating_point() or read.dtype != given.dtype or shape_of(source) != shape_of(node)


def _per_channel(value: Tensor, frame: Frame, shape: tuple[int, ...], place: str) -> Tensor:
    """Return a constant as one number per channel."""
    sizes = [1] * (frame.rank - value.ndim) + list(value.shape)
    if len(sizes) != frame.rank or any(size != 1 for dim, size in enumerate(sizes) if dim != frame.axis):
        raise NotOneLayer(f"the constant of {place} differs from cell to cell, not by channel alone")
    return value.reshape(-1).expand(shape[frame.axis])


def _mean(node: fx.Node) -> Operation | str:
    """Look at average pooling: it is a convolution where each mean is over as many cells."""
    dims = _MEANS[node.target]  # type: ignore[index]
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    source, shape = given["input"], shape_of(given["input"])
    kernel = _each(given["kernel_size"], dims)
    stride = _each(given.get("stride") or kernel, dims)
    padding = _each(given.get("padding", 0), dims)
    if given.get("ceil_mode") or given.get("divisor_override"):
        return "takes the mean over fewer cells at the border"
    if any(padding) and not given.get("count_include_pad", True):
        return "takes the mean over fewer cells at the border"
    if shape is None or len(shape) != dims + 2:
        return "is no linear operation on channels"

    def apply(frame: Frame, forms: list[Form]) -> Form:
        if frame.dims != dims:
            raise NotOneLayer(f"{place_of(node)} takes other dimensions for channels")
        form = average(shape[1], kernel, stride, padding)
        return chain(forms[0], form)

    return Operation("mean", (source,), apply, math.prod(kernel))


def _pad(node: fx.Node) -> Operation | str:
    """Look at padding: it is a convolution of single taps that pads, where the values are a convolution's too."""
    given: dict[str, Any] = {**dict(zip(("self", "pad", "mode", "value"), node.args, strict=False)), **node.kwargs}
    if node.target is aten.constant_pad_nd.default:
        given["value"], given["mode"] = given.get("mode", given.get("value")), "constant"
    source, widths, mode = given["self"], given["pad"], given.get("mode", "constant")
    if mode == "constant" and given.get("value"):
        return f"pads with {given['value']}, where layers pad with zeros"
    if not all(isinstance(width, int) and width >= 0 for width in widths):
        return "pads with a negative or computed width"

    def apply(frame: Frame, forms: list[Form]) -> Form:
        if len(widths) > 2 * frame.dims:
            raise NotOneLayer(f"{place_of(node)} pads other dimensions than layers do")
        each = [*widths, *[0] * (2 * frame.dims - len(widths))]  # of the last dimension first
        before, after = tuple(each[-2::-2]), tuple(each[::-2])
        spelled = "zeros" if mode == "constant" else mode
        return chain(forms[0], padded(forms[0].outputs, before, after, spelled))

    return Operation("pad", (source,), apply)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    """Return a size per dimension from one for all of them or one each."""
    return tuple(value) * (dims // len(value)) if isinstance(value, list | tuple) else (value,) * dims
