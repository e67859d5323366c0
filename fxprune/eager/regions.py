"""What a model that was captured by region computes around its regions: compared before and after writing back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from fxprune.capture import Traced
from fxprune.capture.regions import Call, hosted
from fxprune.capture.untouched import copied
from fxprune.eager.checks import (
    SINGLE_TOLERANCE,
    TOLERANCE,
    Agreement,
    does_not_run,
    doubled,
    first_line,
    place,
)
from fxprune.eager.outputs import difference, is_float, leaves_of
from fxprune.eager.wide import Widened
from fxprune.errors import VerifyError
from fxprune.graph_tools import evaluating, wide
from fxprune.runner import Runner


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
