"""Runtimes that serve models, behind one protocol; loading this package loads none of them."""

from __future__ import annotations

from fxprune.deploy.runtimes.base import (
    Clock,
    Feeds,
    KernelTime,
    Model,
    PlacedNode,
    Placement,
    Runtime,
    Session,
    TensorSpec,
)
from fxprune.deploy.runtimes.feeds import random_feeds
from fxprune.deploy.runtimes.openvino import OpenVino
from fxprune.deploy.runtimes.ort import CPU, OnnxRuntime
from fxprune.deploy.runtimes.torch_runtime import TorchRuntime
from fxprune.errors import InputError

__all__ = [
    "DEFAULT_RUNTIME",
    "RUNTIMES",
    "Clock",
    "Feeds",
    "KernelTime",
    "Model",
    "PlacedNode",
    "Placement",
    "Runtime",
    "Session",
    "TensorSpec",
    "get_runtime",
    "random_feeds",
    "survey",
]

DEFAULT_RUNTIME = "onnxruntime-cpu"

_ALL: tuple[Runtime, ...] = (
    OnnxRuntime(DEFAULT_RUNTIME, CPU),
    OnnxRuntime("onnxruntime-cuda", "CUDAExecutionProvider", "cuda", package="onnxruntime-gpu"),
    OnnxRuntime(
        "onnxruntime-tensorrt",
        "TensorrtExecutionProvider",
        "cuda",
        ("CUDAExecutionProvider",),
        package="onnxruntime-gpu",
    ),
    OpenVino(),
    TorchRuntime("torch-cpu", "cpu"),
    TorchRuntime("torch-cpu-compile", "cpu", compiled=True),
    TorchRuntime("torch-cuda", "cuda"),
    TorchRuntime("torch-cuda-compile", "cuda", compiled=True),
)
RUNTIMES: tuple[str, ...] = tuple(runtime.name for runtime in _ALL)


def get_runtime(name: str) -> Runtime:
    """Return a runtime by its name; whether it can be used here is for :meth:`Runtime.available` to say.

    Raises:
        InputError: There is no runtime of that name.
    """
    for runtime in _ALL:
        if runtime.name == name:
            return runtime
    raise InputError(f"there is no runtime {name!r}; known are {', '.join(RUNTIMES)}")


def survey() -> dict[str, str]:
    """Return for every runtime "" where it can be used, else what is missing and the line that installs it."""
    return {runtime.name: runtime.available() for runtime in _ALL}
