"""The search: never above the limit, close to it, fast."""

from __future__ import annotations

import time
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.planning.cost_model import Builder, CostModel
from fxprune.planning.moves import Family, Moves, build_moves
from fxprune.planning.solve import Search, Widths, solve


def problem(widths: list[int], costs: list[int], step: int = 1) -> tuple[Moves, CostModel, int]:
    """Return independent families, each unit of which costs ``costs[family]``."""
    ends = np.cumsum([0, *widths])
    builder, families = Builder(), []
    for start, width, cost in zip(ends, widths, costs, strict=False):
        units = np.arange(start, start + width)
        builder.add("macs", cost, [units])
        scores = np.random.default_rng(int(start)).random(width)
        families.append(Family(units[np.argsort(scores)], np.sort(scores), width, 1))
    return build_moves(families, step, "global", [0] * len(widths)), builder.build(), int(ends[-1])


@settings(max_examples=60, deadline=None)
@given(
    data=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=4), keep=st.floats(0.05, 1.0)
)
def test_the_limit_holds_and_no_move_can_be_taken_back(data: list[tuple[int, int]], keep: float) -> None:
    widths, costs = [width for width, _ in data], [cost for _, cost in data]
    moves, model, classes = problem(widths, costs)
    full = sum(width * cost for width, cost in data)
    found = solve(moves, model, "macs", keep, classes)
    possible = [
        sum(kept * cost for kept, cost in zip(choice, costs, strict=True))
        for choice in product(*(range(1, width + 1) for width in widths))
    ]
    best = max((value for value in possible if value <= keep * full * (1 + 1e-12)), default=None)
    assert (found is None) == (best is None)
    if found is not None and best is not None:
        assert found.value <= best
        assert found.value == model.metrics["macs"].at(model.sizes(found.removed))
        ends = np.cumsum([0, *widths])
        for start, stop, cost in zip(ends, ends[1:], costs, strict=False):
            assert not found.removed[start:stop].any() or found.value + cost > keep * full


def test_a_later_move_is_made_where_earlier_ones_leave_too_much_room() -> None:
    builder = Builder()
    units = [np.arange(0, 2), np.arange(2, 4)]
    builder.add("macs", 50, [units[0]])
    builder.add("macs", 10, [units[1]])
    families = [Family(units[0], np.array([0.0, 9.0]), 2, 1), Family(units[1], np.array([1.0, 8.0]), 2, 1)]
    moves = build_moves(families, 1, "global", [0, 0])
    found = solve(moves, builder.build(), "macs", 110 / 120, 4)
    assert found is not None
    assert found.value == 110  # dropping the unit of 10, although the one of 50 has the lower score
    assert np.flatnonzero(found.removed).tolist() == [2]


@pytest.mark.parametrize("keep", [0.29, 0.57, 0.58, 0.7])
def test_shares_that_are_no_binary_fractions_lose_nothing(keep: float) -> None:
    moves, model, classes = problem([100], [1])
    found = solve(moves, model, "macs", keep, classes)
    assert found is not None
    assert found.value == round(100 * keep)


def test_too_little_to_move_has_no_solution() -> None:
    moves, model, classes = problem([4, 4], [1, 1])
    assert solve(moves, model, "macs", 0.2, classes) is None


def test_prefixes_and_single_moves_agree() -> None:
    moves, model, classes = problem([9, 7, 5], [3, 2, 8], step=2)
    search = Search(moves, model, "macs", classes)
    widths = Widths(search, search.prefix(0))
    for move in range(len(moves)):
        expected = search.metric.at(search.prefix(move + 1))
        assert widths.value + widths.change(move, -1) == expected
        widths.make(move, -1)
        assert widths.sizes.tolist() == search.prefix(move + 1).tolist()
        assert widths.value == expected


def test_fifty_thousand_units_take_well_below_a_second() -> None:
    moves, model, classes = problem([250] * 200, list(range(1, 201)))
    start = time.process_time()
    found = solve(moves, model, "macs", 0.431, classes)
    assert time.process_time() - start < 1.0
    assert found is not None
    assert found.close(0.431 * sum(250 * cost for cost in range(1, 201)))
