"""The masked reference of a model that was captured by region, with the model's own code around it."""

from __future__ import annotations

from typing import Any

from fxprune.capture import Traced
from fxprune.capture.regions import Call, Run
from fxprune.channels import Groups, find_groups
from fxprune.errors import InputError
from fxprune.surgery.kept import Kept, removal_of
from fxprune.surgery.reference import Masked


def masked_regions(traced: Traced, removed: Any, groups: Groups | None = None) -> Run:
    """Return what computes the regions of the original in float64 as if the removed channels were not there.

    With :func:`fxprune.capture.regions.hosted`, and the model in float64, the whole model computes what its pruned twin
    has to: a detector its boxes.

    Args:
        traced: The original capture.
        removed: The plan or the removal, without compensation.
        groups: The groups of ``traced``, if they are at hand.

    Raises:
        InputError: The model was captured whole, or the plan compensates.
    """
    regions = traced.regions
    if regions is None:
        raise InputError(f"{traced.name} was captured whole: verify_cut compares it")
    if getattr(removed, "compensate", None):
        raise InputError("what removed channels hold is not masked here: compare a plan without compensate=")
    kept = Kept(groups or find_groups(traced), removal_of(removed))
    graph = traced.module.graph

    def run(call: Call, leaves: list[Any]) -> list[Any]:
        return Masked(traced.module, kept).flat(leaves, regions.others(graph, call))[call.outputs]

    return run
