"""Plans of real networks: on budget, closed, rounded, fast."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import pytest
import torch

from fxprune.capture import trace
from fxprune.channels import find_groups
from fxprune.errors import BudgetError, CaptureError, InputError
from fxprune.planning import Plan, make_plan
from tests.networks import NETWORKS

torchvision = pytest.importorskip("torchvision")
NAMES = ("resnet18", "mobilenet_v2", "densenet121", "swin_t")


@functools.cache
def analysed(name: str) -> Any:
    """Return the groups of a torchvision model; kept for all tests of this file."""
    torch.manual_seed(0)
    traced = trace(torchvision.models.get_model(name).eval(), (torch.randn(1, 3, 64, 64),))
    return find_groups(traced)


def plan_for(name: str, **options: Any) -> Plan:
    groups = analysed(name)
    return make_plan(groups.traced, groups=groups, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("metric", ["macs", "params", "bytes"])
def test_half_of_the_model_within_one_percent(name: str, metric: str) -> None:
    plan = plan_for(name, **{metric: 0.5})
    share = getattr(plan.after, metric) / getattr(plan.before, metric)
    assert 0.495 <= share <= 0.5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("allocation", ["uniform", "isomorphic"])
def test_every_allocation_is_on_budget(name: str, allocation: str) -> None:
    plan = plan_for(name, macs=0.6, allocation=allocation)
    assert 0.594 <= plan.after.macs / plan.before.macs <= 0.6


@pytest.mark.parametrize("name", NAMES)
def test_plans_are_closed_and_survive_json(name: str) -> None:
    groups = analysed(name)
    plan = Plan.from_json(plan_for(name, macs=0.5).to_json())
    plan.check(groups.traced)
    gone = plan.classes(groups)
    assert gone.any()
    assert not gone[~groups.live].any()


@pytest.mark.parametrize("name", NAMES)
def test_no_axis_is_emptied(name: str) -> None:
    groups = analysed(name)
    gone = plan_for(name, params=0.3, round_to=1, importance="random").classes(groups)
    for place in groups.parameters:
        labels = groups.axis(*place)
        assert labels is None or not gone[labels].all(), place


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_widths_are_whole_or_multiples(name: str) -> None:
    groups = analysed(name)
    plan = plan_for(name, macs=0.55, round_to=16)
    parameters = dict(groups.traced.module.named_parameters())
    for parameter, dims in plan.removed.items():
        if parameter in parameters and parameters[parameter].dim() > 1:
            for dim, indices in dims.items():
                assert (parameters[parameter].shape[dim] - len(indices)) % 16 == 0, (parameter, dim)


@pytest.mark.parametrize("importance", ["l1", "bn_scale", "lamp", "fpgm", "random"])
def test_every_importance_is_on_budget(importance: str) -> None:
    plan = plan_for("resnet18", macs=0.5, importance=importance)
    assert 0.495 <= plan.after.macs / plan.before.macs <= 0.5


def test_a_protected_layer_keeps_its_outputs() -> None:
    plan = plan_for("resnet18", params=0.5, protect=["layer4.*.conv1.weight"])
    assert all(0 not in plan.removed.get(f"layer4.{block}.conv1.weight", {}) for block in (0, 1))


@pytest.mark.parametrize("name", [pytest.param("densenet201", marks=pytest.mark.slow), "swin_t"])
def test_planning_takes_less_than_a_second(name: str) -> None:
    groups = analysed(name)
    plan_for(name, macs=0.9)
    start = time.process_time()
    plan = plan_for(name, macs=0.5, round_to=1)
    assert time.process_time() - start < 1.0
    assert 0 < plan.classes(groups).sum() < groups.live.sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_plans_of_every_construct_are_closed_and_count_right(name: str) -> None:
    network = NETWORKS[name]
    try:
        groups = find_groups(trace(network.factory(), network.args, kwargs=network.kwargs))
    except CaptureError:
        pytest.skip("cannot be captured")
    for budget in ({"params": 0.8, "round_to": 1}, {"macs": 0.8}, {"channels": 0.6}):
        try:
            plan = make_plan(groups.traced, groups=groups, **budget)
        except (BudgetError, InputError):
            continue
        plan.classes(groups)
        parameters = groups.traced.module.named_parameters()
        left = [
            math.prod(size - len(plan.removed.get(key, {}).get(dim, [])) for dim, size in enumerate(tensor.shape))
            for key, tensor in parameters
        ]
        assert plan.after.params == sum(left)
