"""What ``trace`` takes: wrappers are taken off, and what has no layers to work on is refused by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.errors import InputError

_INSIDE = {"DataParallel": "module", "DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}
"""Wrappers that compute what they wrap does -> where they keep it."""
_TAKEN = {name for name in dir(fx.GraphModule) if not hasattr(nn.Module, name)} | {"meta", "shape_env"}
_QUANTISED = "is quantised, and integers cannot be cut and compared; prune first, quantise then"


def accepted(model: Any) -> nn.Module:
    """Return the model inside its wrappers.

    Raises:
        InputError: It is no module, is a TorchScript program, has quantised or sparse weights, or has a layer under a
            name that a graph module takes for itself.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"trace takes a torch.nn.Module, and got {type(model).__name__}; if it is a factory, call it first"
        )
    inside: nn.Module = model
    while isinstance(found := getattr(inside, _INSIDE.get(type(inside).__name__, ""), None), nn.Module):
        inside = found
    for path, module in inside.named_modules():
        where = f"{path or 'the model'} ({type(module).__name__})"
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{where} is a TorchScript program, whose layers cannot be told apart; give the module that it was "
                "scripted or traced from"
            )
        if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
            raise InputError(f"{where} {_QUANTISED}")
    _check_names(inside)
    for name, tensor in [*inside.named_parameters(), *inside.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise InputError(f"{name} has no size yet, because its layer is lazy; run the model once, then trace it")
        if tensor.layout != torch.strided:
            raise InputError(
                f"{name} is stored as {str(tensor.layout).removeprefix('torch.')}; make it dense (to_dense())"
            )
        if tensor.is_quantized:
            raise InputError(f"{name} {_QUANTISED}")
    return inside


def _check_names(model: nn.Module) -> None:
    for name in (*model._modules, *model._parameters, *model._buffers):
        if name in _TAKEN:
            raise InputError(
                f"torch.fx has no place for what {type(model).__name__} calls {name!r}, because a graph module has an "
                "attribute of that name; give it another name, or trace torch.nn.Sequential(model)"
            )


def check_samples(args: Any, kwargs: Any) -> None:
    """Refuse inputs that have no batch to count and compare in.

    Raises:
        InputError: A tensor has no elements in its first dimension, is nested, or is part of a packed sequence.
    """
    if packed((args, kwargs)):
        raise InputError(
            "the example inputs hold a packed sequence, whose first dimension is steps and samples in one; give a "
            "model that takes the padded sequence and packs it itself, so that the parts around can be captured"
        )
    for place, leaf in pytree.tree_flatten_with_path((args, kwargs))[0]:
        if not isinstance(leaf, Tensor):
            continue
        where = f"the example input{pytree.keystr(place[1:])}"
        if leaf.is_nested:
            raise InputError(
                f"{where} is a nested tensor, whose samples differ in size; give a padded one (to_padded_tensor)"
            )
        if leaf.ndim and leaf.shape[0] == 0:
            raise InputError(f"{where} has shape {tuple(leaf.shape)}, which holds no sample; give one at least")


def packed(values: Any) -> bool:
    """Whether there is a packed sequence somewhere in nested values."""

    def is_packed(value: Any) -> bool:
        return isinstance(value, nn.utils.rnn.PackedSequence)

    return any(map(is_packed, pytree.tree_leaves(values, is_leaf=is_packed)))
