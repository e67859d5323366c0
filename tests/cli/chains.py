"""Models that take as long as one likes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_chain(path: Path, layers: int, width: int = 32) -> Path:
    """Convolutions, which take as long as there are layers."""
    generator = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i in range(layers):
        weight = generator.standard_normal((width, width, 3, 3)) * 0.1
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1, 1, 1, 1]))
        last = f"c{i}"
    shape: list[str | int | None] = ["batch", width, 16, 16]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", last)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path
