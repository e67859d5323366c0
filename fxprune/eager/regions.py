"""What a model that was captured by region computes around its regions: compared before and after writing back."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.capture import Traced
from fxprune.capture.regions import Call, hosted
from fxprune.capture.untouched import copied
from fxprune.eager.checks import (
    SINGLE_TOLERANCE,
    TOLERANCE,
    Agreement,
    distance,
    does_not_run,
    doubled,
    first_line,
    is_float,
    place,
    top,
)
from fxprune.eager.wide import Widened
from fxprune.errors import VerifyError
from fxprune.graph_tools import evaluating, wide
from fxprune.runner import Runner

_SMALL = 1e-3
"""An output is compared with its own largest value, but with no less than this part of the largest of all."""


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
    note = (
        f"the code of {type(model).__name__} around its regions returned no number on the example, so that comparing "
        "it showed little; a detector finds something on an image that it knows, or at a lower threshold"
    )
    return Agreement(error, dtype, "" if any(map(_says_something, around.leaves)) else note)


def _says_something(leaf: Any) -> bool:
    return isinstance(leaf, float) or (is_float(leaf) and leaf.numel() > 0)


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
    tops = [top(leaf) for leaf in expected if is_float(leaf)]
    least = _SMALL * max(tops, default=0.0)
    return max((_of_leaf(a, b, least) for a, b in zip(found, expected, strict=True)), default=0.0)


def _of_leaf(found: Any, expected: Any, least: float) -> float:
    if isinstance(expected, float) and isinstance(found, float):
        found, expected = torch.tensor(found).double(), torch.tensor(expected).double()
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return 0.0 if type(found) is type(expected) and _equal(found, expected) else math.inf
    if found.shape != expected.shape:
        return math.inf
    if not is_float(expected):
        return 0.0 if torch.equal(found, expected.to(found)) else math.inf
    if not expected.numel():
        return 0.0
    return distance(found.to(expected), expected) / (max(top(expected), least) or 1.0)


def _equal(found: Any, expected: Any) -> bool:
    """Compare what is no tensor; objects that say nothing about themselves, such as functions, count as equal."""
    told = isinstance(expected, (int, str, bytes, complex)) or expected is None
    return not told or bool(found == expected)
