"""What onnxruntime makes of a file: the same on any runner, and it explains times.

onnxruntime's CPU convolutions are fast where their channels come in blocks (its NCHWc kernels). A convolution whose
width does not fit keeps the plain layout, and tensors are reordered on the way to it and back. A batch norm or an
activation that was not folded into the convolution before it costs one more pass over memory.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from fxprune.deploy.runtimes import Model, get_runtime
from fxprune.deploy.runtimes.onnx_files import onnx_path
from fxprune.deploy.runtimes.ort import OnnxRuntime, session_options
from fxprune.errors import InputError

_BLOCKED = "com.microsoft.nchwc"
_CONVS = frozenset({"Conv", "FusedConv", "ConvTranspose"})
_REORDERS = frozenset({"ReorderInput", "ReorderOutput"})
_ACTIVATIONS = frozenset({"Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid"})
"""What onnxruntime folds into a convolution or a Gemm."""


@dataclass(frozen=True)
class KernelFigures:
    """Counts over the optimised graph.

    Attributes:
        runtime: The runtime that optimised it.
        nodes: All nodes.
        convs: Convolutions.
        blocked: Convolutions in kernels for blocked channels.
        reorders: Nodes that only change the layout of a tensor.
        batch_norms: Batch norms that were not folded; onnxruntime may run one as a blocked convolution of one tap,
            which does not count as a convolution here.
        activations: Activations that were not folded into the convolution or Gemm before them.
        fallback: Nodes on another provider than the runtime's own, by name.
    """

    runtime: str
    nodes: int
    convs: int
    blocked: int
    reorders: int
    batch_norms: int
    activations: int
    fallback: tuple[str, ...]

    @property
    def blocked_share(self) -> float:
        """Share of the convolutions that run blocked; one where there are none."""
        return self.blocked / self.convs if self.convs else 1.0

    @property
    def fallback_text(self) -> str:
        """How many nodes run on another provider, and the first of them."""
        shown = f" ({', '.join(self.fallback[:5])}{', ...' if len(self.fallback) > 5 else ''})"
        return f"{len(self.fallback)}{shown if self.fallback else ''}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "blocked_share": self.blocked_share}


def kernel_figures(model: Model, *, runtime: str = "onnxruntime-cpu") -> KernelFigures | None:
    """Read what onnxruntime makes of an ONNX file.

    Args:
        model: Its path.
        runtime: An onnxruntime that can write down its optimised graph.

    Returns:
        None where the runtime cannot: the graph of other runtimes is not for reading, and TensorRT compiles it whole.

    Raises:
        InputError: The file cannot be loaded.
        EnvironmentProblem: The runtime is missing, or would run nodes on the CPU.
    """
    chosen = get_runtime(runtime)
    if not isinstance(chosen, OnnxRuntime) or chosen.helpers:
        return None
    path = onnx_path(model)
    placement = chosen.load(path).placement() if chosen.device != "cpu" else None
    fallback = (
        [str(n) for name, nodes in placement.nodes.items() if name != chosen.provider for n in nodes]
        if placement
        else []
    )
    return _count(runtime, optimized_graph(path, chosen), tuple(fallback))


def optimized_graph(path: Path, runtime: OnnxRuntime) -> onnx.GraphProto:
    """Return the graph that onnxruntime runs, without its weights."""
    with tempfile.TemporaryDirectory(prefix="fxprune.optimized.") as folder:
        file = Path(folder, "optimized.onnx")
        options = session_options(1)
        options.optimized_model_filepath = str(file)
        # without the weights, of which a file can hold no more than 2 GiB
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
        options.log_severity_level = 4  # that the graph is good only for this machine is what it is wanted for
        runtime.create(path, options)
        try:
            return onnx.load(file, load_external_data=False).graph
        except Exception as error:  # protobuf raises classes of its own
            raise InputError(f"onnxruntime did not write down the optimised graph of {path}: {error}") from error


def _count(runtime: str, graph: onnx.GraphProto, fallback: tuple[str, ...]) -> KernelFigures:
    nodes = list(_nodes(graph))
    sizes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    scales = sum(_is_scale(node, sizes) for node in nodes)
    convs = [node for node in nodes if node.op_type in _CONVS and not _is_scale(node, sizes)]
    makers = {name: node for node in nodes for name in node.output}
    readers = Counter(name for node in nodes for name in node.input)
    loose = [
        node
        for node in nodes
        if node.op_type in _ACTIVATIONS
        and (maker := makers.get(node.input[0])) is not None
        and maker.op_type in _CONVS | {"Gemm"}
        and readers[node.input[0]] == 1  # an output that others read too cannot be folded away
    ]
    return KernelFigures(
        runtime,
        nodes=len(nodes),
        convs=len(convs),
        blocked=sum(node.domain == _BLOCKED for node in convs),
        reorders=sum(node.op_type in _REORDERS for node in nodes),
        batch_norms=scales + sum(node.op_type == "BatchNormalization" for node in nodes),
        activations=len(loose),
        fallback=fallback,
    )


def _is_scale(node: onnx.NodeProto, sizes: Mapping[str, list[int]]) -> bool:
    """Whether a blocked convolution does what a batch norm does: one tap for every channel alone."""
    if node.domain != _BLOCKED or node.op_type != "Conv":
        return False
    weight = sizes.get(node.input[1], [])
    return len(weight) > 2 and math.prod(weight[1:]) == 1 and _groups(node) > 1


def _groups(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
