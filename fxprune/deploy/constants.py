"""What a graph computes with and its state_dict does not hold: written beside the weights, and read back.

That is buffers that are not persistent, and tensors that are plain attributes. Whoever builds the model again makes
them again, and may draw them at random, so that weights alone do not say what a model computes.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, fx

from fxprune.deploy.files import write_safetensors
from fxprune.distance import distance, relative, top
from fxprune.errors import InputError

CONSTANTS = "constants.safetensors"
_LAST_BITS = 16
"""How many units in the last place a constant may be off that was computed anew on another machine."""


def constants_of(module: fx.GraphModule) -> dict[str, Tensor]:
    """Return the tensors that a model computes with and its state_dict does not have, by name."""
    state = module.state_dict()
    found = dict(module.named_buffers(remove_duplicate=False))
    for node in module.graph.find_nodes(op="get_attr"):
        value = operator.attrgetter(str(node.target))(module)
        if isinstance(value, Tensor):
            found[str(node.target)] = value
    return {name: tensor for name, tensor in found.items() if name not in state}


def write_constants(folder: Path, module: fx.GraphModule) -> None:
    """Write the file; only models that need it have one.

    Raises:
        InputError: It cannot be written.
    """
    constants = {name: tensor.detach().clone().contiguous() for name, tensor in constants_of(module).items()}
    if constants:
        write_safetensors(folder / CONSTANTS, constants)
    else:
        (folder / CONSTANTS).unlink(missing_ok=True)  # of an earlier run


def read_constants(folder: Path, module: fx.GraphModule) -> dict[str, Tensor]:
    """Read the file, which has to hold the constants of this model, whatever their values.

    Raises:
        InputError: The file is missing, damaged, lacks some or holds others.
    """
    path, own = folder / CONSTANTS, constants_of(module)
    found = read_tensors(path) if path.exists() else {}
    missing = [name for name in own if name not in found]
    if missing:
        raise InputError(
            f"{path} {'lacks' if found else 'is missing, and has to hold'} {', '.join(missing[:5])}"
            f"{' and others' if len(missing) > 5 else ''}: tensors that the model computes with and its state_dict "
            "does not have, so that nobody knows whether those of this factory are the same. Write the folder again"
        )
    for name, tensor in found.items():
        if name not in own:
            raise InputError(f"{path} has {name}, which this model has not; it belongs to another model")
        old = own[name]
        if (old.shape, old.dtype) != (tensor.shape, tensor.dtype):
            raise InputError(
                f"{path}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, and this model makes it {old.dtype} "
                f"of {tuple(old.shape)}"
            )
    return found


def put_constants(module: fx.GraphModule, found: Mapping[str, Tensor]) -> None:
    """Put tensors in place of those that the factory made: new ones, since the model may share its own."""
    own = constants_of(module)
    for name, tensor in found.items():
        path, _, key = name.rpartition(".")
        owner = module.get_submodule(path)
        if key in owner._buffers:
            owner._buffers[key] = tensor.to(own[name].device)
        else:
            setattr(owner, key, tensor.to(own[name].device))


def unlike(found: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> list[str]:
    """Name the constants that are other ones, by more than the last bits: all else has to be equal, NaN included."""
    return [
        name
        for name in {**found, **others}
        if not (name in found and name in others and _alike(found[name], others[name]))
    ]


def _alike(one: Tensor, other: Tensor) -> bool:
    rounding = _LAST_BITS * torch.finfo(one.dtype).eps if one.is_floating_point() or one.is_complex() else 0.0
    return one.dtype == other.dtype and relative(distance(one, other, same_nan=True), top(other)) <= rounding


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from error
