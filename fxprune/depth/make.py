"""Decides which layers go, under a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import fx

from fxprune.capture import Traced
from fxprune.depth.costs import Costs
from fxprune.depth.find import find_layers
from fxprune.depth.flow import Flow, living, unread_inputs
from fxprune.depth.layers import Layer, Layers, Level, outermost
from fxprune.depth.plan import LayerPlan
from fxprune.depth.remove import stand_ins
from fxprune.depth.scores import Importance, Loss, check_importance, score_layers
from fxprune.depth.segments import segments_of
from fxprune.errors import BudgetError, InputError
from fxprune.planning import Cost
from fxprune.planning.budget import TOLERANCE, Budget, parse_budget

ALLOCATIONS = ("global", "segments")


def make_layer_plan(  # noqa: PLR0913 - the options of one decision, all by keyword
    traced: Traced,
    *,
    macs: float | None = None,
    params: float | None = None,
    layers: float | None = None,
    importance: Importance = "l1",
    batches: Iterable[Any] | None = None,
    loss: Loss | None = None,
    allocation: str = "global",
    level: Level = "layer",
    seed: int = 0,
) -> LayerPlan:
    """Decide which layers go so that a share of the model is kept.

    Exactly one of ``macs`` (of one sample), ``params`` and ``layers`` (those that can be removed) is the share to keep,
    in (0, 1]. The plan never keeps more. The layers of the lowest scores go first, until the budget is met; then, from
    the highest score down, those come back without which it is met as well.

    Args:
        traced: The captured model.
        macs: Share of the multiply-accumulates to keep.
        params: Share of the parameters to keep.
        layers: Share of the removable layers to keep.
        importance: ``bn_scale``, ``l1``, ``cka``, ``probe``, ``taylor``, ``random`` (:mod:`fxprune.depth.scores`), or a
            function from the model and its :class:`Layers` to one number per layer, in their order; NaN keeps a layer.
        batches: For scores from data: an input or tuple of inputs each, for ``probe`` and ``taylor`` a pair of these
            and labels.
        loss: For ``taylor``: a function of the model's output and the labels. None: the cross entropy.
        allocation: ``global`` ranks all layers; ``segments`` takes the same share of each segment of similar
            consecutive layers, as SGLP finds them (:mod:`fxprune.depth.segments`; needs ``batches``).
        level: What counts as one layer (:func:`find_layers`).
        seed: Of random scores.

    Raises:
        InputError: An option cannot be used, or the model has no layer that can be removed; says why.
        BudgetError: No removal of whole layers meets the budget; says which share can be reached.
    """
    budget = layer_budget(macs=macs, params=params, layers=layers)
    if allocation not in ALLOCATIONS:
        raise InputError(f"allocation={allocation!r} is not known; use {' or '.join(map(repr, ALLOCATIONS))}.")
    check_importance(importance)
    found = find_layers(traced, level)
    if not len(found):
        raise InputError(f"{traced.name} has no layer that can be removed. {found.why_none()}")
    if batches is not None:
        batches = list(batches)
    scores = score_layers(traced, found, importance, batches=batches, loss=loss, seed=seed)
    order = _ranked(found, scores)
    if allocation == "segments":
        order = _evenly(order, segments_of(traced, found, batches))
    problem = _Problem(traced, budget, found)
    chosen = _choose(problem, order)
    after = problem.cost(chosen)
    notes = problem.notes(chosen, [layer.name for layer in found if layer.name not in scores])
    return LayerPlan(
        layers=tuple(layer.name for layer in found if layer in chosen),
        fingerprint=traced.fingerprint(),
        model=traced.name,
        level=level,
        metric=budget.metric,
        keep=budget.keep,
        importance=importance if isinstance(importance, str) else f"callable:{_name(importance)}",
        allocation=allocation,
        seed=seed,
        scores=scores,
        before=problem.cost([]),
        after=after,
        notes=tuple(notes),
    )


class _Problem:
    """A model and what is to be kept of it."""

    def __init__(self, traced: Traced, budget: Budget, layers: Layers) -> None:
        self.traced, self.budget, self.layers = traced, budget, layers
        self.costs, self.flow = Costs(traced), Flow(traced.module.graph)
        self.full = self.value([])
        if self.full <= 0:
            raise InputError(f"The budget {budget} makes no sense: this model has no {budget.metric}; use another one.")
        self.limit = budget.keep * self.full

    def alive(self, chosen: list[Layer]) -> set[fx.Node]:
        return living(self.flow.output, stand_ins(self.traced.module.graph, chosen))

    def allows(self, chosen: list[Layer]) -> bool:
        """Whether something would be left, and every input of the model still be read."""
        alive = self.alive(chosen)
        return not unread_inputs(self.flow, alive) and self.costs.of(alive).params > 0

    def cost(self, chosen: list[Layer]) -> Cost:
        return self.costs.of(self.alive(chosen))

    def value(self, chosen: list[Layer]) -> float:
        """Return what is left of the metric."""
        if self.budget.metric == "layers":
            gone = [layer for layer in self.layers if layer in chosen or any(each.holds(layer) for each in chosen)]
            return float(len(self.layers) - len(gone))
        return float(getattr(self.cost(chosen), self.budget.metric))

    def meets(self, chosen: list[Layer]) -> bool:
        return self.value(chosen) <= self.limit + 1e-9 * self.full

    def notes(self, chosen: list[Layer], unscored: list[str]) -> list[str]:
        notes = []
        if unscored:
            notes.append(
                f"{len(unscored)} of {len(self.layers)} layers have no score and stay: {', '.join(unscored[:3])}."
            )
        share = self.value(chosen) / self.full
        if share < self.budget.keep * (1 - TOLERANCE):
            notes.append(
                f"The plan keeps {share:.2%} of the {self.budget.metric}, more than 1 % below the budget "
                f"{self.budget}: layers go as a whole."
            )
        return notes


def layer_budget(**given: float | None) -> Budget:
    """Return the one budget out of ``macs``, ``params`` and ``layers``.

    Raises:
        InputError: None or several are given, or the share is no number in (0, 1].
    """
    if sum(value is not None for value in given.values()) != 1:
        got = " and ".join(f"{key}={value}" for key, value in given.items() if value is not None) or "none"
        raise InputError(
            f"A plan of layers needs exactly one budget out of {', '.join(f'{key}=' for key in given)}, each the share "
            f"to keep; got {got}. Example: macs=0.5 keeps half the MACs."
        )
    chosen = next(value for value in given.values() if value is not None)
    metric = next(key for key, value in given.items() if value is not None)
    return Budget(metric, parse_budget(macs=chosen).keep) if metric == "layers" else parse_budget(**{metric: chosen})


def _ranked(layers: Layers, scores: Mapping[str, float]) -> list[Layer]:
    """Return the layers with a score, the lowest first; of equal ones the last of the graph goes first."""
    place = {layer.name: number for number, layer in enumerate(layers)}
    scored = [layer for layer in layers if layer.name in scores]
    return sorted(scored, key=lambda layer: (scores[layer.name], -place[layer.name]))


def _evenly(order: list[Layer], segments: list[list[Layer]]) -> list[Layer]:
    """Return the layers so that every beginning of the list takes about the same share of each segment."""
    share: dict[str, float] = {}
    for segment in segments:
        members = [layer for layer in order if layer in segment]
        share |= {layer.name: (rank + 1) / len(segment) for rank, layer in enumerate(members)}
    return sorted(order, key=lambda layer: share[layer.name])


def _choose(problem: _Problem, order: list[Layer]) -> list[Layer]:
    chosen: list[Layer] = []
    for layer in order:
        if problem.meets(chosen):
            break
        if problem.allows([*chosen, layer]):
            chosen.append(layer)
    if not problem.meets(chosen):
        raise BudgetError(_shortfall(problem, chosen))
    for layer in reversed(list(chosen)):  # the last one made the budget, and some before it may not be needed with it
        rest = [each for each in chosen if each is not layer]
        if problem.meets(rest):
            chosen = rest
    return outermost(chosen)


def _shortfall(problem: _Problem, chosen: list[Layer]) -> str:
    budget = problem.budget
    share = problem.value(chosen) / problem.full
    least = -(-share * 1000 // 1) / 1000
    stay = len(problem.layers) - len(chosen)
    held = f" {stay} layers stay, as they have no score or nothing would be left." if stay else ""
    return (
        f"The budget {budget} cannot be met by removing whole layers: without all {len(chosen)} that may go, "
        f"{100 * share:.3g} % of the {budget.metric} are left, and {100 * budget.keep:.3g} % were asked for.{held} To "
        f"go on, ask for at least {budget.metric}={least:g}, or prune channels too. {problem.layers.why_none()}"
    )


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)
