"""torch itself, eager or compiled, on the CPU or a GPU: for models that are served without an export to ONNX."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fxprune.deploy.runtimes.base import Array, Clock, Feeds, KernelTime, Model, Placement, TensorSpec
from fxprune.errors import EnvironmentProblem, InputError, VerifyError

if TYPE_CHECKING:
    from fxprune.deploy.runtimes.torch_program import Program


@dataclass(frozen=True)
class TorchRuntime:
    """torch on one device.

    Attributes:
        name: As the runtime is chosen by.
        device: ``cpu`` or ``cuda``.
        compiled: Run through ``torch.compile``.
    """

    name: str
    device: str
    compiled: bool = False
    takes: str = "a .pt2 file of torch.export.save, or a captured model"

    def clock(self, threads: int) -> Clock:
        """CPU time on the CPU with one thread, wall time everywhere else."""
        return "cpu" if self.device == "cpu" and threads == 1 else "wall"

    def available(self) -> str:
        """Look for torch, a GPU, and what ``torch.compile`` builds with."""
        try:
            import torch
        except ImportError as error:
            return f"torch cannot be loaded ({error}): pip install torch"
        if self.device == "cuda" and not torch.cuda.is_available():
            built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
            return (
                f"torch {torch.__version__} ({built}) sees no GPU: install an NVIDIA driver, "
                "or pip install torch from https://download.pytorch.org/whl/cu130"
            )
        compiler = os.environ.get("CXX", "g++")
        if self.compiled and self.device == "cpu" and shutil.which(compiler) is None:
            return f"torch.compile needs a C++ compiler and there is no {compiler}: apt-get install g++"
        return ""

    def load(self, model: Model, threads: int = 1, profile: bool = False) -> TorchSession:
        """Load an exported program (``.pt2``), or take a captured model as it is."""
        missing = self.available()
        if missing:
            raise EnvironmentProblem(f"{self.name}: {missing}")
        if threads < 1:
            raise InputError(f"threads is {threads}; it must be at least 1")
        if profile:
            raise InputError(f"{self.name} records no time per node; profile with an onnxruntime or openvino runtime")
        from fxprune.deploy.runtimes.torch_program import read_program

        return TorchSession(self, read_program(model, self.device), threads)


class TorchSession:
    """A model in torch. The number of threads is one for the whole process, and set back on closing."""

    def __init__(self, runtime: TorchRuntime, program: Program, threads: int) -> None:
        import torch

        self._runtime, self._program = runtime, program
        self._before = torch.get_num_threads()
        torch.set_num_threads(threads)
        self.inputs: tuple[TensorSpec, ...] = program.inputs
        self.outputs: tuple[str, ...] = program.outputs
        self._module: Any = torch.compile(program.module) if runtime.compiled else program.module

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run it once and return the outputs by name, on the host."""
        values = self._call(self._on_device(feeds))
        return {name: value.detach().cpu().numpy() for name, value in zip(self.outputs, values, strict=True)}

    def prepare(self, feeds: Feeds) -> Callable[[], None]:
        """Copy the inputs to the device beforehand; wait for the device after every call."""
        import torch

        arguments = self._on_device(feeds)
        self._call(arguments)  # compiles
        wait = torch.cuda.synchronize if self._runtime.device == "cuda" else None
        module, no_grad = self._module, torch.no_grad

        def infer() -> None:
            with no_grad():
                module(*arguments[0], **arguments[1])
            if wait is not None:
                wait()

        return infer

    def placement(self) -> Placement:
        """List the operations of the graph, all of which run on the one device."""
        return Placement.of((self._runtime.device, name, op) for name, op in self._program.operations)

    def profile(self) -> list[KernelTime]:
        """Refuse: there is none."""
        raise InputError(f"{self._runtime.name} records no time per node")

    def close(self) -> None:
        """Drop the module and set torch's threads back."""
        import torch

        torch.set_num_threads(self._before)
        del self._module, self._program

    def _on_device(self, feeds: Feeds) -> tuple[tuple[Any, ...], dict[str, Any]]:
        import torch

        unknown = set(feeds) ^ {spec.name for spec in self.inputs}
        if unknown:
            raise VerifyError(f"inputs {', '.join(sorted(unknown))} do not match what the model takes")
        arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
        return self._program.arguments({k: torch.from_numpy(v).to(self._runtime.device) for k, v in arrays.items()})

    def _call(self, arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Any]:
        import torch
        from torch.utils import _pytree as pytree

        args, kwargs = arguments
        try:
            with torch.no_grad():
                values = self._module(*args, **kwargs)
        except Exception as error:  # a model's forward raises whatever it likes
            raise VerifyError(f"{self._runtime.name} cannot run the model on these inputs: {error}") from error
        return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]
