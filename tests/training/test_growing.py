"""The schedule step by step, what it does to gradients and weights, and when the plan may be taken."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from fxprune.capture import Traced, trace
from fxprune.errors import InputError, TrainingError
from fxprune.training import TPP, GrowingL2, Growth, ObjectiveLike, PlainL1
from fxprune.training.growing import SCHEDULES
from tests.training.test_filters import IMAGE, Residual, Swapped, lively

QUICK = Growth(interval=2, step=0.25, ceiling=1.0, stabilize=9, zero_every=2)


def _traced(model: torch.nn.Module | None = None) -> Traced:
    torch.manual_seed(0)
    return trace(lively(model or Swapped()), IMAGE)


@pytest.mark.parametrize(
    ("name", "rises", "steps"), [("published", 100_000, 110_000), ("imagenet", 50_000, 90_000), ("short", 2500, 3500)]
)
def test_the_named_schedules(name: str, rises: int, steps: int) -> None:
    growth = SCHEDULES[name]
    assert (growth.rises, growth.steps) == (rises, steps)
    assert growth.strength(0) == 0
    assert growth.strength(rises - 1) < 1
    assert growth.strength(rises) == growth.strength(steps) == 1


def test_the_published_schedule_is_the_published_one_at_every_step() -> None:
    growth = SCHEDULES["published"]
    for iteration in range(0, 110_000, 7):
        # 1e-4 * total_iter / interval, at the multiples of the interval, until that is 1
        strength = 1e-4 * (iteration // 10) if iteration < 100_000 else 1.0
        assert growth.strength(iteration) == pytest.approx(strength, abs=1e-12)
    for layer in (0, 5, 55):  # the layer with index l from (l + 1) * 100 steps after the ceiling is reached
        assert not growth.zeroes(100_000 + (layer + 1) * 100 - 1, layer)
        assert growth.zeroes(100_000 + (layer + 1) * 100, layer)


def test_short_schedules_step_by_step() -> None:
    assert [QUICK.strength(n) for n in range(10)] == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1, 1]
    assert (QUICK.rises, QUICK.steps) == (8, 17)
    uneven = Growth(interval=1, step=0.3, ceiling=1.0, stabilize=1, zero_every=1)
    assert [uneven.strength(n) for n in range(6)] == pytest.approx([0, 0.3, 0.6, 0.9, 1, 1])
    assert uneven.rises == 4


@pytest.mark.parametrize(
    "change", [{"interval": 0}, {"step": 0.0}, {"step": 2.0}, {"stabilize": 1.5}, {"zero_every": 0}]
)
def test_schedules_that_make_no_sense(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match="makes no sense"):
        dataclasses.replace(QUICK, **change)  # type: ignore[arg-type]


def test_a_schedule_must_reach_all_layers() -> None:
    traced = _traced()
    with pytest.raises(InputError, match="conv_b is number 2 and needs 301"):
        GrowingL2(traced, 0.5, schedule=Growth(stabilize=300))
    long = GrowingL2(traced, 0.5, schedule="short")
    assert long.steps == 3500
    with pytest.raises(InputError, match="no schedule 'long'"):
        GrowingL2(traced, 0.5, schedule="long")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"3500 steps, and training will have 1000: give 3\.5 times"):
        long.expect(1000)
    long.expect(3500)


def test_the_penalty_is_added_to_the_gradients_of_what_goes_and_of_nothing_else() -> None:
    traced = _traced()
    method = GrowingL2(traced, 0.5, schedule=QUICK, batchnorm=True)
    method.iteration = 4
    module, before = traced.module, {}
    for name, weight in module.named_parameters():
        weight.grad = torch.randn_like(weight)
        before[name] = weight.grad.clone()
    method.after_backward()
    expected = {name: torch.zeros_like(weight) for name, weight in module.named_parameters()}
    for each, norm in zip(method.selection.filters, ("norm_a", "norm_b"), strict=True):
        for name in (each.weight, f"{each.path}.bias", f"{norm}.weight", f"{norm}.bias"):
            for index in each.pruned:
                expected[name][index] = 0.5 * module.get_parameter(name).detach()[index]
    for name, weight in module.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad - before[name], expected[name])


def test_without_norms_only_filters_and_their_biases_are_pulled() -> None:
    traced = _traced()
    method = GrowingL2(traced, 0.5, schedule=QUICK)
    method.iteration = 8
    method.after_backward()
    pulled = {name for name, weight in traced.module.named_parameters() if weight.grad is not None}
    assert pulled == {"conv_a.weight", "conv_a.bias", "conv_b.weight", "conv_b.bias"}


@pytest.mark.parametrize("residual", [False, True])
def test_layers_become_zero_one_after_the_other_and_outputs_do_not_move_at_the_end(residual: bool) -> None:
    traced = _traced(Residual())
    growth = dataclasses.replace(QUICK, stabilize=20)
    method = GrowingL2(traced, {"*": 0.5}, schedule=growth, residual=residual)
    filters = method.selection.filters
    assert len(filters) == (6 if residual else 3)
    for iteration in range(growth.steps):
        with pytest.raises(TrainingError, match=f"has done {iteration} of 28 steps"):
            method.finish()
        assert not method.done
        method.after_step()
        for each in filters:
            gone = each.rows(traced.module)[list(each.pruned)]
            assert bool((gone == 0).all()) == (iteration - 8 >= 2 * (each.index + 1))
            for name, indices in each.vectors:
                assert bool((traced.module.get_parameter(name)[list(indices)] == 0).all()) == bool((gone == 0).all())
    assert method.done
    plan = method.finish()
    assert plan.after.params < plan.before.params
    plan.check(traced)


def test_the_schedule_may_go_on_and_a_running_mean_is_no_obstacle() -> None:
    traced = _traced()
    method = GrowingL2(traced, 0.5, schedule=QUICK)
    method.iteration = 100
    method.after_step()
    each = method.selection.filters[0]
    traced.module.get_parameter(each.weight).data += 1e-3  # as the mean of weights still remembers
    plan = method.finish()
    assert bool((each.rows(traced.module)[list(each.pruned)] == 0).all())
    assert plan.removed["conv_a.weight"][0] == list(each.pruned)


def test_plain_l1_leaves_weights_alone() -> None:
    traced = _traced()
    before = copy.deepcopy(traced.module.state_dict())
    method = PlainL1.begin(traced, 0.5)
    assert isinstance(method, ObjectiveLike)
    assert method.extra_loss() == 0
    method.after_backward()
    method.after_step()
    plan = method.finish()
    assert all(torch.equal(before[name], value) for name, value in traced.module.state_dict().items())
    assert plan.removed == GrowingL2(traced, 0.5, schedule=QUICK).plan().removed
    assert plan.removed == TPP(traced, 0.5, schedule=QUICK).plan().removed
    assert [plan.importance, GrowingL2.name, TPP.name] == ["l1", "growing-l2", "tpp"]
    assert type(plan).from_json(plan.to_json()) == plan


def test_what_was_chosen_stays_chosen_when_weights_have_changed() -> None:
    traced = _traced()
    first = GrowingL2(traced, 0.5, schedule=QUICK)
    first.after_step()
    state = first.state_dict()
    for each in first.selection.filters:  # now others are the smallest
        traced.module.get_parameter(each.weight).data.mul_(-1).exp_()
        traced.module.get_parameter(each.weight).data[list(each.pruned)] *= 100
    second = GrowingL2(traced, 0.5, schedule=QUICK)
    assert second.selection != first.selection
    second.load_state_dict(state)
    assert second.selection == first.selection
    assert second.iteration == 1
    with pytest.raises(InputError, match=r"began with ratios=0\.5, and goes on with 0\.25"):
        GrowingL2(traced, 0.25, schedule=QUICK).load_state_dict(state)


def test_weights_that_are_not_trained_are_refused() -> None:
    traced = _traced()
    traced.module.get_parameter("norm_b.bias").requires_grad_(False)
    with pytest.raises(InputError, match=r"norm_b\.bias is not trained"):
        GrowingL2(traced, 0.5, schedule=QUICK)
