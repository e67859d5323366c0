"""Budgets of measured latency: the search between shares and ratios, the table, and real models end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_times import STEP, made_up
from torch import Tensor, nn

import fxprune
from fxprune.channels import find_groups
from fxprune.deploy import latency_budget
from fxprune.deploy.latency import measure_latency
from fxprune.deploy.latency_budget import LatencyPlan, _Search, latency_table, plan_for_latency, served
from fxprune.errors import BudgetError, InputError
from fxprune.planning.cost_model import axes_of, start_cost_model
from fxprune.planning.latency_table import add_latency


class Stack(nn.Module):
    """Convolutions that take about a millisecond in all, with norms and a head."""

    def __init__(self, width: int = 96, depth: int = 4) -> None:
        super().__init__()
        body: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        for _ in range(depth - 1):
            body += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        self.body = nn.Sequential(*body)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@pytest.fixture(scope="module")
def traced() -> fxprune.Traced:
    torch.manual_seed(0)
    return fxprune.trace(Stack().eval(), torch.randn(2, 3, 24, 24))


@pytest.fixture(scope="module")
def found(traced: fxprune.Traced, tmp_path_factory: pytest.TempPathFactory) -> LatencyPlan:
    with made_up():
        return plan_for_latency(traced, 0.5, seconds=3.0, cache=tmp_path_factory.mktemp("cache"))


def test_the_interval_ends_within_the_budget(found: LatencyPlan) -> None:
    assert found.latency.ratio_high <= 0.5
    assert found.trials
    assert found.plan.metric == "latency"
    assert found.plan.keep == 0.5
    assert found.plan.allocation == "latency"
    assert any("Measured latency on onnxruntime-cpu" in note for note in found.plan.notes)


def test_widths_are_multiples_of_the_measured_step(traced: fxprune.Traced, found: LatencyPlan) -> None:
    pruned = fxprune.cut(traced, found.plan)
    assert found.table.step == STEP
    assert found.plan.round_to <= found.table.step
    for name, parameter in pruned.module.named_parameters():
        if parameter.dim() == 4:
            assert parameter.shape[0] % found.plan.round_to == 0, name


def test_the_plan_cuts_exactly_and_replays(traced: fxprune.Traced, found: LatencyPlan) -> None:
    plan = fxprune.Plan.from_json(found.plan.to_json())
    assert fxprune.verify_cut(traced, fxprune.cut(traced, plan), plan).max_relative_error <= 1e-9


def test_the_plan_is_faster_by_the_clock_of_the_machine(
    traced: fxprune.Traced, found: LatencyPlan, tmp_path: Path
) -> None:
    fxprune.export_onnx(served(traced), tmp_path / "dense.onnx")
    fxprune.export_onnx(served(fxprune.cut(traced, found.plan)), tmp_path / "pruned.onnx")
    again = measure_latency(tmp_path / "pruned.onnx", tmp_path / "dense.onnx", seconds=4)
    assert again.ratio < 1  # a smoke alarm, for half of the work; tools/bench.py has the figures


@pytest.mark.usefixtures("clock")
def test_the_layers_sum_up_to_the_whole(traced: fxprune.Traced, tmp_path: Path) -> None:
    groups = find_groups(traced)
    table = latency_table(traced, 50.0, cache=tmp_path)
    builder = start_cost_model(traced, groups, np.flatnonzero(groups.live))
    add_latency(builder, traced, groups, axes_of(groups), table)
    model = builder.build()
    assert model.metrics["latency"].at(model.full) == pytest.approx(50.0, rel=0.1)


@pytest.mark.usefixtures("clock")
def test_one_call_from_the_top(traced: fxprune.Traced, tmp_path: Path) -> None:
    plan = fxprune.make_plan(traced, latency=0.6, cache=tmp_path, seconds=1.5)
    assert plan.metric == "latency"
    assert plan.after.macs < plan.before.macs
    table = latency_table(traced, 5.0, cache=tmp_path)
    predicted = fxprune.make_plan(traced, latency=0.6, times=table)
    assert predicted.allocation == "latency"
    by_macs = fxprune.make_plan(traced, macs=0.6, times=table, allocation="latency")
    assert by_macs.after.macs <= 0.6 * by_macs.before.macs


@pytest.mark.parametrize("target", [0, 1, 1.5, -0.1, float("nan"), True])
def test_budgets_that_make_no_sense(traced: fxprune.Traced, target: float) -> None:
    with pytest.raises(InputError, match="share of the dense latency to keep"):
        plan_for_latency(traced, target)


def test_two_budgets(traced: fxprune.Traced) -> None:
    with pytest.raises(InputError, match=r"exactly one budget, and got latency=0.5 and macs"):
        fxprune.make_plan(traced, latency=0.5, macs=0.5)


def test_an_unknown_runtime(traced: fxprune.Traced) -> None:
    with pytest.raises(InputError, match="'abacus'"):
        plan_for_latency(traced, 0.5, runtime="abacus")


@pytest.mark.usefixtures("clock")
def test_a_budget_below_what_is_left_without_channels(traced: fxprune.Traced, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=r"latency=0.001 was not met on onnxruntime-cpu"):
        plan_for_latency(traced, 0.001, cache=tmp_path, seconds=0.5)


# ---------------------------------------------------------------- the search alone


@settings(deadline=None)
@given(
    target=st.floats(0.2, 0.9),
    fixed=st.floats(0.0, 0.15),
    bend=st.floats(0.7, 1.5),
    noise=st.integers(0, 100),
)
def test_it_lands_within_the_budget_in_few_trials(target: float, fixed: float, bend: float, noise: int) -> None:
    """Whatever smooth curve leads from shares to ratios, with a third of a per cent of noise."""
    generator, search = np.random.default_rng(noise), _Search(target)
    for _ in range(latency_budget._TRIALS):
        share = search.next_share()
        assert 0 < share <= 1
        ratio = (fixed + (1 - fixed) * share**bend) * generator.normal(1, 0.003)
        search.trials.append((share, ratio))
        if latency_budget._NEAR * target <= ratio <= 0.995 * target:
            return
    pytest.fail(f"not met: {search.trials}")


def test_the_first_question_is_the_budget_itself() -> None:
    assert _Search(0.5).next_share() == pytest.approx(0.5 * latency_budget._AIM)
    assert _Search(0.5, noise=0.05).next_share() < 0.48


def test_between_the_nearest_on_either_side() -> None:
    search = _Search(0.5, [(0.5, 0.6), (0.3, 0.4), (0.1, 0.2)])
    assert 0.3 < search.next_share() < 0.5
