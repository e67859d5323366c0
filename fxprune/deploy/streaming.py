"""Models that do not fit into memory: planned without weights, cut file by file, and proved layer by layer.

::

    model, buffers = empty_model(lambda: LlamaForCausalLM(config))       # parameters without data
    traced = fxprune.trace(model, torch.zeros(1, 16, dtype=torch.long, device="meta"))
    weights = Shards("checkpoint", buffers)                              # *.safetensors, read a tensor at a time
    plan = fxprune.make_plan(traced, macs=0.5, importance=weights.importance("l2"))
    cut_shards(traced, plan, weights, "pruned", example=torch.arange(16)[None])

What is held at a time is one file of the output and one tensor of the input; the proof holds one layer in float64.
"""

from __future__ import annotations

import contextlib
import json
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fxprune.capture import Traced
from fxprune.channels import Groups, find_groups
from fxprune.deploy.files import atomic_write, write_safetensors
from fxprune.errors import InputError
from fxprune.planning import Plan
from fxprune.planning.importance import Scores, magnitude_of
from fxprune.surgery import Kept, Verification, cut_with, removal_of, verify_with

INDEX = "model.safetensors.index.json"


def empty_model(factory: Callable[[], nn.Module]) -> tuple[nn.Module, dict[str, Tensor]]:
    """Build a model in eval mode without memory for its parameters; return the values of its buffers beside it.

    A parameter has memory only until its layer has taken it. What is shared stays shared. All tensors of the model are
    then on the ``meta`` device, and so have to be the inputs that it is captured with.
    """
    with _parameters_without_data():
        model = factory().eval()
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers(remove_duplicate=False)}
    without_data: dict[int, Tensor] = {}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = without_data.setdefault(id(buffer), buffer.to("meta"))
    return model, buffers


@contextlib.contextmanager
def _parameters_without_data() -> Iterator[None]:
    """Let modules take parameters without their data; one that is taken twice is the same parameter both times."""
    register = nn.Module.register_parameter
    known: dict[int, tuple[weakref.ref[nn.Parameter], nn.Parameter]] = {}

    def without_data(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            source, found = known.get(id(param), (None, None))
            if found is None or source is None or source() is not param:  # else another had this place in memory
                found = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
                known[id(param)] = (weakref.ref(param), found)
            param = found
        register(self, name, param)

    nn.Module.register_parameter = without_data  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


class Shards:
    """Tensors in safetensors files, read one at a time.

    Attributes:
        files: The files, in order.
        home: Name of a tensor -> its file.
    """

    def __init__(self, source: str | os.PathLike[str], buffers: Mapping[str, Tensor] | None = None) -> None:
        """Read the names.

        Args:
            source: A file, or a folder with ``*.safetensors`` whose names are those of the model's state_dict.
            buffers: Tensors that are in no file, as :func:`empty_model` returns them.

        Raises:
            InputError: There is no such file, one is damaged, or two hold the same tensor.
        """
        path = Path(source)
        self.files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        self.buffers = dict(buffers or {})
        self.home: dict[str, Path] = {}
        if not self.files:
            raise InputError(f"{path} holds no *.safetensors; give a folder of such files, or one of them")
        for file in self.files:
            for name in _names(file):
                if name in self.home:
                    raise InputError(f"{name} is in {self.home[name]} and in {file}; leave one of the files out")
                self.home[name] = file

    def tensor(self, name: str) -> Tensor:
        """Return one tensor.

        Raises:
            InputError: No file has it, nor is it a buffer.
        """
        if name in self.home:
            with safe_open(self.home[name], framework="pt") as file:
                found: Tensor = file.get_tensor(name)
                return found
        if name in self.buffers:
            return self.buffers[name]
        raise InputError(f"no file of {self.files[0].parent} has {name}, which the model needs")

    def importance(self, name: str = "l2") -> Callable[[Groups], Scores]:
        """Return a score for :func:`fxprune.make_plan` that reads the weights once, one tensor at a time.

        Args:
            name: ``l1`` or ``l2``.

        Raises:
            InputError: Another name.
        """
        orders = {"l1": 1.0, "l2": 2.0}
        if name not in orders:
            raise InputError(f"importance {name!r} is not computed from files; give one of {', '.join(orders)}")

        def importance(groups: Groups) -> Scores:
            return magnitude_of(groups, orders[name], _aliased(groups.traced, self).tensor)

        importance.__name__ = f"streamed {name}"
        return importance


@dataclass(frozen=True)
class Streamed:
    """What :func:`cut_shards` wrote.

    Attributes:
        files: The files, named as those that they were cut from.
        bytes: Their size in all.
        verification: How far the cut model is from the masked reference; None without an example.
        traced: The cut model, without data.
    """

    files: tuple[Path, ...]
    bytes: int
    verification: Verification | None
    traced: Traced


def cut_shards(
    traced: Traced,
    plan: Plan,
    weights: Shards,
    out: str | os.PathLike[str],
    *,
    example: Any = None,
    groups: Groups | None = None,
) -> Streamed:
    """Carry out a plan on files: each is read tensor by tensor, cut, and written under its own name into ``out``.

    Args:
        traced: The captured model; its tensors need no data.
        plan: What to remove.
        weights: The files.
        out: Folder for the new ones; made if it is not there. It must not hold the old ones.
        example: Inputs with data, positional (one or a tuple), on which the cut files are compared in float64 with the
            masked reference, a layer at a time. None: nothing is compared.
        groups: The groups of ``traced``, if they are at hand.

    Raises:
        InputError: A tensor is missing or has another shape than the model's, the plan compensates, or ``out`` cannot
            be written.
        PlanError: The plan was made for another model.
        VerifyError: The files do not compute what the masked reference does; they are left for inspection.
    """
    plan.check(traced)
    if plan.compensate is not None:
        raise InputError("compensation changes biases by values that are not known without data; plan without it")
    folder = Path(out)
    if any(file.resolve().parent == folder.resolve() for file in weights.files):
        raise InputError(f"{folder} holds the files that are read; give another folder")
    groups = groups or find_groups(traced)
    kept = Kept(groups, removal_of(plan))
    small = cut_with(traced, kept, {}, exact=False)
    named = _aliased(traced, weights)
    masks, shapes = _masks(traced, kept), {name: tuple(t.shape) for name, t in _tensors(traced)}
    _check_complete(shapes, named)
    _make(folder)
    written = tuple(_cut_file(file, folder / file.name, masks, shapes, named) for file in weights.files)
    if len(written) > 1:
        _write_index(folder, written)
    verification = None
    if example is not None:
        buffers = {name: _cut(value, masks.get(name, {})) for name, value in weights.buffers.items()}
        after = _aliased(small, Shards(folder, buffers))
        args = example if isinstance(example, tuple) else (example,)
        verification = verify_with(traced, small, kept, {}, inputs=(args, {}), weights=(named.tensor, after.tensor))
    return Streamed(written, sum(file.stat().st_size for file in written), verification, small)


class _Aliased:
    """Weights by any of the names that the model knows a tensor under; files have one of them."""

    def __init__(self, shards: Shards, names: Mapping[str, tuple[str, ...]]) -> None:
        self.shards, self.names = shards, names

    def known(self, name: str) -> str | None:
        """Return the name that the files or buffers have it under."""
        there = (*self.shards.home, *self.shards.buffers)
        return next((other for other in self.names.get(name, (name,)) if other in there), None)

    def tensor(self, name: str) -> Tensor:
        """Return one tensor."""
        return self.shards.tensor(self.known(name) or name)


def _aliased(traced: Traced, shards: Shards) -> _Aliased:
    same: dict[int, list[str]] = {}
    for name, tensor in _tensors(traced):
        same.setdefault(id(tensor), []).append(name)
    return _Aliased(shards, {name: tuple(names) for names in same.values() for name in names})


def _tensors(traced: Traced) -> list[tuple[str, Tensor]]:
    """Return parameters and buffers by every name that they have."""
    module = traced.module
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def _names(file: Path) -> Iterator[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            yield from list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read as safetensors: {error}") from error


def _masks(traced: Traced, kept: Kept) -> dict[str, dict[int, Tensor]]:
    """Return the positions that stay, by name (each that the model has) and dimension, where some go."""
    found: dict[str, dict[int, Tensor]] = {}
    for name, d in kept.groups.parameters:
        axis = kept.groups.axis(name, d)
        if axis is not None and kept.gone[axis].any():
            found.setdefault(name, {})[d] = torch.from_numpy(np.flatnonzero(kept.mask(axis)))
    tensors = dict(_tensors(traced))
    by_identity = {id(tensors[name]): dims for name, dims in found.items()}
    return {name: by_identity[id(tensor)] for name, tensor in tensors.items() if id(tensor) in by_identity}


def _check_complete(shapes: Mapping[str, tuple[int, ...]], named: _Aliased) -> None:
    missing = [name for name in shapes if named.known(name) is None]
    if missing:
        raise InputError(
            f"no file has {', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''}; give all files of the "
            "checkpoint, and buffers= for what a state_dict leaves out"
        )


def _cut(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    for d, stays in dims.items():
        tensor = tensor.index_select(d, stays)
    return tensor


def _cut_file(
    source: Path,
    target: Path,
    masks: Mapping[str, Mapping[int, Tensor]],
    shapes: Mapping[str, tuple[int, ...]],
    named: _Aliased,
) -> Path:
    """Write what is left of each tensor of a file; what the model does not have is passed on as it is."""
    tensors: dict[str, Tensor] = {}
    with safe_open(source, framework="pt") as opened:
        metadata = opened.metadata()
        for name in opened.keys():  # noqa: SIM118  (it is no mapping)
            tensor = opened.get_tensor(name)
            if name in shapes and tuple(tensor.shape) != shapes[name]:
                raise InputError(f"{source}: {name} is {tuple(tensor.shape)}, and the model's is {shapes[name]}")
            found = _cut(tensor, masks.get(name, {}))
            tensors[name] = found.clone() if found is tensor else found  # nothing of the file stays mapped
    write_safetensors(target, tensors, metadata)
    return target


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror or error}; give another") from error


def _write_index(folder: Path, files: tuple[Path, ...]) -> None:
    homes = {name: file.name for file in files for name in _names(file)}
    total = sum(file.stat().st_size for file in files)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": homes}, indent=1) + "\n"

    def write(temporary: Path) -> None:
        temporary.write_text(text)

    atomic_write(folder / INDEX, write)
