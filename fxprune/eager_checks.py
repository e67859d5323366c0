"""Whether a model's own code computes what its graph computes, and where it stops if it does not."""

from __future__ import annotations

import copy
import math
import os
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.capture import Traced
from fxprune.capture.regions import Call, hosted
from fxprune.eager_wide import Widened
from fxprune.errors import VerifyError
from fxprune.graph_tools import evaluating, wide
from fxprune.runner import Runner

TOLERANCE = 1e-9
"""Largest relative difference between the module and the graph in float64."""

SINGLE_TOLERANCE = 1e-4
"""The same in float32, for code that cannot run in float64."""

_SMALL = 1e-3
"""An output is compared with its own largest value, but with no less than this part of the largest of all."""

_LIBRARY = tuple(str(Path(file).parent) + os.sep for file in (torch.__file__, __file__))


@dataclass(frozen=True)
class Agreement:
    """How far two computations are apart, relative to their largest value, and in what they were compared."""

    error: float
    dtype: str


def compare(traced: Traced, model: nn.Module) -> Agreement:
    """Compare a model's own code, or that of its regions, with the graph.

    Raises:
        VerifyError: They differ, or the code does not run.
    """
    args, kwargs = traced.inputs(seed=1)
    with evaluating(traced.module):
        expected = _apart(traced, Runner(traced.module).flat(traced.flat(args, kwargs)))
    tolerance, dtype = TOLERANCE, "float64"
    try:
        own, (wide_args, wide_kwargs) = doubled(model), pytree.tree_map(wide, (args, kwargs))
        with Widened():  # type: ignore[no-untyped-call]
            found = _run(own, traced, wide_args, wide_kwargs)
    except Exception as first:  # the user's code raises whatever it likes
        try:
            found, tolerance, dtype = _run(model, traced, args, kwargs), SINGLE_TOLERANCE, "float32"
        except Exception:
            raise does_not_run(traced, model, first) from first
    errors = [_error(model, *pair) for pair in zip(found, expected, strict=True)]
    error = max(errors, default=0.0)
    if not error <= tolerance:
        raise VerifyError(
            f"{type(model).__name__} runs with the new weights and computes something else than the graph (relative "
            f"error {error:.1e} in {dtype}, allowed {tolerance:.0e}): as a rule, because a width, a scale or "
            "an order of channels is written into its code. Deploy the graph itself; the model is as it was"
        )
    return Agreement(error, dtype)


def _error(model: nn.Module, found: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest difference, relative to the largest value."""
    if len(found) != len(expected) or any(a.shape != b.shape for a, b in zip(found, expected, strict=False)):
        shapes = [[tuple(value.shape) for value in values] for values in (found, expected)]
        raise VerifyError(f"{type(model).__name__} gives outputs of shapes {shapes[0]}, the graph {shapes[1]}")
    scale = max(map(_top, expected), default=1.0) or 1.0
    errors = [_distance(a.to(b), b) for a, b in zip(found, expected, strict=True) if b.numel()]
    return max(errors, default=0.0) / scale


def _top(value: Tensor) -> float:
    finite = value[value.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0


def _distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference; infinite where one has a NaN, which no comparison of numbers would notice."""
    largest = float((found - expected).abs().masked_fill(found == expected, 0.0).max())
    return float("inf") if math.isnan(largest) else largest


# ---------------------------------------------------------------- around the regions


@dataclass(frozen=True)
class Around:
    """What a whole model gives while the graphs of its regions compute these: its outputs, and in which precision."""

    leaves: list[Any]
    double: bool


def around_regions(traced: Traced, model: nn.Module) -> Around:
    """Run the original while the pruned graphs compute its regions: that is what the pruned model has to give.

    Args:
        traced: The pruned capture.
        model: The original, before anything is written into it.

    Raises:
        VerifyError: It does not run this way, so that there is nothing to compare with.
    """
    if traced.regions is None:
        return Around([], double=True)
    try:
        return Around(_hosting(traced, model, double=True), double=True)
    except Exception as first:
        try:
            return Around(_hosting(traced, model, double=False), double=False)
        except Exception:
            raise VerifyError(
                f"what the code of {type(model).__name__} computes around its regions cannot be checked, because it "
                f"does not run while their graphs compute them: {first_line(first)}, {place(first)}. Code around "
                "regions has nothing but what they return; it may not read what they leave behind in attributes"
            ) from first


def _hosting(traced: Traced, model: nn.Module, *, double: bool) -> list[Any]:
    regions, graph = traced.regions, traced.module.graph
    assert regions is not None

    def run(call: Call, leaves: list[Any]) -> list[Any]:
        runner = Runner(traced.module, double=double)
        return runner.flat(leaves, dict(regions.others(graph, call)))[call.outputs]

    own = doubled(model) if double else model
    with evaluating(traced.module), hosted(own, traced, run):
        return _whole(own, traced, double=double)


def compare_around(traced: Traced, model: nn.Module, around: Around) -> Agreement:
    """Compare the whole pruned model with the original that had its regions computed by the pruned graphs.

    The code between regions may read a width, or a weight, of their insides.

    Args:
        traced: The pruned capture.
        model: The model, after the result was written into it.
        around: What :func:`around_regions` gave before.

    Raises:
        VerifyError: They differ, or the model does not run.
    """
    if traced.regions is None:
        return Agreement(0.0, "float64")
    double = around.double
    try:
        found = _whole(doubled(model) if double else model, traced, double=double)
    except Exception as first:
        try:
            found, double = _whole(model, traced, double=False), False
        except Exception:
            raise does_not_run(traced, model, first) from first
    tolerance, dtype = (TOLERANCE, "float64") if double else (SINGLE_TOLERANCE, "float32")
    error = difference(found, around.leaves)
    if not error <= tolerance:
        raise VerifyError(
            f"the code of {type(model).__name__} around its regions ({', '.join(traced.regions.paths)}) computes "
            f"something else with the new sizes than with the graphs of the regions in their place (relative error "
            f"{error:.1e} in {dtype}, allowed {tolerance:.0e}): it reads a width, a weight or an attribute of what was "
            "pruned, or calls a region in another way than it was captured. Write such a width as a number, or protect "
            "the parameters that it is read from; the model is as it was"
        )
    return Agreement(error, dtype)


@torch.no_grad()
def _whole(model: nn.Module, traced: Traced, *, double: bool) -> list[Any]:
    """Run the model on its own example, and return all that its output is made of."""
    assert traced.regions is not None
    given = pytree.tree_map(copied, (traced.regions.args, traced.regions.kwargs))
    with evaluating(model), torch.random.fork_rng():
        torch.manual_seed(0)
        if not double:
            return list(leaves_of(model(*given[0], **given[1])))
        args, kwargs = pytree.tree_map(wide, given)
        with Widened():  # type: ignore[no-untyped-call]
            return list(leaves_of(model(*args, **kwargs)))


def copied(leaf: Any) -> Any:
    """Copy a tensor: a model may write into its inputs."""
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def leaves_of(value: Any, seen: tuple[int, ...] = ()) -> Iterator[Any]:
    """Give all that an output is made of, also what plain objects hold, such as boxes in a class of their own."""
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor) or not hasattr(leaf, "__dict__") or isinstance(leaf, (nn.Module, type)):
            yield leaf
        elif id(leaf) not in seen:
            yield from leaves_of(list(vars(leaf).values()), (*seen, id(leaf)))


def difference(found: list[Any], expected: list[Any]) -> float:
    """Return the largest relative difference of outputs one by one; infinite for another shape, number or kind.

    Detections may come in any number: a box more or less is a difference.
    """
    if len(found) != len(expected):
        return math.inf
    tops = [_top(leaf) for leaf in expected if _is_float(leaf)]
    least = _SMALL * max(tops, default=0.0)
    return max((_of_leaf(a, b, least) for a, b in zip(found, expected, strict=True)), default=0.0)


def _of_leaf(found: Any, expected: Any, least: float) -> float:
    if isinstance(expected, float) and isinstance(found, float):
        found, expected = torch.tensor(found).double(), torch.tensor(expected).double()
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return 0.0 if type(found) is type(expected) and _equal(found, expected) else math.inf
    if found.shape != expected.shape:
        return math.inf
    if not _is_float(expected):
        return 0.0 if torch.equal(found, expected.to(found)) else math.inf
    if not expected.numel():
        return 0.0
    return _distance(found.to(expected), expected) / (max(_top(expected), least) or 1.0)


def _equal(found: Any, expected: Any) -> bool:
    """Compare what is no tensor; objects that say nothing about themselves, such as functions, count as equal."""
    told = isinstance(expected, (int, str, bytes, complex)) or expected is None
    return not told or bool(found == expected)


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())


# ---------------------------------------------------------------- messages


def does_not_run(traced: Traced, model: nn.Module, error: Exception) -> VerifyError:
    """Say where a model's code stopped, and why as far as that can be told."""
    unlike, idle = _unlike_attention(model), _idle_note(traced, model)
    if unlike:
        return VerifyError(
            f"{type(model).__name__} does not run with the new sizes: {first_line(error)}, {place(error)}. {unlike} "
            "is nn.MultiheadAttention, which has one width for its queries, its output and all heads together, and the "
            "cut made them differ. Protect its parameters, or deploy the graph itself; the model is as it was"
        )
    return VerifyError(
        f"{type(model).__name__} does not run with the new sizes: {first_line(error)}, {place(error)}. A "
        "width is written into the code there. Take it from a tensor (x.shape) or from the layer, or deploy "
        f"the graph itself; the model is as it was{idle}"
    )


def _idle_note(traced: Traced, model: nn.Module) -> str:
    idle = idle_layers(traced, model)
    return f" (no output depends on {', '.join(idle[:3])}, which therefore kept all channels)" if idle else ""


def idle_layers(traced: Traced, model: nn.Module) -> list[str]:
    """Name layers that the graph does not use, of its regions if it has any: they keep widths that others lost."""
    used: set[int] = set()
    for node in traced.module.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            used |= {id(tensor) for tensor in _tensors_at(model, str(node.target))}
    inside = traced.regions.paths if traced.regions is not None else [""]
    return sorted(
        path
        for path, layer in model.named_modules()
        if _is_within(path, inside)
        and (own := list(layer.parameters(recurse=False)))
        and not any(id(tensor) in used for tensor in own)
    )


def _is_within(path: str, outer: Iterable[str]) -> bool:
    return any(not one or path == one or path.startswith(f"{one}.") for one in outer)


def _tensors_at(model: nn.Module, target: str) -> list[Tensor]:
    """Return the tensors that a name in the graph has in the model: those of a module, or one of its own."""
    path, _, key = target.rpartition(".")
    try:
        return list(model.get_submodule(target).parameters())
    except AttributeError:
        pass
    try:
        found = getattr(model.get_submodule(path), key, None)
    except AttributeError:
        return []
    return [found] if isinstance(found, Tensor) else []


def _unlike_attention(model: nn.Module) -> str:
    """Return the path of an attention layer that lost heads or embedding, which its code cannot; "" if none did."""
    for path, layer in model.named_modules():
        if isinstance(layer, nn.MultiheadAttention) and set(layer.out_proj.weight.shape) != {layer.embed_dim}:
            return str(path)
    return ""


def doubled(model: nn.Module) -> nn.Module:
    """Return a copy in float64."""
    return copy.deepcopy(model).double()


@torch.no_grad()
def _run(model: nn.Module, traced: Traced, args: Any, kwargs: Any) -> list[list[Tensor]]:
    """Run the model's own code: all of it, or each of its regions on what the graph is given for it."""
    with evaluating(model), torch.random.fork_rng():
        torch.manual_seed(0)
        if traced.regions is None:
            return [_tensors(pytree.tree_leaves(model(*args, **kwargs)))]
        found = []
        for call in traced.regions.calls:
            given, named = pytree.tree_unflatten(list(args[call.inputs]), call.nested)
            found.append(_tensors(pytree.tree_leaves(model.get_submodule(call.path)(*given, **named))))
        return found


def _apart(traced: Traced, leaves: list[Any]) -> list[list[Tensor]]:
    """Return the outputs of the graph, those of each region by themselves."""
    if traced.regions is None:
        return [_tensors(leaves)]
    return [_tensors(leaves[call.outputs]) for call in traced.regions.calls]


def _tensors(leaves: list[Any]) -> list[Tensor]:
    return [leaf for leaf in leaves if _is_float(leaf)]


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def place(error: BaseException) -> str:
    """Return the innermost line outside of torch: that is where the user's code asked for it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_LIBRARY)]
    if not own:
        return "inside torch"
    return f"at {own[-1].filename}:{own[-1].lineno} ({(own[-1].line or '').strip()})"
