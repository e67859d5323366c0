"""Plans of layers: never above the budget, replayable, and refused with what can be reached."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxprune.capture import Traced, trace
from fxprune.depth import LayerPlan, find_layers, make_layer_plan
from fxprune.depth.remove import remove
from fxprune.errors import BudgetError, InputError, PlanError
from fxprune.graph_tools import copy_module
from fxprune.planning import count
from tests.depth.networks import Residual, Tail, conv, ready

IMAGE = torch.randn(2, 3, 8, 8)
_MADE: dict[str, Traced] = {}


def traced() -> Traced:
    if not _MADE:
        widths = (2, 4, 8, 16, 4)
        branches = [Residual(nn.Sequential(conv(4, width), nn.Conv2d(width, 4, 1))) for width in widths]
        _MADE["net"] = trace(ready(nn.Sequential(conv(3, 4), *branches, Tail(4))), IMAGE)
    return _MADE["net"]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["macs", "params", "layers"]), st.floats(0.2, 1.0), st.integers(0, 5))
def test_a_plan_keeps_no_more_than_asked(metric: str, keep: float, seed: int) -> None:
    model = traced()
    options: dict[str, Any] = {metric: keep}
    try:
        plan = make_layer_plan(model, **options, importance="random", seed=seed)
    except BudgetError:
        least = copy_module(model.module)
        remove(least, find_layers(model))
        least.recompile()
        rest, whole_cost = count(model.with_module(least)), count(model)
        assert metric != "layers" or keep < 0.2
        assert metric == "layers" or getattr(rest, metric) > keep * getattr(whole_cost, metric)
        return
    module = copy_module(model.module)
    remove(module, plan.chosen(model))
    module.recompile()
    after = count(model.with_module(module))
    assert (after.macs, after.params) == (plan.after.macs, plan.after.params)
    whole = {"macs": plan.before.macs, "params": plan.before.params, "layers": 5}
    found = {"macs": after.macs, "params": after.params, "layers": 5 - len(plan.layers)}
    assert found[metric] <= keep * whole[metric] * (1 + 1e-9)
    for back in plan.layers:  # none is there for nothing
        rest = [layer for layer in find_layers(model) if layer.name in plan.layers and layer.name != back]
        less = copy_module(model.module)
        remove(less, rest)
        less.recompile()
        cost = count(model.with_module(less))
        value = {"macs": cost.macs, "params": cost.params, "layers": 5 - len(rest)}
        assert value[metric] > keep * whole[metric]
    assert set(plan.scores) == set(find_layers(model).names)


def test_the_least_important_go_first() -> None:
    model = traced()
    names = find_layers(model).names
    plan = make_layer_plan(model, layers=0.6, importance=lambda traced, layers: [5.0, 1.0, 4.0, 2.0, 3.0])
    assert plan.layers == (names[1], names[3])
    assert plan.importance == "callable:<lambda>"


def test_segments_share_the_loss() -> None:
    model = traced()
    names = find_layers(model).names
    batches = [torch.randn(6, 3, 8, 8)]
    plan = make_layer_plan(model, layers=0.6, importance="cka", batches=batches, allocation="segments")
    assert len(plan.layers) == 2
    assert set(plan.layers) <= set(names)
    assert plan.allocation == "segments"


def test_a_plan_survives_json() -> None:
    plan = make_layer_plan(traced(), macs=0.7)
    again = LayerPlan.from_json(plan.to_json(indent=2))
    assert again == plan
    assert again.hash == plan.hash
    assert [layer.name for layer in again.chosen(traced())] == list(plan.layers)


def test_a_plan_is_for_one_graph() -> None:
    plan = make_layer_plan(traced(), macs=0.7)
    other = trace(nn.Sequential(conv(3, 4), conv(4, 4), Tail(4)).eval(), IMAGE)
    with pytest.raises(PlanError, match="made for another graph"):
        plan.check(other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "schema 2"),
        ({"kind": "channels"}, "no kind 'layers'"),
        ({"layers": "all"}, "layers must be a list of texts"),
        ({"layers": ["a", "a"]}, "without repetitions"),
        ({"level": "stage"}, "level must be"),
        ({"keep": 0}, "keep must be"),
        ({"scores": {"a": "b"}}, "scores must be"),
        ({"after": {"macs": 1}}, "after must be"),
        ({"more": 1}, "unknown fields more"),
        ({"seed": None}, "seed must be"),
    ],
)
def test_a_damaged_plan_is_refused(change: dict[str, Any], said: str) -> None:
    values = json.loads(make_layer_plan(traced(), macs=0.7).to_json()) | change
    with pytest.raises(PlanError, match=said):
        LayerPlan.from_json(json.dumps(values))


def test_what_is_no_json_or_lacks_a_field_is_refused() -> None:
    with pytest.raises(PlanError, match="cannot be read as JSON"):
        LayerPlan.from_json("layers")
    values = json.loads(make_layer_plan(traced(), macs=0.7).to_json())
    del values["notes"]
    with pytest.raises(PlanError, match="it lacks notes"):
        LayerPlan.from_json(json.dumps(values))


def test_a_budget_that_cannot_be_met_says_what_can() -> None:
    model = traced()
    with pytest.raises(BudgetError, match=r"ask for at least macs=0\.\d+") as error:
        make_layer_plan(model, macs=0.01)
    least = float(str(error.value).split("at least macs=")[1].split(",")[0])
    plan = make_layer_plan(model, macs=least)
    assert len(plan.layers) == 5


def test_layers_without_a_score_stay() -> None:
    nan = float("nan")
    with pytest.raises(BudgetError, match="3 layers stay"):
        make_layer_plan(traced(), layers=0.2, importance=lambda traced, layers: [nan, nan, nan, 1.0, 2.0])
    plan = make_layer_plan(traced(), layers=0.8, importance=lambda traced, layers: [nan, nan, nan, 1.0, 2.0])
    assert any("3 of 5 layers have no score and stay" in note for note in plan.notes)


def test_nothing_to_remove_says_why() -> None:
    model = trace(nn.Sequential(conv(3, 4), conv(4, 8), Tail(8)).eval(), IMAGE)
    with pytest.raises(InputError, match=r"no layer that can be removed.*0\.0: it changes the channels from 3 to 4"):
        make_layer_plan(model, macs=0.5)
    linear = trace(nn.Linear(4, 2).eval(), torch.randn(2, 4))
    with pytest.raises(InputError, match="no sum with an identity"):
        make_layer_plan(linear, macs=0.5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "exactly one budget"),
        ({"macs": 0.5, "params": 0.5}, "exactly one budget"),
        ({"macs": 50}, r"outside \(0, 1\]"),
        ({"layers": 0.0}, r"outside \(0, 1\]"),
        ({"macs": 0.5, "allocation": "even"}, "allocation='even' is not known"),
        ({"macs": 0.5, "level": "stage"}, "level='stage' is not known"),
        ({"macs": 0.5, "allocation": "segments"}, "there are no batches"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_layer_plan(traced(), **options)
