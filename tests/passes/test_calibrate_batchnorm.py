"""Running statistics of batch norms are those of the calibration data, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, TensorDataset

import fxprune
from fxprune.capture import Traced, trace
from fxprune.errors import InputError
from fxprune.passes import CalibrateBatchNorm, FuseBatchNorm, PruneChannels
from fxprune.pipeline import Pipeline
from fxprune.testing import check_pass

GENERATOR = torch.Generator().manual_seed(0)


def images(count: int, *shape: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return batches that are neither centred nor alike."""
    return [3 * torch.randn(shape, generator=GENERATOR).to(dtype) + number for number in range(count)]


class Net(nn.Module):
    """Norms behind each other, a residual, dropout, and a linear end with a norm of its own."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(dropout))
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=None, affine=False))
        self.last = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6, eps=1e-3), nn.ReLU(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.last((y + self.deep(y)).relu().mean((2, 3)))  # type: ignore[no-any-return]


def only_norm(channels: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a model that is one norm; it is "0"."""
    return nn.Sequential(nn.BatchNorm1d(channels)).to(dtype)


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in module.named_buffers() if "running" in name or "num_batches" in name}


def by_torch(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """Return the statistics that torch's own loop gives, dropout off."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    update_bn(batches, model)
    return statistics(model)


# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize(
    ("norm", "sizes"),
    [(nn.BatchNorm1d, ()), (nn.BatchNorm1d, (7,)), (nn.BatchNorm2d, (4, 5)), (nn.BatchNorm3d, (3, 4, 2))],
)
def test_means_and_unbiased_variances_by_hand(norm: Any, sizes: tuple[int, ...]) -> None:
    batches = images(3, 5, 4, *sizes)
    result = check_pass(CalibrateBatchNorm(batches), nn.Sequential(norm(4)), batches[0], changed=["0"])
    layer: Any = result.traced.module.get_submodule("0")
    rows = [batch.transpose(0, 1).reshape(4, -1) for batch in batches]
    counts = rows[0].shape[1]
    means = [row.sum(1) / counts for row in rows]
    variances = [((row - mean[:, None]) ** 2).sum(1) / (counts - 1) for row, mean in zip(rows, means, strict=True)]
    torch.testing.assert_close(layer.running_mean, sum(means) / 3, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(layer.running_var, sum(variances) / 3, rtol=1e-13, atol=1e-13)
    assert int(layer.num_batches_tracked) == 3


def test_batches_of_different_sizes_count_alike() -> None:
    batches = [torch.zeros(2, 1, dtype=torch.float64), torch.ones(6, 1, dtype=torch.float64)]
    result = CalibrateBatchNorm(batches)(trace(only_norm(1), batches[0]))
    assert statistics(result.traced.module)["0.running_mean"].tolist() == [0.5]


def test_norms_behind_norms_as_torch_does_it() -> None:
    model, batches = Net().double(), images(4, 6, 3, 8, 8)
    result = check_pass(CalibrateBatchNorm(batches), model, batches[0], changed=["stem.1", "deep.1", "last.1"])
    found, expected = statistics(result.traced.module), by_torch(model, batches)
    assert list(found) == list(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-12)
    assert "statistics of 4 batches: means moved by at most" in str(result)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_are_rounded_once(dtype: torch.dtype) -> None:
    batches = images(3, 64, 4, dtype=dtype)
    result = CalibrateBatchNorm(batches)(trace(only_norm(4, dtype), batches[0]))
    expected = torch.stack([batch.double().mean(0) for batch in batches]).mean(0).to(dtype)
    found = statistics(result.traced.module)
    assert torch.equal(found["0.running_mean"], expected)
    assert found["0.num_batches_tracked"].dtype == torch.int64


def test_a_norm_that_is_called_twice_sees_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.norm(x) * 2 + 1)  # type: ignore[no-any-return]

    model, batches = Twice().double(), images(2, 8, 3)
    result = check_pass(CalibrateBatchNorm(batches), model, batches[0], changed=["norm"])
    for name, value in by_torch(model, batches).items():
        torch.testing.assert_close(statistics(result.traced.module)[name], value, rtol=1e-12, atol=1e-12)


def test_max_batches() -> None:
    batches = images(5, 8, 3)
    traced = trace(only_norm(3), batches[0])
    few = CalibrateBatchNorm(iter(batches), max_batches=2)(traced).traced.module
    expected = CalibrateBatchNorm(batches[:2])(traced).traced.module
    assert torch.equal(statistics(few)["0.running_mean"], statistics(expected)["0.running_mean"])


# ---------------------------------------------------------------- what stays


def test_weights_modes_and_random_numbers_stay() -> None:
    model, batches = Net().double().eval(), images(2, 6, 3, 8, 8)
    traced = trace(model, batches[0])
    traced.module.train()
    traced.module.get_submodule("deep.1").eval()
    modes = [layer.training for layer in traced.module.modules()]
    state = torch.get_rng_state()
    result = Pipeline([CalibrateBatchNorm(batches)])(traced)
    assert torch.equal(torch.get_rng_state(), state)
    for module in (traced.module, result.traced.module):
        assert [layer.training for layer in module.modules()] == modes
    after = dict(result.traced.module.named_parameters())
    assert all(after[name] is parameter for name, parameter in traced.module.named_parameters())
    again = Pipeline([CalibrateBatchNorm(batches)])(traced).traced.module
    for name, value in statistics(result.traced.module).items():
        assert torch.equal(value, statistics(again)[name]), "the same data give the same numbers"


def test_behind_pruning_and_in_front_of_fusing() -> None:
    batches = [images(1, 32, 3, 8, 8, dtype=torch.float32)[0] for _ in range(8)]  # all alike
    model = Net().eval()
    update_bn(batches, model)
    traced = trace(model.eval(), batches[0])
    plan = fxprune.make_plan(traced, macs=0.5)
    pruned = Pipeline([PruneChannels(plan)])(traced).traced
    result = Pipeline([PruneChannels(plan), CalibrateBatchNorm(batches), FuseBatchNorm()])(traced)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in result.traced.module.modules())
    calibrated = CalibrateBatchNorm(batches)(pruned).traced
    assert off_centre(calibrated, batches) < 0.05 < off_centre(pruned, batches)


def off_centre(traced: Traced, batches: list[Tensor]) -> float:
    """Return how far the outputs of the second norm are from having mean 0, as it normalises without a shift."""
    seen: list[Tensor] = []
    handle = traced.module.get_submodule("deep.1").register_forward_hook(lambda layer, args, out: seen.append(out))
    for batch in batches:
        traced.run((batch,))
    handle.remove()
    return float(torch.cat(seen).mean((0, 2, 3)).abs().max())


def test_no_norm_no_run() -> None:
    result = CalibrateBatchNorm([])(trace(nn.Linear(3, 3), torch.randn(2, 3)))
    assert not result.report[0].changes
    assert not result.report[0].skips


# ---------------------------------------------------------------- left alone, with a reason


class Tied(nn.Module):
    """Two norms with the same statistics, one without any, and one that is not the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False)
        self.d = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.batch_norm(x, self.d.running_mean * 2, self.d.running_var)
        return self.a(x) + self.b(x) + self.c(x) + y  # type: ignore[no-any-return]


def test_norms_that_are_left_alone() -> None:
    batches = images(2, 8, 3)
    reasons = {
        "a": "b.running_mean has or reads the same statistics",
        "b": "a.running_mean has or reads the same statistics",
        "c": "it has no running statistics",
        "batch_norm": "it is no module of its own",
    }
    model = Tied().double()
    model.b.running_mean = model.a.running_mean
    check_pass(CalibrateBatchNorm(batches), model, batches[0], skipped=reasons)


def test_hooks_and_subclasses_are_left_alone() -> None:
    class Other(nn.BatchNorm1d):
        """Does who knows what."""

    traced = trace(nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3)), torch.randn(4, 3))
    traced.module.get_submodule("0").register_forward_hook(lambda layer, args, out: out * 2)
    traced.module._modules["1"] = Other(3).eval()
    (report,) = CalibrateBatchNorm([torch.randn(4, 3)])(traced).report
    assert [(skip.place, skip.why) for skip in report.skips] == [
        ("0", "it has forward hooks, which may do anything"),
        ("1", "it is a Other, which may do more than BatchNorm2d"),
    ]


# ---------------------------------------------------------------- batches in all their forms


class Two(nn.Module):
    """Two inputs, one of them by name."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor, *, other: Tensor, factor: float = 1.0) -> Tensor:
        return self.norm(x + factor * other)  # type: ignore[no-any-return]


def loader(x: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(x, torch.arange(len(x))), batch_size=4)


X, Y = images(2, 8, 3)
ONE = [
    [X], [(X, torch.arange(8))], [[X, torch.arange(8)]], [(X,)], [[X]], [((X,), torch.arange(8))], [((X,), {})],
    [{"input": X, "labels": torch.arange(8)}],
]  # fmt: skip
POSITIONAL = [[(X, Y)], [[X, Y]], [((X, Y), None)], [([X, Y], torch.arange(8))], [((X, Y), {})]]
NAMED = [
    [((X,), {"other": Y})], [((X,), {"other": Y, "factor": 2.0})], [(((X,), {"other": Y}), torch.arange(8))],
]  # fmt: skip


@pytest.mark.parametrize("position", range(len(ONE)))
def test_one_input(position: int) -> None:
    by_name = isinstance(ONE[position][0], dict)
    norm = only_norm(3)
    traced = trace(norm, (), kwargs={"input": X}) if by_name else trace(norm, X)
    found = statistics(CalibrateBatchNorm(ONE[position])(traced).traced.module)
    torch.testing.assert_close(found["0.running_mean"], X.mean(0))


def test_a_loader_can_be_used_again() -> None:
    traced, data = trace(only_norm(3), X), loader(X)
    once, twice = (statistics(CalibrateBatchNorm(data)(traced).traced.module) for _ in range(2))
    torch.testing.assert_close(once["0.running_mean"], X.mean(0))
    assert torch.equal(once["0.running_mean"], twice["0.running_mean"])


@pytest.mark.parametrize("position", range(len(POSITIONAL)))
def test_two_inputs(position: int) -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.norm(x - 2 * y)  # type: ignore[no-any-return]

    found = CalibrateBatchNorm(POSITIONAL[position])(trace(Sum().double(), (X, Y))).traced.module
    torch.testing.assert_close(statistics(found)["norm.running_mean"], (X - 2 * Y).mean(0))


@pytest.mark.parametrize("position", range(len(NAMED)))
def test_inputs_by_name(position: int) -> None:
    traced = trace(Two().double(), (X,), kwargs={"other": Y, "factor": 2.0})
    found = CalibrateBatchNorm(NAMED[position])(traced).traced.module
    torch.testing.assert_close(statistics(found)["norm.running_mean"], (X + 2 * Y).mean(0))


# ---------------------------------------------------------------- refused


BAD: dict[str, tuple[list[Any], str]] = {
    "no batches": ([], "there are no batches: the data are empty"),
    "another dtype": (
        [X.float()],
        "batch 1 of the calibration data: input 0 is a tensor of torch.float32 [8, 3]; the model was captured for "
        "torch.float64 of sizes [any, 3]",
    ),
    "another size": (
        [X, torch.zeros(8, 4).double()],
        "batch 2 of the calibration data: input 0 is a tensor of torch.float64 [8, 4]",
    ),
    "another rank": ([X[0]], "input 0 is a tensor of torch.float64 [3]"),
    "three inputs": ([(X, X, X)], "is a tuple of a tensor of torch.float64 [8, 3], a tensor"),
    "words": (["abc"], "input 0 is the str 'abc'"),
    "by another name": ([{"x": X}], "batch 1 of the calibration data"),
    "a single value": ([X[:1]], "gives 0 1 value per channel, and a variance takes two: give larger batches"),
    "no value": ([X[:0]], "gives 0 0 values per channel"),
    "not finite": ([X, X * float("inf")], "batch 2 of the calibration data gives 0 values that are not finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_batches_that_do_not_fit(case: str) -> None:
    batches, said = BAD[case]
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3)).double().train()
    traced = trace(model, X)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError) as caught:
        CalibrateBatchNorm(batches)(traced)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("calibrate-batchnorm: ")
    assert model.training
    for module in (model, traced.module):
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_an_iterator_is_used_up() -> None:
    traced, pass_ = trace(only_norm(3), X), CalibrateBatchNorm(iter([X]))
    assert pass_(traced).report.changed
    with pytest.raises(InputError, match="used up by an earlier run"):
        pass_(traced)


def test_another_literal_than_the_captured() -> None:
    traced = trace(Two().double(), (X,), kwargs={"other": Y, "factor": 2.0})
    with pytest.raises(InputError, match=r"input factor is the float 3\.0; the model was captured with 2\.0"):
        CalibrateBatchNorm([((X,), {"other": Y, "factor": 3.0})])(traced)
    with pytest.raises(InputError, match="and the model takes a tuple of a tensor"):
        CalibrateBatchNorm([X])(traced)


def test_a_static_batch_is_held_to() -> None:
    traced = trace(only_norm(3), X, dynamic_batch=False)
    with pytest.raises(InputError, match=r"of sizes \[8, 3\]"):
        CalibrateBatchNorm([X, X[:5]])(traced)


def test_what_the_data_raise_is_theirs() -> None:
    def broken() -> Iterator[Tensor]:
        yield X
        raise OSError("the disk is gone")

    traced = trace(only_norm(3), X)
    with pytest.raises(OSError, match="the disk is gone"):
        CalibrateBatchNorm(broken())(traced)


@pytest.mark.parametrize("batches", [X, {"x": X}, "abc", 3])
def test_batches_are_several(batches: Any) -> None:
    with pytest.raises(InputError, match="give a loader or a list of batches"):
        CalibrateBatchNorm(batches)


@pytest.mark.parametrize("most", [0, -1, 1.5, True])
def test_max_batches_is_a_count(most: Any) -> None:
    with pytest.raises(InputError, match="max_batches is"):
        CalibrateBatchNorm([X], max_batches=most)
