"""Carry out a plan: remove the channels that it names, wherever they appear."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from fxprune.capture import Traced
from fxprune.graph_tools import adopt
from fxprune.pipeline import Keeps, Pass
from fxprune.planning import Plan
from fxprune.report import Change, Skip
from fxprune.surgery import cut, verify_cut

_DONE = "fxprune.plans"  # key in the graph module's meta: hashes of the plans carried out on it


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove channels from a model.

    The result equals the original with the removed channels masked; a Pipeline checks that, unless ``verify`` is off.

    Attributes:
        plan: What to remove; made for this graph (:func:`fxprune.planning.make_plan`).
        verify: Whether to compare with the masked original after the cut.
    """

    name: ClassVar[str] = "prune-channels"
    keeps: ClassVar[Keeps] = Keeps.SIGNATURE

    plan: Plan
    verify: bool = True

    def requires(self, traced: Traced) -> None:
        """Raise ``PlanError`` where the plan was made for another graph."""
        if not self._is_done(traced):
            self.plan.check(traced)

    def rewrite(self, traced: Traced) -> Iterator[Change | Skip]:
        """Cut; a plan that was carried out on this model already is left at that."""
        if self._is_done(traced) or not self.plan.removed:
            return
        sizes = {name: tuple(tensor.shape) for name, tensor in traced.module.state_dict().items()}
        adopt(traced.module, cut(traced, self.plan).module)
        traced.module.meta[_DONE] = (*traced.module.meta.get(_DONE, ()), self.plan.hash)
        for name, dimensions in self.plan.removed.items():
            for dim, indices in dimensions.items():
                size = sizes[name][dim]
                yield Change(name, f"dimension {dim}: {size} -> {size - len(indices)}")

    def check(self, before: Traced, after: Traced) -> None:
        """Compare with the masked reference."""
        if self.verify and not self._is_done(before):
            verify_cut(before, after, self.plan)

    def _is_done(self, traced: Traced) -> bool:
        return self.plan.hash in traced.module.meta.get(_DONE, ())
