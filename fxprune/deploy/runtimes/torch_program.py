"""An exported program or a captured model, as something that takes named tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from fxprune.capture.traced import Traced
from fxprune.deploy.runtimes.base import Model, TensorSpec
from fxprune.errors import InputError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Program:
    """A module with the names of what goes in and comes out.

    Attributes:
        module: A copy of its own, on the device.
        inputs: Its tensor inputs.
        outputs: Names for its tensor outputs, flattened in order.
        arguments: Turns tensors by name into what the module is called with.
        operations: Name and operator of every call in the graph.
    """

    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    arguments: Callable[[Mapping[str, Tensor]], Arguments]
    operations: tuple[tuple[str, str], ...]


def read_program(model: Model, device: str) -> Program:
    """Read a ``.pt2`` file, or take a captured model, and put it on a device.

    Raises:
        InputError: It is neither, or the file cannot be loaded.
    """
    if isinstance(model, Traced):
        return _of_traced(model, device)
    if isinstance(model, nn.Module):
        raise InputError("a bare nn.Module does not say what it takes: capture it with fxprune.trace(model, example)")
    path = Path(model)
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if path.suffix != ".pt2":
        raise InputError(f"{path} is not a .pt2 file, which the torch runtimes take: write one with torch.export.save")
    try:
        return _of_exported(move_to_device_pass(torch.export.load(path), device))
    except Exception as error:  # a damaged archive raises anything
        raise InputError(f"torch cannot load {path}: {error}") from error


def _of_traced(traced: Traced, device: str) -> Program:
    leaves, structure = pytree.tree_flatten((traced.args, traced.kwargs))
    placeholders = [node for node in traced.module.graph.nodes if node.op == "placeholder"]
    named = [node.name for node in placeholders] if len(placeholders) == len(leaves) else []
    names = named or [f"input_{i}" for i in range(len(leaves))]
    slots = {name: leaf for name, leaf in zip(names, leaves, strict=True) if isinstance(leaf, Tensor)}
    specs = tuple(_spec(name, leaf, traced.batch_is_dynamic) for name, leaf in slots.items())

    def arguments(tensors: Mapping[str, Tensor]) -> Arguments:
        flat = [tensors.get(name, leaf) for name, leaf in zip(names, leaves, strict=True)]
        args, kwargs = pytree.tree_unflatten(flat, structure)
        return args, kwargs

    outputs = tuple(f"output_{i}" for i in range(len(traced.run(traced.args, traced.kwargs))))
    return Program(
        copy.deepcopy(traced.module).eval().to(device), specs, outputs, arguments, _operations(traced.module.graph)
    )


def _spec(name: str, example: Tensor, dynamic: bool) -> TensorSpec:
    shape: list[int | str] = list(example.shape)
    if dynamic and shape:
        shape[0] = "batch"
    return TensorSpec(name, example.detach().cpu().numpy().dtype, tuple(shape))


def _of_exported(program: torch.export.ExportedProgram) -> Program:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    slots = program.graph_signature.user_inputs  # a name, or the value itself where it is no tensor
    names = [slot for slot in slots if isinstance(slot, str) and isinstance(values.get(slot), Tensor)]
    specs = tuple(_exported_spec(name, values[name]) for name in names)
    structure = program.call_spec.in_spec
    if structure is None:
        raise InputError("the program has no record of how it is called: save it again with torch.export.save")

    def arguments(tensors: Mapping[str, Tensor]) -> Arguments:
        flat = [tensors[slot] if isinstance(slot, str) and slot in tensors else slot for slot in slots]
        args, kwargs = pytree.tree_unflatten(flat, structure)
        return args, kwargs

    outputs = tuple(str(name) for name in program.graph_signature.user_outputs)
    return Program(program.module(), specs, outputs, arguments, _operations(program.graph))


def _exported_spec(name: str, value: Tensor) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return TensorSpec(name, torch.empty(0, dtype=value.dtype).numpy().dtype, shape)


def _operations(graph: torch.fx.Graph) -> tuple[tuple[str, str], ...]:
    return tuple((node.name, str(node.target)) for node in graph.nodes if node.op.startswith("call"))
