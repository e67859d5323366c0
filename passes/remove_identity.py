"""Remove what computes nothing: the result is the input, for every batch size.

==============================  =====================================================================
removed                         where
==============================  =====================================================================
dropout                         in eval mode, or with probability 0
``nn.Identity``, ``alias``      always
``clone``, ``contiguous``       the memory layout stays as it is
``to``                          dtype and device stay as they are
``reshape``, ``view``,          every size is what it was; sizes that the graph computes are compared at
``expand``, ``flatten``         a second batch size
``slice``                       it starts at 0, in steps of 1, and ends at or beyond the end
``permute``, ``transpose``      every dimension stays in its place
``repeat``, ``pad``, ``cat``    repeated once, padded by 0, one tensor alone
``x * 1``, ``x / 1``, ``x + 0`` the other operand is a literal, and dtype and shape stay as they are
==============================  =====================================================================
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from fxprune.capture import Traced, propagate
from fxprune.errors import CaptureError
from fxprune.graph_tools import bypass, copy_module, evaluating, module_of, place_of, shape_of
from fxprune.pipeline import Keeps, Pass
from fxprune.report import Change, Skip

aten = torch.ops.aten

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_END = 2**62  # slices without an end are captured with the largest integer
_CASTS = (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten._to_copy.default)
_LAYOUTS = {aten.contiguous.default, aten.clone.default, *_CASTS}  # what may copy into another memory layout


@dataclass(frozen=True)
class RemoveIdentity(Pass):
    """Remove dropout in eval mode, identities, and reshapes, slices, copies and arithmetic that change nothing."""

    name: ClassVar[str] = "remove-identity"
    keeps: ClassVar[Keeps] = Keeps.OUTPUTS

    def rewrite(self, traced: Traced) -> Iterator[Change | Skip]:
        """Remove each in turn; readers, the output among them, read what went in."""
        elsewhere = functools.cache(lambda: _extents_at_another_batch(traced))
        for node in list(traced.module.graph.nodes):
            kind, reason = _look_at(traced.module, node, elsewhere)
            if reason:
                yield Skip(place_of(node), reason)
            elif kind:
                source = _input_of(node)
                if node.target in _LAYOUTS:
                    _allow_any_layout(node)
                bypass(traced.module, node, by=source)
                yield Change(place_of(node), f"{kind}: removed, its input {place_of(source)} is used instead")
        traced.module.graph.eliminate_dead_code()  # sizes that only a removed reshape read


def _look_at(module: fx.GraphModule, node: fx.Node, elsewhere: Callable[[], dict[str, Any]]) -> tuple[str, str]:
    """Return what kind of identity a node is (empty if none), and why it has to stay (empty if not)."""
    if node.op == "call_module":
        return _look_at_module(module_of(module, node))
    predicate = _PREDICATES.get(node.target) if node.op == "call_function" else None
    if predicate is None or not predicate(node) or not _same_tensor(node, _input_of(node)):
        return "", ""
    source, kind = _input_of(node), str(node.target).removeprefix("aten.").partition(".")[0]
    if node.target in _LAYOUTS and node.meta["val"].stride() != source.meta["val"].stride():
        return kind, "it changes the memory layout"
    return kind, _why_only_here(node, elsewhere()) if node.target in _SIZED else ""


def _why_only_here(node: fx.Node, elsewhere: dict[str, Any]) -> str:
    """Return why what is an identity on the example is none at another batch size; empty if it is one."""
    if not elsewhere or elsewhere[node.name] != elsewhere[_input_of(node).name]:
        return "it keeps the shape only at the batch size of the example"
    if node.target is aten.slice.Tensor and not _takes_all(node, elsewhere):
        return "it keeps the shape only up to some batch size"
    return ""


def _look_at_module(layer: nn.Module) -> tuple[str, str]:
    if type(layer) is nn.Identity:
        return "identity", ""
    if type(layer) not in DROPOUTS:
        return "", ""
    active = layer.training and layer.p > 0  # type: ignore[operator]
    return "dropout", "it is in training mode, where it is no identity: call .eval() first" if active else ""


def _input_of(node: fx.Node) -> fx.Node:
    """Return the tensor that goes in: the first argument, or the only one of a list."""
    first = node.args[0]
    first = first[0] if isinstance(first, (list, tuple)) else first
    assert isinstance(first, fx.Node)
    return first


def _same_tensor(node: fx.Node, source: fx.Node) -> bool:
    """Whether both are tensors that agree in shape, dtype and device on the example inputs."""
    new, old = node.meta.get("val"), source.meta.get("val")
    if not isinstance(new, Tensor) or not isinstance(old, Tensor):
        return False
    return new.shape == old.shape and new.dtype == old.dtype and new.device == old.device and new.layout == old.layout


def _extents_at_another_batch(traced: Traced) -> dict[str, Any]:
    """Return the extent of every node at another batch (and image) size than the example's, or else at its own.

    It is empty where the graph does not run at that size.
    """
    module = traced.module
    if traced.batch_is_dynamic:
        module = copy_module(traced.module)
        try:
            with evaluating(module):
                propagate(module, *traced.inputs(batch=2 * traced.batch + 1, scale=traced.another_size))
        except CaptureError:
            return {}
    return {node.name: _extent(node) for node in module.graph.nodes}


def _extent(node: fx.Node) -> Any:
    """Return the shape of a tensor, or the number that a node computes."""
    value = node.meta.get("val")
    return value if isinstance(value, int) else shape_of(node)


def _allow_any_layout(copied: fx.Node) -> None:
    """Let every ``view`` that a copy leads to take any memory layout.

    A view that was sure of a contiguous tensor would fail on a caller's channels-last input once the copy is gone.
    """
    seen: set[fx.Node] = set()
    pending = list(copied.users)
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending += list(node.users)
            if node.target is aten.view.default:
                node.target = aten.reshape.default


def _operand(position: int, node: fx.Node, default: Any = None) -> Any:
    """Return an argument by the position it has in the operation's schema, or its default."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    if position < len(node.args):
        return node.args[position]
    return node.kwargs.get(schema[position].name, default) if position < len(schema) else default


def _always(node: fx.Node) -> bool:
    return True


def _second_is(number: int) -> Callable[[fx.Node], bool]:
    """Return whether the second operand is this literal (alpha and rounding of an operation do not matter to it)."""

    def is_literal(node: fx.Node) -> bool:
        value = _operand(1, node)
        return isinstance(value, int | float) and not isinstance(value, bool) and value == number

    return is_literal


def _plain_division(node: fx.Node) -> bool:
    return _second_is(1)(node) and not node.kwargs  # a rounding mode


def _whole_slice(node: fx.Node) -> bool:
    return _operand(2, node) in (0, None) and _operand(4, node, 1) == 1


def _takes_all(node: fx.Node, elsewhere: dict[str, Any]) -> bool:
    """Whether a slice ends at the end, whatever the batch: a number that covers the example's may not cover another."""
    source = _input_of(node)
    shape = shape_of(source) or ()
    dim, end = _operand(1, node, 0) % len(shape), _operand(3, node)
    size = elsewhere[source.name][dim]
    if isinstance(end, fx.Node):  # x[:, : x.shape[1]]
        return end.target is aten.sym_size.int and _extent(end) == shape[dim] and elsewhere[end.name] == size
    return end is None or end >= _END or (size == shape[dim] and end >= size)


def _every_dimension_stays(node: fx.Node) -> bool:
    dims = _operand(1, node)
    return [dim % len(dims) for dim in dims] == list(range(len(dims)))


def _transposes_nothing(node: fx.Node) -> bool:
    shape = shape_of(node) or ()
    first, second = _operand(1, node), _operand(2, node)
    return len(shape) == 0 or first % len(shape) == second % len(shape)


def _all_are(number: int) -> Callable[[fx.Node], bool]:
    def is_all(node: fx.Node) -> bool:
        values = _operand(1, node)
        return all(isinstance(value, int) and value == number for value in values)

    return is_all


def _one_alone(node: fx.Node) -> bool:
    tensors = node.args[0]
    return isinstance(tensors, (list, tuple)) and len(tensors) == 1


# Operations whose result may have the shape of the input by chance.
_SIZED = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default, aten.flatten.using_ints,
    aten.unflatten.int, aten.slice.Tensor,
}  # fmt: skip

# When an operation is the identity, given that shape, dtype and device stay as they are.
_PREDICATES: dict[Any, Callable[[fx.Node], bool]] = {
    **dict.fromkeys((aten.alias.default, aten.lift_fresh_copy.default, *_LAYOUTS, *_SIZED), _always),
    **dict.fromkeys((aten.mul.Tensor, aten.mul.Scalar), _second_is(1)),
    **dict.fromkeys((aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar), _second_is(0)),
    **dict.fromkeys((aten.constant_pad_nd.default, aten.pad.default), _all_are(0)),
    aten.slice.Tensor: _whole_slice,
    aten.div.Tensor: _plain_division,
    aten.pow.Tensor_Scalar: _second_is(1),
    aten.permute.default: _every_dimension_stays,
    aten.transpose.int: _transposes_nothing,
    aten.repeat.default: _all_are(1),
    aten.cat.default: _one_alone,
}
