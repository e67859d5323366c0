"""A plan as a whole: never above the budget, closed, and on budget where that is possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.capture import trace
from fxprune.errors import BudgetError, InputError
from fxprune.planning import Cost, Plan, make_plan
from fxprune.surgery import cut, verify_cut

METRICS = ("macs", "params", "channels", "bytes")
ALLOCATIONS = ("uniform", "global", "isomorphic")
Chain = Callable[..., Any]


def plan_for(groups: Any, **options: Any) -> Plan:
    return make_plan(groups.traced, groups=groups, **options)


def share(groups: Any, plan: Plan) -> float:
    """Return the kept share of the plan's metric, counted from the removed indices alone."""
    if plan.metric == "channels":
        return float(1 - plan.classes(groups).sum() / groups.live.sum())
    return float(getattr(plan.after, plan.metric) / getattr(plan.before, plan.metric))


def counted(groups: Any, plan: Plan) -> Cost:
    """Count what is left of a chain by hand, layer by layer."""
    params = macs = 0
    for name, tensor in groups.traced.module.named_parameters():
        shape = [size - len(plan.removed.get(name, {}).get(dim, [])) for dim, size in enumerate(tensor.shape)]
        params += int(np.prod(shape))
        macs += int(np.prod(shape)) if len(shape) == 2 else 0
    return Cost(params, macs, 4 * params)


@settings(max_examples=60, deadline=None)
@given(
    widths=st.lists(st.integers(1, 40), min_size=3, max_size=6),
    repeats=st.integers(1, 3),
    keep=st.floats(0.05, 1.0),
    metric=st.sampled_from(METRICS),
    allocation=st.sampled_from(ALLOCATIONS),
    round_to=st.sampled_from([1, 2, 3, 8, "auto"]),
)
def test_a_plan_is_closed_and_never_above_the_budget(
    chain: Chain, widths: list[int], repeats: int, keep: float, metric: str, allocation: str, round_to: int | str
) -> None:
    groups = chain(widths, [repeats] * (len(widths) - 1))
    try:
        plan = plan_for(groups, **{metric: keep}, allocation=allocation, round_to=round_to, importance="l1")
    except BudgetError:
        return
    assert share(groups, plan) <= keep * (1 + 1e-12)
    assert plan.after == counted(groups, plan)
    gone = plan.classes(groups)
    assert not gone[~groups.live].any()
    for family in groups.families:
        kept = len(family) - gone[family].sum()
        assert kept == len(family) or (kept >= 1 and kept % plan.round_to == 0)


@settings(max_examples=40, deadline=None)
@given(
    widths=st.lists(st.integers(80, 160), min_size=4, max_size=6),
    keep=st.floats(0.15, 1.0),
    metric=st.sampled_from(METRICS),
    allocation=st.sampled_from(ALLOCATIONS),
)
def test_a_plan_is_within_one_percent_without_rounding(
    chain: Chain, widths: list[int], keep: float, metric: str, allocation: str
) -> None:
    groups = chain([3, *widths, 10])
    plan = plan_for(groups, **{metric: keep}, allocation=allocation, round_to=1)
    one_unit = 1 / groups.live.sum() if metric == "channels" else 0.0  # whole units cannot be nearer than that
    assert min(0.99 * keep, keep - one_unit) <= share(groups, plan) <= keep * (1 + 1e-12)
    assert not plan.notes or metric == "channels"


def test_a_budget_of_one_removes_nothing(chain: Chain) -> None:
    plan = plan_for(chain([4, 32, 32, 4]), macs=1.0)
    assert plan.removed == {}
    assert plan.before == plan.after


def test_auto_rounding_relaxes_only_as_far_as_the_budget_needs(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    groups = chain([4, 64, 64, 4])
    even = plan_for(groups, channels=0.5)
    assert even.round_to == 16
    assert not even.notes
    odd = plan_for(groups, channels=60 / 128)
    assert odd.round_to == 4
    assert "multiples of 4" in odd.notes[0]


def test_a_given_multiple_is_never_relaxed(chain: Chain) -> None:
    plan = plan_for(chain([4, 64, 64, 4]), channels=60 / 128, round_to=16)
    assert plan.round_to == 16
    assert "below the budget" in plan.notes[0]
    assert {len(indices) % 16 for dims in plan.removed.values() for indices in dims.values()} == {0}


def test_the_error_says_what_can_be_reached_and_what_stays(chain: Chain) -> None:
    with pytest.raises(BudgetError, match=r"3\.73 % of the macs .*layer0.*it is protected by 'layer0.\*'") as caught:
        plan_for(chain([4, 64, 64, 64, 4]), macs=0.01, round_to=1, protect=["layer0.*"])
    assert "ask for at least macs=0.038 or protect less" in str(caught.value)


def test_everything_protected_is_an_error(chain: Chain) -> None:
    groups = chain([4, 8, 4])
    with pytest.raises(BudgetError, match="100 % of the params"):
        plan_for(groups, params=0.5, protect="*")


def test_protected_output_channels_stay(chain: Chain) -> None:
    groups = chain([4, 64, 64, 4])
    plan = plan_for(groups, params=0.6, protect=["layer1.weight"], round_to=1)
    assert 0 not in plan.removed.get("layer1.weight", {})
    assert plan.removed["layer1.weight"][1]
    assert plan.protect == ("layer1.weight",)


def test_the_plan_records_how_it_was_made(chain: Chain) -> None:
    groups = chain([4, 32, 32, 4])
    plan = plan_for(groups, macs=0.5, importance="random", seed=3, allocation="uniform", round_to=4, compensate="mean")
    assert (plan.metric, plan.keep, plan.importance, plan.seed) == ("macs", 0.5, "random", 3)
    assert (plan.allocation, plan.round_to, plan.compensate, plan.model) == ("uniform", 4, "mean", "Chain")
    plan.check(groups.traced)


def test_units_without_a_score_stay(chain: Chain) -> None:
    groups = chain([4, 32, 32, 4])
    scores = np.arange(len(groups.live), dtype=float)
    scores[groups.families[0]] = np.nan
    plan = plan_for(groups, channels=0.75, importance=lambda _: scores, round_to=1)
    assert not plan.classes(groups)[groups.families[0]].any()
    assert "no importance score" in plan.notes[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs": 0.5, "compensate": "zero"}, "compensate"),
        ({"macs": 0.5, "seed": -1}, "seed"),
        ({"macs": 0.5, "allocation": "local"}, "allocation"),
        ({"macs": 0.5, "importance": "tailor"}, "Did you mean"),
        ({"macs": 0.5, "round_to": 0}, "round_to"),
        ({"macs": 0.5, "protect": ["head"]}, "matches no parameter"),
        ({}, "exactly one budget"),
    ],
)
def test_bad_options_are_refused(chain: Chain, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_for(chain([4, 8, 4]), **options)


def test_what_only_a_buffer_has_is_no_channel(chain: Chain) -> None:
    groups = chain([4, 32, 4])
    module = groups.traced.module
    module.register_buffer("table", torch.zeros(500))
    size = len(groups.live)
    groups.axes["table", 0] = np.arange(size, size + 500)
    groups.live = np.concatenate([groups.live, np.ones(500, bool)])
    groups.families.append(np.arange(size, size + 500))
    plan = plan_for(groups, channels=0.5, round_to=1)
    assert len(plan.removed["layer0.weight"][0]) == 16
    assert "table" not in plan.removed
    assert not plan.notes


def test_widths_that_cannot_be_rounded_are_noted(chain: Chain) -> None:
    groups = chain([4, 40, 4])
    family = groups.families[0]
    groups.families[:] = [family[:21], family[21:]]  # two families of 21 and 19 on one axis
    plan = plan_for(groups, macs=0.95, round_to=8)
    kept = 40 - len(plan.removed["layer0.weight"][0])
    assert kept % 8
    assert f"dimension 0 of layer0.weight with {kept} of 40" in plan.notes[-1]


class Gate(torch.nn.Module):
    """A statistic over a slice of the channels, which are scored lowest."""

    def __init__(self, statistic: Callable[[torch.Tensor], torch.Tensor], cut: int = 3) -> None:
        super().__init__()
        self.statistic, self.cut = statistic, cut
        self.stem, self.head = torch.nn.Conv2d(3, 12, 1), torch.nn.Conv2d(12, 4, 1)
        with torch.no_grad():
            self.stem.weight[:cut] *= 1e-3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(x) * self.statistic(x[:, : self.cut])  # type: ignore[no-any-return]


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize(
    ("statistic", "least"),
    [
        (lambda piece: piece.mean(1, keepdim=True), 1),
        (lambda piece: piece.softmax(1).sum(1, keepdim=True), 1),
        (lambda piece: piece.var(1, keepdim=True), 2),
        (lambda piece: torch.nn.functional.max_pool2d(piece, 3, 1, 1).sum(1, keepdim=True), 1),
        (lambda piece: piece.reshape(piece.shape[0], -1, 6, 6).sum(1, keepdim=True), 1),
    ],
    ids=["mean", "softmax", "var", "pool", "inferred size"],
)
def test_a_plan_leaves_what_operations_need(
    statistic: Callable[[torch.Tensor], torch.Tensor], least: int, allocation: str
) -> None:
    traced = trace(Gate(statistic), torch.randn(2, 3, 6, 6))
    plan = make_plan(traced, channels=0.3, round_to=1, allocation=allocation)
    gone = plan.removed["stem.weight"][0]
    assert len([index for index in range(3) if index not in gone]) >= least
    verify_cut(traced, cut(traced, plan), plan)


def test_what_operations_need_is_a_reason_to_stay() -> None:
    traced = trace(Gate(lambda piece: piece.mean(1, keepdim=True), cut=1), torch.randn(2, 3, 6, 6))
    assert make_plan(traced, channels=0.5, round_to=1).removed
    traced = trace(Gate(lambda piece: piece.var(1, keepdim=True)), torch.randn(2, 3, 6, 6))
    with pytest.raises(BudgetError, match=r"aten\.var\.\w+ at var, .*test_make\.py:\d+ needs 2 of the values"):
        make_plan(traced, macs=0.1, round_to=1)
