"""What removed channels leave behind: folded into biases, equal to references that share no code with the folding."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune import Plan
from fxprune.capture import Traced
from fxprune.channels import find_groups
from fxprune.errors import InputError
from fxprune.passes import PruneChannels
from fxprune.pipeline import Pipeline
from fxprune.surgery import Kept, compensation_of, cut, removal_of, verify_cut
from tests.networks import Removal
from tests.surgery.test_cut import assert_close, choose, every_network, grouped


def plan_of(traced: Traced, removed: Removal, mode: str) -> Plan:
    """Return a plan for a removal."""
    return Plan(removed=removed, fingerprint=traced.fingerprint(), compensate=mode)


class Bottleneck(nn.Module):
    """Every reader of a removed channel is unpadded, behind norms, activations, pooling, a gate and a concat."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=bias)
        self.bn = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=bias)
        self.deep_bn = nn.BatchNorm2d(8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.prelu = nn.PReLU(8)
        self.point = nn.Conv2d(8, 10, 1, bias=bias)
        self.point_bn = nn.BatchNorm2d(10)
        self.valid = nn.Conv2d(18, 12, (2, 3), bias=bias)
        self.head = nn.Linear(12, 6)
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn(self.stem(x)))
        x = F.hardswish(self.deep_bn(self.deep(x)))
        x = x * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))
        x = self.prelu(F.max_pool2d(x, 3, 1, 1))
        y = F.gelu(self.point_bn(self.point(x)))
        z = self.valid(torch.cat([y, F.avg_pool2d(x, 1)], 1)).mean((2, 3))
        return self.last(torch.tanh(self.head(z)) + 0.5)  # type: ignore[no-any-return]


def random_model(model: nn.Module) -> nn.Module:
    """Give every tensor of a model random values, in float64."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.data.copy_(noise.abs() + 0.5 if name.endswith("var") else noise * 0.5)
    return model.double().eval()


def without_weights(model: nn.Module, removed: Removal) -> nn.Module:
    """Return the eager model with the weights of removed channels zero, and their biases and shifts left."""
    model = copy.deepcopy(model)
    for name, dims in removed.items():
        path, _, kind = name.rpartition(".")
        if kind == "weight" and 0 in dims and not isinstance(model.get_submodule(path), nn.PReLU):
            model.get_parameter(name).data[dims[0]] = 0
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_constant_is_what_the_eager_model_holds_without_the_weights(bias: bool, seed: int) -> None:
    model = random_model(Bottleneck(bias))
    traced = fxprune.trace(model, (torch.randn(2, 3, 9, 9, dtype=torch.float64),))
    groups = find_groups(traced)
    removed = choose(groups, seed)
    plan = plan_of(traced, removed, "constant")
    assert not compensation_of(traced, plan, Kept(groups, removal_of(plan))).skipped
    small = cut(traced, plan, groups)
    args, _ = traced.inputs(batch=3, seed=7)
    with torch.no_grad():
        expected = without_weights(model, removed)(*args)
    assert_close(small.run(args), [expected])
    zero = cut(traced, removed, groups).run(args)[0]
    assert float((zero - expected).abs().max()) > 1e-3, "the constants made no difference, so nothing was tested"


def test_a_mean_is_what_the_reader_saw() -> None:
    torch.manual_seed(0)
    model = random_model(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)))
    traced = fxprune.trace(model, (torch.randn(2, 5, dtype=torch.float64),))
    batches = [torch.randn(n, 5, dtype=torch.float64) for n in (4, 7)]
    gone = [1, 2, 6]
    removed = {"0.weight": {0: gone}, "0.bias": {0: gone}, "2.weight": {1: gone}}
    small = cut(traced, plan_of(traced, removed, "mean"), calibration=iter(batches))
    x = torch.randn(6, 5, dtype=torch.float64)
    with torch.no_grad():
        hidden = torch.relu(model[0](x))  # type: ignore[index]
        hidden[:, gone] = torch.relu(model[0](torch.cat(batches))).mean(0)[gone]  # type: ignore[index]
        expected = model[2](hidden)  # type: ignore[index]
    assert_close(small.run((x,)), [expected])


def test_padding_holds_the_constant_too() -> None:
    model = random_model(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=2, stride=2)))
    traced = fxprune.trace(model, (torch.randn(2, 3, 9, 9, dtype=torch.float64),))
    removed = {"0.weight": {0: [0, 3]}, "0.bias": {0: [0, 3]}, "2.weight": {1: [0, 3]}}
    small = cut(traced, plan_of(traced, removed, "constant"))
    x = traced.args[0]
    with torch.no_grad():
        hidden = F.pad(torch.relu(model[0](x)), (2, 2, 2, 2))  # type: ignore[index]
        for channel in (0, 3):
            hidden[:, channel] = torch.relu(model[0].bias[channel])  # type: ignore[index]
        expected = F.conv2d(hidden, model[2].weight, model[2].bias, 2)  # type: ignore[index,arg-type]
    assert_close(small.run((x,)), [expected])


class Tokens(nn.Module):
    """A linear layer without bias, and behind it a norm whose channels are the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 7), nn.Linear(7, 5, bias=False)
        self.norm, self.head = nn.BatchNorm1d(5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.b(F.relu(self.a(x)))))  # type: ignore[no-any-return]


def test_a_norm_over_tokens_takes_no_constant_of_channels() -> None:
    model = random_model(Tokens())
    traced = fxprune.trace(model, torch.randn(2, 5, 6, dtype=torch.float64))
    removed = {"a.weight": {0: [1, 4]}, "a.bias": {0: [1, 4]}, "b.weight": {1: [1, 4]}}
    small = cut(traced, plan_of(traced, removed, "constant"))
    args, _ = traced.inputs(batch=3, seed=2)
    with torch.no_grad():
        assert_close(small.run(args), [without_weights(model, removed)(*args)])
    assert small.module.get_parameter("b.bias").shape == (5,)


class Across(nn.Module):
    """Layers that work on the width of an image, which has as many entries as there are channels."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.a, self.layer, self.c, self.head = nn.Conv2d(3, 8, 1), layer, nn.Conv2d(8, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.layer(self.a(x))).mean((2, 3)))  # type: ignore[no-any-return]


class ByThree(nn.Module):
    """Pooling that divides by another number than it sums over."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2, divisor_override=3)


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.LayerNorm(8), ByThree()])
def test_a_constant_that_does_not_survive_is_none(layer: nn.Module) -> None:
    traced = fxprune.trace(random_model(Across(layer)), torch.randn(2, 3, 8, 8, dtype=torch.float64))
    gone = [1, 5]
    removed = {"a.weight": {0: gone}, "a.bias": {0: gone}, "c.weight": {1: gone}}
    plan = plan_of(traced, removed, "constant")
    found = compensation_of(traced, plan, Kept(find_groups(traced), removed))
    assert not found.constants
    assert [place for place, _ in found.skipped] == ["c"]


def test_no_parameter_is_new_where_a_batch_norm_can_take_the_constant() -> None:
    model = random_model(Bottleneck(bias=False))
    traced = fxprune.trace(model, (torch.randn(2, 3, 9, 9, dtype=torch.float64),))
    groups = find_groups(traced)
    small = cut(traced, plan_of(traced, choose(groups, 0), "constant"), groups)
    added = set(small.module.state_dict()) - set(traced.module.state_dict())
    assert added == {"valid.bias"}, "only a layer without bias and norm needs a new one"
    assert small.module.get_parameter("valid.bias").requires_grad


@every_network
@pytest.mark.parametrize("mode", ["constant", "mean"])
def test_equals_the_reference_that_holds_the_constants(name: str, mode: str) -> None:
    _, traced, groups = grouped(name)
    plan = plan_of(traced, choose(groups, 4), mode)
    batches = [traced.args, traced.args]
    small = cut(traced, plan, groups, calibration=batches, exact=True)
    assert verify_cut(traced, small, plan, groups, calibration=batches).max_relative_error <= 1e-9


def test_the_pass_checks_before_it_rounds_and_says_what_it_did() -> None:
    model = random_model(Bottleneck(bias=True)).float()
    traced = fxprune.trace(model, (torch.randn(2, 3, 9, 9),))
    plan = plan_of(traced, choose(find_groups(traced), 0), "constant")
    result = Pipeline([PruneChannels(plan)])(traced)
    assert any("leave behind" in change.what for report in result.report for change in report.changes)
    assert {tensor.dtype for tensor in result.traced.module.parameters()} == {torch.float32}
    again = Pipeline([PruneChannels(plan)])(result.traced)
    assert again.report.changed == 0


class Awkward(nn.Module):
    """Readers that cannot take a constant: called twice, transposed, behind data, and with shared weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.twice = nn.Conv2d(8, 4, 1)
        self.up = nn.ConvTranspose2d(8, 4, 3)
        self.scaled = nn.Conv2d(8, 4, 1)
        self.place = nn.Parameter(torch.randn(1, 8, 6, 6))
        self.placed = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a, b = F.relu(self.a(x)), F.relu(self.b(x))
        return (
            self.twice(a) + self.twice(b),
            self.up(a),
            self.scaled(a * x.mean(1, keepdim=True)),
            self.placed(a + self.place),
        )


def test_a_reader_that_cannot_take_a_constant_says_why() -> None:
    traced = fxprune.trace(random_model(Awkward()), (torch.randn(2, 3, 6, 6, dtype=torch.float64),))
    groups = find_groups(traced)
    plan = plan_of(traced, choose(groups, 1), "constant")
    reasons = dict(compensation_of(traced, plan, Kept(groups, removal_of(plan))).skipped)
    assert "more than once" in reasons["twice"]
    assert "transposed" in reasons["up"]
    assert "meets data" in reasons["scaled"]
    assert "differs from place to place" in reasons["placed"]
    verify_cut(traced, cut(traced, plan, groups, exact=True), plan, groups)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (None, "none were given"),
        ([], "is empty"),
        ([torch.zeros(2, 4)], "batch 1 does not fit"),
        ([torch.full((2, 5), float("nan"))], "not finite"),
    ],
)
def test_bad_calibration_batches_are_refused(batches: Any, message: str) -> None:
    traced = fxprune.trace(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), (torch.randn(2, 5),))
    removed = {"0.weight": {0: [1]}, "0.bias": {0: [1]}, "2.weight": {1: [1]}}
    with pytest.raises(InputError, match=message):
        cut(traced, plan_of(traced, removed, "mean"), calibration=batches)


def test_a_plan_that_compensates_replays_from_json() -> None:
    model = random_model(Bottleneck(bias=True))
    traced = fxprune.trace(model, (torch.randn(2, 3, 9, 9, dtype=torch.float64),))
    plan = plan_of(traced, choose(find_groups(traced), 0), "constant")
    again = Plan.from_json(plan.to_json())
    assert dataclasses.asdict(again) == dataclasses.asdict(plan)
    x = traced.args
    assert torch.equal(cut(traced, plan).run(x)[0], cut(traced, again).run(x)[0])
