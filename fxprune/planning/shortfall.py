"""Why a budget cannot be met: what share could be reached, and what keeps the rest."""

from __future__ import annotations

import numpy as np

from fxprune.channels import Groups
from fxprune.planning.budget import Budget
from fxprune.planning.cost_model import Bools, CostModel, Ints
from fxprune.planning.moves import Moves
from fxprune.planning.solve import Search

_SHOWN = 3


def explain_shortfall(groups: Groups, model: CostModel, budget: Budget, moves: Moves, kept: dict[str, Bools]) -> str:
    """Return the paragraph of a ``BudgetError``.

    Args:
        groups: the channel groups.
        model: their cost.
        budget: what was asked for.
        moves: all moves at the finest rounding that was allowed.
        kept: for each reason of this request (a pattern, a missing score) which live classes it keeps.
    """
    search = Search(moves, model, budget.metric, len(groups.live))
    floor = search.prefix(len(moves))
    full = search.metric.at(model.full)
    reached = search.metric.at(floor) / full
    rows = frozen_shares(groups, model, floor, moves, kept)
    held = "; ".join(f"{_percent(share)} ({name} and others): {reason}" for share, name, reason in rows[:_SHOWN])
    because = f" What stays, by its share of the dense model's MACs: {held}." if held else ""
    remedies = [f"ask for at least {budget.metric}={np.ceil(reached * 1000) / 1000:g}"]
    remedies += ["protect less"] * any(reason.startswith("it is protected") for reason in kept)
    remedies += [f"use a smaller round_to than {moves.step}"] * (moves.step > 1)
    return (
        f"The budget {budget} cannot be met: with everything removed that may go, {_percent(reached)} of the "
        f"{budget.metric} are left, and {_percent(budget.keep)} were asked for.{because} "
        f"To go on, {' or '.join(remedies)}."
    )


def frozen_shares(
    groups: Groups, model: CostModel, floor: Ints, moves: Moves, kept: dict[str, Bools]
) -> list[tuple[float, str, str]]:
    """Return (share of the dense MACs, first operation, reason) for each reason to stay, the largest first.

    A product with several frozen dimensions counts for each of their reasons, so the shares may add up to more than
    what is left.
    """
    reasons = _axis_reasons(groups, model, moves, kept)
    macs = model.metrics["macs"]
    dense = macs.at(model.full)
    shares: dict[str, float] = {}
    first: dict[str, str] = {}
    for row, cost in enumerate(macs.terms(floor)):
        for reason in {reasons[axis] for axis in macs.factors[row] if axis in reasons}:
            shares[reason] = shares.get(reason, 0.0) + float(cost)
            first.setdefault(reason, macs.labels[row])
    rows = [(share / dense, first[reason], reason) for reason, share in shares.items() if share > 0]
    return sorted(rows, key=lambda row: (-row[0], row[1]))


def _axis_reasons(groups: Groups, model: CostModel, moves: Moves, kept: dict[str, Bools]) -> dict[int, str]:
    """Return for each axis on which something cannot go why the first such class has to stay."""
    movable = np.zeros(len(groups.live), bool)
    movable[moves.classes] = True
    at_rest = ~movable[model.entry_class]
    reasons: dict[int, str] = {}
    for axis, number in zip(model.entry_axis[at_rest], model.entry_class[at_rest], strict=True):
        if int(axis) not in reasons:
            reasons[int(axis)] = _class_reason(groups, int(number), moves.step, kept)
    return reasons


def _class_reason(groups: Groups, number: int, step: int, kept: dict[str, Bools]) -> str:
    if not groups.live[number]:
        return groups.reason(number)
    named = next((reason for reason, chosen in kept.items() if chosen[number]), None)
    width = f"one multiple of round_to={step}" if step > 1 else "one index"
    return named or f"it is at the minimum width ({width})"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
