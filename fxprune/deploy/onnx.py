"""A captured model as an ONNX file that carries nothing of the machine it was made on."""

from __future__ import annotations

import ast
import contextlib
import importlib.metadata
import io
import itertools
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxprune.capture.program import distinct
from fxprune.capture.regions import require_whole
from fxprune.capture.traced import Traced
from fxprune.deploy.onnx_file import save
from fxprune.errors import EnvironmentProblem, InputError, VerifyError
from fxprune.graph_tools import copy_module

if TYPE_CHECKING:
    import onnx_ir

BATCH = "batch"
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_NO_SCOPE = "_empty_nn_module_stack"  # the exporter's mark of nodes that no module asked for


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        path: The ONNX file.
        data: The file with the weights beside it, for models above 2 GiB; None otherwise.
        opset: Version of the standard operator set.
        bytes: Size of all files together.
        inputs: Names of the graph's inputs, in order.
        outputs: Names of the graph's outputs, in order.
        modules: Dotted module path of each ONNX node (by its name), to read a runtime's profile with; the file itself
            does not hold it.
    """

    path: Path
    data: Path | None
    opset: int
    bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    modules: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the part that goes into ``report.json``, with the file named relative to the report."""
        return {"path": self.path.name, "opset": self.opset, "bytes": self.bytes}


def export_onnx(
    traced: Traced,
    path: str | os.PathLike[str],
    *,
    opset: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> ExportReport:
    """Write the model in evaluation mode as an ONNX file, in one step: a failure leaves an older file untouched.

    One file below 2 GiB; above, the weights go into a second file beside it. A dynamic batch dimension is called
    ``batch``.

    Args:
        traced: The captured model.
        path: The file to write; its folder must exist.
        opset: Version of the operator set; None takes the exporter's default.
        metadata: Entries for the model's ``metadata_props``, next to the version of fxprune.

    Raises:
        InputError: The model has an operation without an ONNX counterpart, the opset cannot be had, or the file cannot
            be written.
        VerifyError: The exporter fixed the batch of a model whose batch is dynamic.
        EnvironmentProblem: A package that the exporter needs is missing.
    """
    require_whole(traced, "One ONNX file", "export_regions writes one for each")
    program = _export(traced, opset)
    model = program.model
    _check_opset(model, opset)
    if traced.batch_is_dynamic:
        _check_batch(traced, model)
    modules = {node.name: _module_path(node) for node in model.graph.all_nodes() if node.name}
    _strip(model)
    model.metadata_props.update({"fxprune.version": _version(), **(metadata or {})})
    target = Path(path)
    data = save(model, target)
    return ExportReport(
        path=target,
        data=data,
        opset=model.opset_imports[""],
        bytes=sum(file.stat().st_size for file in (target, data) if file is not None),
        inputs=tuple(str(value.name) for value in model.graph.inputs),
        outputs=tuple(str(value.name) for value in model.graph.outputs),
        modules=modules,
    )


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put every part of the module in evaluation mode, and back as it was."""
    before = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in before.items():
            part.training = training


def _export(traced: Traced, opset: int | None) -> torch.onnx.ONNXProgram:
    try:
        return _call_exporter(traced, opset, optimize=True)
    except InputError:
        try:
            # The exporter's optimiser fails on some graphs that it translates well: a split by a symbolic size, say.
            return _call_exporter(traced, opset, optimize=False)
        except InputError:
            # It decomposes attention into products whose result lies in memory in another order, and then insists on
            # the views of the order before.
            return _call_exporter(_with_copies(traced), opset, optimize=True)


def _with_copies(traced: Traced) -> Traced:
    """Copy what is permuted before it is reshaped, so that no view depends on how it lies in memory.

    In the file a copy is an Identity, which costs nothing.
    """
    aten = torch.ops.aten
    module = copy_module(traced.module)
    for node in module.graph.find_nodes(op="call_function", target=aten.contiguous.default):
        node.target = aten.clone.default  # "contiguous" vanishes where the order of that moment needs no copy
        node.args, node.kwargs = node.args[:1], {"memory_format": torch.contiguous_format}
    for target in (aten.reshape.default, aten.view.default):
        for node in module.graph.find_nodes(op="call_function", target=target):
            source = node.args[0]
            if getattr(source, "target", None) in (aten.transpose.int, aten.permute.default):
                with module.graph.inserting_before(node):
                    copied = module.graph.call_function(
                        aten.clone.default, (source,), {"memory_format": torch.contiguous_format}
                    )
                copied.meta = dict(source.meta)
                node.args = (copied, *node.args[1:])
    module.recompile()
    return traced.with_module(module)


def _call_exporter(traced: Traced, opset: int | None, *, optimize: bool) -> torch.onnx.ONNXProgram:
    shapes = named_shapes(traced) if traced.batch_is_dynamic else None
    args, kwargs = distinct(traced.args, traced.kwargs)
    try:
        with evaluating(traced.module), _quiet():
            program = torch.onnx.export(
                traced.module,
                args,
                kwargs=kwargs,
                dynamo=True,
                verbose=False,
                optimize=optimize,
                opset_version=opset,
                dynamic_shapes=shapes,
            )
    except ModuleNotFoundError as error:
        raise _missing(str(error.name)) from error
    except Exception as error:  # the exporter raises whatever happened inside it, under many classes
        raise InputError(f"{traced.name} cannot be exported to ONNX: {_innermost(error)}") from error
    assert program is not None  # dynamo=True always gives one
    return program


def _missing(module: str) -> EnvironmentProblem:
    """Tell a package that is not there from one of which torch asks for a part that its version does not have."""
    package = module.partition(".")[0]
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return EnvironmentProblem(f"ONNX export needs {package}, which is not installed: pip install {package}")
    return EnvironmentProblem(
        f"torch {torch.__version__} asks for {module} to export to ONNX, which {package} {version} does not have: "
        f"pip install --upgrade {package}"
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: it speaks of its own insides, and what matters to the user is checked on the result."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # some versions print what they fold
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _innermost(error: BaseException) -> str:
    """Return the beginning of what the error that started it all says, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *(["; ".join(lines[:3])] if lines else [])])


def named_shapes(traced: Traced) -> Any:
    """Return the capture's dynamic shapes with names: ``batch`` for dimension 0 wherever it may vary.

    Another dimension is called by the number of its input and its own: ``size_0_2``.
    """
    values: tuple[Any, ...] = (*traced.args, *traced.kwargs.values())
    shapes, numbers = traced.dynamic_shapes, itertools.count()
    if isinstance(shapes, dict):
        return {key: _named(spec, value, numbers) for (key, spec), value in zip(shapes.items(), values, strict=True)}
    return tuple(_named(spec, value, numbers) for spec, value in zip(shapes, values, strict=True))


def _named(spec: Any, value: Any, numbers: Iterator[int]) -> Any:
    """Name the dimensions that may vary in what describes one input: a tensor, or a container of them."""
    if isinstance(value, Tensor):
        number = next(numbers)
        if spec is None:
            return None
        dimensions = spec if isinstance(spec, dict) else dict(enumerate(spec))
        return {d: size_name(number, d) if _varies(size) else size for d, size in dimensions.items()}
    if spec is None:
        return None
    if isinstance(spec, dict):
        return {key: _named(spec[key], value[key], numbers) for key in spec}
    return type(spec)(_named(s, v, numbers) for s, v in zip(spec, value, strict=True))


def size_name(number: int, dimension: int) -> str:
    """Return what a dimension that may vary is called in a file; inputs that are tensors are numbered from 0."""
    return f"size_{number}_{dimension}" if dimension else BATCH


def _varies(size: Any) -> bool:
    return size is not None and not isinstance(size, int) and size is not torch.export.Dim.STATIC


def _check_opset(model: onnx_ir.Model, opset: int | None) -> None:
    given = model.opset_imports.get("")
    if opset is not None and given != opset:
        raise InputError(
            f"opset {opset} was asked for, and the exporter of torch {torch.__version__} can only give {given} "
            f"for this model. Ask for opset {given}, or leave the choice to the exporter."
        )


def _check_batch(traced: Traced, model: onnx_ir.Model) -> None:
    """Refuse a file that only takes the example's batch size although the capture takes any."""
    names = [str(size) for value in model.graph.inputs for size in tuple(value.shape or ())[:1]]
    if BATCH not in names:
        raise VerifyError(
            f"the exporter fixed the batch of {traced.name} to that of the example inputs (first dimensions: "
            f"{', '.join(names)}), though the captured graph takes any. "
            "Trace the model with a static batch to export it for this size only."
        )


def _module_path(node: onnx_ir.Node) -> str:
    """Return the module that a node came from: the scope that the exporter noted, or for a product the weight's owner.

    A convolution that the exporter fused with a batch norm carries the batch norm's scope. For other nodes the scope is
    better: equal constants, such as the weights of untrained norms, are stored once, under one owner's name.
    """
    if node.op_type in _PRODUCTS:
        for value in node.inputs:
            if value is not None and value.const_value is not None and value.name and "." in value.name:
                return value.name.rpartition(".")[0]
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))  # ends with the node's own
    return str(scopes[-2]) if len(scopes) > 1 and not str(scopes[-2]).startswith(_NO_SCOPE) else ""


def _strip(model: onnx_ir.Model) -> None:
    """Remove the exporter's notes for debugging: stack traces with the machine's paths, most of a graph's bytes."""
    model.doc_string = None
    functions = list(model.functions.values())
    graphs = [*model.graphs(), *(graph for function in functions for graph in function.subgraphs())]
    nodes = [node for part in (*graphs, *functions) for node in part]
    values = [value for graph in graphs for value in (*graph.inputs, *graph.initializers.values())]
    values += [value for function in functions for value in function.inputs]
    values += [value for node in nodes for value in node.outputs]
    parts: list[Any] = [*graphs, *functions, *nodes, *values]
    for part in parts:
        part.doc_string = None
        part.metadata_props.clear()


def _version() -> str:
    try:
        return importlib.metadata.version("fxprune")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
