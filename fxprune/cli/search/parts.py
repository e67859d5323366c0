"""What a search is given by the command line, as objects that workers of any kind can unpickle: texts and figures."""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.cli.loading import build_model, find_callable, load_weights, parse_arguments
from fxprune.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from fxprune.search import Executor

LOCAL = "local"
"""In place of the address of a Ray cluster: one is started on this machine."""


@dataclass(frozen=True)
class ModelOf:
    """Builds the model that a text names; called with the side of images where ``side_arg`` says so.

    Attributes:
        spec: ``package.module:callable``, or that of a file by its whole path.
        arguments: ``name=value`` of its keyword arguments.
        side_arg: Name of the keyword that takes the side in pixels; None for a model of any size.
        seed: Of weights that are not loaded.
    """

    spec: str
    arguments: tuple[str, ...] = ()
    side_arg: str | None = None
    seed: int = 0

    def __call__(self, side: int | None = None) -> nn.Module:
        """Return the model.

        Raises:
            InputError: It cannot be built.
        """
        arguments = parse_arguments(list(self.arguments))
        if self.side_arg is not None:
            arguments[self.side_arg] = side
        made: nn.Module = build_model(_named(self.spec), self.spec, arguments, self.seed)
        return copy.deepcopy(made)  # it may be the module itself that is named, and trials train what they are given


@dataclass(frozen=True)
class TrainOf:
    """Calls the user's own ``train_and_evaluate(model, resolution, epochs)``, which a text names.

    Attributes:
        spec: As of a model.
    """

    spec: str

    def __call__(self, model: nn.Module, resolution: int | None, epochs: int, folder: Path) -> float:
        """Return what it returns; it is given the folder of the trial where it has a parameter of that name."""
        function = _named(self.spec)
        more = {"folder": folder} if "folder" in inspect.signature(function).parameters else {}
        found: float = function(model, resolution, epochs, **more)
        return found

    def check(self) -> None:
        """Refuse what could not be called.

        Raises:
            InputError: There is no such function, or it takes something else.
        """
        function = _named(self.spec)
        try:
            parameters = inspect.signature(function).parameters
            more = {"folder": Path()} if "folder" in parameters else {}
            inspect.signature(function).bind(None, None, 0, **more)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"--train {self.spec} cannot be called as train_and_evaluate(model, resolution, epochs): {error}"
            ) from error


@functools.lru_cache(maxsize=8)
def _named(spec: str) -> Any:
    """Return what a text names; a file is read once, so that a model and its training come from one module."""
    return find_callable(spec, "function", "train.py:train_and_evaluate")


def forget_files() -> None:
    """Read files anew that were read in this process: somebody may have changed them."""
    _named.cache_clear()


def absolute(spec: str) -> str:
    """Return a text that names the same from everywhere: a file by its whole path."""
    place, colon, name = spec.rpartition(":")
    return f"{Path(place).resolve()}:{name}" if colon and place.endswith(".py") else spec


def absolute_data(spec: str) -> str:
    """Return data by the whole path behind the last colon, if there is one."""
    name, colon, place = spec.rpartition(":")
    return f"{name}:{Path(place).resolve()}" if colon else spec


def keep_weights(model: nn.Module, weights: Path | None, folder: Path) -> Path:
    """Write the dense weights where all workers find them, by their digest: no other search can change them.

    Args:
        model: As it was built.
        weights: What is loaded into it first.
        folder: Of the search.

    Raises:
        InputError: They cannot be loaded or written.
    """
    from fxprune.deploy.files import write_safetensors

    if weights is not None:
        load_weights(model, weights)
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(_bytes()).numpy().tobytes())
    path = folder / f"dense-{digest.hexdigest()[:16]}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {folder}: {error.strerror or error}; give another --out") from error
    if not path.exists():
        write_safetensors(path, state)
    return path.resolve()


def _bytes() -> Any:
    import torch

    return torch.uint8


def executor_of(workers: int, ray: str | None, cpus: int, gpus: float, timeout: float | None) -> Executor | None:
    """Return where trials run; None for this process.

    Raises:
        InputError: The options do not go together.
    """
    from fxprune.search import Processes, RayCluster

    if ray is not None:
        address = None if ray == LOCAL else ray
        return RayCluster(address, workers=max(workers, 1), cpus=cpus, gpus=gpus, timeout=timeout)
    if gpus:
        raise InputError("--trial-gpus shares the GPUs of a Ray cluster; give --ray local, or its address")
    if workers > 1 or timeout is not None:  # nothing can end a trial in this process
        return Processes(max(workers, 1), threads=cpus, timeout=timeout)
    return None
