"""Whether a model's own code computes what its graph computes, and where it stops if it does not."""

from __future__ import annotations

import copy
import os
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.capture import Traced
from fxprune.eager.outputs import difference
from fxprune.eager.wide import Widened
from fxprune.errors import VerifyError
from fxprune.graph_tools import evaluating, wide
from fxprune.runner import Runner

TOLERANCE = 1e-9
"""Largest relative difference between the module and the graph in float64."""

SINGLE_TOLERANCE = 1e-4
"""The same in float32, for code that cannot run in float64."""

_TRIES = 4
_LIBRARY = tuple(str(Path(file).parent) + os.sep for file in (torch.__file__, fxprune.__file__))


@dataclass(frozen=True)
class Agreement:
    """How far two computations are apart, relative to their largest value, and in what they were compared.

    The note, where there is one, says what the comparison does not show.
    """

    error: float
    dtype: str
    note: str = ""


def compare(traced: Traced, model: nn.Module) -> Agreement:
    """Compare a model's own code, or that of its regions, with the graph: all tensors, as :func:`difference` does.

    Where the outputs do not move with the inputs (what lies before them may be dead behind a ReLU), equal ones prove
    little, and other inputs are compared too, until they do; a note says so where they never do.

    Raises:
        VerifyError: They differ, or the code does not run.
    """
    worst, before = Agreement(0.0, "float64"), None
    for seed in range(1, 1 + _TRIES):
        agreement, outputs = _compare_at(traced, model, seed)
        worst = max(worst, agreement, key=lambda one: one.error) if before else agreement
        if _moves(outputs, before):
            return worst
        before = outputs
    still = (
        f"the outputs of {type(model).__name__} were the same for every input that was tried, so that comparing its "
        "code with the graph showed little; compare them on data of your own"
    )
    return replace(worst, note=still if before else "")


def _compare_at(traced: Traced, model: nn.Module, seed: int) -> tuple[Agreement, list[Tensor]]:
    """Compare at some inputs; return the graph's outputs too."""
    args, kwargs = traced.inputs(seed=seed)
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
    pairs = list(zip(found, expected, strict=True))
    for pair in pairs:
        _check_shapes(model, *pair)
    error = max((difference(*pair) for pair in pairs), default=0.0)
    if not error <= tolerance:
        raise VerifyError(
            f"{type(model).__name__} runs with the new weights and computes something else than the graph (relative "
            f"error {error:.1e} in {dtype}, allowed {tolerance:.0e}): as a rule, because a width, a scale or "
            "an order of channels is written into its code. Deploy the graph itself; the model is as it was"
        )
    return Agreement(error, dtype), [value for values in expected for value in values]


def _moves(outputs: list[Tensor], before: list[Tensor] | None) -> bool:
    """Whether some output differs between samples, or from what other inputs gave."""
    if any(value.ndim and len(value) > 1 and bool((value != value[:1]).any()) for value in outputs):
        return True
    return before is not None and any(not torch.equal(*pair) for pair in zip(outputs, before, strict=True))


def _check_shapes(model: nn.Module, found: list[Tensor], expected: list[Tensor]) -> None:
    shapes = [[tuple(value.shape) for value in values] for values in (found, expected)]
    if shapes[0] != shapes[1]:
        raise VerifyError(f"{type(model).__name__} gives outputs of shapes {shapes[0]}, the graph {shapes[1]}")


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
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


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
