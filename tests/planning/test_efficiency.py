"""The order of removals that loses the least per millisecond."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fxprune.planning.cost import products
from fxprune.planning.cost_model import CostModel, axes_of, start_cost_model
from fxprune.planning.efficiency import LEAST, by_efficiency, reorder
from fxprune.planning.latency_table import LatencyTable, Layer, add_latency
from fxprune.planning.moves import Family, Moves, build_moves
from tests.planning.conftest import build_chain

Chain = Callable[..., Any]


def problem(
    widths: list[int], times: list[Layer], scores: NDArray[np.float64], step: int
) -> tuple[Moves, list[Family], CostModel]:
    groups: Any = build_chain(widths)
    names = [product.node.name for product in products(groups.traced)]
    builder = start_cost_model(groups.traced, groups, np.flatnonzero(groups.live))
    table = LatencyTable(dict(zip(names, times, strict=True)), step=step)
    add_latency(builder, groups.traced, groups, axes_of(groups), table)
    families = [
        Family(members[np.argsort(scores[members], kind="stable")], np.sort(scores[members]), len(members), 1)
        for members in groups.families
    ]
    return build_moves(families, step, "global", [0] * len(families)), families, builder.build()


def test_what_saves_more_for_the_same_loss_goes_first() -> None:
    scores = np.ones(2 + 4 + 4 + 2)
    moves, families, model = problem([2, 4, 4, 2], [Layer(first=10.0), Layer(), Layer(second=1.0)], scores, 1)
    ordered = by_efficiency(moves, families, model, "latency", scores)
    assert set(ordered.classes[:3]) <= {2, 3, 4, 5}  # ten milliseconds each, before one each
    assert sorted(ordered.classes) == sorted(moves.classes)


def test_what_saves_nothing_goes_last() -> None:
    scores = np.ones(2 + 4 + 4 + 2)
    scores[6:10] = 1e-6
    moves, families, model = problem([2, 4, 4, 2], [Layer(first=1.0), Layer(), Layer()], scores, 1)
    ordered = by_efficiency(moves, families, model, "latency", scores)
    assert set(ordered.classes[:3]) <= {2, 3, 4, 5}


@pytest.mark.parametrize("step", [1, 4])
def test_a_family_keeps_its_least_until_all_else_is_gone(step: int) -> None:
    scores = np.ones(2 + 32 + 32 + 2)
    scores[2:34] = 1e-9
    moves, families, model = problem([2, 32, 32, 2], [Layer(first=1.0), Layer(), Layer(second=1.0)], scores, step)
    ordered = by_efficiency(moves, families, model, "latency", scores)
    sizes = [32, 32]
    for move in range(len(ordered)):
        family = int(ordered.family[move])
        sizes[family] -= int(ordered.start[move + 1] - ordered.start[move])
        if sizes[family] < LEAST * 32:
            assert sizes[1 - family] <= max(step, LEAST * 32)
            break
    else:
        assert min(sizes) >= LEAST * 32


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    widths=st.lists(st.integers(2, 5), min_size=2, max_size=2),
    both=st.lists(st.integers(1, 5), min_size=3, max_size=3),
)
def test_the_first_move_is_the_best_of_all(seed: int, widths: list[int], both: list[int]) -> None:
    scores = np.random.default_rng(seed).uniform(0.1, 1.0, 2 + sum(widths) + 2)
    times = [Layer(both=float(value)) for value in both]
    moves, families, model = problem([2, *widths, 2], times, scores, 1)
    ordered = by_efficiency(moves, families, model, "latency", scores)
    whole = model.metrics["latency"].at(model.full)

    def price(family: Family) -> float:
        gone = np.zeros(scores.size, bool)
        gone[family.units[0]] = True
        return float(scores[family.units[0]] / (whole - model.metrics["latency"].at(model.sizes(gone))))

    assert price(families[int(ordered.family[0])]) == pytest.approx(min(price(family) for family in families))
    for number, family in enumerate(families):  # within a family the order stays
        mine = [int(c) for c in ordered.classes if c in set(family.units.tolist())]
        assert mine == family.units.tolist()[: len(mine)], number


def test_reorder_keeps_chunks_together() -> None:
    moves = Moves(np.array([5, 6, 7, 8, 9]), np.array([0, 2, 3, 5]), np.array([0, 1, 0]), 1)
    for order in itertools.permutations(range(3)):
        found = reorder(moves, np.array(order))
        parts = [found.classes[a:b].tolist() for a, b in itertools.pairwise(found.start)]
        assert parts == [[[5, 6], [7], [8, 9]][move] for move in order]
        assert found.family.tolist() == [[0, 1, 0][move] for move in order]


def test_no_moves_at_all() -> None:
    moves, _, model = problem([2, 2, 2], [Layer(first=1.0), Layer()], np.ones(6), 1)
    empty = Moves(np.empty(0, np.int64), np.zeros(1, np.int64), np.empty(0, np.int64), 1)
    assert len(by_efficiency(empty, [], model, "latency", np.ones(6))) == 0
    assert len(moves) == 1
