"""OpenVINO on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fxprune.deploy.runtimes.base import Array, Clock, Feeds, KernelTime, Model, Placement, TensorSpec
from fxprune.deploy.runtimes.onnx_files import onnx_path, refusal
from fxprune.errors import EnvironmentProblem, InputError, VerifyError

_DEVICE = "CPU"


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO's CPU plugin, set for latency: one request at a time, one stream."""

    name: str = "openvino"
    takes: str = "an ONNX file"

    def clock(self, threads: int) -> Clock:
        """CPU time with one thread, wall time with more."""
        return "cpu" if threads == 1 else "wall"

    def available(self) -> str:
        """Look for the package, without loading it."""
        if importlib.util.find_spec("openvino") is None:
            return "openvino is not installed: pip install 'fxprune[openvino]'"
        return ""

    def load(self, model: Model, threads: int = 1, profile: bool = False) -> OpenVinoSession:
        """Read and compile an ONNX file."""
        missing = self.available()
        if missing:
            raise EnvironmentProblem(f"{self.name}: {missing}")
        if threads < 1:
            raise InputError(f"threads is {threads}; it must be at least 1")
        return OpenVinoSession(onnx_path(model), threads, profile)


class OpenVinoSession:
    """A compiled model with one request."""

    def __init__(self, path: Path, threads: int, profile: bool) -> None:
        import openvino

        self._path, self._profiled = path, profile
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": "f32",  # bfloat16 would be another model, faster and less exact
            "ENABLE_CPU_PINNING": False,  # two sessions side by side must not be pinned to one core
            "PERF_COUNT": profile,
        }
        try:
            self._model: Any = openvino.Core().compile_model(str(path), _DEVICE, options)
        except Exception as error:  # openvino raises RuntimeError for everything
            raise refusal("openvino", path, error) from error
        self._request: Any = self._model.create_infer_request()
        self._events: list[KernelTime] = []
        self.inputs = tuple(_spec(port) for port in self._model.inputs)
        self.outputs = tuple(str(port.any_name) for port in self._model.outputs)

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run it once and return copies of the outputs by name."""
        self.prepare(feeds)()
        ports = zip(self.outputs, self._model.outputs, strict=True)
        return {name: np.array(self._request.get_tensor(port).data) for name, port in ports}

    def prepare(self, feeds: Feeds) -> Callable[[], None]:
        """Give the request tensors that share the memory of the inputs."""
        import openvino

        request, name = self._request, self._path
        unknown = set(feeds) ^ {spec.name for spec in self.inputs}
        if unknown:
            raise VerifyError(
                f"openvino cannot run {name}: inputs {', '.join(sorted(unknown))} do not match the model's"
            )
        tensors = {key: openvino.Tensor(np.ascontiguousarray(array)) for key, array in feeds.items()}
        try:
            for key, tensor in tensors.items():
                request.set_tensor(key, tensor)
            request.infer()
        except Exception as error:  # openvino raises RuntimeError for everything
            raise VerifyError(f"openvino cannot run {name} on these inputs: {error}") from error
        return self._recorded if self._profiled else request.infer

    def placement(self) -> Placement:
        """List the nodes of the compiled graph, all of which run on the CPU."""
        nodes = self._model.get_runtime_model().get_ordered_ops()
        return Placement.of((_DEVICE, node.get_friendly_name(), _layer_type(node)) for node in nodes)

    def profile(self) -> list[KernelTime]:
        """Return the time of every node in every timed run so far."""
        if not self._profiled:
            raise InputError("the session was loaded without profile=True, so there is no profile")
        return list(self._events)

    def close(self) -> None:
        """Drop the compiled model."""
        del self._request, self._model

    def _recorded(self) -> None:
        self._request.infer()
        for entry in self._request.get_profiling_info():
            if "EXECUTED" in str(entry.status):
                micros = entry.real_time.total_seconds() * 1e6
                self._events.append(KernelTime(entry.node_name, entry.node_type, _DEVICE, micros))


def _layer_type(node: Any) -> str:
    info = node.get_rt_info()
    return str(info["layerType"].astype(str)) if "layerType" in info else str(node.get_type_name())


def _spec(port: Any) -> TensorSpec:
    sizes = [size.get_length() if size.is_static else None for size in port.partial_shape]
    return TensorSpec.of(str(port.any_name), np.dtype(port.element_type.to_dtype()), sizes)
