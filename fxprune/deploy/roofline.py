"""What the machine can do at most: multiply-accumulates per second, and bytes per second from memory."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fxprune.deploy.interleave import Settings, interleave
from fxprune.errors import InputError

_SIDE = 768
_FLOATS = 1 << 24  # 64 MiB: more than the caches that one thread has to itself
_OPSET = 18


@dataclass(frozen=True)
class Roofline:
    """The two limits of a runtime with a number of threads, as measured.

    Attributes:
        macs_per_s: Of one large matrix product.
        bytes_per_s: Read and written by one large element-wise operation.
    """

    macs_per_s: float
    bytes_per_s: float

    @property
    def ridge(self) -> float:
        """Multiply-accumulates per byte below which memory is the limit."""
        return self.macs_per_s / self.bytes_per_s

    def attainable(self, intensity: float) -> float:
        """Return the most multiply-accumulates per second at so many per byte."""
        return min(self.macs_per_s, intensity * self.bytes_per_s)


def measure_roofline(*, runtime: str, threads: int = 1, seconds: float = 3.0) -> Roofline:
    """Measure both limits on a runtime that takes ONNX files; the best run counts, as other work only takes away.

    Raises:
        InputError: The runtime takes no ONNX files.
        EnvironmentProblem: The runtime is missing.
    """
    if not runtime.startswith(("onnxruntime", "openvino")):
        raise InputError(f"{runtime} takes no ONNX files, by which the machine's limits are measured")
    settings = Settings(runtime, threads, seconds=seconds, min_rounds=5, max_rounds=200)
    with tempfile.TemporaryDirectory(prefix="fxprune-roofline-") as folder:
        files = {"product": Path(folder, "product.onnx"), "sum": Path(folder, "sum.onnx")}
        onnx.save(_product(), files["product"])
        onnx.save(_sum(), files["sum"])
        best = {}
        for name, path in files.items():
            found = interleave({name: path}, settings, lambda samples: False)
            best[name] = min(found.samples[name].on(settings.clock)) / 1e3
    return Roofline(_SIDE**3 / best["product"], 2 * 4 * _FLOATS / best["sum"])


def _product() -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((_SIDE, _SIDE)).astype(np.float32)
    return _model("MatMul", ["x", "w"], [_SIDE, _SIDE], weight)


def _sum() -> onnx.ModelProto:
    return _model("Add", ["x", "w"], [_FLOATS], np.ones((1,), np.float32))


def _model(op: str, inputs: list[str], shape: list[int], weight: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node(op, inputs, ["y"])],
        "limit",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=9)
