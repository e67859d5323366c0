"""One sub-module, captured for all the calls of it that were recorded, by as few graphs as will do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.accepted import packed
from fxprune.capture.agreement import disagreement
from fxprune.capture.elsewhere import unlike_at_another_batch, unlike_at_another_size
from fxprune.capture.normal_form import as_layers, normalised
from fxprune.capture.program import at_least_two, export_program, in_order, open_dimensions
from fxprune.capture.propagate import propagate
from fxprune.capture.recording import Inputs, Observed, set_random_state
from fxprune.capture.regions import first_size
from fxprune.errors import CaptureError, FxPruneError

MOST = 16
"""How many sizes of inputs one sub-module is captured for."""


@dataclass(frozen=True, eq=False)
class SubGraph:
    """A graph of a sub-module, and the calls that it stands for.

    Attributes:
        plain: The graph in normal form.
        layers: The same as calls of the sub-module's layers.
        free: For each input, the dimensions that may have any size.
        returned: How its outputs are nested.
        calls: The recorded calls.
        doubled: Whether calls of one sample are taken for two.
        notes: What could not be captured as asked.
    """

    plain: fx.GraphModule
    layers: fx.GraphModule
    free: tuple[tuple[int, ...], ...]
    returned: pytree.TreeSpec
    calls: list[Inputs]
    doubled: bool
    notes: list[str]

    def samples(self) -> list[tuple[Inputs, float]]:
        """Return example inputs for each set of sizes but the batch, the largest first, and what they stand for.

        That is how many calls with the example amount to all of them.
        """
        open_batch = any(0 in dims for dims in self.free)
        found = []
        for same in _grouped(self.calls, lambda call: _sizes(call, 1 if open_batch else 0)):
            example = _example(same)
            if self.doubled:
                example = at_least_two(*example)
            found.append((example, max(1, sum(map(_batch, same))) / max(1, _batch(example))))
        return sorted(found, key=lambda pair: -_elements(pair[0]))


class OtherFunction(CaptureError):
    """A graph of a sub-module does not compute what the sub-module did."""


class _OtherSize(CaptureError):
    """A sub-module decides by sizes, so that its graph is none for any."""


def capture_calls(module: nn.Module, calls: Sequence[Observed], dynamic: bool) -> list[SubGraph]:
    """Capture a sub-module for all its calls, by as few graphs as will do.

    Raises:
        OtherFunction: There is a call that returned something else than the graph does.
        FxPruneError: There is a call that it cannot be captured for.
    """
    found = [
        graph for same in _grouped([call.inputs for call in calls], _kind) for graph in _of_kind(module, same, dynamic)
    ]
    if len(found) > MOST:
        raise CaptureError(
            f"it is called with {len(found)} kinds of inputs, and its graph is another one for each (at most {MOST})"
        )
    for graph in found:
        mine = {id(inputs) for inputs in graph.calls}
        for number, call in enumerate(calls, 1):
            if id(call.inputs) in mine:
                _compare(graph, call, f"call {number} of {len(calls)}")
    return found


def _compare(graph: SubGraph, call: Observed, which: str) -> None:
    """Hold a graph to what the sub-module returned: an attribute may have been set since, or it counts its calls."""
    with torch.random.fork_rng():
        set_random_state(call.random)
        wrong = disagreement(graph.layers, pytree.tree_leaves(call.inputs), call.returned)
    if wrong:
        raise OtherFunction(
            f"its graph does not give what {which} returned ({wrong}): what it computes depends on more than its "
            "inputs, as on an attribute that is set between calls; make that an input"
        )


def _of_kind(module: nn.Module, calls: list[Inputs], dynamic: bool) -> list[SubGraph]:
    """Capture calls that differ in sizes only: in one graph if the sizes can be left open, else in several."""
    varying = _varying(calls)
    if dynamic or not any(varying):
        try:
            graph = _graph(module, calls, varying if dynamic else None)
            if all(set(dims) <= set(free) for dims, free in zip(varying, graph.free, strict=True)):
                return [graph]
        except FxPruneError:
            if not any(varying):
                raise
    parts = _grouped(calls, lambda call: _sizes(call, 1))
    if len(parts) == 1:
        parts = _grouped(calls, lambda call: _sizes(call, 0))
    return [graph for same in parts for graph in _of_kind(module, same, dynamic)]


def _graph(module: nn.Module, calls: list[Inputs], varying: Sequence[tuple[int, ...]] | None) -> SubGraph:
    """Capture the largest of the calls with the batch and some more sizes left open; None opens nothing."""
    if packed(calls[0]):
        raise CaptureError("it is called with a packed sequence, whose first dimension is steps and samples in one")
    given = _example(calls)
    if varying is None:
        return _exported(module, given, calls, None)
    leaves, nested = pytree.tree_flatten(given)
    specs = [_open(leaf, dims) for leaf, dims in zip(leaves, varying, strict=True)]
    shapes = in_order(pytree.tree_unflatten(specs, nested))
    doubled = at_least_two(*given)
    repeated = doubled[1] is not given[1]
    try:
        graph = _exported(module, doubled, calls, shapes, doubled=True)
        if repeated and not any(0 in dims for dims in graph.free):
            raise _OtherSize("the model's code fixes it")  # then it is fixed at one sample, not at the two made of it
        return graph
    except _OtherSize as error:
        closed = _exported(module, given, calls, None)
        closed.notes.append(f"the batch is static at {_batch(given)}: {error}")
        return closed
    except FxPruneError:
        if not repeated:
            raise
        return _exported(module, given, calls, None)  # it takes one sample at a time


def _exported(module: nn.Module, given: Inputs, calls: list[Inputs], shapes: Any, *, doubled: bool = False) -> SubGraph:
    program, _, before = export_program(module, *given, shapes)
    plain, more = normalised(program, module)
    trial = as_layers(module, fx.GraphModule(plain, copy.deepcopy(plain.graph)))
    if shapes is not None:
        wrong = unlike_at_another_batch(module, trial, program, given, one=bool(before.outputs))
        wrong = wrong or unlike_at_another_size(module, trial, program, given)
        if wrong:
            raise _OtherSize(wrong)
    propagate(trial, *given)
    return SubGraph(
        plain, trial, open_dimensions(program), program.call_spec.out_spec, calls, doubled, [*before.notes, *more]
    )


def _open(leaf: Any, dims: Sequence[int]) -> dict[int, Any] | None:
    if not isinstance(leaf, Tensor) or not leaf.ndim:
        return None
    return dict.fromkeys(sorted({0, *dims}), torch.export.Dim.AUTO)


def _example(calls: Sequence[Inputs]) -> Inputs:
    """Return the call with the most samples; where there are none, two made up in their place."""
    largest = max(calls, key=_batch)

    def filled(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim or leaf.shape[0]:
            return leaf
        shape = (2, *leaf.shape[1:])
        return torch.randn(shape).to(leaf) if leaf.is_floating_point() else torch.zeros(shape).to(leaf)

    found: Inputs = pytree.tree_map(filled, largest)
    return found


# ---------------------------------------------------------------- comparing calls


def _batch(call: Inputs) -> int:
    return first_size(pytree.tree_leaves(call))


def _elements(call: Inputs) -> int:
    return sum(leaf.numel() for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor))


def _kind(call: Inputs) -> Any:
    leaves, nested = pytree.tree_flatten(call)
    return nested, [
        (leaf.dtype, leaf.device, leaf.ndim) if isinstance(leaf, Tensor) else (type(leaf), repr(leaf))
        for leaf in leaves
    ]


def _sizes(call: Inputs, first: int) -> list[tuple[int, ...]]:
    """Return the sizes of all tensors from a dimension on."""
    return [tuple(leaf.shape[first:]) for leaf in pytree.tree_leaves(call) if isinstance(leaf, Tensor)]


def _grouped(calls: Sequence[Inputs], key: Callable[[Inputs], Any]) -> list[list[Inputs]]:
    groups: list[tuple[Any, list[Inputs]]] = []
    for call in calls:
        mine = key(call)
        same = next((group for other, group in groups if other == mine), None)
        if same is None:
            groups.append((mine, [call]))
        else:
            same.append(call)
    return [group for _, group in groups]


def alike(one: Sequence[Inputs], other: Sequence[Inputs]) -> bool:
    """Whether two recordings hold calls with the same kinds and sizes of inputs."""

    def described(calls: Sequence[Inputs]) -> list[Any]:
        return [(_kind(call), _sizes(call, 0)) for call in calls]

    mine, theirs = described(one), described(other)
    return len(mine) == len(theirs) and all(call in theirs for call in mine)


def _varying(calls: Sequence[Inputs]) -> list[tuple[int, ...]]:
    """Return, for each input, the dimensions that are not the same in all calls."""
    rows = [pytree.tree_leaves(call) for call in calls]
    found = []
    for leaves in zip(*rows, strict=True):
        shapes = [leaf.shape if isinstance(leaf, Tensor) else () for leaf in leaves]
        found.append(tuple(d for d in range(len(shapes[0])) if len({shape[d] for shape in shapes}) > 1))
    return found
