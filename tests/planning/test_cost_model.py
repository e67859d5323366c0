"""The cost model against counting what is left."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.planning import count
from fxprune.planning.cost_model import Builder, build_cost_model


@settings(max_examples=40, deadline=None)
@given(widths=st.lists(st.integers(1, 12), min_size=3, max_size=5), repeats=st.integers(1, 4), seed=st.integers(0, 99))
def test_every_removal_is_counted_exactly(
    chain: Callable[..., Any], widths: list[int], repeats: int, seed: int
) -> None:
    groups = chain(widths, [repeats] * (len(widths) - 1))
    model = build_cost_model(groups.traced, groups, np.flatnonzero(groups.live))
    removed = groups.live & (np.random.default_rng(seed).random(len(groups.live)) < 0.5)
    left = [int((~removed[family]).sum()) for family in groups.families]
    kept = [widths[0], *left, widths[-1]]
    weights = sum(a * repeats * b for a, b in pairwise(kept))
    sizes = model.sizes(removed)
    cost = model.cost(sizes)
    assert (cost.macs, cost.params) == (weights, weights + sum(kept[1:]))
    assert cost.bytes == 4 * cost.params
    assert model.metrics["channels"].at(sizes) == sum(left)


def test_the_dense_model_costs_what_counting_says(chain: Callable[..., Any]) -> None:
    groups = chain([3, 8, 5])
    model = build_cost_model(groups.traced, groups, np.flatnonzero(groups.live))
    assert model.cost(model.full) == count(groups.traced)


def test_axes_with_the_same_labels_are_one() -> None:
    builder = Builder()
    assert builder.axis(np.array([1, 2])) == builder.axis(np.array([1, 2])) != builder.axis(np.array([2, 1]))


def test_rounding_looks_at_the_narrowest_weight_axis(chain: Callable[..., Any]) -> None:
    groups = chain([2, 4, 3], [1, 7])  # the second layer sees every channel seven times, the first once
    model = build_cost_model(groups.traced, groups, np.flatnonzero(groups.live))
    assert model.narrowest(len(groups.live))[groups.families[0]].tolist() == [1] * 4
    assert set(model.entry_count[model.entry_class == groups.families[0][0]].tolist()) == {1, 7}
