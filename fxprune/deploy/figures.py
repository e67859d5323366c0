"""What an ONNX file says of itself without being run: size, work, parameters, and what it should not tell."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from fxprune.deploy.runtimes.base import Model
from fxprune.deploy.runtimes.onnx_files import external_files, onnx_path
from fxprune.errors import InputError

_WEIGHTS = frozenset(
    {
        TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8,
        TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4,
    }
)  # fmt: skip
"""Types of what is learned; the others are shapes and indices."""

_ROOTS = "home|Users|root|tmp|mnt|opt|usr|var|private|workspace|builds|github|runner"
_PATH = re.compile(rf"(?<![\w/.])(?:/(?:{_ROOTS})/|[A-Za-z]:\\)[^\s\"'<>|,;:]+".encode())

_SMALL = 64  # elements of a tensor that may be a shape

Shape = list[int] | None


@dataclass(frozen=True)
class FileFigures:
    """Figures of one file; equal for equal files, on any machine.

    Attributes:
        sha256: Of the file, and the files of its weights.
        bytes: Of the file, and the files of its weights.
        opset: Version of the default operator set.
        params: Elements of the weights.
        macs: Multiply-accumulates of convolutions and matrix products of one inference at the batch size that was asked
            for; None where a shape is not known before running, or where other operators multiply too.
        paths: Absolute paths of the machine that it was made on, at most ten.
    """

    sha256: str
    bytes: int
    opset: int
    params: int
    macs: int | None
    paths: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def file_figures(model: Model, *, batch: int = 1, sizes: Mapping[str, int] | None = None) -> FileFigures:
    """Read the figures of an ONNX file.

    Args:
        model: Its path.
        batch: Size of dimension 0 of the inputs, where it is dynamic.
        sizes: Sizes of other dynamic dimensions, by name.

    Raises:
        InputError: There is no such file, it is no ONNX model, or a file of its weights is missing.
    """
    path = onnx_path(model)
    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf and onnx raise classes of their own
        raise InputError(f"{path} is not an ONNX model: {' '.join(str(error).split())[:300]}") from error
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not proto.graph.node or not opset:
        raise InputError(f"{path} is not an ONNX model: it has no nodes or no operator set")
    files = [path, *external_files(path, proto)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{path} keeps its weights in {', '.join(missing)}, which is not beside it: copy it there")
    weights = [tensor for graph in _graphs(proto.graph) for tensor in graph.initializer if tensor.data_type in _WEIGHTS]
    params = sum(math.prod(tensor.dims) for tensor in weights)
    size = sum(file.stat().st_size for file in files)
    _empty(proto, above=_SMALL)
    macs = _macs(proto, batch, sizes or {})
    _empty(proto, above=0)
    return FileFigures(_digest(files), size, opset, params, macs, _paths(proto))


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _empty(proto: onnx.ModelProto, above: int) -> None:
    """Drop the values of larger tensors, which only cost time; small ones may be sizes that shapes follow from."""
    for graph in _graphs(proto.graph):
        for tensor in graph.initializer:
            if math.prod(tensor.dims) > above:
                for name in ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data"):
                    tensor.ClearField(name)


def _paths(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Look through everything that is left without weights, whose bytes may look like anything."""
    found = dict.fromkeys(match.decode(errors="replace") for match in _PATH.findall(proto.SerializeToString()))
    return tuple(found)[:10]


def _macs(proto: onnx.ModelProto, batch: int, sizes: Mapping[str, int]) -> int | None:
    """Count by inferred shapes; None where one of them is missing, or for work that is not counted here."""
    inner = [node for graph in list(_graphs(proto.graph))[1:] for node in graph.node]
    if any(node.op_type in _COUNTS for node in inner):  # run once, often or never
        return None
    shapes = _shapes(proto, batch, sizes)
    total = 0
    for node in (*proto.graph.node, *inner):
        if node.op_type in _UNCOUNTED:
            return None
        count = _COUNTS.get(node.op_type)
        if count is None or node.domain not in ("", "ai.onnx"):
            continue
        ins = [shapes.get(name) for name in node.input[:2]]
        out = shapes.get(node.output[0])
        if out is None or None in ins:
            return None
        total += count(node, [shape for shape in ins if shape is not None], out)
    return total


def _shapes(proto: onnx.ModelProto, batch: int, sizes: Mapping[str, int]) -> dict[str, Shape]:
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    for value in fixed.graph.input:
        for d, dim in enumerate(value.type.tensor_type.shape.dim):
            size = sizes.get(dim.dim_param, batch if d == 0 else None)
            if not dim.HasField("dim_value") and size is not None:
                dim.dim_value = size
    del fixed.graph.value_info[:]  # they repeat the names of dimensions that now have sizes
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        fixed = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    except Exception:  # onnx's own classes; a file that it cannot follow may still run
        return {}
    found: dict[str, Shape] = {tensor.name: list(tensor.dims) for tensor in fixed.graph.initializer}
    for value in (*fixed.graph.input, *fixed.graph.value_info, *fixed.graph.output):
        dims = value.type.tensor_type.shape.dim
        known = value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
        found[value.name] = [dim.dim_value for dim in dims] if known else None
    return found


def _conv(node: onnx.NodeProto, ins: Sequence[list[int]], out: list[int]) -> int:
    return math.prod(out) * math.prod(ins[1][1:])  # per output: inputs of its group times the kernel


def _transposed(node: onnx.NodeProto, ins: Sequence[list[int]], out: list[int]) -> int:
    return math.prod(ins[0]) * math.prod(ins[1][1:])  # per input: outputs of its group times the kernel


def _gemm(node: onnx.NodeProto, ins: Sequence[list[int]], out: list[int]) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(out) * ins[0][0 if transposed else 1]


def _matmul(node: onnx.NodeProto, ins: Sequence[list[int]], out: list[int]) -> int:
    return math.prod(out) * (ins[0][-1] if ins[0] else 1)


_COUNTS = {"Conv": _conv, "ConvTranspose": _transposed, "Gemm": _gemm, "MatMul": _matmul}

_UNCOUNTED = frozenset(
    {
        "Attention", "BitLinear", "ConvInteger", "DeformConv", "Einsum", "GRU", "GroupQueryAttention", "LSTM",
        "MatMulInteger", "MatMulNBits", "MultiHeadAttention", "QLinearConv", "QLinearMatMul", "RNN",
    }
)  # fmt: skip
"""Operators with products of their own; a sum without them would look as if they were free."""
