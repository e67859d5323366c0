"""Remove whole layers: the depth of *Accelerate CNNs from Three Dimensions* (arXiv 2010.04879).

What can go is found on the graph (:func:`fxprune.depth.find_layers`): residual branches whose skip is an identity,
convolutions of plain networks that keep their input's shape, and blocks that repeat. A branch goes by adding nothing to
its sum: the sum becomes its other summand. The value of a sequence or block becomes that of its input. How the paper
removes layers could not be read; DBP (arXiv 1912.10178), by the same authors, takes these units [ABS].

An activation that a missing branch leaves behind the same activation is dropped with it: ``relu(relu(x))``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fxprune.capture import Traced
from fxprune.depth import Layer, LayerPlan, find_layers, verify_removal
from fxprune.depth.costs import Costs
from fxprune.depth.flow import Flow, living, unread_inputs
from fxprune.depth.layers import LEVELS, Level, outermost
from fxprune.depth.remove import remove, stand_ins
from fxprune.errors import InputError, PreconditionError
from fxprune.pipeline import Keeps, Pass
from fxprune.report import Change, Skip

_DONE = "fxprune.layers"  # key in the graph module's meta: level and name of each layer that was removed, in order
_PLANS = "fxprune.layer_plans"  # hashes of the plans carried out


@dataclass(frozen=True)
class RemoveLayers(Pass):
    """Remove whole layers from a model.

    The result equals the original with these branches multiplied by zero, and these sequences and blocks replaced by
    their input; a Pipeline checks that in float64 unless ``verify`` is off. Every other module keeps its name.

    Attributes:
        layers: What to remove: a plan made for this graph (:func:`fxprune.depth.make_layer_plan`), or names.
        level: What counts as one layer where names are given (:func:`fxprune.depth.find_layers`); a plan has its own.
        verify: Whether to compare with the original after the removal.

    Raises:
        InputError: The layers are neither a plan nor names.
    """

    name: ClassVar[str] = "remove-layers"
    keeps: ClassVar[Keeps] = Keeps.SIGNATURE

    layers: LayerPlan | Sequence[str]
    level: Level = "layer"
    verify: bool = True

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise InputError(f"{self.name}: level={self.level!r} is not known; use {' or '.join(map(repr, LEVELS))}")
        if isinstance(self.layers, LayerPlan):
            object.__setattr__(self, "level", self.layers.level)
            return
        names = self.layers
        if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
            raise InputError(
                f"{self.name}: layers is {names!r}; give a LayerPlan or a list of names, such as ['layer3.1']"
            )
        object.__setattr__(self, "layers", tuple(names))

    def requires(self, traced: Traced) -> None:
        """Refuse what this graph has not, or cannot do without.

        Raises:
            PlanError: The plan was made for another graph.
            InputError: A name is none of a removable layer.
            PreconditionError: Without all of these layers an input of the model would not be read, or nothing be left.
        """
        chosen = self._chosen(traced)
        flow, costs = Flow(traced.module.graph), Costs(traced)
        alive = living(flow.output, stand_ins(traced.module.graph, chosen))
        unread = unread_inputs(flow, alive)
        if unread:
            raise PreconditionError(
                f"without all {len(chosen)} layers nothing reads the input {', '.join(node.name for node in unread)} "
                "of the model any more; keep one of those that do"
            )
        if chosen and not costs.of(alive).params:
            raise PreconditionError(f"without all {len(chosen)} layers no layer would be left; keep one of them")

    def rewrite(self, traced: Traced) -> Iterator[Change | Skip]:
        """Remove; layers that this pass removed from the model before are left at that."""
        module, chosen = traced.module, self._chosen(traced)
        if not chosen:
            return
        before = Costs(traced).of(list(module.graph.nodes))
        remove(module, chosen)
        module.meta[_DONE] = (*module.meta.get(_DONE, ()), *((self.level, layer.name) for layer in chosen))
        if isinstance(self.layers, LayerPlan):
            module.meta[_PLANS] = (*module.meta.get(_PLANS, ()), self.layers.hash)
        whole = outermost(chosen)
        for layer in chosen:
            if layer not in whole:
                yield Change(layer.name, "went with the layer that it is a part of")
            else:
                yield Change(layer.name, f"{layer.effect}{_saved(layer, before.params, before.macs)}")

    def check(self, before: Traced, after: Traced) -> None:
        """Compare with the original in which the layers are silenced."""
        chosen = self._chosen(before)
        if self.verify and chosen:
            verify_removal(before, after, chosen)

    def _chosen(self, traced: Traced) -> list[Layer]:
        """Return what is still to be removed."""
        if isinstance(self.layers, LayerPlan):
            done = self.layers.hash in traced.module.meta.get(_PLANS, ())
            return [] if done or not self.layers.layers else self.layers.chosen(traced)
        gone = {name for level, name in traced.module.meta.get(_DONE, ()) if level == self.level}
        wanted = [name for name in self.layers if name not in gone]
        return find_layers(traced, self.level).named(wanted) if wanted else []


def _saved(layer: Layer, params: int, macs: int) -> str:
    parts = [
        f"{saved:,} {what} ({saved / whole:.1%})"
        for saved, whole, what in ((layer.params, params, "parameters"), (layer.macs, macs, "multiply-accumulates"))
        if saved
    ]
    return f": {' and '.join(parts)} less" if parts else ""
