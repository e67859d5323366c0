"""Capture by region: the largest sub-modules that have a graph, with the inputs that they get when the model runs."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.no_graph import reason_of
from fxprune.capture.propagate import KEY, propagate
from fxprune.capture.recording import Inputs, Recording, record
from fxprune.capture.regions import Call, Regions
from fxprune.capture.scaled import sizes_from_symbols
from fxprune.capture.submodule import MOST, OtherFunction, SubGraph, alike, capture_calls
from fxprune.capture.traced import Traced
from fxprune.capture.union import NodeMap, Piece, unite
from fxprune.capture.untouched import memory_of
from fxprune.errors import CaptureError, FxPruneError
from fxprune.graph_tools import shape_of


def capture_regions(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool, problem: CaptureError
) -> Traced:
    """Capture a model, which is in eval mode, by region.

    Args:
        model: The model.
        args: Example inputs.
        kwargs: Example keyword inputs.
        dynamic: Whether sizes may vary.
        problem: Why it cannot be captured whole.

    Raises:
        CaptureError: No sub-module can be captured; the message names the innermost reasons.
    """
    paths = {module: path for path, module in model.named_modules() if path and _may_be_region(module)}
    left = {"": reason_of(problem)}
    known: dict[nn.Module, list[SubGraph]] = {}
    told: list[str] = []
    while True:
        if not paths:
            raise _nothing(model, left, problem)
        recording = _watched(model, args, kwargs, paths, problem)
        failed = _capture_new(recording, known, dynamic)
        if not failed:
            break
        for module, error in failed.items():
            path, reason = paths.pop(module), reason_of(error)
            left[path] = reason
            if isinstance(error, OtherFunction):
                told.append(f"{path} is no region as a whole: {reason}")
    if not recording.calls:
        raise _nothing(model, left, problem)
    found = {paths[module]: known[module] for module in recording.calls}
    return _united(model, (args, kwargs), found, left, recording, told)


def _capture_new(
    recording: Recording, known: dict[nn.Module, list[SubGraph]], dynamic: bool
) -> dict[nn.Module, FxPruneError]:
    """Capture all that was called and is not known yet; return what cannot be captured."""
    failed: dict[nn.Module, FxPruneError] = {}
    for module, calls in recording.calls.items():
        if module in recording.leaks:
            failed[module] = OtherFunction(recording.leaks[module])
        elif module not in known or not alike([c for g in known[module] for c in g.calls], [c.inputs for c in calls]):
            try:
                known[module] = capture_calls(module, calls, dynamic)
            except FxPruneError as error:
                failed[module] = error
    return failed


def _watched(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    paths: Mapping[nn.Module, str],
    problem: CaptureError,
) -> Recording:
    try:
        return record(model, args, kwargs, paths)
    except Exception as error:  # the model runs by itself; with hooks on it anything may be raised
        raise CaptureError(
            f"{problem}; nor can it be captured by region, because it does not run while its sub-modules are watched: "
            f"{type(error).__name__}: {error}"
        ) from error


def _may_be_region(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None and not isinstance(module, torch.jit.ScriptModule)


def _nothing(model: nn.Module, left: Mapping[str, str], problem: CaptureError) -> CaptureError:
    inner = [path for path in left if path and not any(other.startswith(f"{path}.") for other in left)]
    if not inner:
        return problem
    listed = "; ".join(f"{path}: {left[path]}" for path in inner[:5])
    return CaptureError(
        f"{type(model).__name__} runs but cannot be captured, neither whole ({left['']}) nor any of its parts. "
        f"The innermost reasons: {listed}. Make one of these lines free of decisions that depend on the values of "
        "tensors"
    )


# ---------------------------------------------------------------- all of them together


def _united(
    model: nn.Module,
    given: Inputs,
    found: Mapping[str, list[SubGraph]],
    left: dict[str, str],
    recording: Recording,
    notes: list[str],
) -> Traced:
    pieces, kinds = list[Piece](), list[_Kind]()
    for path, graphs in found.items():
        for variant, graph in enumerate(graphs):
            notes += [f"{path}: {note}" for note in graph.notes]
            samples = graph.samples()
            if len(samples) > MOST:
                notes.append(
                    f"{path}: called with inputs of {len(samples)} sizes; the {MOST} largest are counted and checked"
                )
            for example, times in samples[:MOST]:
                pieces.append(Piece(path, graph.plain))
                kinds.append(_Kind(graph, variant, example, times))
    module, maps, outputs = unite(model, pieces)
    calls, leaves = _calls(pieces, kinds, outputs)
    propagate(module, tuple(leaves), {})
    for kind, nodes in zip(kinds, maps, strict=True):
        _scale(kind, nodes)
    free = [dims for call in calls for dims in call.free]
    shapes = tuple(dict.fromkeys(dims, torch.export.Dim.AUTO) if dims else None for dims in free)
    regions = Regions(tuple(calls), *given, left, _pinned(module, recording))
    told = (_told(model, regions), *_apart(model, regions), *notes)
    return Traced(module, tuple(leaves), {}, shapes if any(free) else None, type(model).__name__, told, regions)


@dataclass(frozen=True, eq=False)
class _Kind:
    """One piece of the union: a graph of a sub-module at the sizes of an example."""

    graph: SubGraph
    variant: int
    example: Inputs
    times: float


def _calls(pieces: list[Piece], kinds: list[_Kind], outputs: list[slice]) -> tuple[list[Call], list[Any]]:
    """Return the record of every piece, and the inputs of all of them one after the other."""
    calls, leaves = list[Call](), list[Any]()
    for piece, kind, where in zip(pieces, kinds, outputs, strict=True):
        mine, nested = pytree.tree_flatten(kind.example)
        names = tuple(str(node.target) for node in piece.graph.graph.find_nodes(op="placeholder"))
        at = slice(len(leaves), len(leaves) + len(mine))
        graph = kind.graph
        calls.append(Call(piece.path, kind.variant, names, at, where, graph.free, nested, graph.returned, kind.times))
        leaves += mine
    return calls, leaves


def _scale(kind: _Kind, nodes: NodeMap) -> None:
    """Note the sizes of all values at a large batch; those of the example where nothing is left open."""
    if any(kind.graph.free):
        for node, sizes in sizes_from_symbols(kind.graph.plain, *kind.example).items():
            nodes[node].meta[KEY] = sizes
        return
    for node in nodes.values():
        if isinstance(node.meta.get("val"), Tensor):
            node.meta[KEY] = shape_of(node)


def _pinned(module: fx.GraphModule, recording: Recording) -> dict[str, str]:
    """Return what the graph reads of that which is read outside of the regions too."""
    used: set[Any] = set()
    for node in module.graph.nodes:
        if node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            used |= {memory_of(tensor) for tensor in (*layer.parameters(), *layer.buffers())}
        elif node.op == "get_attr":
            used.add(memory_of(operator.attrgetter(str(node.target))(module)))
    named = [*module.named_parameters(), *module.named_buffers()]
    return {
        name: recording.outside[name]
        for name, tensor in named
        if name in recording.outside and memory_of(tensor) in used
    }


def _told(model: nn.Module, regions: Regions) -> str:
    return (
        f"captured by region, because {type(model).__name__} has no graph as a whole ({regions.left['']}): "
        f"{', '.join(regions.paths)}. The rest runs as the model's own code"
    )


def _apart(model: nn.Module, regions: Regions) -> list[str]:
    """Say which layers belong to no region: they did not run, or nothing around them can be captured."""
    inside = {module for path in regions.paths for module in model.get_submodule(path).modules()}
    names = [
        name or "the parameters of the model itself"
        for name, module in model.named_modules()
        if module not in inside and next(module.parameters(recurse=False), None) is not None
    ]
    if not names:
        return []
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [f"no region holds {', '.join(names[:5])}{more}: they stay as they are"]
