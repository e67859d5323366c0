"""Times of layers as products of widths, in the runtime's steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.planning.cost import products
from fxprune.planning.cost_model import CostModel, axes_of, start_cost_model
from fxprune.planning.latency_table import LatencyTable, Layer, add_latency, elements, layer_widths, written

Chain = Callable[..., Any]


def cost_model(groups: Any, table: LatencyTable) -> CostModel:
    builder = start_cost_model(groups.traced, groups, np.flatnonzero(groups.live))
    add_latency(builder, groups.traced, groups, axes_of(groups), table)
    return builder.build()


def latency(model: CostModel, groups: Any, removed: list[int]) -> float:
    gone = np.zeros(groups.live.size, bool)
    gone[removed] = True
    return model.metrics["latency"].at(model.sizes(gone))


def test_the_sum_of_the_layers_at_the_widths_that_are_left(chain: Chain) -> None:
    groups = chain([3, 8, 5, 2])
    names = {str(product.node.target): product.node.name for product in products(groups.traced)}
    layers = {names["layer0"]: Layer(0.5, 0.25, 0.0, 0.125), names["layer1"]: Layer(first=2.0, second=1.0)}
    model = cost_model(groups, LatencyTable(layers, rate=0.01, constant=7.0))
    everything = (0.5 + 0.25 * 8 + 0.125 * 8 * 3) + (2.0 * 5 + 8) + 0.01 * 5 * 2 + 7.0
    assert latency(model, groups, []) == pytest.approx(everything)
    less = (0.5 + 0.25 * 6 + 0.125 * 6 * 3) + (2.0 * 4 + 6) + 0.01 * 4 * 2 + 7.0
    assert latency(model, groups, [3, 10, 11]) == pytest.approx(less)  # two of layer0's outputs, one of layer1's


def test_widths_cost_what_the_next_step_costs(chain: Chain) -> None:
    groups = chain([4, 8, 4])
    names = [product.node.name for product in products(groups.traced)]
    model = cost_model(groups, LatencyTable({names[0]: Layer(first=1.0)}, step=4))
    hidden = list(range(4, 12))
    assert [latency(model, groups, hidden[:gone]) for gone in (0, 1, 3, 4, 7)] == [8, 8, 8, 4, 4]


def test_what_is_not_a_measured_layer_costs_by_what_it_writes(chain: Chain) -> None:
    groups = chain([4, 6, 3], norm=True)
    every = {product.node for product in products(groups.traced)}
    others = written(groups.traced, every)
    assert "norm0" in {str(node.target) for node in others}
    assert elements(groups.traced, others) == sum(node.meta["val"].shape[1] for node in others)
    layers = {node.name: Layer() for node in every}
    model = cost_model(groups, LatencyTable(layers, elementwise=2.0))
    before = latency(model, groups, [])
    assert before == pytest.approx(2.0 * elements(groups.traced, others))
    assert latency(model, groups, [4, 5]) == pytest.approx(before - 2.0 * 2 * len(_of_width(others, 6)))


def _of_width(nodes: list[Any], width: int) -> list[Any]:
    return [node for node in nodes if node.meta["val"].shape[1] == width]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3), (2, 4, 8, 8)),
        (nn.Conv1d(4, 6, 3), (2, 4, 8)),
        (nn.Conv3d(4, 6, 3), (2, 4, 5, 5, 5)),
        (nn.Linear(4, 6), (2, 4)),
        (nn.Linear(4, 6), (2, 7, 5, 4)),
        (nn.Conv2d(8, 8, 3, groups=8), (2, 8, 8, 8)),
    ],
)
def test_which_sizes_are_the_widths(layer: nn.Module, shape: tuple[int, ...]) -> None:
    traced = fxprune.trace(nn.Sequential(layer), torch.randn(shape))
    (product,) = products(traced)
    outputs, inputs = layer_widths(product)
    weight: Any = layer.weight
    assert (product.sizes[outputs].size, product.sizes[inputs].size) == tuple(weight.shape[:2])


def test_an_axis_that_no_removal_changes_is_a_number(chain: Chain) -> None:
    groups = chain([4, 6, 3])
    name = next(product.node.name for product in products(groups.traced))
    model = cost_model(groups, LatencyTable({name: Layer(both=1.0)}))
    assert latency(model, groups, []) == 24


def test_views_cost_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(4 * 36, 2))
    traced = fxprune.trace(model.eval(), torch.randn(2, 3, 8, 8))
    names = [node.name for node in written(traced, {product.node for product in products(traced)})]
    assert names == ["relu"]
