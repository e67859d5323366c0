"""Makes a plan: scores, protection, rounding and the budget in one call."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from fxprune.capture import Traced
from fxprune.channels import Groups, find_groups
from fxprune.errors import BudgetError, InputError
from fxprune.planning.budget import Budget, parse_budget, rounding_steps
from fxprune.planning.cost import uncounted
from fxprune.planning.cost_model import Bools, CostModel, axes_of, start_cost_model
from fxprune.planning.efficiency import by_efficiency
from fxprune.planning.importance import Importance, Scores, comparable, score, total_importance
from fxprune.planning.latency_table import LatencyTable, add_latency
from fxprune.planning.moves import Family, Moves, build_moves, check_allocation, find_families, find_pools, normalised
from fxprune.planning.plan import Plan
from fxprune.planning.protect import parse_patterns, protected
from fxprune.planning.shortfall import explain_shortfall
from fxprune.planning.solve import Selection, solve
from fxprune.planning.widths import held_back


def make_plan(  # noqa: PLR0913 - the options of one decision, all by keyword
    traced: Traced,
    *,
    macs: float | None = None,
    params: float | None = None,
    channels: float | None = None,
    bytes: float | None = None,
    latency: float | None = None,
    times: LatencyTable | None = None,
    importance: Importance = "l2",
    allocation: str | None = None,
    round_to: int | str = "auto",
    step: int | None = None,
    protect: str | Iterable[str] = (),
    compensate: str | None = None,
    seed: int = 0,
    groups: Groups | None = None,
) -> Plan:
    """Decide what to remove so that a share of the model is kept.

    Exactly one of ``macs`` (of one sample), ``params``, ``channels`` (removable units that are not protected, an
    attention head counting as one), ``bytes`` (of all parameters and buffers) and ``latency`` (as ``times`` predicts
    it; :func:`fxprune.make_plan` measures instead) is the share to keep, in (0, 1]. The
    plan never keeps more, and lands within 1 % below where the graph allows it; ``Plan.notes`` says so where it does
    not.

    Args:
        traced: the captured model.
        macs: share of the multiply-accumulates to keep.
        params: share of the parameters to keep.
        channels: share of the removable units to keep.
        bytes: share of the storage to keep; the few bytes of an index table that the surgery adds where a slice of
            channels becomes irregular are not counted.
        latency: share of the predicted latency to keep.
        times: what the layers take, for ``latency`` and ``allocation="latency"``.
        importance: ``l1``, ``l2``, ``bn_scale``, ``taylor``, ``fpgm``, ``lamp``, ``random``, or a function from the
            groups to one number per class.
        allocation: ``global`` ranks all units, ``uniform`` takes the same share of every family, ``isomorphic`` ranks
            within families of equal structure, ``latency`` loses the least importance per millisecond saved. Ranks
            compare magnitudes after division by their family's mean. None: ``latency`` for a latency budget, else
            ``global``.
        round_to: widths are left whole or become multiples of this; ``auto`` starts with ``step`` and relaxes it as far
            as the budget needs.
        step: in which the runtime works, for ``auto``; None takes that of ``times``, or this CPU's channel block.
        protect: glob patterns over parameter names whose output channels stay.
        compensate: what the surgery does with a removed channel's constant: None, ``constant`` or ``mean``; recorded in
            the plan.
        seed: of random scores.
        groups: the channel groups of ``traced``, when they are at hand.

    Raises:
        InputError: an option cannot be used.
        BudgetError: no allowed removal meets the budget; the message says what share can be reached and what keeps the
            rest.
    """
    budget = parse_budget(macs=macs, params=params, channels=channels, bytes=bytes, latency=latency)
    measured = step if step is not None or times is None else times.step
    steps, patterns = rounding_steps(round_to, measured), parse_patterns(protect)
    allocation = allocation or ("latency" if latency is not None else "global")
    check_allocation(allocation)
    if times is None and "latency" in (budget.metric, allocation):
        raise InputError(
            "A latency budget or allocation needs the times of this model's layers on the runtime that will serve it: "
            "use fxprune.make_plan(traced, latency=...), which measures them, or give times=."
        )
    if compensate not in (None, "constant", "mean"):
        raise InputError(f"compensate={compensate!r} is not known; use None, 'constant' or 'mean'.")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed={seed!r} is no whole number of at least 0.")
    groups = find_groups(traced) if groups is None else groups
    request = _Request(groups, budget, patterns, importance, allocation, seed, times)
    problem = _prepare(request)
    selection, notes = _choose(problem, steps)
    sizes = problem.model.sizes(selection.removed)
    return Plan(
        removed=groups.removal(np.flatnonzero(selection.removed)),
        fingerprint=traced.fingerprint(),
        model=traced.name,
        metric=budget.metric,
        keep=budget.keep,
        importance=importance
        if isinstance(importance, str)
        else f"callable:{getattr(importance, '__name__', type(importance).__name__)}",
        allocation=allocation,
        round_to=selection.step,
        compensate=compensate,
        seed=seed,
        protect=patterns,
        before=problem.model.cost(problem.model.full),
        after=problem.model.cost(sizes),
        notes=(*problem.notes, *notes, *_ragged(groups, selection)),
    )


@dataclass(frozen=True)
class _Request:
    groups: Groups
    budget: Budget
    patterns: tuple[str, ...]
    importance: Importance
    allocation: str
    seed: int
    times: LatencyTable | None


@dataclass(frozen=True)
class _Problem:
    """A request with everything that does not depend on rounding worked out."""

    request: _Request
    model: CostModel
    families: list[Family]
    pools: list[int]
    kept: dict[str, Bools]
    values: Scores
    notes: tuple[str, ...]

    def moves(self, step: int) -> Moves:
        if self.request.allocation != "latency":
            return build_moves(self.families, step, self.request.allocation, self.pools)
        moves = build_moves(self.families, step, "global", self.pools)
        return by_efficiency(moves, self.families, self.model, "latency", self.values)

    def solve(self, step: int) -> Selection | None:
        budget = self.request.budget
        return solve(self.moves(step), self.model, budget.metric, budget.keep, len(self.request.groups.live))


def _prepare(request: _Request) -> _Problem:
    groups = request.groups
    kept = {"only buffers hold it": groups.live & ~_on_parameters(groups)}
    kept |= {f"it is protected by {pattern!r}": protected(groups, (pattern,)) for pattern in request.patterns}
    free = groups.live & ~np.logical_or.reduce(list(kept.values()))
    scores = score(groups, request.importance, request.seed)
    unscored = free & np.isnan(scores)
    notes = []
    if unscored.any():
        kept["it has no importance score"] = unscored
        notes.append(f"{unscored.sum()} of {free.sum()} removable units have no importance score and stay.")
    held = held_back(groups, free & ~unscored, scores)
    kept |= held
    movable = free & ~unscored & ~np.logical_or.reduce([*held.values(), np.zeros_like(free)])
    unknown = uncounted(groups.traced)
    if unknown:
        names = ", ".join(unknown[:5]) + " and others" * (len(unknown) > 5)
        notes.append(f"The MACs of {names} are not counted: there is no cost rule for these modules.")
    builder = start_cost_model(groups.traced, groups, np.flatnonzero(free))
    if request.times is not None:
        add_latency(builder, groups.traced, groups, axes_of(groups), request.times)
    model = builder.build()
    if model.metrics[request.budget.metric].at(model.full) <= 0 and request.budget.metric != "channels":
        raise InputError(
            f"The budget {request.budget} makes no sense: this model has no {request.budget.metric}. "
            "Use another budget."
        )
    families = find_families(groups, model, movable, scores)
    if request.allocation != "uniform" and not comparable(request.importance):
        families = normalised(families)
    values = total_importance(groups, request.importance, scores)
    return _Problem(request, model, families, find_pools(groups), kept, values, tuple(notes))


def _on_parameters(groups: Groups) -> Bools:
    """Return which classes some parameter has; what only a buffer has, such as a table of positions, is no channel."""
    found = np.zeros(len(groups.live), bool)
    parameters = {name for name, _ in groups.traced.module.named_parameters()}
    for name, dim in groups.parameters:
        labels = groups.axis(name, dim)
        if labels is not None and name in parameters:
            found[labels] = True
    return found


def _choose(problem: _Problem, steps: tuple[int, ...]) -> tuple[Selection, list[str]]:
    """Return the selection at the coarsest multiple that is on budget, else the one nearest to it."""
    budget = problem.request.budget
    limit = budget.keep * problem.model.metrics[budget.metric].at(problem.model.full)
    best: Selection | None = None
    for step in steps:
        found = problem.solve(step)
        if found is not None and (best is None or found.value > best.value):
            best = found
        if best is not None and best.close(limit):
            break
    if best is None:
        raise BudgetError(
            explain_shortfall(problem.request.groups, problem.model, budget, problem.moves(steps[-1]), problem.kept)
        )
    notes = []
    if best.step < steps[0]:
        notes.append(
            f"Widths are multiples of {best.step}, not of this CPU's {steps[0]}: "
            f"the budget {budget} could not be met within 1 % otherwise."
        )
    if not best.close(limit):
        share = best.value / (limit / budget.keep) if limit else 0.0
        tried = "any rounding" if len(steps) > 1 or steps[0] == 1 else f"round_to={steps[0]}"
        notes.append(
            f"The plan keeps {share:.2%} of the {budget.metric}, more than 1 % below the budget {budget}: "
            f"no nearer set of whole units was found with {tried}."
        )
    return best, notes


def _ragged(groups: Groups, selection: Selection) -> list[str]:
    """Say which weights were cut to widths that are no multiples: those on which units of several families meet."""
    weights = {name for name, tensor in groups.traced.module.named_parameters() if tensor.dim() > 1}
    found = []
    for name, dim in groups.parameters:
        labels = groups.axis(name, dim)
        if labels is not None and name in weights:
            kept = len(labels) - int(selection.removed[labels].sum())
            if kept < len(labels) and kept % selection.step:
                found.append(f"dimension {dim} of {name} with {kept} of {len(labels)}")
    if not found:
        return []
    return [
        f"{len(found)} weight dimensions that are cut are no multiples of {selection.step}, because units of several "
        f"families meet on them (such as {found[0]})."
    ]
