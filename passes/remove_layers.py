"""Remove whole layers: the depth of *Accelerate CNNs from Three Dimensions* (arXiv 2010.04879).

What can go is found on the graph (:func:`fxprune.depth.find_layers`): residual branches whose skip is an identity,
convolutions of plain networks that keep their input's shape, and blocks that repeat. A branch goes by adding nothing to
its sum: the sum becomes its other summand. The value of a sequence or block becomes that of its input. How the paper
removes layers could not be read; DBP (arXiv 1912.10178), by the same authors, takes these units [ABS].

An activation that a missing branch leaves behind the same activation is dropped with it: ``relu(relu(x))``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import fx

from fxprune.capture import Traced
from fxprune.depth import Layer, LayerPlan, find_layers, make_layer_plan, verify_removal
from fxprune.depth.costs import Costs
from fxprune.depth.flow import Flow, living, unread_inputs
from fxprune.depth.layers import LEVELS, Level, outermost
from fxprune.depth.make import ALLOCATIONS, layer_budget
from fxprune.depth.remove import GONE, GONE_CALLS, remove, stand_ins
from fxprune.depth.scores import Importance, Loss, check_importance
from fxprune.errors import InputError, PreconditionError
from fxprune.pipeline import Keeps, Pass
from fxprune.report import Change, Skip

_DONE = "fxprune.layers"  # key in the graph module's meta: (the options of the pass, its plan) for each that ran


@dataclass(frozen=True)
class RemoveLayers(Pass):
    """Remove whole layers from a model: those of a plan, those of some names, or the least important under a budget.

    The result equals the original with these branches multiplied by zero, and these sequences and blocks replaced by
    their input; a Pipeline checks that in float64 unless ``verify`` is off. Every other module keeps its name. Run
    again on its own result with the same options it changes nothing.

    Attributes:
        layers: What to remove: a plan made for this graph (:func:`fxprune.depth.make_layer_plan`), or names; or the
            share of the removable layers to keep. None with another budget.
        macs: Share of the multiply-accumulates to keep.
        params: Share of the parameters to keep.
        importance: What is least important, under a budget; as ``make_layer_plan`` takes it.
        allocation: ``global`` or ``segments``; likewise.
        level: What counts as one layer (:func:`fxprune.depth.find_layers`); a plan has its own.
        seed: Of random scores.
        batches: Of scores from data.
        loss: Of ``importance="taylor"``.
        verify: Whether to compare with the original after the removal.

    Raises:
        InputError: There is not exactly one of a plan, names and a budget, or an option is not known.
    """

    name: ClassVar[str] = "remove-layers"
    keeps: ClassVar[Keeps] = Keeps.SIGNATURE

    layers: LayerPlan | Sequence[str] | float | None = None
    macs: float | None = None
    params: float | None = None
    importance: Importance = "l1"
    allocation: str = "global"
    level: Level = "layer"
    seed: int = 0
    batches: Iterable[Any] | None = field(default=None, repr=False, compare=False)
    loss: Loss | None = field(default=None, repr=False, compare=False)
    verify: bool = True

    def __post_init__(self) -> None:
        if self.level not in LEVELS:
            raise InputError(f"{self.name}: level={self.level!r} is not known; use {' or '.join(map(repr, LEVELS))}")
        if self.allocation not in ALLOCATIONS:
            raise InputError(
                f"{self.name}: allocation={self.allocation!r} is not known; use {' or '.join(ALLOCATIONS)}"
            )
        check_importance(self.importance)
        named = self.layers is not None and not isinstance(self.layers, (int, float))
        if not named:
            layer_budget(macs=self.macs, params=self.params, layers=self.layers)  # type: ignore[arg-type]
            return
        if self.macs is not None or self.params is not None:
            raise InputError(f"{self.name}: give either layers by name or a budget, not both")
        if isinstance(self.layers, LayerPlan):
            object.__setattr__(self, "level", self.layers.level)
            return
        names = self.layers
        if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
            raise InputError(
                f"{self.name}: layers is {names!r}; give a LayerPlan, a list of names, such as ['layer3.1'], or a share"
            )
        object.__setattr__(self, "layers", tuple(names))

    def requires(self, traced: Traced) -> None:
        """Refuse what this graph has not, or cannot do without.

        Raises:
            PlanError: The plan was made for another graph.
            InputError: A name is none of a removable layer.
            PreconditionError: Without all of these layers an input of the model would not be read, or nothing be left.
        """
        if not isinstance(self.layers, (LayerPlan, tuple)) or self._done(traced):
            return  # a budget is only ever met by what can be done
        chosen = self._plan(traced).chosen(traced)
        alive = living(traced.module.graph.output_node(), stand_ins(traced.module.graph, chosen))
        unread = unread_inputs(Flow(traced.module.graph), alive)
        if unread:
            raise PreconditionError(
                f"without all {len(chosen)} layers nothing reads the input {', '.join(node.name for node in unread)} "
                "of the model any more; keep one of those that do"
            )
        if chosen and not Costs(traced).of(alive).params:
            raise PreconditionError(f"without all {len(chosen)} layers no layer would be left; keep one of them")

    def rewrite(self, traced: Traced) -> Iterator[Change | Skip]:
        """Choose and remove; a model from which this very pass has removed its layers before is left at that."""
        module = traced.module
        if self._done(traced):
            return
        plan = self._plan(traced)
        chosen = plan.chosen(traced)
        before = Costs(traced).of(list(module.graph.nodes))
        keys, paths = set(module.state_dict()), _paths(module)
        remove(module, chosen)
        module.meta[GONE] = module.meta.get(GONE, frozenset()) | (keys - set(module.state_dict()))
        module.meta[GONE_CALLS] = module.meta.get(GONE_CALLS, frozenset()) | (paths - _paths(module))
        module.meta[_DONE] = (*module.meta.get(_DONE, ()), (dataclasses.replace(self, batches=None, loss=None), plan))
        whole = outermost(chosen)
        for layer in chosen:
            if layer not in whole:
                yield Change(layer.name, "went with the layer that it is a part of")
            else:
                yield Change(layer.name, f"{layer.effect}{_saved(layer, before.params, before.macs)}")
        yield from (Skip(plan.model, note) for note in plan.notes)

    def check(self, before: Traced, after: Traced) -> None:
        """Compare with the original in which the layers are silenced."""
        earlier = len(before.module.meta.get(_DONE, ()))
        for _, plan in after.module.meta.get(_DONE, ())[earlier:]:
            chosen = plan.chosen(before)
            if self.verify and chosen:
                verify_removal(before, after, chosen)

    def _done(self, traced: Traced) -> bool:
        return any(earlier == self for earlier, _ in traced.module.meta.get(_DONE, ()))

    def _plan(self, traced: Traced) -> LayerPlan:
        """Return what goes, as a plan, however it was asked for."""
        if isinstance(self.layers, LayerPlan):
            return self.layers
        if isinstance(self.layers, tuple):
            gone = {
                name
                for _, plan in traced.module.meta.get(_DONE, ())
                if plan.level == self.level
                for name in plan.layers
            }
            wanted = [name for name in self.layers if name not in gone]
            found = find_layers(traced, self.level).named(wanted) if wanted else []
            return LayerPlan(tuple(layer.name for layer in found), traced.fingerprint(), traced.name, self.level)
        return make_layer_plan(
            traced,
            macs=self.macs,
            params=self.params,
            layers=self.layers,  # type: ignore[arg-type]
            importance=self.importance,
            allocation=self.allocation,
            level=self.level,
            seed=self.seed,
            batches=self.batches,
            loss=self.loss,
        )


def layer_plans(traced: Traced) -> list[LayerPlan]:
    """Return the plans by which layers were removed from a model, in order."""
    return [plan for _, plan in traced.module.meta.get(_DONE, ())]


def _paths(module: fx.GraphModule) -> set[str]:
    """Return the paths of the modules that the nodes of a graph come from."""
    return {str(path) for node in module.graph.nodes if (path := node.meta.get("path"))}


def _saved(layer: Layer, params: int, macs: int) -> str:
    parts = [
        f"{saved:,} {what} ({saved / whole:.1%})"
        for saved, whole, what in ((layer.params, params, "parameters"), (layer.macs, macs, "multiply-accumulates"))
        if saved
    ]
    return f": {' and '.join(parts)} less" if parts else ""
