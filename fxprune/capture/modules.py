"""Build plain ``torch.nn`` modules from the arguments of the operations that they stand for.

The module is built from the *operation*, never by calling the original class again: a subclass may do more in its
forward than the operation, and that more is in the graph already.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

aten = torch.ops.aten


@dataclass(frozen=True)
class Recipe:
    """How one operation becomes a module.

    Attributes:
        build: Makes the module on the meta device from the operation's arguments by schema name; None where it cannot.
        slots: Schema argument -> name of the parameter or buffer in the module.
        inputs: Schema arguments that stay inputs of the module call.
    """

    build: Callable[[dict[str, Any]], nn.Module | None]
    slots: dict[str, str]
    inputs: tuple[str, ...] = ("input",)


def _pair(value: Any, n: int) -> Any:
    return (
        tuple(value)
        if isinstance(value, (list, tuple)) and len(value) == n
        else (tuple(value) * n)[:n]
        if isinstance(value, (list, tuple))
        else value
    )


def _conv(n: int, cls: type[nn.Module]) -> Recipe:
    def build(a: dict[str, Any]) -> nn.Module:
        weight = a["weight"]
        padding = a["padding"] if isinstance(a["padding"], str) else _pair(a["padding"], n)
        return cls(
            weight.shape[1] * a["groups"],
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=_pair(a["stride"], n),
            padding=padding,
            dilation=_pair(a["dilation"], n),
            groups=a["groups"],
            bias=a["bias"] is not None,
            device="meta",
        )

    return Recipe(build, {"weight": "weight", "bias": "bias"})


def _transposed(n: int, cls: type[nn.Module]) -> Recipe:
    def build(a: dict[str, Any]) -> nn.Module:
        weight = a["weight"]
        return cls(
            weight.shape[0],
            weight.shape[1] * a["groups"],
            tuple(weight.shape[2:]),
            stride=_pair(a["stride"], n),
            padding=_pair(a["padding"], n),
            output_padding=_pair(a["output_padding"], n),
            groups=a["groups"],
            bias=a["bias"] is not None,
            dilation=_pair(a["dilation"], n),
            device="meta",
        )

    return Recipe(build, {"weight": "weight", "bias": "bias"})


def _linear(a: dict[str, Any]) -> nn.Module | None:
    if a["weight"].ndim != 2:
        return None
    return nn.Linear(a["weight"].shape[1], a["weight"].shape[0], bias=a["bias"] is not None, device="meta")


def _batch_norm(a: dict[str, Any]) -> nn.Module | None:
    if (a["weight"] is None) != (a["bias"] is None):
        return None
    cls = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(a["input"].ndim)
    if cls is None or a["training"] == (a["running_mean"] is not None):
        return None
    tracked = a["running_mean"] is not None
    return cls(
        a["input"].shape[1],
        eps=a["eps"],
        momentum=a["momentum"],
        affine=a["weight"] is not None,
        track_running_stats=tracked,
        device="meta",
    )


def _instance_norm(a: dict[str, Any]) -> nn.Module | None:
    if (a["weight"] is None) != (a["bias"] is None):
        return None
    cls = {2: nn.InstanceNorm1d, 3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}.get(a["input"].ndim)
    if cls is None or a["use_input_stats"] == (a["running_mean"] is not None):
        return None
    tracked = a["running_mean"] is not None
    return cls(
        a["input"].shape[1],
        eps=a["eps"],
        momentum=a["momentum"],
        affine=a["weight"] is not None,
        track_running_stats=tracked,
        device="meta",
    )


def _layer_norm(a: dict[str, Any]) -> nn.Module | None:
    if a["weight"] is None:
        return None
    return nn.LayerNorm(a["normalized_shape"], eps=a["eps"], bias=a["bias"] is not None, device="meta")


def _rms_norm(a: dict[str, Any]) -> nn.Module | None:
    return nn.RMSNorm(a["normalized_shape"], eps=a["eps"], device="meta") if a["weight"] is not None else None


def _group_norm(a: dict[str, Any]) -> nn.Module | None:
    if a["weight"] is None or a["bias"] is None:
        return None
    return nn.GroupNorm(a["num_groups"], a["input"].shape[1], eps=a["eps"], device="meta")


def _embedding(a: dict[str, Any]) -> nn.Module:
    # The operation's padding index of -1 means none; gradients of the padding row follow it.
    padding = a["padding_idx"] if a["padding_idx"] is not None and a["padding_idx"] >= 0 else None
    rows, columns = a["weight"].shape
    return nn.Embedding(
        rows,
        columns,
        padding_idx=padding,
        scale_grad_by_freq=a["scale_grad_by_freq"],
        sparse=a["sparse"],
        device="meta",
    )


def _prelu(a: dict[str, Any]) -> nn.Module:
    return nn.PReLU(a["weight"].numel(), device="meta")


_AFFINE = {"weight": "weight", "bias": "bias"}
_NORM = {**_AFFINE, "running_mean": "running_mean", "running_var": "running_var"}

RECIPES: dict[Any, Recipe] = {
    aten.conv1d.default: _conv(1, nn.Conv1d),
    aten.conv2d.default: _conv(2, nn.Conv2d),
    aten.conv3d.default: _conv(3, nn.Conv3d),
    aten.conv1d.padding: _conv(1, nn.Conv1d),
    aten.conv2d.padding: _conv(2, nn.Conv2d),
    aten.conv3d.padding: _conv(3, nn.Conv3d),
    aten.conv_transpose1d.default: _transposed(1, nn.ConvTranspose1d),
    aten.conv_transpose2d.input: _transposed(2, nn.ConvTranspose2d),
    aten.conv_transpose3d.input: _transposed(3, nn.ConvTranspose3d),
    aten.linear.default: Recipe(_linear, _AFFINE),
    aten.batch_norm.default: Recipe(_batch_norm, _NORM),
    aten.instance_norm.default: Recipe(_instance_norm, _NORM),
    aten.layer_norm.default: Recipe(_layer_norm, _AFFINE),
    aten.rms_norm.default: Recipe(_rms_norm, {"weight": "weight"}),
    aten.group_norm.default: Recipe(_group_norm, _AFFINE),
    aten.embedding.default: Recipe(_embedding, {"weight": "weight"}, ("indices",)),
    aten.prelu.default: Recipe(_prelu, {"weight": "weight"}, ("self",)),
}

DROPOUTS: dict[Any, type[nn.Module]] = {
    aten.dropout.default: nn.Dropout,
    aten.feature_dropout.default: nn.Dropout2d,
    aten.alpha_dropout.default: nn.AlphaDropout,
    aten.feature_alpha_dropout.default: nn.FeatureAlphaDropout,
}

RECURRENT: dict[Any, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    aten.lstm.input: (nn.LSTM, {}),
    aten.gru.input: (nn.GRU, {}),
    aten.rnn_tanh.input: (nn.RNN, {"nonlinearity": "tanh"}),
    aten.rnn_relu.input: (nn.RNN, {"nonlinearity": "relu"}),
}


def arguments(target: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of an operation by schema name, defaults filled in."""
    named: dict[str, Any] = {}
    for position, argument in enumerate(target._schema.arguments):
        if position < len(args):
            named[argument.name] = args[position]
        elif argument.name in kwargs:
            named[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            named[argument.name] = argument.default_value
        else:
            named[argument.name] = None
    return named


def recurrent(target: Any, a: dict[str, Any], weights: list[Tensor]) -> nn.RNNBase:
    """Build an LSTM, GRU or RNN from an operation's arguments and its flat list of weights."""
    cls: Any  # each subclass takes other arguments than RNNBase
    cls, extra = RECURRENT[target]
    directions = 2 if a["bidirectional"] else 1
    per_cell = len(weights) // (a["num_layers"] * directions)
    projection = weights[per_cell - 1].shape[0] if per_cell in (3, 5) else 0
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[cls]
    module: nn.RNNBase = cls(
        weights[0].shape[1],
        weights[0].shape[0] // gates,
        num_layers=a["num_layers"],
        bias=a["has_biases"],
        batch_first=a["batch_first"],
        dropout=a["dropout"],
        bidirectional=a["bidirectional"],
        device="meta",
        **({"proj_size": projection} if projection else {}),
        **extra,
    )
    return module


def same_settings(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules were built alike, so that one can stand for both."""
    return type(one) is type(other) and one.extra_repr() == other.extra_repr()


def location_of(obj: Any) -> str:
    """Return ``file:line`` of a class or function, or its name where there is no source."""
    try:
        return f"{inspect.getsourcefile(obj)}:{inspect.getsourcelines(obj)[1]}"
    except (TypeError, OSError):
        return repr(obj)
