"""Element-wise operations: every operand is used index by index, after broadcasting."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from fxprune.channels.labels import Axes, Axis
from fxprune.channels.rules.table import Flow, Held, argument_of, integer, packets, rule

aten = torch.ops.aten

_UNARY = """
_conj _neg_view abs acos acosh alias angle asin asinh atan atanh bitwise_not ceil celu clamp clamp_max clamp_min clip
clone conj contiguous conj_physical cos cosh deg2rad detach detach_copy digamma elu erf erfc erfinv exp exp2 expm1
fill floor frac gelu hardshrink hardsigmoid hardswish hardtanh i0 imag isfinite isinf isnan isneginf isposinf
leaky_relu lgamma lift_fresh lift_fresh_copy log log10 log1p log2 log_sigmoid logical_not logit mish nan_to_num neg
ones_like positive rad2deg real reciprocal relu relu6 resolve_conj resolve_neg round rsqrt selu sgn sigmoid sign
signbit silu sin sinc sinh softplus softshrink softsign sqrt square tan tanh tanhshrink threshold to trunc type_as
zero zeros_like full_like _to_copy float_power pow
""".split()  # noqa: SIM905 - a list of a hundred strings would hide the names
_BINARY = """
add addcdiv addcmul atan2 bitwise_and bitwise_or bitwise_xor complex copy copysign div eq floor_divide fmax fmin fmod
ge gt heaviside hypot ldexp le lerp logaddexp logaddexp2 logical_and logical_or logical_xor lt masked_fill maximum
minimum mul multiply ne polar remainder rsub sub subtract true_divide where xlogy __and__ __or__ __xor__ divide
""".split()  # noqa: SIM905 - a list of a hundred strings would hide the names

# Of one value they make many.
_UNEVEN = ["cumsum", "empty_like"]
# They draw random numbers where they are told to train.
_DROPS = ["alpha_dropout", "dropout", "feature_alpha_dropout", "feature_dropout", "native_dropout", "rrelu"]

DRAWN = "a random number is drawn for each of its indices"
_OPAQUE = "meets a batch, space or sequence dimension"


def broadcast(
    flow: Flow, operands: list[tuple[Axes, tuple[int, ...]]], shape: tuple[int, ...], what: str = _OPAQUE
) -> Axes:
    """Return the labels of the broadcast result of operands given as (labels, shape)."""
    result: list[Axis | None] = []
    for d in range(-len(shape), 0):
        size = shape[d]
        here = [axes[d] for axes, sizes in operands if len(sizes) >= -d and sizes[d] == size]
        if size == 1 or not here:
            result.append(None)
            continue
        merged = here[0]
        for axis in here[1:]:
            merged = flow.meet(merged, axis, what)
        result.append(merged)
    return tuple(result)


@rule(*packets(*_UNARY, *_BINARY), held=Held.COMPUTED)
@rule(*packets(*_UNEVEN), held=Held.LOST)
def same(flow: Flow, node: fx.Node) -> Axes:
    """All operands meet index by index, after broadcasting."""
    tensors = flow.tensors(node)
    inputs = [n.name for n in tensors if n.op == "placeholder"]
    what = f"meets the model's input {inputs[0]!r}" if inputs else _OPAQUE
    return broadcast(flow, [(flow.axes(n), flow.shape(n)) for n in tensors], flow.shape(node), what)


@rule(*packets(*_DROPS), held=Held.LOST)
def dropped(flow: Flow, node: fx.Node) -> Any:
    """Element-wise, and nothing at all in evaluation mode."""
    training = argument_of(node, "train", argument_of(node, "training", default=False))
    if training or training is None:  # which stands for training, too
        return flow.freeze_all(node, DRAWN)
    axes = flow.axes(node.args[0])
    return [axes, axes] if isinstance(node.meta["val"], (tuple, list)) else axes


@rule(
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.Identity,
    held=Held.MOVED,
)
def same_module(flow: Flow, node: fx.Node) -> Axes:
    """The labels pass as they are."""
    return flow.axes(node.args[0])


@rule(*packets("max", "min"), held=Held.LOST)
def extreme(flow: Flow, node: fx.Node) -> Any:
    """``max(x, y)`` is element-wise, ``max(x, dim)`` reduces, ``max(x)`` reduces everything."""
    if str(node.target).endswith(".other"):
        return same(flow, node)
    axes = list(flow.axes(node.args[0]))
    if len(node.args) < 2:
        return ()
    d = integer(node.args[1]) % len(axes)
    flow.freeze(axes[d], "the position of the extreme value has a meaning")
    axes[d : d + 1] = [None] if len(node.args) > 2 and node.args[2] else []
    return [tuple(axes), tuple(axes)]


@rule(operator.getitem, held=Held.MOVED)
def getitem(flow: Flow, node: fx.Node) -> Any:
    """One of several outputs has the labels that its operation gave it."""
    source, index = node.args
    found = flow.env[source]  # type: ignore[index]
    return found[index] if found is not None else flow.opaque(node.meta.get("val"))


@rule(
    *packets("sym_size", "sym_numel", "item", "_local_scalar_dense", "_assert_scalar", "_assert_tensor_metadata"),
    operator.mul,
    operator.add,
    operator.sub,
    operator.floordiv,
    operator.mod,
    operator.truediv,
    operator.neg,
    operator.le,
    operator.lt,
    operator.ge,
    operator.gt,
    operator.eq,
    operator.ne,
    operator.pow,
    max,
    min,
    int,
    float,
    round,
    torch.sym_max,
    torch.sym_min,
    torch.sym_int,
    torch.sym_float,
    torch.sym_not,
    torch.sym_sum,
    held=Held.LOST,
)
def number(flow: Flow, node: fx.Node) -> None:
    """Arithmetic on sizes; a tensor that is read as a number stays whole."""
    if str(node.target).startswith(("aten.item", "aten._local")):
        flow.freeze_all(node, "its value is read as a number")
