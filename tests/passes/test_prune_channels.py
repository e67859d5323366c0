"""A plan is carried out, once, and the result is held to the masked original."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from fxprune import surgery
from fxprune.capture import Traced, trace
from fxprune.errors import PlanError, VerifyError
from fxprune.passes import FuseBatchNorm, PruneChannels, RemoveIdentity
from fxprune.pipeline import Pipeline
from fxprune.planning import Plan, make_plan
from fxprune.testing import check_pass

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    first = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout())
    return nn.Sequential(*first, nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 5)).eval()


def planned() -> tuple[Traced, Plan]:
    traced = trace(network(), IMAGE)
    return traced, make_plan(traced, params=0.5, round_to=1)


def test_a_plan_is_carried_out() -> None:
    model = network()
    plan = make_plan(trace(model.double(), IMAGE.double()), params=0.5, round_to=1)
    places = [name for name, dimensions in plan.removed.items() for _ in dimensions]
    result = check_pass(PruneChannels(plan), model, IMAGE, changed=places)
    assert sum(p.numel() for p in result.traced.module.parameters()) == plan.after.params
    sizes = {change.place: change.what for change in result.report[0].changes}
    assert sizes["0.bias"] == f"dimension 0: 8 -> {8 - len(plan.removed['0.bias'][0])}"


def test_between_other_passes() -> None:
    traced, plan = planned()
    pipeline = Pipeline([PruneChannels(plan), RemoveIdentity(), FuseBatchNorm(), PruneChannels(plan)])
    result = pipeline(traced)
    assert [bool(report.changes) for report in result.report] == [True, True, True, False]
    again = pipeline(result.traced)
    assert not again.report.changed
    assert result.traced.run((IMAGE,))[0].shape == (2, 5)


def test_a_plan_for_another_graph_is_refused() -> None:
    _, plan = planned()
    with pytest.raises(PlanError, match="another graph"):
        PruneChannels(plan)(trace(nn.Sequential(nn.Conv2d(3, 8, 3)), IMAGE))


def test_a_plan_for_the_graph_before_another_pass_is_refused() -> None:
    traced, plan = planned()
    with pytest.raises(PlanError, match="another graph"):
        Pipeline([RemoveIdentity(), PruneChannels(plan)])(traced)


def test_an_empty_plan_changes_nothing() -> None:
    traced, plan = planned()
    result = Pipeline([PruneChannels(Plan({}, plan.fingerprint))])(traced)
    assert not result.report.changed
    assert result.traced.fingerprint() == traced.fingerprint()


def test_a_wrong_cut_is_caught_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_with(*args: Any, **options: Any) -> Traced:
        result = surgery.cut_with(*args, **options)
        result.module.get_parameter("6.bias").data += 1
        return result

    monkeypatch.setattr("fxprune.passes.prune_channels.cut_with", cut_with)
    traced, plan = planned()
    with pytest.raises(VerifyError, match=r"prune-channels: .*No pass ran before it"):
        Pipeline([PruneChannels(plan)])(traced)
    Pipeline([PruneChannels(plan, verify=False)])(traced)
    Pipeline([PruneChannels(plan)], verify=False)(traced)


def test_constants_of_the_code_are_cut_too() -> None:
    """They are no parameters and no buffers, so the model's state does not have them."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.scale = nn.Linear(4, 8), nn.Linear(8, 3), torch.rand(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(x)) * self.scale * torch.tensor([1.0, 2.0] * 4))

    traced = trace(Scaled().eval(), torch.randn(2, 4))
    plan = make_plan(traced, params=0.5, round_to=1)
    assert {"scale", "lifted_tensor_0"} <= set(plan.removed)
    changes = {change.place: change.what for change in Pipeline([PruneChannels(plan)])(traced).report[0].changes}
    assert changes["scale"] == changes["first.bias"]


def test_outputs_that_do_not_move_are_refused() -> None:
    model = network()
    with torch.no_grad():
        model[1].bias.fill_(-1e6)
    traced = trace(model, IMAGE)
    plan = make_plan(traced, params=0.5, round_to=1)
    with pytest.raises(VerifyError, match="dead behind a ReLU"):
        Pipeline([PruneChannels(plan)])(traced)
    assert Pipeline([PruneChannels(plan, allow_constant=True)])(traced).report.changed


def test_calibration_batches_are_read_once() -> None:
    """A generator is empty the second time, and a loader that shuffles or draws transforms would give other means."""
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    traced = trace(model, torch.randn(2, 5))
    plan = make_plan(traced, channels=0.5, round_to=1, compensate="mean")
    read = []

    def batches() -> Iterator[torch.Tensor]:
        for _ in range(3):
            read.append(torch.randn(4, 5))
            yield read[-1]

    result = Pipeline([PruneChannels(plan, calibration=batches())])(traced)
    assert len(read) == 3
    small = surgery.cut(traced, plan, calibration=read)
    x = torch.randn(6, 5)
    assert torch.allclose(result.traced.run((x,))[0], small.run((x,))[0])
    assert any("leave behind" in change.what for change in result.report[0].changes)
