"""Carry out a plan: remove the channels that it names, wherever they appear."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from torch import nn

from fxprune.capture import Traced
from fxprune.channels import find_groups
from fxprune.graph_tools import adopt, place_of
from fxprune.pipeline import Keeps, Pass
from fxprune.planning import Plan
from fxprune.report import Change, Skip
from fxprune.surgery import Kept, compensation_of, cut_with, removal_of, verify_with
from fxprune.surgery.constants import Constant

_DONE = "fxprune.plans"  # key in the graph module's meta: hashes of the plans carried out on it

# What the removed channels of a model that was cut hold, for its check: batches may come in another order or be used
# up, and random transforms give other means. It goes when the model goes.
_HELD: WeakKeyDictionary[nn.Module, Mapping[str, Constant]] = WeakKeyDictionary()


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove channels from a model.

    The result equals the original with the removed channels masked; a Pipeline checks that, unless ``verify`` is off.

    Attributes:
        plan: What to remove; made for this graph (:func:`fxprune.planning.make_plan`).
        calibration: Batches of inputs (a tensor, or a tuple of positional inputs, each), for a plan that compensates
            with the ``mean``; iterated over once, so that a generator will do.
        verify: Whether to compare with the masked original after the cut.
        allow_constant: Whether the outputs may be the same for all inputs, as behind so deep a cut that only training
            brings dead channels back. They prove little then, and are refused otherwise.
    """

    name: ClassVar[str] = "prune-channels"
    keeps: ClassVar[Keeps] = Keeps.SIGNATURE

    plan: Plan
    verify: bool = True
    calibration: Iterable[Any] | None = None
    allow_constant: bool = False

    def requires(self, traced: Traced) -> None:
        """Raise ``PlanError`` where the plan was made for another graph."""
        if not self._is_done(traced):
            self.plan.check(traced)

    def rewrite(self, traced: Traced) -> Iterator[Change | Skip]:
        """Cut; a plan that was carried out on this model already is left at that."""
        if self._is_done(traced) or not self.plan.removed:
            return
        groups = find_groups(traced)
        kept = Kept(groups, removal_of(self.plan))
        held = compensation_of(traced, self.plan, kept, self.calibration)
        _HELD[traced.module] = held.constants
        adopt(traced.module, cut_with(traced, kept, held.constants, exact=True).module)
        traced.module.meta[_DONE] = (*traced.module.meta.get(_DONE, ()), self.plan.hash)
        for name, dimensions in self.plan.removed.items():
            for dim, indices in dimensions.items():
                axis = groups.axis(name, int(dim))
                assert axis is not None  # the plan has been checked against the graph
                size = len(axis)
                yield Change(name, f"dimension {dim}: {size} -> {size - len(indices)}")
        places = {node.name: place_of(node) for node in traced.module.graph.nodes}
        for name in held.constants:
            yield Change(places[name], "its bias takes up what the removed channels leave behind")
        for place, reason in held.skipped:
            yield Skip(place, f"reads removed channels as zero, not as the constant that they leave behind: {reason}")

    def check(self, before: Traced, after: Traced) -> None:
        """Compare with the masked reference."""
        if self.verify and not self._is_done(before):
            kept = Kept(find_groups(before), removal_of(self.plan))
            verification = verify_with(before, after, kept, _HELD.get(after.module, {}))
            if not self.allow_constant:
                verification.require_live()

    def _is_done(self, traced: Traced) -> bool:
        return self.plan.hash in traced.module.meta.get(_DONE, ())
